"""`lightning evaluate gfid` and `statistics`: the numbers are those of the metrics, and bad input never gives one."""

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
from lightning_gen.commands import evaluate_extractors, evaluate_features
from lightning_gen.commands.evaluate_extractors import GridColours
from lightning_gen.metrics.extractors import FIDInceptionV3, ModuleExtractor
from lightning_gen.metrics.frechet import Moments, frechet_distance
from lightning_gen.metrics.image_sets import open_images
from lightning_gen.metrics.inception_score import inception_score
from lightning_gen.metrics.reference import ReferenceStatistics
from tests.harness.tiny_inception import write_random_inception

Run = Callable[..., str]
COLOURS = ("--extractor", "grid-colours", "--threads", "0")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning evaluate ...` in a folder with two sets of pictures; what it prints."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "a", 12)
    pictures(tmp_path / "b", 10, seed=1)

    def call(*arguments: str) -> str:
        assert main(["evaluate", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_inception(tmp_path_factory.mktemp("weights")))


def pictures(folder: Path, count: int, seed: int = 0, ending: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        # Coarse colours, so that means over cells differ between pictures.
        cells = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(cells.repeat(5, 0).repeat(6, 1)).save(folder / f"{number:03d}.{ending}")
    return folder


def colours(where: str | Path) -> torch.Tensor:
    pixels = torch.stack(open_images(where).select(range(len(open_images(where)))))
    return GridColours()(pixels.float() / 127.5 - 1).double()


def report(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "metrics.json").read_text())
    found["metrics"] = {entry["protocol"]["metric"]: entry for entry in found["metrics"]}
    return found


def gaussian(features: torch.Tensor) -> Any:
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


def test_the_distance_is_that_of_the_features(run: Run) -> None:
    out = run("gfid", "--samples", "a", "--reference", "b", *COLOURS, "--out", "runs")
    found = report("runs")
    entry = found["metrics"]["gfid"]
    expected = frechet_distance(gaussian(colours("b")), gaussian(colours("a")))
    assert entry["value"] == pytest.approx(expected, rel=1e-5)
    assert entry["protocol"]["id"] == "gfid@12/grid-colours-4x4"
    assert "gfid@12/grid-colours-4x4" in out
    assert entry["protocol"]["details"]["reference_sha256"] == open_images("b").fingerprint
    assert found["inputs"]["samples"] == open_images("a").fingerprint
    assert found["inputs"]["options"]["reference"] == "b"
    assert "12 samples of 48 features" in entry["note"], "a known bias travels with the number"


def test_best_and_worst_are_told_by_the_distance_from_the_reference(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "many", 120, seed=1)  # more than features: the spread itself decides, not the shrinkage
    run("gfid", "--samples", "a", "--reference", "many", *COLOURS, "--out", "runs", "--batch-size", "5")
    rows = [json.loads(line) for line in (Path("runs") / "samples.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == open_images("a").names
    reference, difference = colours("many"), colours("a") - colours("many").mean(0)
    covariance = reference.T.cov()
    shrunk = 0.99 * covariance + 0.01 * covariance.trace() / 48 * torch.eye(48, dtype=torch.float64)
    squared = (difference * torch.linalg.solve(shrunk, difference.T).T).sum(1)
    assert [row["distance"] for row in rows] == pytest.approx(squared.sqrt().tolist(), rel=1e-4)
    sheet = np.asarray(Image.open("runs/contact_sheet.png"))
    best = min(rows, key=lambda row: row["distance"])["name"]
    corner = np.asarray(Image.open(f"a/{best}"))[0, 0]
    ink = (sheet == corner).all(2).nonzero()
    assert ink[0].min() < sheet.shape[0] // 3, "the best one stands in the first row"


def test_saved_statistics_give_the_same_number_and_guard_their_extractor(run: Run, refused: Run, weights: str) -> None:
    run("statistics", "--images", "b", *COLOURS, "--keep-features", "--out", "b.safetensors")
    run("gfid", "--samples", "a", "--reference", "b", *COLOURS, "--out", "pictures")
    run("gfid", "--samples", "a", "--reference", "b.safetensors", *COLOURS, "--out", "saved")
    values = [{name: entry["value"] for name, entry in report(one)["metrics"].items()} for one in ("pictures", "saved")]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert set(values[0]) == {"gfid", "precision", "recall", "density", "coverage"}
    message = refused("gfid", "--samples", "a", "--reference", "b.safetensors", "--weights", weights, "--sha256", "any")
    assert "comes from extractor grid-colours-4x4" in message
    assert "do not compare" in message
    assert "end in .safetensors or .npz" in refused("statistics", "--images", "b", *COLOURS, "--out", "b.pt")


def test_inception_by_its_file(run: Run, weights: str) -> None:
    given = ("--weights", weights, "--sha256", "any", "--count", "2")
    run("gfid", "--samples", "a", *given, "--resize", "antialias", "--metrics", "is", "--out", "runs")
    found = report("runs")["metrics"]["inception_score"]
    assert found["protocol"]["id"] == "inception_score@2/torchmetrics-antialias-unpublished"
    assert "no published number" in found["note"]
    extractor = FIDInceptionV3(weights, "antialias", expected_sha256="any")
    logits = extractor(open_images("a").select([0, 1]))["logits"]
    assert found["value"] == pytest.approx(inception_score(logits).mean, rel=1e-5)
    assert found["protocol"]["details"]["extractor_sha256"] == extractor.fingerprint
    assert not Path("runs/contact_sheet.png").exists(), "there is no reference to be far from"


def test_without_a_wish_all_that_is_possible_is_measured(weights: str) -> None:
    inception, grid = FIDInceptionV3(weights, expected_sha256="any"), ModuleExtractor(GridColours(), "grid")
    moments = {"pool": gaussian(torch.randn(3, 2)), "spatial": gaussian(torch.randn(3, 2))}
    full = ReferenceStatistics(moments, "adm-tf1", None, "", {"pool": torch.randn(3, 2)})
    chosen, warnings = evaluate_features._chosen([], "inception", inception, full)
    assert chosen == ["gfid", "sfid", "inception_score", "precision_recall"]
    assert warnings == []
    bare = ReferenceStatistics({"pool": moments["pool"]}, "adm-tf1", None, "")
    chosen, warnings = evaluate_features._chosen([], "inception", inception, bare)
    assert chosen == ["gfid", "inception_score"]
    assert [text.partition(" ")[0] for text in warnings] == ["sfid", "precision_recall"]
    for kind, expected in (("dinov2", "fdd"), ("dinov3", "gfdd"), ("clip", "cmmd"), ("grid-colours", "gfid")):
        assert evaluate_features._chosen([], kind, grid, bare)[0] == [expected]


def test_a_reference_npz_of_moments_and_pictures(run: Run, refused: Run, tmp_path: Path) -> None:
    reference = gaussian(colours("b"))
    moments = {"mu": reference.mean.numpy(), "sigma": reference.covariance.numpy()}
    pixels = torch.stack(open_images("b").select(range(10))).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "moments.npz", **moments)
    np.savez(tmp_path / "both.npz", pixels, **moments)
    np.savez(tmp_path / "pictures.npz", pixels)
    assert "assume_extractor" in refused("gfid", "--samples", "a", "--reference", "moments.npz", *COLOURS)
    assumed = ("--assume-extractor", "grid-colours-4x4", *COLOURS)
    run("gfid", "--samples", "a", "--reference", "moments.npz", *assumed, "--out", "moments")
    run("gfid", "--samples", "a", "--reference", "both.npz", *assumed, "--out", "both")
    run("gfid", "--samples", "a", "--reference", "pictures.npz", *COLOURS, "--out", "pictures")
    assert list(report("moments")["metrics"]) == ["gfid"]
    assert "precision" in report("both")["metrics"]
    values = [report(one)["metrics"]["gfid"]["value"] for one in ("moments", "both", "pictures")]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert "is for an npz of statistics" in refused("gfid", "--samples", "a", "--reference", "b", *assumed)


def test_an_extractor_of_ones_own(run: Run, refused: Run, tmp_path: Path) -> None:
    (tmp_path / "my_network.py").write_text(
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    def __init__(self, factor='1'):\n"
        "        super().__init__()\n"
        "        self.factor = float(factor)\n"
        "    def forward(self, x):\n"
        "        return self.factor * x.mean((2, 3))\n"
        "class Broken(Mean):\n"
        "    def forward(self, x):\n"
        "        return x.mean((2, 3)) / 0 * 0\n"
        "NUMBER = 3\n"
        "def text():\n"
        "    return 'network'\n"
    )
    given = ("gfid", "--samples", "a", "--reference", "b", "--metrics", "gfid")
    run(*given, "--extractor", "my_network.Mean", "--out", "one")
    run(*given, "--extractor", "my_network.Mean", "--weights", "2", "--out", "two")
    values = [report(one)["metrics"]["gfid"] for one in ("one", "two")]
    assert values[0]["protocol"]["id"] == "gfid@12/mean"
    assert values[1]["value"] == pytest.approx(4 * values[0]["value"], rel=1e-6)
    assert "NaN or infinite for 10 of 10 pictures" in refused(*given, "--extractor", "my_network.Broken")
    assert "has no class or function NUMBER" in refused(*given, "--extractor", "my_network.NUMBER")
    assert "made a str" in refused(*given, "--extractor", "my_network.text")
    assert "No module named" in refused(*given, "--extractor", "nowhere.Network")


def test_missing_and_wrong_weights(refused: Run, weights: str) -> None:
    given = ("gfid", "--samples", "a", "--reference", "b")
    assert "needs --weights" in refused(*given)
    assert "there is no file nowhere.pth" in refused(*given, "--weights", "nowhere.pth")
    message = refused(*given, "--weights", weights)
    assert "expected 6726825d" in message
    assert "there is no folder nowhere" in refused(*given, "--extractor", "dinov2", "--weights", "nowhere")
    assert "choose inception" in refused(*given, "--extractor", "vgg", "--weights", "x")
    assert "belongs to --extractor inception" in refused(*given, *COLOURS, "--resize", "clean")
    assert "has no weights" in refused(*given, *COLOURS, "--weights", "x")
    assert "float32" in refused(*given, "--extractor", "clip", "--weights", "x", "--dtype", "float64")


def test_pictures_of_another_kind_are_refused(refused: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "float.npz", np.zeros((4, 8, 8, 3), np.float32))
    np.savez(tmp_path / "first.npz", np.zeros((4, 3, 8, 9), np.uint8))
    given = ("--reference", "b", *COLOURS)
    assert "signed_to_uint8 (range [-1, 1])" in refused("gfid", "--samples", "float.npz", *given)
    assert "channels first" in refused("gfid", "--samples", "first.npz", *given)
    assert "signed_to_uint8" in refused("gfid", "--samples", "a", "--reference", "float.npz", *COLOURS)


def test_counts_and_metrics_that_make_no_sense(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("gfid", "--samples", "a", "--reference", "b", *COLOURS)
    assert "12 pictures, 13 are asked for" in refused(*given, "--count", "13")
    assert "there are gfid, sfid, is, pr, kid" in refused(*given, "--metrics", "gfid,fid")
    assert "'logits'" in refused(*given, "--metrics", "is")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_extractors, "extractor_of", None)  # refused before any network is made
        assert "subsets of 1000 cannot be drawn from 12 samples" in refused(*given, "--metrics", "kid")
        assert "a smaller --kid-subset-size" in refused(*given, "--metrics", "kid")
        more = ("--metrics", "gfid,kid", "--kid-subset-size", "11")
        assert "subsets of 11 cannot be drawn from 10 reference pictures" in refused(*given, *more)
        message = refused(*given, "--metrics", "pr", "--count", "3")
        assert "3 samples have no neighbour number 3" in message and "--neighbours" in message
        assert "at least 2 pictures, not 1 samples" in refused(*given, "--metrics", "gfid", "--count", "1")
    assert "give --reference" in refused("gfid", "--samples", "a", *COLOURS)
    monkeypatch.setattr(evaluate_features, "PUBLISHED_COUNT", 11)
    assert "--count 11 takes the first ones" in refused(*given)


def test_switches_reach_the_protocol_card(run: Run) -> None:
    given = ("gfid", "--samples", "a", "--reference", "b", *COLOURS, "--metrics", "gfid,kid", "pr")
    more = ("--kid-subset-size", "8", "--float16-distances", "--sampling", "cfg 1.5", "--extrapolate", "--count", "11")
    run(*given, *more, "--out", "runs")
    found = report("runs")["metrics"]
    assert found["kid"]["protocol"]["details"]["subset_size"] == 8
    assert found["precision"]["protocol"]["details"]["distances"] == "float16"
    assert found["gfid"]["protocol"]["details"]["sampling"] == "cfg 1.5"
    assert found["gfid"]["protocol"]["count"] == 11
    assert "gfid-infinity" in found


def test_jpeg_samples_are_told(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "jpeg", 6, ending="jpg")
    out = run("gfid", "--samples", "jpeg", "--reference", "b", *COLOURS, "--out", "runs")
    assert "stored as JPEG" in out
    assert "JPEG" in report("runs")["metrics"]["gfid"]["protocol"]["details"]["quantisation"]


def test_statistics_say_when_pictures_are_too_few(run: Run) -> None:
    out = run("statistics", "--images", "b", *COLOURS, "--count", "4", "--out", "b.npz")
    assert "4 pictures for 48 values: the covariance is singular" in out
    with np.load("b.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (48,)


def test_what_nobody_asked_for_never_ends_the_run(run: Run, refused: Run, tmp_path: Path) -> None:
    given = ("gfid", "--samples", "a", "--reference", "b", *COLOURS, "--count", "3")
    out = run(*given, "--out", "runs")
    assert list(report("runs")["metrics"]) == ["gfid"]
    assert "precision_recall is left out: 3 samples have no neighbour number 3" in out
    run(*given, "--neighbours", "2", "--out", "two")
    assert report("two")["metrics"]["precision"]["protocol"]["details"]["k"] == 2
    pictures(tmp_path / "one", 1)
    message = refused("gfid", "--samples", "a", "--reference", "one", *COLOURS)
    assert "not 1 reference pictures" in message
    assert "at least 2" in refused("statistics", "--images", "one", *COLOURS, "--out", "one.npz")


def test_saved_features_are_counted_too(run: Run, refused: Run) -> None:
    run("statistics", "--images", "b", *COLOURS, "--keep-features", "--out", "b.safetensors")
    given = ("gfid", "--samples", "a", "--reference", "b.safetensors", *COLOURS, "--kid-subset-size", "11")
    assert "from 10 reference pictures" in refused(*given, "--metrics", "kid")


def test_transparent_pictures_are_counted_and_their_rule_is_on_the_card(run: Run, tmp_path: Path) -> None:
    for number in range(4):
        picture = Image.open(f"a/{number:03d}.png").convert("RGBA")
        picture.putalpha(60)
        picture.save(f"a/{number:03d}.png")
    given = ("gfid", "--samples", "a", "--reference", "b", *COLOURS, "--metrics", "gfid")
    out = run(*given, "--out", "white")
    assert "transparent pictures (4 of 12 samples, 0 of 10 reference pictures) were laid over white" in out
    assert "--alpha drop" in out
    dropped = run(*given, "--alpha", "drop", "--out", "drop")
    assert "without their alpha" in dropped
    cards = [report(name)["metrics"]["gfid"] for name in ("white", "drop")]
    assert [card["protocol"]["details"]["alpha"].partition(":")[0] for card in cards] == ["laid over white", "dropped"]
    assert cards[0]["value"] > cards[1]["value"] + 0.1
    assert "transparent pictures (4 of 12 pictures)" in run("statistics", "--images", "a", *COLOURS, "--out", "a.npz")
    run("gfid", "--samples", "b", "--reference", "b", *COLOURS, "--metrics", "gfid", "--out", "opaque")
    assert "alpha" not in report("opaque")["metrics"]["gfid"]["protocol"]["details"]
