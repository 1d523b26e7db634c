"""The card beside exported weights: what it says, where it takes it from, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from PIL import Image

from lightning_gen.commands.model_card import Exported, Section, run_of, write_card
from lightning_gen.commands.model_card_manifold import manifold
from lightning_gen.commands.model_card_sections import SECTIONS, measured, routing, settings, training, what_it_is


class Small(LightningModule):
    """Sees little,
    but sees it well.

    More is not to be told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(40, 50)


class Readable(Small):
    """Comes back."""

    @classmethod
    def from_pretrained(cls, folder: str) -> Any:
        """Read it."""

    def save_pretrained(self, folder: str) -> None:
        """Write it."""


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    run, output = tmp_path / "runs" / "mine", tmp_path / "weights" / "mine"
    for folder in (run / "checkpoints", run / "routing", run / "manifold", output):
        folder.mkdir(parents=True)
    checkpoint = run / "checkpoints" / "step=0001000.ckpt"
    state = {
        "global_step": 1000,
        "hyper_parameters": {"width": 8, "sizes": (1, 2), "dtype": torch.float32, "_class_path": "x.Small"},
        "callbacks": {"EMA": {"step": 1000}},
        "ShapesDataModule": {"position": {"samples_seen_global": 24_000, "first_sample": 1_000_000}},
    }
    return Exported(Small(), output, checkpoint, state, "ema 0.99", "float16", run_of(checkpoint))


def text(exported: Exported) -> str:
    return (exported.output / "README.md").read_text(encoding="utf-8")


def test_it_says_what_the_weights_are(exported: Exported) -> None:
    found = what_it_is(exported).text
    assert found.startswith("Sees little, but sees it well.\n") and "More is not" not in found
    assert f"`{__name__}.Small`, 2,050 parameters" in found
    assert "moving average of decay 0.99, in float16" in found and "from_pretrained" not in found
    raw = what_it_is(dataclasses.replace(exported, model=Readable(), weights="raw", dtype=None)).text
    assert "raw ones of the last step." in raw
    assert f'from {__name__} import Readable\n\nmodel = Readable.from_pretrained("path/to/mine")' in raw


def test_it_says_how_they_were_trained(exported: Exported) -> None:
    assert exported.run is not None
    config = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "devices": 2, "strategy": None},
        "data": {"class_path": "my.Data", "init_args": {"train": "/home/somebody"}},
    }
    (exported.run / "config.yaml").write_text("# lightning-gen==0\n" + yaml.safe_dump(config), encoding="utf-8")
    found = training(exported).text
    for row in ("| optimiser steps | 1,000 |", "| samples | 1,024,000 |", "| data | `my.Data` |", "| devices | 2 |"):
        assert row in found
    assert "| seed | 0 |" in found and "strategy" not in found and "somebody" not in found
    assert "samples" not in training(dataclasses.replace(exported, state={"global_step": 3}, run=None)).text


def test_it_says_what_the_weights_mean(exported: Exported) -> None:
    found = settings(exported)
    assert found is not None
    values = yaml.safe_load(found.text.removeprefix("```yaml\n").removesuffix("```"))
    assert values == {"width": 8, "sizes": [1, 2], "dtype": "torch.float32"}
    assert settings(dataclasses.replace(exported, state={})) is None


