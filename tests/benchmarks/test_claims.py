"""The harness of the claims on a claim whose numbers are known, and the quick runs of ViTok-v2's two claims."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.intervals import paired_bootstrap_interval
from lightning_gen.nn.tokens import patchify, unpatchify

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"


@pytest.fixture(autouse=True)
def importable() -> None:
    """The commands of that folder import each other by name; the path is put back after the test."""
    sys.path.insert(0, str(FOLDER))


def part(name: str) -> Any:
    return importlib.import_module(name)


# ------------------------------------------------------------------ a claim with known numbers

OFFSETS = {0: 10.0, 1: 30.0, 2: -7.0}
"""What a seed adds to both arms; pairing takes it away."""


class Fake:
    """Runs that note who was called, and stop where they are told to."""

    def __init__(self, gains: Mapping[int, float], stop_at: tuple[str, int] | None = None) -> None:
        self.gains, self.stop_at = gains, stop_at
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, arm: str, seed: int, budget: Any, folder: Path) -> dict[str, float]:
        self.calls.append((arm, seed, budget.steps))
        folder.mkdir(parents=True, exist_ok=True)
        if (arm, seed) == self.stop_at:
            (folder / "half").write_text("a checkpoint", encoding="utf-8")
            raise KeyboardInterrupt
        return {"score": OFFSETS[seed] + (self.gains[seed] if arm == "new" else 0.0), "other": 1.0}


def claim(run: Any, name: str = "fake", expects: str = "higher", **changes: Any) -> Any:
    module = part("claim")
    values: dict[str, Any] = {
        "name": name,
        "sentence": "The new way | is better",
        "source": "arXiv:0000.00000, table 1",
        "arms": {"old": "the old way", "new": "the new way"},
        "baseline": "old",
        "seeds": (0, 1, 2),
        "budget": module.Budget(100, 8, 50),
        "equal": "equal everything",
        "quick": module.Budget(1, 1, 2),
        "comparisons": (
            module.Comparison("score", "new", "old", expects, 0.1),
            module.Comparison("other", "new", "old"),
        ),
        "run": run,
    }
    return module.Claim(**{**values, **changes})


def run(one: Any, tmp_path: Path, *options: str) -> int:
    code: int = part("harness").main(
        [one], ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *options]
    )
    return code


def result(tmp_path: Path, name: str = "fake") -> dict[str, Any]:
    text = (tmp_path / "out" / "results" / f"claim_{name}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


# ------------------------------------------------------------------ differences and verdicts


def test_differences_are_paired_by_seed_and_have_the_bootstrap_interval_of_the_package() -> None:
    gains = {0: 0.5, 1: 0.9, 2: 0.7}
    numbers = {
        "old": {seed: {"score": offset} for seed, offset in OFFSETS.items()},
        "new": {seed: {"score": offset + gains[seed]} for seed, offset in OFFSETS.items()},
    }
    comparison = part("claim").Comparison("score", "new", "old", "higher", 0.1)
    found = part("analysis").find(comparison, numbers, [0, 1, 2])
    assert found.differences == pytest.approx(gains) and found.mean == pytest.approx(0.7)
    sides = [torch.tensor([numbers[arm][seed]["score"] for seed in range(3)]) for arm in ("new", "old")]
    assert found.interval == pytest.approx(paired_bootstrap_interval(*sides, level=0.95))
    # Three seeds: the interval is the range of the differences, whatever the seeds add to both sides.
    assert found.interval == pytest.approx((0.5, 0.9)) and found.word == "holds"


@pytest.mark.parametrize(
    ("interval", "higher", "not_higher"),
    [
        ((0.2, 0.4), "holds", "does not hold"),
        ((-0.4, -0.2), "does not hold", "holds"),
        ((0.0, 0.0), "does not hold", "holds"),  # a tie
        ((-0.05, 0.05), "does not hold", "holds"),  # a tie within the margin
        ((0.05, 0.2), "undecided", "undecided"),
        ((0.1, 0.3), "undecided", "undecided"),
        (None, "undecided", "undecided"),
    ],
)
def test_the_interval_decides_against_the_margin(interval: Any, higher: str, not_higher: str) -> None:
    comparison, decide = part("claim").Comparison, part("analysis").decide
    assert decide(comparison("score", "new", "old", "higher", 0.1), interval) == higher
    assert decide(comparison("score", "new", "old", "not higher", 0.1), interval) == not_higher


def verdict_of(gains: Mapping[str, Mapping[int, float]], expects: Mapping[str, str], seeds: int = 3) -> Any:
    module = part("claim")
    comparisons = [module.Comparison(name, "new", "old", wanted, 0.1) for name, wanted in expects.items()]
    numbers: dict[str, dict[int, dict[str, float]]] = {
        "old": {seed: dict.fromkeys(gains, 0.0) for seed in range(seeds)},
        "new": {seed: {name: gains[name][seed] for name in gains} for seed in range(seeds)},
    }
    one = claim(None, comparisons=comparisons)
    return part("analysis").analyse(one, numbers, one.seeds)


def test_a_claim_holds_if_all_that_decides_holds_and_not_if_one_does_not() -> None:
    up, tie, unclear = dict.fromkeys(range(3), 0.5), dict.fromkeys(range(3), 0.0), {0: -1.0, 1: 0.0, 2: 2.0}
    both = {"a": "higher", "b": "not higher"}
    held = verdict_of({"a": up, "b": tie}, both)
    assert held.word == "holds" and "a: new - old +0.500 [+0.500, +0.500]" in held.sentence
    failed = verdict_of({"a": up, "b": up}, both)
    assert failed.word == "does not hold" and "b: new - old" in failed.sentence and "a: new" not in failed.sentence
    assert verdict_of({"a": unclear, "b": up}, both).word == "does not hold"
    assert verdict_of({"a": up, "b": unclear}, both).word == "undecided"


def test_there_is_no_verdict_before_all_seeds_are_there() -> None:
    early = verdict_of({"a": dict.fromkeys(range(3), 5.0)}, {"a": "higher"}, seeds=2)
    assert early.word == "undecided" and "2 of 3 seeds" in early.sentence and "missing: 2" in early.sentence
    assert list(early.seeds) == [0, 1] and early.findings[0].word == "holds"
    single = verdict_of({"a": dict.fromkeys(range(3), 5.0)}, {"a": "higher"}, seeds=1)
    assert single.findings[0].interval is None and single.findings[0].word == "undecided"
    assert not verdict_of({"a": {}}, {"a": "higher"}, seeds=0).findings


def test_an_arm_may_be_looked_at_by_itself(tmp_path: Path) -> None:
    comparison, find = part("claim").Comparison, part("analysis").find
    numbers = {"new": {0: {"score": 0.5}, 1: {"score": 0.9}, 2: {"score": 0.7}}}
    found = find(comparison("score", "new", None, "higher", 0.1), numbers, [0, 1, 2])
    assert found.differences == pytest.approx({0: 0.5, 1: 0.9, 2: 0.7}) and found.word == "holds"
    assert found.interval == pytest.approx((0.5, 0.9))
    assert str(found).startswith("score: new +0.700 [")
    assert find(comparison("score", "new", None, "not higher", 0.1), numbers, [0, 1, 2]).word == "does not hold"
    # Through the command line, its row and its picture.
    alone = claim(Fake(dict.fromkeys(OFFSETS, 0.5)), comparisons=(comparison("other", "old", None, "higher", 0.5),))
    assert run(alone, tmp_path) == 0 and result(tmp_path)["verdict"] == "holds"
    assert result(tmp_path)["findings"][0]["second"] is None
    with pytest.raises(ValueError, match="score: gone: there is no arm gone"):
        claim(None, comparisons=(comparison("score", "gone", None, "higher", 0.1),))


def test_missing_weights_are_told_without_a_stack_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def needy(arm: str, seed: int, budget: Any, folder: Path) -> dict[str, float]:
        raise MissingWeightsError("the weights x are not here: make them")

    assert run(claim(needy), tmp_path) == 2
    assert capsys.readouterr().err == "error: the weights x are not here: make them\n"


def test_a_claim_that_cannot_be_decided_is_refused() -> None:
    comparison = part("claim").Comparison
    with pytest.raises(ValueError, match="margin above 0, else a tie has no answer"):
        comparison("score", "new", "old", "higher")
    with pytest.raises(ValueError, match="expects is 'higher'"):
        comparison("score", "new", "old", "lower", 0.1)
    for changes, message in (
        ({"baseline": "older"}, "baseline 'older'"),
        ({"seeds": (0,)}, "at least two different seeds"),
        ({"seeds": (0, 0)}, "at least two different seeds"),
        ({"name": "a/b"}, "letters, digits"),
        ({"source": "a blog"}, "arXiv:"),
        ({"comparisons": (comparison("score", "new", "old"),)}, "no comparison decides"),
        ({"comparisons": (comparison("score", "new", "gone", "higher", 1.0),)}, "there is no arm gone"),
    ):
        with pytest.raises(ValueError, match=message):
            claim(None, **changes)


# ------------------------------------------------------------------ runs


def test_an_interrupted_claim_goes_on_with_the_missing_runs(tmp_path: Path) -> None:
    gains = dict.fromkeys(OFFSETS, 0.5)
    first = Fake(gains, stop_at=("new", 1))
    assert run(claim(first), tmp_path) == 130
    assert [call[:2] for call in first.calls] == [("old", 0), ("new", 0), ("old", 1), ("new", 1)]
    folder = tmp_path / "runs" / "fake"
    assert sorted(path.name for path in folder.glob("*.json")) == ["new-seed0.json", "old-seed0.json", "old-seed1.json"]
    second = Fake(gains)
    assert run(claim(second), tmp_path) == 0
    # The run that was under way gets its folder back as it left it.
    assert [call[:2] for call in second.calls] == [("new", 1), ("old", 2), ("new", 2)]
    assert (folder / "new-seed1" / "half").exists()
    assert result(tmp_path)["verdict"] == "holds"
    third = Fake(gains)
    run(claim(third), tmp_path)
    assert third.calls == []


def test_runs_of_another_budget_or_arm_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(dict.fromkeys(OFFSETS, 0.5))
    run(claim(fake), tmp_path, "--seed", "0")
    longer = claim(fake, budget=part("claim").Budget(200, 8, 50))
    assert run(longer, tmp_path, "--seed", "1") == 2  # seed 1 is new, but seed 0 would be compared with it
    assert "another setting of this claim" in capsys.readouterr().err
    other = claim(fake, arms={"old": "the old way", "new": "a newer way"})
    assert run(other, tmp_path, "--seed", "0") == 2
    # A run that was not finished had its own setting too.
    assert run(claim(Fake({}, stop_at=("old", 2))), tmp_path, "--seed", "2", "--arm", "old") == 130
    calls = len(fake.calls)
    assert run(longer, tmp_path, "--seed", "2", "--arm", "old") == 2 and len(fake.calls) == calls


def test_a_number_that_is_not_finite_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(claim(Fake({0: float("nan")})), tmp_path, "--seed", "0") == 2
    assert "score of new, seed 0 is not finite: did training diverge?" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "fake" / "new-seed0.json").exists()


def test_seeds_and_arms_can_be_chosen_and_a_part_is_not_published(tmp_path: Path) -> None:
    fake = Fake(dict.fromkeys(OFFSETS, 0.5))
    assert run(claim(fake), tmp_path, "--seed", "1", "--arm", "new") == 0
    assert fake.calls == [("new", 1, 100)] and not (tmp_path / "runs" / "fake" / "result.json").exists()
    run(claim(fake), tmp_path, "--seed", "1")
    part_of_it = json.loads((tmp_path / "runs" / "fake" / "result.json").read_text(encoding="utf-8"))
    assert part_of_it["verdict"] == "undecided" and part_of_it["seeds"] == {"planned": [0, 1, 2], "complete": [1]}
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as refused:
        run(claim(fake), tmp_path, "--seed", "9")
    assert refused.value.code == 2


def test_quick_runs_begin_anew_and_publish_nothing(tmp_path: Path) -> None:
    fake = Fake(dict.fromkeys(OFFSETS, 0.5))
    for _ in range(2):
        assert run(claim(fake), tmp_path, "--quick") == 0
    assert fake.calls == [("old", 0, 1), ("new", 0, 1), ("old", 1, 1), ("new", 1, 1)] * 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs" / "fake").exists()
    quick = json.loads((tmp_path / "runs" / "fake_quick" / "result.json").read_text(encoding="utf-8"))
    assert quick["quick"] and quick["budget"]["steps"] == 1
    assert (tmp_path / "runs" / "fake_quick" / "plot.png").exists()


# ------------------------------------------------------------------ what is left of it


def test_a_finished_claim_leaves_numbers_picture_and_one_row(tmp_path: Path) -> None:
    table = tmp_path / "out" / "RESULTS.md"
    table.parent.mkdir()
    table.write_text("# Results\n\n## Speed\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n", encoding="utf-8")
    before = table.read_text(encoding="utf-8")
    run(claim(Fake({0: 0.5, 1: 0.9, 2: 0.7})), tmp_path)
    run(claim(Fake(dict.fromkeys(OFFSETS, 0.0)), name="other"), tmp_path)
    text = table.read_text(encoding="utf-8")
    assert text.startswith(before) and text.count("## Claims") == 1
    rows = [line for line in text.splitlines() if line.startswith(("| fake |", "| other |"))]
    assert [row.split(" | ")[0] for row in rows] == ["| fake", "| other"]
    assert "score: new - old +0.700 [+0.500, +0.900] (claimed: higher than 0.1) -> holds" in rows[0]
    assert "**holds**" in rows[0] and "**does not hold**" in rows[1]
    assert "The new way \\| is better (arXiv:0000.00000, table 1)" in rows[0]
    saved = result(tmp_path)
    assert saved["numbers"]["new"]["1"]["score"] == pytest.approx(30.9) and saved["budget"]["steps"] == 100
    assert saved["findings"][0]["interval"] == pytest.approx([0.5, 0.9]) and saved["findings"][1]["verdict"] is None
    picture = tmp_path / "out" / "results" / "claim_fake.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000

    # Run again with another outcome: its row is replaced, the other one and everything else stay.
    shutil.rmtree(tmp_path / "runs" / "fake")
    run(claim(Fake(dict.fromkeys(OFFSETS, -0.5))), tmp_path)
    again = table.read_text(encoding="utf-8").splitlines()
    assert [line for line in again if line != again[text.splitlines().index(rows[0])]] == [
        line for line in text.splitlines() if line != rows[0]
    ]
    assert sum(line.startswith("| fake |") for line in again) == 1 and "**does not hold**" in "".join(
        line for line in again if line.startswith("| fake |")
    )


def test_many_arms_have_a_line_each(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    report = part("report")
    many = {"old": "the old way", "new": "the new way"} | {f"arm {number}": "another" for number in range(20)}
    one = claim(Fake({0: 0.3, 1: 0.2, 2: 0.25}), arms=many)
    run(one, tmp_path)
    numbers = part("harness").finished(one, tmp_path / "runs" / "fake", one.seeds, False)
    found = part("analysis").analyse(one, numbers, one.seeds).findings[:1]
    axis = Figure().subplots()
    report._draw_arms(axis, one, numbers, one.seeds, found, "score")
    assert [text.get_text() for text in axis.get_yticklabels()][:2] == ["old (baseline)", "new"]
    means = axis.get_lines()[len(one.seeds)].get_xdata()
    assert len(means) == 22 and means[1] - means[0] == pytest.approx(0.25)
    with Image.open(tmp_path / "out" / "results" / "claim_fake.png") as picture:
        assert picture.size[1] > 2 * 120 * 22 * report._LINE, "two kinds of numbers, room for every arm in both"


def test_a_row_finds_its_place_when_other_sections_follow() -> None:
    with_row = part("report").with_row
    speed = "# Results\n\n## Speed\n\n| first | of a table above |\n"
    text = with_row(speed, "first", "| first | x |") + "\n## Later\n\n| first | of a table below |\n"
    grown = with_row(text, "second", "| second | y |")
    lines = grown.splitlines()
    assert lines.index("| second | y |") == lines.index("| first | x |") + 1 < lines.index("## Later")
    changed = with_row(grown, "first", "| first | z |")
    assert "| first | x |" not in changed and all(
        f"| first | of a table {where} |" in changed for where in ("above", "below")
    )
    empty = with_row("# Results\n\n## Claims\n\nText.\n", "first", "| first | x |")
    assert "| --- |" in empty and empty.index("## Claims") < empty.index("| first | x |") < empty.index("Text.")


# ------------------------------------------------------------------ training and the baseline of ViTok-v2

HALF = "w16_d1_h2"


def tiny(seed: int = 0) -> ViTokV2:
    model: ViTokV2 = part("vitok_v2").model_of(HALF, HALF, 0.1, seed)
    return model


def test_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    commands, train = part("vitok_v2"), part("training").train
    budget = part("claim").Budget(5, 2, 2)

    def data() -> Any:
        return commands.scenes(commands.MIXED, budget, 0)

    whole = tiny()
    seconds = train(whole, data(), 5, tmp_path / "whole", save_every=2)
    assert seconds > 0
    broken, step, seen = tiny(), ViTokV2.training_step, []

    def stopping(batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append(batch_idx)
        if len(seen) == 4:
            raise OSError("the disk is full")
        return step(broken, batch, batch_idx)

    broken.training_step = stopping  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk is full"):
        train(broken, data(), 5, tmp_path / "broken", save_every=2)
    rest, counted = tiny(), []
    rest.training_step = lambda batch, batch_idx: counted.append(batch.key) or step(rest, batch, batch_idx)  # type: ignore
    train(rest, data(), 5, tmp_path / "broken", save_every=2)
    assert len(counted) == 3  # two steps had been saved
    for (name, a), b in zip(whole.network.named_parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(a, b), name


def absolute_network(grid: tuple[int, int] = (4, 4)) -> Any:
    network = part("absolute_positions").AbsoluteNetwork(Variant.parse(f"{HALF}-{HALF}/1x8x16"), grid, 0.5)
    for stack in (network.encoder, network.decoder):
        torch.nn.init.normal_(stack.positions.table)
    return network.eval()


def pictures(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_baseline_knows_places_from_its_table_alone() -> None:
    network, tokens = absolute_network(), patchify(pictures(32, 32), 8)
    swapped = torch.arange(16)
    swapped[[1, 14]] = swapped[[14, 1]]
    moved = tokens.with_values(tokens.values[:, swapped])
    with torch.no_grad():
        there = network(tokens).pixels.values[:, swapped]
        assert (network(moved).pixels.values - there).abs().max() > 1e-2
        for stack in (network.encoder, network.decoder):
            stack.positions.table.zero_()
        # Without the table it cannot tell where a patch lies; the rotary embedding would have told it.
        there = network(tokens).pixels.values[:, swapped]
        assert (network(moved).pixels.values - there).abs().max() < 1e-5


def test_the_table_is_used_as_it_is_at_the_trained_size_and_resized_elsewhere() -> None:
    positions = absolute_network().encoder.positions
    flat = positions.table[0].flatten(1).T
    assert torch.equal(positions(patchify(pictures(32, 32), 8)), flat.expand(2, -1, -1))
    with torch.no_grad():
        rows = torch.arange(4.0)[:, None].expand(4, 4)
        positions.table.copy_(rows)
    taller = positions(patchify(pictures(64, 32), 8))[0, :, 0].view(8, 4)
    # Rows still count downwards over the whole height; what is constant stays so.
    assert torch.allclose(taller, taller[:, :1].expand(8, 4), atol=1e-5)
    assert (taller.diff(dim=0) > 0).all() and torch.allclose(taller[3:5, 0].mean(), torch.tensor(1.5), atol=1e-4)
    wider = positions(patchify(pictures(32, 64), 8))[0, :, 0].view(4, 8)
    assert torch.allclose(wider, rows[:, :1].expand(4, 8), atol=1e-5)


def test_the_baseline_takes_any_size_but_one_at_a_time() -> None:
    network = absolute_network()
    made = unpatchify(network(patchify(pictures(40, 80), 8)).pixels)
    assert made[0].shape == (3, 40, 80)
    with pytest.raises(ValueError, match="one size"):
        network(patchify([pictures(32, 32)[0], pictures(40, 32)[0]], 8))
    with pytest.raises(ValueError, match="stochastic depth"):
        network.encoder(patchify(pictures(32, 32), 8), keep=torch.ones(2, 1))


def test_the_baseline_differs_from_vitok_by_its_tables() -> None:
    variant = Variant.parse(f"{HALF}-{HALF}/1x8x16")
    ours = {name: x.shape for name, x in ViTokV2Network(variant).named_parameters()}
    theirs = {name: x.shape for name, x in absolute_network().named_parameters()}
    assert {name: shape for name, shape in theirs.items() if name not in ours} == {
        "encoder.positions.table": (1, 16, 4, 4),
        "decoder.positions.table": (1, 16, 4, 4),
    }
    assert {name: theirs[name] for name in ours} == ours
    # Built on the meta device as the claim does it, it is filled like every other network.
    model = tiny()
    with torch.device("meta"):
        model.network = part("absolute_positions").AbsoluteNetwork(model.variant, (8, 8), 0.1)
    model.configure_model()
    table = model.network.encoder.positions.table
    assert 0.015 < table.detach().std().item() < 0.025


def test_a_picture_resized_to_the_trained_square_comes_back_at_its_own_size() -> None:
    commands, model = part("vitok_v2"), tiny()
    model.configure_model()
    seen: list[tuple[int, ...]] = []
    encode = model.encode
    model.encode = lambda images: seen.append(tuple(images.shape[2:])) or encode(images)  # type: ignore
    with torch.inference_mode():
        made = commands.at_trained_size(model)(pictures(40, 80))
    assert made.shape == (2, 3, 40, 80) and seen == [commands.SQUARE]


def test_the_arms_of_a_claim_are_what_they_say() -> None:
    commands = part("vitok_v2")
    assert all(-(-h // 8) * -(-w // 8) <= 64 for h, w in commands.MIXED) and commands.SQUARE in commands.MIXED
    assert commands.LOOKED_AT["2x"] == tuple(2 * side for side in commands.SQUARE)
    assert commands.LOOKED_AT["1:2"] not in commands.MIXED
    halves = {arm: Variant.parse(f"{e}-{d}/1x8x16") for arm, (e, d) in commands.HALVES.items()}
    total = {arm: v.encoder_parameters + v.decoder_parameters for arm, v in halves.items()}
    assert total["large_decoder"] == total["large_encoder"] > 3 * total["small"]
    for one in commands.CLAIMS:
        assert one.budget.steps * one.budget.batch < part("pictures").SCENES and len(one.seeds) >= 5
        assert dataclasses.astuple(one.quick) < dataclasses.astuple(one.budget)


# ------------------------------------------------------------------ commands


@pytest.mark.slow
def test_quick_runs_both_claims_of_vitok(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    command = [sys.executable, str(FOLDER / "vitok_v2.py"), "--quick", "--runs", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert results.read_bytes() == before and "tells nothing" in done.stdout
    native = json.loads((tmp_path / "vitok_v2_native_resolution_quick" / "result.json").read_text(encoding="utf-8"))
    assert native["seeds"]["complete"] == [0, 1]
    baseline = native["numbers"]["absolute"]["0"]
    for size in ("1.5x", "2x", "1:2"):
        # The better of its two treatments counts.
        treatments = [baseline[f"psnr@{size} {way} resized"] for way in ("positions", "picture")]
        assert baseline[f"psnr@{size}"] == max(treatments) and treatments[0] != treatments[1]
    # Both arms of the same seed were measured on the same scenes; their weights and pictures differ between seeds.
    assert native["numbers"]["native"]["0"]["psnr@1x"] != native["numbers"]["native"]["1"]["psnr@1x"]
    scaling = json.loads((tmp_path / "vitok_v2_decoder_scaling_quick" / "result.json").read_text(encoding="utf-8"))
    parameters = {arm: by["0"]["parameters"] for arm, by in scaling["numbers"].items()}
    assert parameters == {"small": 228_432, "large_decoder": 920_592, "large_encoder": 920_592}
    for name in ("native_resolution", "decoder_scaling"):
        assert (tmp_path / f"vitok_v2_{name}_quick" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_make_claims_names_the_paper_the_seed_and_the_options() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "-n", "-C", str(ROOT), "claims"]
    planned = subprocess.run(
        [*command, "CLAIM=some_paper", "SEED=3"], capture_output=True, text=True, check=True
    ).stdout
    assert "for claim in some_paper" in planned and "--seed 3" in planned
    every = subprocess.run([*command, "CLAIM_ARGS=--quick"], capture_output=True, text=True, check=True).stdout
    (names,) = {
        line.partition("for claim in ")[2].partition(";")[0] for line in every.splitlines() if "for claim" in line
    }
    # Those that are commands, and nothing else of that folder.
    papers = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert set(names.split()) == papers >= {"muse", "vitok_v2"} and "harness" not in papers
    assert "--quick" in every and "--seed" not in every
