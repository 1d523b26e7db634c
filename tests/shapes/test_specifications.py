"""Rows are what EGIP's code takes, and the exact judge passes what is right and fails what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lightning_gen.metrics.judging.egip_judging import parse_verdicts, score_verdicts
from lightning_gen.metrics.judging.gen_arena import GenArenaCase, read_gen_arena
from lightning_gen.shapes.grammar import Request, parse_prompt
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.specifications import read_picture, specification, verdicts
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS
from tests.shapes.worlds import scenes


def cases(folder: Path, requests: list[Request]) -> list[GenArenaCase]:
    """The rows as EGIP's reader has them."""
    rows = [specification(request, f"s{number}") for number, request in enumerate(requests)]
    (folder / "data").mkdir()
    (folder / "data" / "gen_arena.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_gen_arena(folder)


def failed(prompt: str, *objects: SceneObject, background: str = "gray", word: str = "") -> list[str]:
    """What the judge fails in a picture."""
    row = specification(parse_prompt(prompt), "x")
    reading = read_picture(render(Scene(objects, background, word), (64, 64)))
    answer = verdicts(row, reading)
    names = {item["id"]: item.get("name") or item["text"] for part in ("entities", "constraints") for item in row[part]}
    return [names[item["id"]] for part in answer.values() for item in part if item["verdict"] == "fail"]


def test_pictures_of_their_prompts_pass_through_egip_s_own_code(tmp_path: Path) -> None:
    drawn = list(scenes(150, words=True))
    read = cases(tmp_path, [request for request, _ in drawn])
    assert {constraint.type for case in read for constraint in case.constraints} == {
        "attribute", "count", "relation", "text",
    }  # fmt: skip
    for (request, scene), case in zip(drawn, read, strict=True):
        row = specification(request, case.case_id)
        answer = verdicts(row, read_picture(render(scene, (32, 32))))
        result = score_verdicts(case, parse_verdicts(json.dumps(answer)))
        assert result.passed, (request.prompt(), answer)
        assert result.completeness.complete


def test_wrong_pictures_fail_where_they_are_wrong() -> None:
    star, moon = SceneObject("star", "red", 0.28, 0.3, 0.18), SceneObject("moon", "blue", 0.72, 0.3, 0.18)
    assert failed("a photo of a red star and a blue moon", star, moon) == []
    assert failed("a photo of a red star and a green moon", star, moon) == ["the moon is green"]
    assert failed("a photo of a red star and a ring", star, moon) == ["ring"]
    assert failed("a photo of a star left of a moon", star, moon) == []
    assert failed("a photo of a star right of a moon", star, moon) == ["a star is right of a moon"]
    assert failed("a photo of a blue star left of a moon", star, moon) == [
        "the star is blue", "a blue star is left of a moon",
    ]  # fmt: skip
    assert failed("a photo of a star on a sand background", star) == ["the background is sand"]
    two = star, dataclasses.replace(star, x=0.72)
    assert failed("a photo of two red stars", *two) == []
    assert failed("a photo of two red stars", star) == ["star", "there are exactly two stars", "the stars are red"]
    assert failed("a photo of two stars", *two, dataclasses.replace(star, y=0.72)) == ["there are exactly two stars"]
    assert failed("a photo of a red star and a blue star", star) == ["star", "the star is blue"]
    assert failed('a photo of the word "CAT"', word="CAT") == []
    assert failed('a photo of the word "CAT"', word="CAR") == ['the word reads "CAT"']
    assert failed('a photo of the word "CAT"', star) == ["a word", 'the word reads "CAT"']


def test_a_picture_is_read_whole() -> None:
    for ground in BACKGROUNDS:
        scene = Scene((SceneObject("ring", "pink", 0.5, 0.5, 0.2),), ground)
        reading = read_picture(render(scene, (32, 32)))
        assert [(one.kind, one.color) for one in reading.objects] == [("ring", "pink")]
        assert (reading.background, reading.word) == (ground, "")
    assert read_picture(render(Scene((), "mist", "WORLD", list(COLORS)[4]), (32, 32))).word == "WORLD"


def test_rows_of_other_benchmarks_are_refused() -> None:
    row = specification(parse_prompt("a photo of a star"), "x")
    del row["entities"][0]["check"]
    with pytest.raises(ValueError, match="make rows with specification"):
        verdicts(row, read_picture(render(Scene(()), (32, 32))))