def test_numbers_are_the_last_ones_of_these_weights(exported: Exported) -> None:
    assert measured(exported) is None and exported.run is not None
    rows = ["step,train/loss,val/psnr,val/ssim", "499,1,20,", "499,1,,0.5", "999,1,21.123456,", "1499,1,30,0.9"]
    (exported.run / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = measured(exported)
    assert found is not None
    assert "| val/psnr | 21.12 | 999 |\n| val/ssim | 0.5 | 499 |" in found.text and "train" not in found.text
    assert measured(dataclasses.replace(exported, run=None)) is None


def test_the_newest_picture_of_gradients_that_is_not_younger_than_the_weights(exported: Exported) -> None:
    assert routing(exported) is None and exported.run is not None
    for step in (0, 500, 1000, 1500):
        (exported.run / "routing" / f"step_{step:08d}.png").write_bytes(f"picture {step}".encode())
    (exported.run / "routing" / "step_last.png").write_bytes(b"no step")
    assert write_card(exported, SECTIONS)
    assert (exported.output / "card" / "routing.png").read_bytes() == b"picture 1000"
    assert "![gradients at step 1000](card/routing.png)" in text(exported)
    early = dataclasses.replace(exported, state={"global_step": 700})
    found = routing(early)
    assert found is not None and found.files["routing.png"].name == "step_00000500.png"
    assert routing(dataclasses.replace(exported, run=None)) is None


def test_a_card_that_somebody_wrote_or_changed_stays(exported: Exported) -> None:
    assert write_card(exported, SECTIONS)
    first = text(exported)
    assert first.splitlines()[1] == "# mine" and "## Licence" in first and "Apache-2.0" in first
    # Its own is replaced.
    later = dataclasses.replace(exported, state={**exported.state, "global_step": 2000})
    assert write_card(later, SECTIONS) and "| optimiser steps | 2,000 |" in text(exported)
    for other in (text(exported) + "Mine!\n", "# by hand\n", ""):
        (exported.output / "README.md").write_text(other, encoding="utf-8")
        assert not write_card(exported, SECTIONS) and text(exported) == other


def report(folder: Path, sha256: str, age: int, gsq: float = 0.5) -> None:
    """A report of `lightning evaluate manifold` on two tokenizers, and its picture."""
    from lightning_gen.metrics.protocol import Measurement, Protocol
    from lightning_gen.metrics.report import write_report

    numbers = [
        Measurement(value, Protocol(metric, method, 12, None, {"tokenizer": name}), None, interval)
        for metric, method, name, value, interval in (
            ("ssc", "spectral", "other", 0.25, (0.2, 0.3)),
            ("gsq", "nn-cosine", "other", 0.125, None),
            ("gsq", "nn-cosine", "mine", gsq, (0.4, 0.6)),
            ("gsq:spearman", "gfid", "", 1.0, None),
        )
    ]
    numbers[-1].protocol.details.pop("tokenizer")  # type: ignore[attr-defined]
    inputs = {"other": {"sha256": "0" * 64}, "mine": {"sha256": sha256}, "options": {"resolution": 32}}
    path = write_report(folder, "manifold", numbers, inputs)
    os.utime(path, (age, age))
    Image.new("RGB", (8, 8)).save(folder / "manifold.png")


def test_the_table_of_the_latent_space_is_that_of_these_very_weights(exported: Exported) -> None:
    from lightning_gen.metrics.protocol import file_sha256

    assert manifold(exported) is None and exported.run is not None
    weights = exported.output / "model.safetensors"
    weights.write_bytes(b"weights")
    place = exported.run / "manifold"
    report(place / "earlier", "1" * 64, 3000)
    (place / "metrics.json").write_text(json.dumps({"verb": "fid"}))
    assert manifold(exported) is None
    report(place / "first", file_sha256(weights), 1000, gsq=0.75)
    report(place / "second", file_sha256(weights), 2000)
    assert write_card(exported, SECTIONS)
    found = text(exported)
    assert "| | N | **mine** (these weights) | other |" in found
    assert "| `gsq/nn-cosine` | 12 | 0.5000 [0.4000, 0.6000] | 0.1250 |" in found
    assert "| `ssc/spectral` | 12 | - | 0.2500 [0.2000, 0.3000] |" in found
    assert "spearman" not in found and "higher is better" in found and "LPC" not in found
    assert (exported.output / "card" / "manifold.png").read_bytes().startswith(b"\x89PNG")
    weights.write_bytes(b"later weights")
    assert manifold(exported) is None


def test_others_may_add_a_section_with_a_file(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1", encoding="utf-8")

    def manifold(about: Exported) -> Section | None:
        return Section("Manifold", f"step {about.step}", {"table.csv": tmp_path / "table.csv"})

    assert write_card(exported, (what_it_is, lambda about: None, manifold))
    assert "## Manifold\n\nstep 1000\n" in text(exported) and text(exported).count("## ") == 2
    assert (exported.output / "card" / "table.csv").read_text(encoding="utf-8") == "1"


def test_a_checkpoint_that_was_moved_has_no_run() -> None:
    assert run_of(Path("runs/mine/checkpoints/last.ckpt")) == Path("runs/mine")
    assert run_of(Path("downloads/mine.ckpt")) is None
