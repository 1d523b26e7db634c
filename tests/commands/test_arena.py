"""`lightning arena`: from annotations to a table of gaps that training joins, as commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from lightning_gen.cli import main
from lightning_gen.data.preferences import PickAPicDataModule
from lightning_gen.data.quarantine import DataError
from tests.alignment.arena_po.tables import pickapic, write

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning ...` in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        found = capsys.readouterr()
        return found.out + found.err

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which `lightning arena ...` ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["arena", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in message
        return message

    return call


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys\nfrom lightning_gen.cli import main\ntry: main(['arena', 'fit', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'lightning', 'pyarrow', 'matplotlib', 'rich', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_from_annotations_to_gaps_and_pictures(run: Run) -> None:
    columns = pickapic(1500)
    columns["model_0"][0] = None
    columns["label_1"][1] = 0.3
    write(Path("t.parquet"), columns)
    out = run("arena", "fit", "t.parquet", "--out", "runs/arena.json")
    assert re.search(r"t.parquet: 1,500 rows, 1,\d+ games of 5 models; \d+ ties, \d+ pairs of one model", out)
    order = re.findall(r"^ +\d+  (\w+) ", out, re.MULTILINE)
    assert [name for name in order if name != "unknown"] == ["fine", "good", "fair", "poor"]
    assert "warning: no model is named: 1 in model_a of 1,500 rows" in out
    assert "warning: 1 of 1,500 rows: outcomes that are none" in out
    assert "1 of 5 models have fewer than 10 games (unknown)" in out
    shown = run("arena", "show", "runs/arena.json", "--level", "0.9", "--out", "pictures")
    assert "90% interval" in shown
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        "calibration.png", "leaderboard.json", "leaderboard.png", "wins.png",
    ]  # fmt: skip
    assert json.loads(Path("pictures/leaderboard.json").read_text())["models"][0]["name"] in ("fine", "unknown")
    out = run(
        "arena", "gaps", "t.parquet", "--arena", "runs/arena.json", "--variance", "capability", "--out", "g.parquet"
    )
    assert "warning: the median s is" in out
    table = pyarrow.parquet.read_table("g.parquet")
    assert (table.column("g").to_numpy() > 0).all()
    run("arena", "gaps", "t.parquet", "--arena", "runs/arena.json", "--quantile", "0.1", "--normalise", "none",
        "--variance", "capability", "--out", "q.parquet")  # fmt: skip
    careful = pyarrow.parquet.read_table("q.parquet")
    assert (careful.column("g").to_numpy() < table.column("g").to_numpy()).all()
    write(Path("other.parquet"), pickapic(1500, seed=3))
    out = run("arena", "calibrate", "other.parquet", "--arena", "runs/arena.json", "--out", "held out")
    assert "fitted to this table" not in out and Path("held out/calibration.png").is_file()
    assert json.loads(Path("held out/calibration.json").read_text())["error"] < 0.1
    assert "fitted to" in run("arena", "calibrate", "--arena", "runs/arena.json")


def test_from_practice_files_to_a_batch_with_gaps(run: Run) -> None:
    run("data", "synth", "preference", "practice", "--as", "parquet", "--count", "120", "--size", "16", "--flaws", "2")
    run("data", "convert", "--from", "parquet", "practice", "shards", "--shuffle-seed", "0", "--max-samples", "50")
    out = run("arena", "fit", "practice", "--solver", "batch_ep")
    assert re.search(r"^ +1  fine ", out, re.MULTILINE)
    run("arena", "gaps", "practice", "--arena", "arena.json")
    data = PickAPicDataModule("shards", "shards", resolution=16, global_batch_size=4, gaps="gaps.parquet")
    rows = pyarrow.parquet.read_table("gaps.parquet").to_pydict()
    margin = dict(zip(rows["pair_id"], rows["margin"], strict=True))
    winner = dict(zip(rows["pair_id"], rows["winner"], strict=True))
    seen = 0
    for batch in [*data.train_loader(), *data.evaluation_loader("val")]:
        for key, gap, models in zip(batch.winner.key, batch.gap.tolist(), batch.models, strict=True):
            assert gap == pytest.approx(margin[key], rel=1e-6) and models[0] == winner[key]
            seen += 1
    assert seen > 100
    # The shards themselves are a table too, and name their pairs alike.
    run("arena", "fit", "shards", "--out", "s.json")
    run("arena", "gaps", "shards", "--arena", "s.json", "--out", "s.parquet")
    assert set(pyarrow.parquet.read_table("s.parquet").column("pair_id").to_pylist()) <= set(rows["pair_id"])


def test_gaps_of_another_data_set_are_refused_with_counts(run: Run) -> None:
    for seed in "01":
        run("data", "synth", "preference", f"set{seed}", "--count", "40", "--size", "16", "--seed", seed)
    run("arena", "fit", "set0")
    run("arena", "gaps", "set0", "--arena", "arena.json")
    data = PickAPicDataModule("set1", resolution=16, global_batch_size=4, gaps="gaps.parquet")
    with pytest.raises(DataError, match=r"of another data set: \d+ of \d+ pairs of .* name other models"):
        data.train_loader()
    rows = pyarrow.parquet.read_table("gaps.parquet")
    pyarrow.parquet.write_table(rows.slice(0, 20), "half.parquet")
    batches = list(PickAPicDataModule("set0", resolution=16, global_batch_size=2, gaps="half.parquet").train_loader())
    assert sum(len(batch) for batch in batches) == 20, "pairs without a row are left out"
    assert all(np.isfinite(batch.gap.numpy()).all() for batch in batches)
    (line,) = PickAPicDataModule.needs({"train": "set0", "resolution": 16, "gaps": "nowhere.parquet"}).missing
    assert "data.gaps: there is no nowhere.parquet: make it with `lightning arena fit`" in line
    with pytest.raises(ValueError, match="data.gaps is the table of one set"):
        PickAPicDataModule(
            [{"shards": "set0"}, {"shards": "set1"}], resolution=16, global_batch_size=4, gaps="gaps.parquet"
        )  # type: ignore[list-item]


def test_what_cannot_be_done_is_said(run: Run, refused: Run) -> None:
    write(Path("ties.parquet"), {"model_a": ["x"] * 3, "model_b": ["y"] * 3, "outcome": [0.5] * 3})
    assert "3 of 3 pairs are ties; ties: draw" in refused("fit", "ties.parquet")
    write(Path("one.parquet"), {"model_a": ["x"] * 3, "model_b": ["x"] * 3, "outcome": [1.0] * 3})
    assert "by one model, 'x'" in refused("fit", "one.parquet")
    assert "there is no nothing.csv" in refused("fit", "nothing.csv")
    assert "no column" in refused("fit", "one.parquet", "--fields", "model_a=left")
    assert "write NAME=NAME" in refused("fit", "one.parquet", "--alias", "x")
    assert "there is no arena" in refused("show", "arena.json")
    write(Path("good.parquet"), pickapic(100))
    run("arena", "fit", "good.parquet")
    write(Path("changed.parquet"), pickapic(100, seed=1))
    assert "fitted to other annotations" in refused("gaps", "changed.parquet", "--arena", "arena.json")
    assert "lies in (0, 1), got 2" in refused("show", "arena.json", "--level", "2")
