"""`lightning evaluate rfid`: pairs of pictures, and nothing that is not a pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.metrics.image_sets import open_images
from lightning_gen.metrics.reconstruction import psnr_per_image

Run = Callable[..., str]
PAIRS = ("--originals", "x", "--reconstructions", "y", "--threads", "0")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning evaluate rfid ...` beside originals in x and reconstructions in y; what it prints."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(6):
        original = random.integers(0, 256, (18, 20, 3))
        noise = random.integers(-3 * number - 1, 3 * number + 2, original.shape)
        save("x", f"{number}.png", original)
        save("y", f"{number}.png", original + noise)

    def call(*arguments: str) -> str:
        assert main(["evaluate", "rfid", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "rfid", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message

    return call


def save(folder: str, name: str, pixels: np.ndarray) -> None:
    Path(folder).mkdir(exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path(folder) / name)


def metrics(folder: str) -> dict[str, Any]:
    entries = json.loads((Path(folder) / "metrics.json").read_text())["metrics"]
    return {entry["protocol"]["id"]: entry for entry in entries}


def test_the_numbers_are_those_of_the_pairs(run: Run) -> None:
    out = run(*PAIRS, "--out", "runs", "--batch-size", "4")
    assert "rFID is left out: give --weights" in out
    x, y = (uint8_to_signed(torch.stack(open_images(where).select(range(6)))) for where in "xy")
    expected = psnr_per_image(y, x)
    found = metrics("runs")
    assert list(found) == ["psnr/image-mean", "ssim/gaussian-11"]
    assert found["psnr/image-mean"]["value"] == pytest.approx(expected.mean().item(), abs=1e-5)
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert [row["psnr"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [row["name"] for row in rows] == open_images("y").names


def test_the_sheet_shows_pairs_from_the_best_to_the_worst(run: Run) -> None:
    run(*PAIRS, "--out", "runs")
    sheet = np.asarray(Image.open("runs/contact_sheet.png"))
    rows = [(sheet == np.asarray(Image.open(f"x/{number}.png"))[0, 0]).all(2).nonzero()[0] for number in (0, 5)]
    assert rows[0].min() < rows[1].min(), "the least noise stands above the most"


def test_distance_from_the_originals_with_an_extractor(run: Run) -> None:
    run(*PAIRS, "--extractor", "grid-colours", "--out", "runs")
    run("--originals", "x", "--reconstructions", "x", "--extractor", "grid-colours", "--out", "same")
    found, same = (metrics(folder)["rfid@6/grid-colours-4x4"] for folder in ("runs", "same"))
    assert found["value"] > 10 * abs(same["value"])
    assert "originals of the reconstructions" in found["protocol"]["details"]["reference"]
    assert "6 samples of 48 features" in found["note"]


def test_variants_and_lpips_have_names_of_their_own(run: Run, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    run(*PAIRS, "--lpips", "squeeze.pth", "--lpips-net", "squeeze", "--variants", "--out", "runs")
    found = metrics("runs")
    assert {"psnr/pooled-error", "ssim/gaussian-11-signed", "ssim/muse"} < set(found)
    [lpips] = [entry for name, entry in found.items() if name.startswith("lpips")]
    assert "no file that torchvision publishes" in lpips["note"]


def test_rows_of_an_npz_are_paired_in_order(run: Run, tmp_path: Path) -> None:
    assert main(["evaluate", "npz", "--samples", "y", "--out", "y.npz"]) == 0
    out = run("--originals", "x", "--reconstructions", "y.npz", "--out", "npz")
    assert "paired in their order" in out
    run(*PAIRS, "--out", "runs")
    assert metrics("npz")["psnr/image-mean"]["value"] == metrics("runs")["psnr/image-mean"]["value"]


def test_what_is_no_pair_is_refused(refused: Run) -> None:
    assert "nowhere.pth" in refused(*PAIRS, "--lpips", "nowhere.pth")
    assert "6 pictures, 7 are asked for" in refused(*PAIRS, "--count", "7")
    Path("y/5.png").rename(Path("y/6.png"))
    assert "same names in the same order: 6 stands against 5" in refused(*PAIRS)
    Path("y/6.png").unlink()
    assert "y has 5 pictures, x 6" in refused(*PAIRS)
    save("y", "5.png", np.zeros((20, 18, 3)))
    assert "pair 5: a reconstruction" in refused(*PAIRS)


def test_jpeg_reconstructions_are_told(run: Run) -> None:
    for number in range(6):
        Image.open(f"y/{number}.png").save(f"y/{number}.jpg")
        Path(f"y/{number}.png").unlink()
    assert "stored as JPEG" in run(*PAIRS)


def test_ssim_is_that_of_8_bit_values(run: Run) -> None:
    from skimage.metrics import structural_similarity

    run(*PAIRS, "--out", "runs")
    pairs = [[np.asarray(Image.open(f"{where}/{number}.png")) for where in "xy"] for number in range(6)]
    common = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = [structural_similarity(x, y, data_range=255, **common) for x, y in pairs]
    entry = metrics("runs")["ssim/gaussian-11"]
    assert entry["value"] == pytest.approx(float(np.mean(wanted)), abs=1e-9)
    assert entry["protocol"]["details"]["range"] == 255


def test_one_pair_has_no_distance_but_all_the_rest(run: Run) -> None:
    run(*PAIRS, "--count", "1", "--extractor", "grid-colours", "--out", "runs")
    found = metrics("runs")
    assert found["rfid@1/grid-colours-4x4"]["value"] is None and "1 pairs" in found["rfid@1/grid-colours-4x4"]["note"]
    assert found["psnr/image-mean"]["value"] > 0


def test_transparent_pairs_are_told(run: Run) -> None:
    Image.open("y/0.png").convert("RGBA").save("y/0.png")
    assert "transparent" not in run(*PAIRS), "opaque"
    picture = Image.open("y/0.png")
    picture.putalpha(9)
    picture.save("y/0.png")
    assert "(1 of 6 reconstructions, 0 of 6 originals) were laid over white" in run(*PAIRS)
    assert "without their alpha" in run(*PAIRS, "--alpha", "drop")
