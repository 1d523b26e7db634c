"""What the card says is there, and its example runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gen.autoencoders import muse
from tests.autoencoders.muse.tiny import module
from tests.harness.model_card import card_of, missing_functions, named_functions, python_blocks


def test_every_function_of_the_card_exists() -> None:
    assert len(named_functions(card_of(muse))) > 30
    assert missing_functions(card_of(muse), muse) == []


def test_the_example_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = module()
    model.configure_model()
    model.save_pretrained("weights/muse_tiny")
    (example,) = python_blocks(card_of(muse))
    found: dict[str, object] = {}
    exec(example, found)
    assert tuple(found["images"].shape) == (1, 3, 64, 48)  # type: ignore[attr-defined]
    assert tuple(found["features"].shape) == (1, 16)  # type: ignore[attr-defined]
