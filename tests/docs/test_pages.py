"""Pages point to things that exist: files, recipes, verbs; and their Python is at least Python."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import lightning_gen
from lightning_gen.cli import OWN_VERBS, TRAINER_VERBS
from lightning_gen.rewards.applicability import SaysWhereItApplies
from tests.harness.model_card import python_blocks

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "lightning_gen").rglob("README.md")),
    *sorted((ROOT / "data").glob("*/README.md")),
]


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    verbs = re.findall(r"(?:^|`)lightning(?:-gen)? (\w+)", text, re.MULTILINE)
    assert set(verbs) <= {*OWN_VERBS, *TRAINER_VERBS}
    for recipe in re.findall(r"\bvitok_v2_(?:tiny|350m\w*|5b\w*)", text):
        assert (ROOT / "configs" / f"{recipe}.yaml").is_file(), recipe


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_python_blocks_parse(page: Path) -> None:
    for block in python_blocks(page.read_text(encoding="utf-8")):
        assert ast.parse(block).body, "an empty block"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_data_blocks_can_be_built(page: Path) -> None:
    for block in re.findall(r"```yaml\n(data:\n.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        data = yaml.safe_load(block)["data"]
        if "class_path" in data:
            assert getattr(lightning_gen, data["class_path"].rpartition(".")[2])(**data["init_args"])


def test_the_reward_of_the_page_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "post_training.md").read_text(encoding="utf-8")
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    (block,) = (block for block in python_blocks(page) if "class Brightness" in block)
    exec(block, module.__dict__)
    module.Brightness.__module__ = "my_rewards"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=SaysWhereItApplies)
    named = parser.parse_object({"reward": {"class_path": "my_rewards.Brightness"}})
    assert type(parser.instantiate(named).reward) is module.Brightness


def test_navigation_lists_every_page() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {page for entry in navigation for page in entry.values()}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_readme_has_the_two_commands_and_the_literal_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in ("make demo ", "make test ", "lightning fit --config configs/vitok_v2_5b.yaml\n"):
        assert f"\n{line}" in text
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t\$\(PY\) -m lightning_gen demo$", makefile, re.MULTILINE)
