"""`lightning evaluate preference`: which prompt belongs to which picture, the scores, and the win rate."""

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
from lightning_gen.metrics.extraction.clip import load_clip
from lightning_gen.metrics.image_sets import open_images
from tests.harness.tiny_clip import write_tiny_clip

Run = Callable[..., str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning evaluate preference ...` beside pictures in a and b; what it prints."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(4):
            Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / folder / f"{number}.png")
    prompts(*({"image": f"{number}.png", "prompt": f"a cat {number}"} for number in (2, 0, 1, 3)))

    def call(*arguments: str) -> str:
        assert main(["evaluate", "preference", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "preference", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message

    return call


def prompts(*rows: dict[str, str]) -> None:
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def metrics(folder: str) -> dict[str, Any]:
    entries = json.loads((Path(folder) / "metrics.json").read_text())["metrics"]
    return {entry["protocol"]["metric"]: entry for entry in entries}


GIVEN = ("--samples", "a", "--prompts", "prompts.jsonl", "--threads", "0", "--batch-size", "3")


def test_scores_go_with_the_prompt_of_their_picture(run: Run, clip: str) -> None:
    run(*GIVEN, "--scorer", "clipscore", clip, "--out", "runs")
    model = load_clip(clip)
    texts = [f"a cat {number}" for number in range(4)]
    with torch.no_grad():
        expected = (model.embed_images(open_images("a").select(range(4))) * model.embed_texts(texts)).sum(1)
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == texts
    assert [row["score"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    assert metrics("runs")["clipscore"]["value"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert Path("runs/contact_sheet.png").is_file()


def test_win_rate_against_other_pictures(run: Run, clip: str) -> None:
    run(*GIVEN, "--scorer", "pickscore", clip, "--against", "b", "--out", "runs")
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert all(row["wins"] == (row["score"] > row["against"]) for row in rows)
    found = metrics("runs")
    assert found["pickscore:winrate"]["value"] == sum(row["wins"] for row in rows) / 4
    run(*GIVEN, "--scorer", "pickscore", clip, "--against", "a", "--out", "same")
    assert metrics("same")["pickscore:winrate"]["value"] == 0.5, "ties are half a win"


def test_prompts_in_order_where_no_line_names_a_picture(run: Run, refused: Run, clip: str) -> None:
    Path("prompts.txt").write_text("one\ntwo\nthree\nfour\n")
    given = ("--samples", "a", "--prompts", "prompts.txt", "--scorer", "clipscore", clip)
    run(*given, "--out", "runs")
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two", "three", "four"]
    Path("prompts.txt").write_text("one\ntwo\n")
    assert "2 prompts, a 4 pictures" in refused(*given)


def test_the_aesthetic_head_needs_its_clip(run: Run, refused: Run, clip: str, tmp_path: Path) -> None:
    widths = (16, 1024, 128, 64, 16, 1)
    layers = list(zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True))
    state = {f"layers.{n}.weight": torch.randn(out, into) / into for n, into, out in layers}
    torch.save({**state, **{f"layers.{n}.bias": torch.zeros(out) for n, _, out in layers}}, tmp_path / "head.pth")
    run(*GIVEN, "--scorer", "aesthetic", "head.pth", clip, "--out", "runs")
    assert "aesthetic" in metrics("runs")
    assert "takes HEAD and CLIP" in refused(*GIVEN, "--scorer", "aesthetic", "head.pth")


def test_what_does_not_belong_together_is_refused(refused: Run, clip: str) -> None:
    given = (*GIVEN, "--scorer", "clipscore", clip)
    Path("b/3.png").rename("b/4.png")
    assert "same names in the same order: 3 stands against 4" in refused(*given, "--against", "b")
    prompts({"image": "0.png", "prompt": "x"}, {"prompt": "y"})
    assert 'line 2 has no "image"' in refused(*given)
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"image": n, "prompt": "x"}) for n in (3, 2, 1, 0)))
    assert 'line 1: "image" is 3, no text' in refused(*given)
    prompts({"image": "0.png", "prompt": "x"}, {"image": "0.png", "prompt": "y"})
    assert "line 2: 0.png has a prompt already" in refused(*given)
    prompts(*({"image": f"{number}", "prompt": "x"} for number in range(3)))
    assert "no prompt for the picture 3.png" in refused(*given)
    prompts(*({"image": f"{number}", "prompt": "x"} for number in range(5)))
    assert "a has no picture 4" in refused(*given)


def test_unknown_and_missing_scorers(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "my_scorer.py").write_text("def text():\n    return 'scorer'\n")
    assert "choose pickscore, hpsv2" in refused(*GIVEN, "--scorer", "magic")
    assert "takes one SOURCE" in refused(*GIVEN, "--scorer", "pickscore")
    assert "nowhere" in refused(*GIVEN, "--scorer", "pickscore", "nowhere")
    assert "made a str" in refused(*GIVEN, "--scorer", "my_scorer.text")


def test_a_table_of_win_rates(run: Run, clip: str) -> None:
    several = ("--scorer", "clipscore", clip, "+", "pickscore", clip)
    out = run(*GIVEN, *several, "--against", "b", "a", "--out", "runs")
    entries = json.loads(Path("runs/metrics.json").read_text())["metrics"]
    rates = [entry for entry in entries if entry["protocol"]["metric"].endswith(":winrate")]
    assert [(one["protocol"]["metric"], one["protocol"]["details"]["against"]) for one in rates] == [
        ("clipscore:winrate", "b"), ("clipscore:winrate", "a"), ("pickscore:winrate", "b"), ("pickscore:winrate", "a"),
    ]  # fmt: skip
    assert rates[1]["value"] == rates[3]["value"] == 0.5 and "against a: 0 won, 4 tied, 0 lost" in rates[1]["note"]
    assert out.count("against b:") == 4
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and {(row["scorer"], row["rival"]) for row in rows[8:12]} == {("pickscore", "b")}


JUDGE = '''
import json
import torch


class Bright:
    """Sorts pictures by their brightness."""

    name = "bright"
    settings = {"judge_model": "bright"}

    def __call__(self, message):
        pictures = [part for part in message if isinstance(part, torch.Tensor)]
        order = sorted(range(len(pictures)), key=lambda n: -float(pictures[n].float().mean()))
        return json.dumps({"ranking": [n + 1 for n in order]})
'''


def k_sort_folder(brightness: dict[str, int], cases: int = 12) -> None:
    for number in range(cases):
        folder = Path(f"bench/{number}")
        folder.mkdir(parents=True)
        images = []
        for rank, (name, level) in enumerate(sorted(brightness.items(), key=lambda item: -item[1]), 1):
            Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{name}.png")
            images.append({"model": name, "path": f"{number}/{name}.png", "rank": rank})
        with Path("bench/k_sort.jsonl").open("a") as file:
            file.write(json.dumps({"id": str(number), "prompt": "a cat", "images": images}) + "\n")
    board = {name: [20 + level / 25, 0.9] for name, level in brightness.items()}
    board["sd"] = "21.6/0.9"  # type: ignore[assignment]
    Path("bench/leaderboard.json").write_text(json.dumps(board))


def test_k_sort_eval(run: Run, refused: Run) -> None:
    Path("my_judge.py").write_text(JUDGE)
    k_sort_folder({"sd": 40, "sdxl": 80, "flux": 160, "best": 200})
    Path("new").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (120,) * 3).save(f"new/{number}.png")
    given = ("--samples", "new", "--k-sort", "bench", "--judge", "my_judge.Bright")
    run(*given, "--rounds", "9", "--out", "runs")
    found = metrics("runs")
    assert 23.2 < found["ksort:mu"]["value"] < 26.4, "between sdxl and flux"
    assert found["ksort"]["value"] == pytest.approx(found["ksort:mu"]["value"] - 2.7)
    assert found["ksort"]["protocol"]["details"]["mean_agreement"] == pytest.approx(1)
    [size] = [line for line in json.loads(Path("runs/metrics.json").read_text())["warnings"] if "pixels" in line]
    assert size == "pictures of 8 x 8 pixels; the published ratings are of 512 x 512"
    rows = [json.loads(line) for line in Path("runs/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and all(row["rank"] == 3 for row in rows)
    assert "needs --judge" in refused("--samples", "new", "--k-sort", "bench")
    assert "leave --scorer" in refused(*given, "--scorer", "clipscore", "x")
    assert "give --scorer and --prompts, or --k-sort and --judge" in refused("--samples", "a")
    assert "no picture is named by a case id, such as 0.png" in refused("--samples", "bench/0", *given[2:])
