"""Reading Gen-Arena: both layouts, what is kept, what is refused, and what a generator may see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_gen.metrics.judging.egip_rules import Constraint, Entity, SpecificationError
from lightning_gen.metrics.judging.gen_arena import generator_packet, read_gen_arena, read_gen_arena_packets


def row(number: int = 4, category: str = "1-cartoon", folder: str = "reference_images/1-cartoon") -> dict[str, Any]:
    return {
        "id": f"{category}_{number:03}",
        "category": category,
        "prompt": "Two heroes at a gate",
        "reference_images": [{"id": "r1", "path": f"{folder}/hero.png"}],
        "reference_image_paths": [f"{folder}/hero.png"],
        "num_reference_images": 1,
        "entities": [
            {"id": "e1", "name": "hero", "reference_ids": ["r1"], "priority": "primary"},
            {"id": "e2", "name": "gate"},
        ],
        "constraints": [
            {"id": "c1", "type": "Layout", "text": "the hero left of the gate", "depends_on": ["e1", "e2"]}
        ],
        "num_entities": 2,
        "num_constraints": 1,
        "constraint_type_counts": {"layout": 1, "relation": 0},
        "difficulty": "hard",
    }


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (200, 10, 30)).save(path)


def hub(root: Path, *rows: dict[str, Any]) -> Path:
    (root / "data").mkdir(parents=True)
    (root / "data/gen_arena.jsonl").write_text("\n".join(json.dumps(item) for item in rows) + "\n", encoding="utf-8")
    picture(root / "reference_images/1-cartoon/hero.png")
    return root


def code(root: Path, **rows: list[dict[str, Any]]) -> Path:
    for category, items in rows.items():
        folder = root / category.replace("_", "-").lstrip("c")
        folder.mkdir(parents=True)
        (folder / "eval.jsonl").write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
        picture(folder / "images/hero.png")
    return root


def test_hub_layout(tmp_path: Path) -> None:
    (case,) = read_gen_arena(hub(tmp_path, row()))
    assert (case.case_id, case.category, case.prompt) == ("1-cartoon_004", "1-cartoon", "Two heroes at a gate")
    assert case.entities == (Entity("e1", "hero", ("r1",), {"priority": "primary"}), Entity("e2", "gate"))
    assert case.constraints == (Constraint("c1", "layout", "the hero left of the gate", ("e1", "e2")),)
    assert case.references[0].path == tmp_path / "reference_images/1-cartoon/hero.png"
    assert case.extra["difficulty"] == "hard"


def test_code_layout(tmp_path: Path) -> None:
    game, cartoon = row(1, "2-game", "images"), row(2, "1-cartoon", "images")
    for item in (game, cartoon):
        del item["category"]
    root = code(tmp_path, **{"2-game": [game], "1-cartoon": [cartoon]})
    (root / "notes").mkdir()
    cases = read_gen_arena(root)
    assert [case.category for case in cases] == ["1-cartoon", "2-game"]
    assert cases[1].references[0].path == root / "2-game/images/hero.png"
    assert cases[0].entities == read_gen_arena(hub(tmp_path / "hub", row()))[0].entities


def test_a_row_in_the_folder_of_another_category_is_refused(tmp_path: Path) -> None:
    root = code(tmp_path, **{"2-game": [row(1, "1-cartoon", "images")]})
    with pytest.raises(SpecificationError, match="category '1-cartoon' in the folder of '2-game'"):
        read_gen_arena(root)


def test_a_generator_sees_id_and_prompt_alone(tmp_path: Path) -> None:
    (case,) = read_gen_arena(hub(tmp_path, row()))
    packet = generator_packet(case)
    assert packet == {"case_id": "1-cartoon_004", "prompt": "Two heroes at a gate", "input_images": []}
    assert not any(word in json.dumps(packet) for word in ("hero.png", "e1", "left of", "layout"))


def test_packets_need_no_labels_and_no_reference_images(tmp_path: Path) -> None:
    (tmp_path / "3-sports").mkdir()
    (tmp_path / "3-sports/prompt.jsonl").write_text('{"id": "3-sports_001", "prompt": "A race"}\n', encoding="utf-8")
    root = code(tmp_path, **{"1-cartoon": [row(1, "1-cartoon", "elsewhere")]})
    assert [packet["case_id"] for packet in read_gen_arena_packets(root)] == ["1-cartoon_001", "3-sports_001"]
    with pytest.raises(FileNotFoundError, match="1 of 1 reference images are missing, the first is 'r1'"):
        read_gen_arena(root)


@pytest.mark.parametrize("path", ["../secret.png", "a/../../b.png", "/etc/passwd", "C:\\x.png", "..\\secret.png"])
def test_a_path_that_leaves_the_benchmark_is_refused(tmp_path: Path, path: str) -> None:
    item = row()
    item["reference_images"][0]["path"] = path
    with pytest.raises(SpecificationError, match=r"line 1 \(1-cartoon_004\): path .* leaves"):
        read_gen_arena(hub(tmp_path, item))


def test_a_linked_file_is_inside(tmp_path: Path) -> None:
    root = hub(tmp_path / "snapshot", row())
    path = root / "reference_images/1-cartoon/hero.png"
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    assert read_gen_arena(root)[0].references[0].path.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_entities": 3}, "num_entities is 3, but the list holds 2"),
        ({"num_constraints": 2}, "num_constraints is 2, but the list holds 1"),
        ({"num_reference_images": 0}, "num_reference_images is 0, but the list holds 1"),
        ({"constraint_type_counts": {"relation": 1}}, "constraint_type_counts is"),
        ({"prompt": " "}, "'prompt' must be a text"),
        ({"entities": {"e1": "hero"}}, "'entities' must be a list of objects, got dict"),
        ({"constraints": None}, "'constraints' must be a list of objects, got NoneType"),
        ({"reference_images": [], "num_reference_images": 0}, "entity 'e1' points to reference 'r1'"),
        (
            {"entities": [], "constraints": [], "num_entities": 0, "num_constraints": 0},
            "has neither entities nor constraints",
        ),
        (
            {"constraints": [{"id": "c1", "type": "layout", "text": "x", "depends_on": ["e9"]}]},
            "constraint 'c1' depends on entity 'e9'",
        ),
        ({"constraints": [{"id": "c1", "type": "colour", "text": "x"}]}, "has type 'colour'"),
        ({"constraints": [{"id": "c1", "type": "layout", "text": "x", "depends_on": "e1"}]}, "must be a list of ids"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecificationError, match=message) as caught:
        read_gen_arena(hub(tmp_path, row(3), {**row(), **change}))
    assert "line 2 (1-cartoon_004)" in str(caught.value)


def test_a_dangling_id_can_be_left_to_fail(tmp_path: Path) -> None:
    item = row()
    item["constraints"][0]["depends_on"] = ["e9"]
    (case,) = read_gen_arena(hub(tmp_path, item), dangling="fail")
    assert case.constraints[0].depends_on == ("e9",)


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    root = hub(tmp_path, row())
    with (root / "data/gen_arena.jsonl").open("a") as file:
        file.write('\n{"id": \n')
    with pytest.raises(SpecificationError, match="line 3 is not JSON"):
        read_gen_arena(root)
    (root / "data/gen_arena.jsonl").write_text("[1]\n")
    with pytest.raises(SpecificationError, match="line 1 is not a JSON object"):
        read_gen_arena(root)


def test_numbers_are_ids_and_line_separators_are_text(tmp_path: Path) -> None:
    item = row()
    item["prompt"] = "Two\u2028lines"
    item["entities"] = [{"id": 1, "name": "hero", "reference_ids": ["r1"]}, {"id": 2, "name": "gate"}]
    item["constraints"][0]["depends_on"] = [1, "2"]
    root = hub(tmp_path)
    (root / "data/gen_arena.jsonl").write_text(json.dumps(item, ensure_ascii=False), encoding="utf-8-sig")
    (case,) = read_gen_arena(root)
    assert case.prompt == "Two\u2028lines"
    assert case.constraints[0].depends_on == tuple(entity.id for entity in case.entities) == ("1", "2")


def test_a_repeated_case_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="'1-cartoon_004' is used by 2 rows"):
        read_gen_arena(hub(tmp_path, row(), row()))


def test_an_empty_folder_is_no_benchmark(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match="holds neither data/gen_arena.jsonl"):
            read_gen_arena(root)
