"""The demo: the arithmetic of its report, its picture, and two steps of it through the code that `make demo` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.commands.comparison_picture import draw_comparison
from lightning_gen.commands.reconstruction_report import METHODS, Measured, Report, Score, as_json, as_table

TINY = [
    *("--name", "two", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"),
    *("--model.init_args.variant", "w32_d1_h2-w32_d1_h2/1x16x8", "--data.init_args.passes", "2"),
]


def measured(key, budget, size, psnr):
    scores = {method: Score(value, value / 100) for method, value in zip(METHODS, psnr, strict=True)}
    image = torch.linspace(-1, 1, size[1]).expand(3, *size)
    return Measured(key, budget, 4, image, image.flip(-1), scores)


REPORT = Report(
    [
        measured("a", 256, (20, 30), [10, 20, 5, 15]),
        measured("b", 256, (40, 20), [12, 22, 7, 19]),
        measured("a", 1024, (40, 60), [14, 24, 5, 19]),
        measured("b", 1024, (80, 40), [14, 26, 5, 17]),
    ],
    components=64,
    steps=7,
)


def test_means_and_leads():
    assert REPORT.budgets == [256, 1024]
    assert REPORT.mean(256, "trained") == Score(17.0, pytest.approx(0.17))
    assert REPORT.lead(256, "mean colour") == 6.0
    assert REPORT.lead(256, "patch PCA") == -4.0
    assert REPORT.lead(1024, "mean colour") == 4.0
    assert REPORT.passed


def test_four_decibel_at_every_resolution():
    worse = measured("b", 1024, (80, 40), [14, 26, 5, 16.9])
    assert not Report([*REPORT.measured[:3], worse], 64, 7).passed


def test_report_as_json_and_as_table():
    written = json.loads(json.dumps(as_json(REPORT)))
    assert written["mean"]["1024"]["lead_over_patch_pca_db"] == -7.0
    assert written["mean"]["256"]["untrained"] == {"psnr": 6.0, "ssim": pytest.approx(0.06)}
    assert (written["photographs"][2]["height"], written["photographs"][2]["width"]) == (40, 60)
    table = as_table(REPORT)
    assert table.row_count == 6
    assert list(table.columns[-1].cells)[2] == "17.00 0.17"


def test_picture_is_pixel_for_pixel():
    picture = draw_comparison(REPORT.measured, "title")
    # Columns: original and reconstruction at 256 (30 wide), then at 1024 (60 wide); gaps of 12.
    assert picture.width == 2 * 30 + 2 * 60 + 5 * 12
    top = 20 + 2 * 12
    shown = picture.crop((12 + 2 * 42, top, 12 + 2 * 42 + 60, top + 40))
    assert [shown.getpixel((0, 0)), shown.getpixel((59, 39))] == [(0, 0, 0), (255, 255, 255)]
    beside = picture.crop((12 + 2 * 42 + 72, top, 12 + 2 * 42 + 72 + 60, top + 40))
    assert [beside.getpixel((0, 0)), beside.getpixel((59, 39))] == [(255, 255, 255), (0, 0, 0)]
    with pytest.raises(ValueError, match="no photograph"):
        draw_comparison([], "title")


@pytest.fixture
def here(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


class FakeFit:
    """Stands in for the process of `lightning fit`."""

    commands: list[list[str]] = []
    code = 3

    def __init__(self, command):
        self.commands.append(command)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def wait(self):
        return self.code


@pytest.fixture
def fake_fit(monkeypatch):
    FakeFit.commands = []
    monkeypatch.setattr(subprocess, "Popen", FakeFit)
    return FakeFit


def test_it_runs_the_very_command_and_passes_its_code_on(here, fake_fit, capsys):
    assert main(["demo", *TINY]) == 3
    expected = ["fit", "--config", "vitok_v2_tiny", *TINY, "--ckpt_path", "last-or-none"]
    assert fake_fit.commands == [[sys.executable, "-m", "lightning_gen", *expected]]
    captured = capsys.readouterr()
    assert "$ lightning fit --config vitok_v2_tiny" in captured.out
    assert "goes on from its last checkpoint" in captured.err


@pytest.mark.slow
def test_two_steps(here, monkeypatch, capsys):
    # Two steps beat nothing: the demo must say so.
    assert main(["demo", *TINY]) == 1
    run = Path("runs/two")
    report = json.loads((run / "demo.json").read_text())
    assert report["steps"] == 2
    assert report["numbers_per_patch"] == 8
    assert {(one["key"], one["budget"]) for one in report["photographs"]} == {
        (key, budget) for key in ("chelsea", "astronaut", "flower") for budget in (256, 1024)
    }
    for budget, mean in report["mean"].items():
        ones = [one["scores"] for one in report["photographs"] if str(one["budget"]) == budget]
        for method in METHODS:
            assert mean[method]["psnr"] == pytest.approx(sum(one[method]["psnr"] for one in ones) / 3)
        assert mean["lead_over_mean_colour_db"] == mean["trained"]["psnr"] - mean["mean colour"]["psnr"]
        # What is known without training: 8 numbers of PCA are worth more than 3 of the mean colour.
        assert mean["patch PCA"]["psnr"] > mean["mean colour"]["psnr"] + 1 > mean["trained"]["psnr"]
        assert mean["trained"] != mean["untrained"]
    sizes = {(one["key"], one["budget"]): (one["height"], one["width"]) for one in report["photographs"]}
    assert sizes["chelsea", 1024] == (300, 451)
    assert sizes["astronaut", 1024] == (512, 512)
    with Image.open(run / "demo.png") as picture:
        assert picture.width == 2 * 304 + 2 * 624 + 5 * 12

    # Finished: straight to the report, which says the same.
    monkeypatch.setattr(subprocess, "Popen", None)
    capsys.readouterr()
    assert main(["demo", *TINY]) == 1
    assert "trained already" in capsys.readouterr().out
    assert json.loads((run / "demo.json").read_text()) == report

    # Anew: the older run is kept.
    monkeypatch.setattr(subprocess, "Popen", FakeFit)
    assert main(["demo", "--fresh", *TINY]) == 3
    assert json.loads(Path("runs/two-1/demo.json").read_text()) == report
    assert not run.exists()


def test_a_file_in_the_place_of_the_runs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_gen.commands.demo.pack_photographs", lambda: ())
    Path("taken").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["demo", "--runs", "taken"])
    assert end.value.code == 2
    assert "lightning demo: error: taken/vitok_v2_tiny cannot be the run's folder: taken is a file" in (
        capsys.readouterr().err
    )
