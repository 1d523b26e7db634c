"""`lightning evaluate manifold`: tokenizers side by side, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from tests.harness.toy_tokenizer import PatchTokenizer

Run = Callable[..., str]
CLASS = "tests.harness.toy_tokenizer.PatchTokenizer"
SCENES = "lightning_gen.shapes.segments.ShapesSegments"
COMMON = ("--resolution", "32", "--device", "cpu", "--segments-count", "6")
BOTH = ("--tokenizers", f"colours={CLASS}:colours", f"noise={CLASS}:noise")
DATA = ("--data", "pictures", "--segments", SCENES)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb beside two tokenizers and pictures of three colours; what it prints."""
    monkeypatch.chdir(tmp_path)
    PatchTokenizer.write(tmp_path / "colours", PatchTokenizer.colours())
    PatchTokenizer.write(tmp_path / "noise", PatchTokenizer.noise())
    (tmp_path / "colours" / "model.safetensors").write_bytes(b"colours")
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.array(colour) + random.integers(-30, 31, (40, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "pictures" / name / f"{number}.png")

    def call(*arguments: str) -> str:
        assert main(["evaluate", "manifold", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "manifold", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in message
        return message

    return call


def numbers(folder: str = "out") -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((Path(folder) / "metrics.json").read_text())["metrics"]
    return {(row["protocol"]["details"].get("tokenizer", ""), row["protocol"]["metric"]): row for row in rows}


def test_tokenizers_stand_side_by_side(run: Run) -> None:
    out = run(*BOTH, *DATA, *COMMON, "--out", "out", "--batch-size", "5")
    found = numbers()
    assert set(found) == {(name, m) for name in ("colours", "noise") for m in ("ssc", "gsq", "erank")}
    assert found["colours", "gsq"]["value"] == 1 > found["noise", "gsq"]["value"]
    assert found["colours", "ssc"]["value"] > found["noise", "ssc"]["value"]
    assert found["colours", "gsq"]["protocol"]["count"] == 12
    [row] = [line for line in out.splitlines() if line.strip().startswith("gsq/nn-cosine")]
    assert "1.0000 [1.0000, 1.0000]" in row and "lpc is left out: give --lpips" in out
    [head] = [line for line in out.splitlines() if "colours" in line and "noise" in line]
    assert head.index("colours") < head.index("noise")
    assert Image.open("out/manifold.png").size[0] > 300
    inputs = json.loads((Path("out") / "metrics.json").read_text())["inputs"]
    assert "fingerprint" in inputs["data"]
    # By which the card of these weights knows that the numbers are its own.
    assert inputs["colours"]["sha256"] == hashlib.sha256(b"colours").hexdigest() and inputs["noise"]["sha256"] is None


def test_continuity_with_lpips_and_correlation_with_gfid(run: Run, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    lpips = ("--lpips", "squeeze.pth", "--lpips-net", "squeeze")
    out = run(*BOTH, "--data", "pictures", *COMMON, *lpips, "--lpc-count", "3", "--out", "first")
    found = numbers("first")
    assert found["noise", "lpc"]["protocol"]["count"] == 3 and found["noise", "lpc"]["protocol"]["method"] == (
        "lpips-squeeze"
    )
    weights = {0.1: 20 / 27, 0.5: 4 / 27, 1: 2 / 27, 2: 1 / 27}
    parts = sum(share * found["noise", f"lpc-{radius:g}"]["value"] for radius, share in weights.items())
    assert found["noise", "lpc"]["value"] == pytest.approx(parts) and "no file that torchvision publishes" in out
    PatchTokenizer.write(tmp_path / "third", PatchTokenizer.noise(seed=5))
    Path("gfid.json").write_text(json.dumps({"colours": 2.0, "noise": 9.0, "third": 8.0}))
    third = ("--tokenizers", f"third={CLASS}:third", "--data", "pictures", *COMMON)
    out = run(*third, "--results", "first", "--against", "gfid.json", "--out", "second")
    assert "gsq:spearman/gfid" in out and "3 variants" in out
    run("--results", "first", "second", "--against", "gfid.json", "--out", "third-report")
    assert numbers("third-report")["", "gsq:kendall"]["value"] == numbers("second")["", "gsq:kendall"]["value"]
    assert not Path("third-report/manifold.png").exists()


def test_statistics_of_a_tokenizer_normalise_its_latents(run: Run, tmp_path: Path) -> None:
    tokenizer = PatchTokenizer.from_pretrained("colours")
    record = LatentRecord(
        "PatchTokenizer", "toy", weights_sha256(tokenizer), 8, 3, "float32", None, 32, False, "", 1, 0, 1,
        (0.0, 0.0, 0.0), (1.0, 1.0, 1e-4),
    )  # fmt: skip
    (tmp_path / "stored").mkdir()
    record.write(tmp_path / "stored")
    own = ("--tokenizers", f"colours={CLASS}:colours", "--data", "pictures", *COMMON)
    run(*own, "--out", "plain")
    run(*own, "--statistics", "colours=stored/latents.json", "--out", "normalised")
    # One channel outweighs the others now.
    plain, normalised = (numbers(folder)["colours", "erank"]["value"] for folder in ("plain", "normalised"))
    assert normalised < 0.34 < plain


def test_bad_input_is_refused_with_the_reason(refused: Run, tmp_path: Path) -> None:
    assert "--tokenizers" in refused(*DATA)
    assert "nothing to measure on" in refused(*BOTH)
    assert "NAME=CLASS:WEIGHTS" in refused("--tokenizers", "colours=nowhere", *DATA)
    assert "'colours' is named twice" in refused(*BOTH, f"colours={CLASS}:noise", *DATA)
    assert "no such class here" in refused("--tokenizers", "x=Nothing:noise", *DATA, *COMMON)
    assert "--statistics names z" in refused(*BOTH, *DATA, "--statistics", "z=latents.json")
    assert "12 pictures, --count asks for 13" in refused(*BOTH, "--data", "pictures", "--count", "13")
    assert "no segment maps at nowhere" in refused(*BOTH, "--segments", "nowhere")
    Path("panoptic.json").write_text("{}")
    assert "name the folder of its pictures too" in refused(*BOTH, "--segments", "panoptic.json")
    assert "panoptic maps (PNG)" in refused(*BOTH, "--segments", "panoptic.json", "pictures")
    assert "12 images" not in refused(*BOTH, "--data", "nowhere")
    PatchTokenizer.write(tmp_path / "broken", PatchTokenizer.colours() * float("nan"))
    broken = ("--tokenizers", f"broken={CLASS}:broken", *COMMON)
    assert "tokenizer broken: a latent is NaN or infinite" in refused(*broken, "--data", "pictures")
    for name in ("green", "blue"):
        for file in Path("pictures", name).iterdir():
            file.rename(Path("pictures/red") / f"{name}-{file.name}")
    assert "tokenizer colours: 12 images of 1 class" in refused(*BOTH, "--data", "pictures", *COMMON)
    Path("gfid.json").write_text('{"colours": "good"}')
    assert "name of a variant -> gFID" in refused(*BOTH, *DATA, "--against", "gfid.json")


def test_statistics_of_another_tokenizer_are_refused(refused: Run, tmp_path: Path) -> None:
    other = weights_sha256(PatchTokenizer.from_pretrained("noise"))
    record = LatentRecord(
        "PatchTokenizer", "toy", other, 8, 3, "float32", None, 32, False, "", 1, 0, 1, (0.0,) * 3, (1.0,) * 3
    )
    record.write(tmp_path)
    message = refused(*BOTH, "--data", "pictures", *COMMON, "--statistics", "colours=latents.json")
    assert "the latent statistics belong to another tokenizer" in message


def test_pictures_without_classes_have_no_gsq(run: Run) -> None:
    for folder in list(Path("pictures").iterdir()):
        for file in folder.iterdir():
            file.rename(Path("pictures") / f"{folder.name}-{file.name}")
        folder.rmdir()
    out = run(*BOTH, "--data", "pictures", *COMMON, "--out", "out")
    assert "gsq is left out" in out and {metric for _, metric in numbers()} == {"erank"}


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "manifold", "--help"])
    assert "examples:" in capsys.readouterr().out
