from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.compositional.geneval_prompts import (
    COLORS,
    RELATIONS,
    TAGS,
    Clause,
    Exclusion,
    parse_prompt,
    read_object_names,
    read_prompts,
)

RECORD: dict[str, Any] = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 2, "position": ["above", 0]}],
    "exclude": [{"class": "cow", "count": 3}],
    "prompt": "two dogs above a red cat",
}


def changed(*path: Any, value: Any = None, drop: bool = False) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    place: Any = record
    for key in path[:-1]:
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


def test_a_record_becomes_a_prompt() -> None:
    prompt = parse_prompt(RECORD)
    assert prompt.tag == "position" and prompt.prompt == "two dogs above a red cat"
    assert prompt.include == (Clause("cat", 1, "red"), Clause("dog", 2, None, "above", 0))
    assert prompt.exclude == (Exclusion("cow", 3),)
    assert prompt.record == RECORD


def test_the_schema_knows_six_tasks_ten_colours_and_four_relations() -> None:
    assert (len(TAGS), len(COLORS), len(RELATIONS)) == (6, 10, 4)
    for tag in TAGS:
        assert parse_prompt(changed("tag", value=tag)).tag == tag
    for color in COLORS:
        assert parse_prompt(changed("include", 0, "color", value=color)).include[0].color == color
    for relation in RELATIONS:
        assert parse_prompt(changed("include", 1, "position", value=[relation, 0])).include[1].relation == relation


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed("tag", drop=True), 'the record lacks "tag"'),
        (changed("prompt", drop=True), 'the record lacks "prompt"'),
        (changed("include", drop=True), 'the record lacks "include"'),
        (changed("include", value=[]), "asks for nothing"),
        (changed("include", value={"class": "cat"}), '"include" must be list'),
        (changed("include", 1, "class", drop=True), r'include\[1\] lacks "class"'),
        (changed("include", 1, "count", drop=True), r'include\[1\] lacks "count"'),
        (changed("include", 0, "count", value=0), r"include\[0\]: count must be at least 1, got 0"),
        (changed("include", 0, "count", value=True), "count must be at least 1, got True"),
        (changed("include", 0, "count", value="two"), '"count" must be int'),
        (changed("include", 0, value="cat"), r"include\[0\] must be an object"),
        (changed("tag", value="shapes"), "unknown tag 'shapes'"),
        (changed("include", 0, "color", value="mauve"), r"include\[0\] has the unknown color 'mauve'"),
        (changed("include", 1, "position", value=["near", 0]), r"include\[1\] has the unknown relation 'near'"),
        (changed("include", 1, "position", value=["above", 1]), "above clause 1, which is not one of the 1 clauses"),
        (changed("include", 1, "position", value=["above", 7]), "not one of the 1 clauses"),
        (changed("include", 1, "position", value=["above", -1]), "not one of the 1 clauses"),
        (changed("include", 0, "position", value=["above", 0]), "not one of the 0 clauses"),
        (changed("include", 1, "position", value="above"), "position is"),
        (changed("exclude", 0, "count", drop=True), r'exclude\[0\] lacks "count"'),
        ([], "the record must be an object, got list"),
    ],
)
def test_a_wrong_record_is_refused_with_the_place(record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_prompt(record, "prompts.jsonl line 7")
    assert str(caught.value).startswith("prompts.jsonl line 7: ")


def test_a_class_that_the_detector_does_not_know_is_refused() -> None:
    parse_prompt(RECORD, names=["cat", "dog", "cow"])
    for missing, where in (("dog", r"include\[1\]"), ("cow", r"exclude\[0\]")):
        with pytest.raises(ValueError, match=f"{where} has the class '{missing}'"):
            parse_prompt(RECORD, names={"cat", "dog", "cow"} - {missing})


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    odd = changed("prompt", value="a cat\u2028and a dog")
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(odd, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert [prompt.prompt for prompt in read_prompts(path)] == ["two dogs above a red cat", "a cat\u2028and a dog"]


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(changed("include", 0, "color", value="mauve")) + "\n")
    with pytest.raises(DataError, match=r"evaluation_metadata.jsonl line 2: include\[0\] has the unknown color"):
        read_prompts(path)
    path.write_text(json.dumps(RECORD) + "\n{not json\n")
    with pytest.raises(DataError, match="evaluation_metadata.jsonl line 2 is not JSON"):
        read_prompts(path)
    path.write_text("")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_prompts(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_object_names(tmp_path: Path) -> None:
    path = tmp_path / "object_names.txt"
    path.write_text("cat\ncomputer mouse\n")
    assert read_object_names(path) == ["cat", "computer mouse"]
    path.write_text("cat\ncat\n")
    with pytest.raises(DataError, match="every class once"):
        read_object_names(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_object_names(tmp_path / "nowhere.txt")
