"""The model card names things that exist, its switches exist, and its example runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import lightning_gen.autoencoders.pae as room
from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.refine import PAERefine
from tests.autoencoders.pae.tiny import module
from tests.harness.model_card import card_of, missing_functions, named_functions, python_blocks

CARD = card_of(room)


def test_every_function_of_the_card_exists() -> None:
    assert len(named_functions(CARD)) >= 30
    assert missing_functions(CARD, room) == []


def test_every_switch_exists() -> None:
    found = re.findall(r"`(model|refine)\.(\w+)", CARD.split("## Deviations and choices")[1].split("\n## ")[0])
    assert len(found) >= 10
    for owner, name in found:
        assert name in inspect.signature({"model": PAE, "refine": PAERefine}[owner]).parameters, f"{owner}.{name}"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module()
    model.configure_model()
    model.save_pretrained(tmp_path / "weights" / "pae")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(python_blocks(CARD)[0], space)
    assert space["latents"].values.shape == (1, 16, 6)  # type: ignore[attr-defined]
    assert space["images"].shape == (1, 3, 32, 32)  # type: ignore[attr-defined]
