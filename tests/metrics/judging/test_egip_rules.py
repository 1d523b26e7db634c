"""EGIP of one image: the truth table, gating, what counts as a pass, and specifications that mean nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gen.metrics.judging.egip_rules import (
    CaseResult,
    Constraint,
    Entity,
    Judgement,
    SpecificationError,
    Verdicts,
    judge_case,
)

ENTITIES = [Entity(name, name) for name in ("e1", "e2", "e3")]
CONSTRAINTS = [
    Constraint("c1", "attribute", "red", ("e1",)),
    Constraint("c2", "relation", "beside", ("e1", "e2")),
    Constraint("c3", "layout", "left", ("e3",)),
    Constraint("c4", "style", "ink"),
]
WORDS = ("pass", "fail", "uncertain", " PASS\n", "passed", None, True)


def judged(changes: dict[str, object] | None = None, left_out: tuple[str, ...] = ()) -> CaseResult:
    """All pass but what is changed or left out."""
    changes = changes or {}
    entities, constraints = (
        tuple(Judgement(item.id, changes.get(item.id, "pass")) for item in items if item.id not in left_out)
        for items in (ENTITIES, CONSTRAINTS)
    )
    return judge_case(ENTITIES, CONSTRAINTS, Verdicts(entities, constraints))


def verdicts_of(words: list[object]) -> Verdicts:
    ids = [item.id for item in (*ENTITIES, *CONSTRAINTS)]
    items = [Judgement(name, word) for name, word in zip(ids, words, strict=True)]
    return Verdicts(tuple(items[:3]), tuple(items[3:]))


def test_everything_passes() -> None:
    result = judged()
    assert result.passed
    assert all(result.gated.values())
    assert result.completeness.complete


@pytest.mark.parametrize("flipped", [item.id for item in (*ENTITIES, *CONSTRAINTS)])
def test_truth_table(flipped: str) -> None:
    result = judged({flipped: "fail"})
    assert not result.passed
    dependents = {c.id for c in CONSTRAINTS if flipped in c.depends_on or c.id == flipped}
    assert {name for name, gate in result.gated.items() if not gate} == dependents
    if flipped.startswith("e"):
        assert all(result.direct.values())
        assert sum(result.gated.values()) == 4 - len(dependents)


def test_an_entity_that_nothing_rests_on_gates_the_row_all_the_same() -> None:
    result = judge_case(
        ENTITIES,
        CONSTRAINTS[2:],
        Verdicts(verdicts_of(["fail", *["pass"] * 6]).entities, (Judgement("c3", "pass"), Judgement("c4", "pass"))),
    )
    assert all(result.gated.values())
    assert not result.passed
    assert not judge_case(ENTITIES, [], Verdicts()).passed


def test_a_constraint_without_dependencies_is_not_gated() -> None:
    assert judged({"e1": "fail", "e2": "fail", "e3": "fail"}).gated == {
        "c1": False,
        "c2": False,
        "c3": False,
        "c4": True,
    }


@pytest.mark.parametrize("word", ["pass", "PASS ", "\tPass\n"])
def test_words_that_pass(word: str) -> None:
    assert judged({"e1": word, "c1": word}).passed


@pytest.mark.parametrize("word", ["passed", "yes", True, 1, None, "uncertain", "", "fail", "pass.", ["pass"]])
def test_words_that_fail(word: object) -> None:
    result = judged({"c1": word})
    assert not result.passed
    assert not result.direct["c1"]
    assert result.completeness.undecided == (() if word == "fail" else ("constraint:c1",))


@pytest.mark.parametrize("left_out", ["e1", "c3"])
def test_leaving_out_is_failing(left_out: str) -> None:
    without, failed = judged(left_out=(left_out,)), judged({left_out: "fail"})
    assert (without.entities, without.direct, without.gated, without.passed) == (
        failed.entities,
        failed.direct,
        failed.gated,
        failed.passed,
    )
    kind = "entity" if left_out.startswith("e") else "constraint"
    assert without.completeness.omitted == (f"{kind}:{left_out}",)


def test_unknown_ids_change_nothing_and_are_reported() -> None:
    verdicts = verdicts_of(["pass"] * 7)
    more = Verdicts((*verdicts.entities, Judgement("ghost", "fail")), (*verdicts.constraints, Judgement("e1", "fail")))
    result = judge_case(ENTITIES, CONSTRAINTS, more)
    assert result.passed
    assert result.completeness.extra == ("entity:ghost", "constraint:e1")


def test_of_a_repeated_id_the_last_verdict_counts() -> None:
    verdicts = verdicts_of(["pass"] * 7)
    worse = Verdicts((*verdicts.entities, Judgement("e2", "fail")), verdicts.constraints)
    better = Verdicts((Judgement("e2", "fail"), *verdicts.entities), verdicts.constraints)
    assert not judge_case(ENTITIES, CONSTRAINTS, worse).passed
    result = judge_case(ENTITIES, CONSTRAINTS, better)
    assert result.passed
    assert result.completeness.repeated == ("entity:e2",)


@given(st.lists(st.sampled_from(WORDS), min_size=7, max_size=7))
def test_inequalities_hold_for_any_verdicts(words: list[object]) -> None:
    result = judge_case(ENTITIES, CONSTRAINTS, verdicts_of(words))
    assert result.passed <= min(result.entities.values())
    assert all(result.gated[name] <= result.direct[name] for name in result.direct)
    assert result.passed == (all(result.entities.values()) and all(result.direct.values()))


@given(st.lists(st.sampled_from(WORDS), min_size=7, max_size=7), st.randoms(use_true_random=False))
def test_order_does_not_matter(words: list[object], chance: random.Random) -> None:
    verdicts = verdicts_of(words)
    shuffled = [list(items) for items in (ENTITIES, CONSTRAINTS, verdicts.entities, verdicts.constraints)]
    for items in shuffled:
        chance.shuffle(items)
    entities, constraints, seen, held = shuffled
    first = judge_case(ENTITIES, CONSTRAINTS, verdicts)
    second = judge_case(entities, constraints, Verdicts(tuple(seen), tuple(held)))  # type: ignore[arg-type]
    assert (first.entities, first.direct, first.gated, first.passed) == (
        second.entities,
        second.direct,
        second.gated,
        second.passed,
    )


def test_a_dangling_dependency_is_named() -> None:
    constraints = [Constraint("c9", "layout", "left", ("e1", "e7"))]
    with pytest.raises(SpecificationError, match="'row 5': constraint 'c9' depends on entity 'e7'"):
        judge_case(ENTITIES, constraints, Verdicts(), row="row 5")


def test_a_dangling_dependency_fails_where_that_is_asked_for() -> None:
    constraints = [Constraint("c9", "layout", "left", ("e1", "e7"))]
    verdicts = Verdicts(verdicts_of(["pass"] * 7).entities, (Judgement("c9", "pass"),))
    result = judge_case(ENTITIES, constraints, verdicts, dangling="fail")
    assert (result.direct["c9"], result.gated["c9"], result.passed) == (True, False, False)


def test_an_empty_specification_is_no_pass_unless_asked_for() -> None:
    with pytest.raises(SpecificationError, match="'row 5' has neither"):
        judge_case([], [], Verdicts(), row="row 5")
    assert judge_case([], [], Verdicts(), empty="pass").passed


@pytest.mark.parametrize(
    ("entities", "constraints", "message"),
    [
        ([Entity("e1", "a"), Entity("e1", "b")], [], "entity id 'e1' is used 2 times"),
        (ENTITIES, [CONSTRAINTS[0], CONSTRAINTS[0]], "constraint id 'c1' is used 2 times"),
        ([Entity("", "a")], [], "entity id '' is empty"),
        (ENTITIES, [Constraint("c1", "colour", "red")], "type 'colour'"),
    ],
)
def test_a_bad_specification_is_named(entities: list[Entity], constraints: list[Constraint], message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        judge_case(entities, constraints, Verdicts(), row="r")
