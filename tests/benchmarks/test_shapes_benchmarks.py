"""The benchmarks of the embedded world's weights: their arithmetic, and a quick run of each with tiny weights."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_gen.generators.dit.text_module import TextLatentDiffusion, TextSize
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.metrics.compositional.geneval_prompts import TAGS
from lightning_gen.metrics.intervals import bootstrap_interval, wilson_interval
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.encoder import ShapesEncoder
from lightning_gen.shapes.tokenizer import ShapesTokenizer
from lightning_gen.training.initialisation import initialise

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of that folder import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def part(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    how = Sampling(steps=2, solver="euler")
    model = TextLatentDiffusion(
        PixelSpace(8), ShapesTokenizer(), variant="w24_d1_h2", text=TextSize(16, 1, 2), sampling=how
    )
    model.configure_model()
    model.save_pretrained(folder)
    return folder


def results(*rows: str) -> Any:
    class Result:
        def __init__(self, correct: bool) -> None:
            self.correct = correct

    return [[Result(mark == "1") for mark in row] for row in rows]


def test_shares_know_that_pictures_of_a_prompt_fail_together() -> None:
    share = part("shapes_scoring").share
    single = share(results("1", "0", "1", "1"))
    assert (single.value, single.interval, single.prompts) == (0.75, wilson_interval(3, 4), 4)
    several = share(results("11", "00", "11", "00"))
    assert several.interval == bootstrap_interval(torch.tensor([1.0, 0.0, 1.0, 0.0]).double())


def test_every_pair_is_asked_for_once_and_twelve_are_rare() -> None:
    scoring = part("shapes_scoring")
    requests = scoring.pair_requests()
    assert len({request.prompt() for request in requests}) == 80 and sum(map(scoring.is_rare, requests)) == 12


def test_a_picture_has_its_own_seed_whatever_is_made_beside_it(weights: Path) -> None:
    scoring, model = part("shapes_scoring"), TextLatentDiffusion.from_pretrained(weights)
    requests = benchmark_requests()[:3]
    made = dict(
        pair for numbers, images in scoring.pictures_of(model, requests, model.sampling, 5, 2)
        for pair in zip(numbers, images, strict=True)
    )  # fmt: skip
    alone = model.make([requests[2].prompt()], torch.tensor([5]), seed=5)
    assert torch.allclose(made[5].float(), (alone[0].clamp(-1, 1) + 1) * 127.5, atol=1.01)


def test_the_base_is_measured_and_the_card_filled(weights: Path, tmp_path: Path, capsys: Any) -> None:
    card = tmp_path / "card"
    card.mkdir()
    shipped = (ROOT / "data" / "shapes_base" / "README.md").read_text(encoding="utf-8")
    (card / "README.md").write_text(shipped, encoding="utf-8")
    quick = ["--every", "60", "--pairs", "1", "--repetitions", "1", "--guidance", "1", "--threads", "1"]
    part("shapes_base").main(["--weights", str(weights), "--card", str(card), *quick])
    found = json.loads((card / "score.json").read_text())
    assert found["weights"]["sha256"] == file_sha256(weights / "model.safetensors")
    assert len(found["guidance"]["1"]["verdicts"]) == len(benchmark_requests()[::60])
    assert [(row["steps"], row["guidance"]) for row in found["speed"]] == [(4, 1.0), (10, 1.0), (25, 1.0)]
    text = (card / "README.md").read_text(encoding="utf-8")
    assert all(f"| {tag} (" in text for tag in TAGS) and "| rare pairs alone (12, 1 pictures each) |" in text
    assert "| 25 | 1 | " in text and text.count("<!-- score -->") == text.count("<!-- /score -->") == 1
    assert "overall (mean of tasks)" in capsys.readouterr().out
    # A second run puts its tables in the place of the first ones.
    again = part("shapes_base").filled(text, {"score": "new"})
    assert "<!-- score -->\nnew\n<!-- /score -->" in again and "| counting (" not in again
    with pytest.raises(ValueError, match="no place for the table 'score'"):
        part("shapes_base").filled("nothing", {"score": "new"})


def test_the_curve_and_the_time_come_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {init_args: {global_batch_size: 10}}")
    rows = ["step,train/loss,throughput/images_per_second,val/geneval_overall"]
    rows += [f"{step},{1 / (step + 1)},{50 if step < 50 else 100}," for step in range(100)]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "99,,,0.5"]) + "\n")
    found = part("shapes_base").training(tmp_path, tmp_path)
    # 500 pictures at 50 and 500 at 100 per second.
    assert found == {
        "steps": 100, "pictures": 1000, "training_minutes": 0.25, "last_validation_score": 0.5
    }  # fmt: skip
    assert Image.open(tmp_path / "curve.png").width > 500


def test_labels_are_blind_and_compared(weights: Path, tmp_path: Path, capsys: Any) -> None:
    labels = part("shapes_labels")
    labels.main(["sheets", str(tmp_path), "--weights", str(weights), "--pictures", "22"])
    with Image.open(tmp_path / "sheet_00.png") as sheet:
        assert sheet.width == 5 * (192 + 12) + 12
    assert (tmp_path / "sheet_01.png").exists() and not (tmp_path / "sheet_02.png").exists()
    record = json.loads((tmp_path / "detector.json").read_text())
    assert len(record["found"]) == len(record["prompts"]) == 22
    record["found"][:4] = [[["red", "star"], ["blue", "moon"]], [["red", "star"]], [], [["red", "star"]]]
    (tmp_path / "detector.json").write_text(json.dumps(record))
    csv = tmp_path / "labels.csv"
    csv.write_text("number,count,objects\n0,2,blue moon;red star\n1,1,red ring\n2,0,\n3,2,red star;? star\n")
    labels.main(["compare", str(tmp_path), str(csv)])
    found = json.loads((tmp_path / "agreement.json").read_text())
    agreed = {name: found[name]["agree"] for name in ("count", "color", "kind", "picture")}
    assert agreed == {"count": 3, "color": 3, "kind": 2, "picture": 2}
    assert [one["number"] for one in found["apart"]] == [1, 3]
    assert "| all pairs of colour and kind | 2 of 4 |" in capsys.readouterr().out
    for line, message in {
        "4,1,red dragon": "'red dragon' is no colour and kind",
        "4,2,red star": "count 2, but 1 objects",
        "four,1,red star": "number,count,objects",
        "99,1,red star": "no picture has the number 99",
    }.items():
        csv.write_text(f"number,count,objects\n{line}\n")
        with pytest.raises(ValueError, match=message):
            labels.main(["compare", str(tmp_path), str(csv)])


def test_verdicts_of_labels_and_detector_are_held_together() -> None:
    labels = part("shapes_labels")
    prompts = ["a photo of a star", "a photo of two moons", "a photo of a red star left of a moon", "a photo of a ring"]
    star, moon = ("red", "star"), ("blue", "moon")
    found = [[star, moon], [moon, moon], [star, moon], [star]]
    mine = {0: [star], 1: [moon, moon, moon], 2: [star, moon], 3: [("pink", "ring")]}
    one = labels.verdicts(prompts, found, mine)
    assert (one["agree"], one["of"]) == (1, 3), "an extra kind is free, an extra object of a number is not"
    assert (one["detector_only"], one["label_only"], one["right_by_label"]) == (1, 1, 2)


def test_the_encoder_is_measured_and_the_card_filled(tmp_path: Path) -> None:
    model = ShapesEncoder(8)
    initialise(model, 1)
    model.save_pretrained(tmp_path / "weights")
    card = tmp_path / "card"
    card.mkdir()
    (card / "README.md").write_text((ROOT / "data" / "shapes_encoder" / "README.md").read_text(encoding="utf-8"))
    quick = ["--train", "60", "--test", "20", "--count", "40", "--sizes", "32", "--threads", "1"]
    part("shapes_encoder").main(["--weights", str(tmp_path / "weights"), "--card", str(card), *quick])
    found = json.loads((card / "score.json").read_text())
    assert [row["features"] for row in found["probes"]] == ["encoder", "random weights", "mean colours of 4 x 4 cells"]
    assert all(row["encoder"] >= 0 for row in found["distances"]) and len(found["distances"]) == 7
    text = (card / "README.md").read_text(encoding="utf-8")
    assert "not measured yet" not in text and "| JPEG at quality 50 |" in text


def test_a_probe_finds_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    true = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    found = part("shapes_encoder").probe(x[:300], x[300:], true[:300], torch.nn.functional.cross_entropy, 3)
    assert float((found.argmax(1) == true[300:]).float().mean()) > 0.9
