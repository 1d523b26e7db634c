"""Rank correlations in the harness of the claims, and what PAE's claim is made of."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.refine import PAERefine
from lightning_gen.backbones import shipped
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.data.quarantine import DataError
from lightning_gen.generators.dit.module import LatentDiffusion
from lightning_gen.generators.spaces import AutoencoderSpace, LatentSpace
from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.nn.tokens import Tokens, patchify, unpatchify
from lightning_gen.shapes.encoder import ShapesEncoder
from lightning_gen.training.initialisation import initialise

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"
KIND = "lightning_gen.autoencoders.pae.module.PAE"


@pytest.fixture(autouse=True)
def importable() -> None:
    """The commands of that folder import each other by name; the path is put back after the test."""
    sys.path.insert(0, str(FOLDER))


def part(name: str) -> Any:
    return importlib.import_module(name)


# ------------------------------------------------------------------ rank correlations

ORDERS = {
    "a": {0: (1.0, 4.0), 1: (1.0, 1.0), 2: (3.0, 9.0)},
    "b": {0: (2.0, 3.0), 1: (2.0, 2.0), 2: (3.0, 7.0)},
    "c": {0: (3.0, 2.0), 1: (3.0, 2.0), 2: (1.0, 8.0)},
    "d": {0: (9.0, 1.0), 1: (4.0, 7.0), 2: (2.0, 8.0)},
}
"""Arm -> seed -> measure and gFID: opposite, alike but for a tie, mixed with ties."""
NUMBERS = {arm: {seed: {"measure": x, "gfid": y} for seed, (x, y) in by.items()} for arm, by in ORDERS.items()}


def run_of(arm: str, seed: int, budget: Any, folder: Path) -> dict[str, float]:
    return NUMBERS[arm][seed]


def claim(*comparisons: Any, **changes: Any) -> Any:
    module = part("claim")
    values: dict[str, Any] = {
        "name": "orders",
        "sentence": "The measure foretells gFID",
        "source": "arXiv:0000.00000, figure 2",
        "arms": {arm: f"arm {arm}" for arm in ORDERS},
        "baseline": "a",
        "seeds": (0, 1, 2),
        "budget": module.Budget(1, 1, 1),
        "equal": "everything",
        "quick": module.Budget(1, 1, 1),
        "comparisons": comparisons,
        "run": run_of,
    }
    return module.Claim(**{**values, **changes})


def test_a_rank_correlation_is_that_of_scipy_seed_by_seed() -> None:
    found = part("analysis").find(part("claim").Correlation("measure", "gfid"), NUMBERS, [0, 1, 2])
    pairs = {seed: [[ORDERS[arm][seed][side] for arm in ORDERS] for side in (0, 1)] for seed in (0, 1, 2)}
    assert found.differences == pytest.approx({seed: spearmanr(*sides).statistic for seed, sides in pairs.items()})
    assert found.differences[0] == pytest.approx(-1.0) and found.word is None
    rows = torch.tensor(list(found.differences.values()), dtype=torch.float64)
    assert found.mean == pytest.approx(float(rows.mean())) and found.interval == bootstrap_interval(rows)
    assert str(found).startswith("rank correlation of measure with gfid ")


def test_some_arms_can_be_ordered_alone_and_what_is_constant_foretells_nothing() -> None:
    find, correlation = part("analysis").find, part("claim").Correlation
    some = find(correlation("measure", "gfid", ("a", "b", "d")), NUMBERS, [1])
    assert some.differences[1] == pytest.approx(1.0) and some.interval is None
    assert find(correlation("measure", "gfid"), NUMBERS, [1]).differences[1] < 0.99
    flat = {arm: {0: {"measure": 1.0, "gfid": float(place)}} for place, arm in enumerate(ORDERS)}
    assert find(correlation("measure", "gfid"), flat, [0]).differences == {0: 0.0}
    with pytest.raises(ValueError, match="arm a, seed 0 has no number 'ssc'"):
        find(correlation("ssc", "gfid"), NUMBERS, [0])


def test_a_correlation_can_decide_and_must_be_decidable() -> None:
    correlation, comparison = part("claim").Correlation, part("claim").Comparison
    analyse = part("analysis").analyse
    one = claim(correlation("measure", "gfid", expects="not higher", margin=0.1))
    opposite = {arm: dict.fromkeys(by, by[0]) for arm, by in NUMBERS.items()}
    assert analyse(one, opposite, one.seeds).word == "holds"
    other = claim(correlation("measure", "gfid", (), "higher", 0.1))
    assert analyse(other, opposite, other.seeds).word == "does not hold"
    with pytest.raises(ValueError, match="margin above 0"):
        correlation("measure", "gfid", (), "higher")
    with pytest.raises(ValueError, match="there is no arm gone"):
        claim(correlation("measure", "gfid", ("a", "b", "gone"), "higher", 0.1))
    decides = comparison("gfid", "a", "b", "higher", 1.0)
    with pytest.raises(ValueError, match=r"at least three arms, got \['a', 'b'\]"):
        claim(decides, correlation("measure", "gfid", ("a", "b")))
    with pytest.raises(ValueError, match="no comparison decides"):
        claim(correlation("measure", "gfid"))


def test_correlations_reach_json_picture_and_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = claim(part("claim").Comparison("gfid", "a", "d", "higher", 0.5), part("claim").Correlation("measure", "gfid"))
    assert part("harness").main([one], ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "rank correlation of measure with gfid -0.017 [-1.000, +0.949]" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "results" / "claim_orders.json").read_text(encoding="utf-8"))
    asked = saved["findings"][1]
    assert (asked["measure"], asked["against"], asked["verdict"]) == ("measure", "gfid", None)
    assert set(asked["differences"]) == {"0", "1", "2"} and asked["differences"]["0"] == pytest.approx(-1.0)
    assert "rank correlation of measure with gfid" in (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "results" / "claim_orders.png").read_bytes().startswith(b"\x89PNG")
    # The picture shows mean ranks: arm d has the largest measure in two seeds of three.
    ranks = part("report")._mean_ranks(NUMBERS, list(ORDERS), [0, 1, 2], "measure")
    assert ranks == pytest.approx([2 / 3, 4 / 3, 4 / 3, 7 / 3])


# ------------------------------------------------------------------ from a tokenizer to gFID


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    model = ShapesEncoder(8)
    initialise(model, 0)
    model.save_pretrained(folder)
    return str(folder)


def tokenizer(encoder: str, seed: int = 0) -> PAE:
    commands = part("pae")
    model: PAE = commands.tokenizer_of("plain", encoder, None, seed, commands.QUICK)
    model.configure_model()
    return model.requires_grad_(False).eval()


def test_a_training_picture_is_encoded_once() -> None:
    generation = part("tokenizer_generation")
    seen: list[int] = []

    class Halves(LatentSpace):
        patch, channels = 16, 2

        def encode_images(self, images: torch.Tensor | Tokens) -> Tokens:
            assert isinstance(images, torch.Tensor)
            seen.append(len(images))
            return patchify(images[:, :2, ::16, ::16], 1)

        def decode(self, latents: Tokens) -> list[torch.Tensor]:
            raise NotImplementedError

    space = generation.RememberedLatents(Halves())
    data = generation.single_objects(6, 4, 0)
    (batch, images), *_ = list(generation.looked_at(data))
    swapped = dataclasses.replace(batch, raw=batch.raw.flip(0), index=batch.index.flip(0))
    first, again = space.encode(batch), space.encode(swapped)
    assert seen == [len(images)]
    maps = torch.stack(unpatchify(dataclasses.replace(first, patch=1, sizes=first.grid)))
    assert torch.equal(maps, images[:, :2, ::16, ::16])
    assert torch.equal(again.values, first.values.flip(0)) and first.patch == 16


def test_statistics_are_those_of_the_latents_and_belong_to_the_weights(encoder: str, tmp_path: Path) -> None:
    generation, model = part("tokenizer_generation"), tokenizer(encoder)
    data = generation.single_objects(70, 4, 0)
    file = generation.latent_statistics(model, data, tmp_path)
    model.save_pretrained(tmp_path / "weights")
    space = AutoencoderSpace(KIND, str(tmp_path / "weights"), str(file))
    real = torch.cat([images[batch.valid] for batch, images in generation.looked_at(data)])
    latents = space.encode_images(real).values
    assert latents.shape == (70, 64, 8)
    assert torch.allclose(latents.mean((0, 1)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(latents.std((0, 1), correction=0), torch.ones(8), atol=1e-4)
    tokenizer(encoder, seed=1).save_pretrained(tmp_path / "others")
    with pytest.raises(DataError, match="belongs to the weights"):
        AutoencoderSpace(KIND, str(tmp_path / "others"), str(file))


def test_the_judge_knows_real_scenes_and_the_detector_what_was_asked_for(encoder: str) -> None:
    generation = part("tokenizer_generation")
    data = generation.single_objects(100, 4, 0)
    judge = generation.Judge(encoder, data)
    found = list(generation.looked_at(data))
    images = torch.cat([images[batch.valid] for batch, images in found])
    labels = torch.cat([batch.label[batch.valid] for batch, _ in found])
    assert labels.min() >= 0 and labels.max() < generation.CLASSES and len(images) == 100
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same, near, far = (judge.distance(x) for x in (images, 0.9 * images + 0.1 * noise, noise))
    assert abs(same) < 1e-6 < near < far
    assert generation.right_pictures(images, labels) == 1
    assert generation.right_pictures(images, (labels + 1) % generation.CLASSES) == 0
    assert generation.right_pictures(torch.zeros_like(images), labels) == 0
    # Two objects are not what was asked for, even if each of them is.
    assert generation.right_pictures(torch.cat([images, images], dim=3), labels) == 0


def test_the_distance_of_the_encoder_is_one(encoder: str) -> None:
    distance = part("tokenizer_generation").EncoderDistance(encoder)
    x, y = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(distance(x, x), torch.zeros(3))
    assert torch.allclose(distance(x, y), distance(y, x)) and (distance(x, y) > 0).all() and (distance(x, y) <= 4).all()
    nearer = distance(x, 0.9 * x + 0.1 * y)
    assert (nearer < distance(x, y)).all()


def test_pictures_are_made_for_their_labels_from_noise_of_their_own(encoder: str, tmp_path: Path) -> None:
    generation, model = part("tokenizer_generation"), tokenizer(encoder)
    file = generation.latent_statistics(model, generation.single_objects(8, 4, 0), tmp_path)
    model.save_pretrained(tmp_path / "weights")
    space = AutoencoderSpace(KIND, str(tmp_path / "weights"), str(file))
    generator = generation.generator_of(space, "lightningdit_w16_d1_h2_g8_qknorm", 0)
    generator.configure_model()
    with torch.no_grad():  # it starts at 0, whatever it is asked for
        for parameter in generator.network.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(66) % generation.CLASSES
    made = generation.made_pictures(generator.eval(), labels)
    assert made.shape == (66, 3, 32, 32) and made.abs().max() <= 1
    # No batch tells on its pictures, and every label on its own.
    other = labels.clone()
    other[1] = 70
    changed = (generation.made_pictures(generator, other) != made).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1]
    assert generator.sampling.strength().scale == 1


# ------------------------------------------------------------------ the claim itself


def test_the_arms_differ_by_their_losses_and_nothing_else() -> None:
    commands = part("pae")
    (one,) = commands.CLAIMS
    assert set(commands.LOSSES) == set(one.arms) and set(commands.BASELINES) == {"plain", "kl", "vf"}
    on = {
        arm: {name: value for name, value in dataclasses.asdict(losses).items() if value}
        for arm, losses in commands.LOSSES.items()
    }
    assert on["pae"] == {"l1": 1, "ssr": 0.2, "mcr": 0.5, "scr": 1}
    assert on["plain"] == {"l1": 1} and on["vf"] == {"l1": 1, "vf": 0.1}
    for name in ("ssr", "mcr", "scr"):
        assert on[name] == {"l1": 1, name: on["pae"][name]}
    # As large a share of the loss as the paper's 1e-6 has over its 8192 numbers.
    assert on["kl"]["kl"] * commands.CHANNELS * commands.GRID**2 == pytest.approx(1e-6 * 32 * 16 * 16)
    shapes = {arm: commands.shape_of(arm, 128) for arm in one.arms}
    assert {arm for arm, shape in shapes.items() if shape.latent == "kl"} == {"kl"}
    assert len({dataclasses.replace(shape, latent="sphere") for shape in shapes.values()}) == 1


def test_the_claim_was_fixed_before_its_first_run() -> None:
    (one,) = part("pae").CLAIMS
    deciding = {(c.measure, c.first, c.second, c.expects, c.margin) for c in one.comparisons if c.expects}
    assert deciding == {("ln gfid", other, "pae", "higher", 0.1) for other in ("plain", "kl", "vf")} | {
        ("psnr", "pae", other, "not higher", 1.0) for other in ("plain", "kl", "vf")
    }
    correlated = {(c.measure, c.against, c.arms) for c in one.comparisons if isinstance(c, part("claim").Correlation)}
    assert correlated == {(name, "gfid", ()) for name in ("ssc", "lpc", "gsq", "erank")}
    assert len(one.seeds) >= 3 and dataclasses.astuple(one.quick) < dataclasses.astuple(one.budget)
    # No number of the planned time may grow unseen: 21 runs in 100 minutes.
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| `pae_latents` |"))
    assert f"| {one.budget.steps} of the tokenizer, {one.budget.steps} of the generator, " in row and "90 in all" in row
    assert all(f"`{arm}`" in row for arm in one.arms)


def test_only_losses_with_a_target_have_a_stage_0(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = part("pae")
    monkeypatch.setattr(commands, "train", lambda model, *_: model.configure_model())
    made = {arm: commands.refined(arm, encoder, 0, commands.QUICK, tmp_path / arm) for arm in commands.LOSSES}
    assert {arm for arm, folder in made.items() if folder} == {"ssr", "scr", "pae"}
    # Arms of a seed share their target.
    ends = [(Path(made[arm]) / "model.safetensors").read_bytes() for arm in ("ssr", "scr", "pae")]
    assert ends[0] == ends[1] == ends[2]
    model = commands.tokenizer_of("pae", encoder, made["pae"], 0, commands.QUICK)
    assert model.cascade.start == 1
    model._load_targets()
    assert model.target is not None


def test_without_the_encoder_a_full_run_is_refused_and_a_quick_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = part("pae")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "package")
    with pytest.raises(MissingWeightsError, match="the weights shapes_encoder are not in this installation"):
        commands.encoder_weights(commands.FULL, tmp_path)
    options = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--seed", "0", "--arm", "plain"]
    assert part("harness").main(commands.CLAIMS, options) == 2
    assert "data/shapes_encoder/README.md" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "pae_latents" / "plain-seed0.json").exists()
    weights = commands.encoder_weights(commands.QUICK, tmp_path)
    assert ShapesEncoder.from_pretrained(weights).num_features == 32
    # Full runs take what is shipped once it is there.
    shipped_to = tmp_path / "data" / "shapes_encoder"
    ShapesEncoder(8).save_pretrained(shipped_to)
    weights = commands.encoder_weights(commands.FULL, tmp_path)
    prior, width = commands.prior_of(weights)
    assert width == 32 and prior.arguments()["source"] == "shapes_encoder"


@pytest.mark.slow
def test_quick_runs_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    command = [sys.executable, str(FOLDER / "pae.py"), "--quick", "--runs", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    assert results.read_bytes() == before and "tells nothing" in done.stdout
    found = json.loads((tmp_path / "pae_latents_quick" / "result.json").read_text(encoding="utf-8"))
    assert found["seeds"]["complete"] == [0, 1] and set(found["numbers"]) == set(part("pae").LOSSES)
    for by in found["numbers"].values():
        assert {"gfid", "ln gfid", "rfid", "psnr", "right", "ssc", "lpc", "gsq", "erank"} <= set(by["0"])
        assert by["0"]["psnr"] != by["1"]["psnr"]
    parameters = {arm: by["0"]["parameters"] for arm, by in found["numbers"].items()}
    assert len({parameters[arm] for arm in ("plain", "ssr", "mcr", "scr", "pae")}) == 1
    told = [one for one in found["findings"] if "against" in one]
    assert [one["measure"] for one in told] == ["ssc", "lpc", "gsq", "erank"]
    assert all(len(one["differences"]) == 2 and one["interval"] is not None for one in told)
    assert (tmp_path / "pae_latents_quick" / "plot.png").read_bytes().startswith(b"\x89PNG")

    # Called again after all its trainings, a run trains nothing and finds the same.
    def training_step(*_: Any) -> None:
        raise AssertionError("it was trained already")

    for model in (PAE, PAERefine, LatentDiffusion):
        monkeypatch.setattr(model, "training_step", training_step)
    commands, torch_threads = part("pae"), torch.get_num_threads()
    torch.set_num_threads(1)
    again = commands.generation("pae", 1, commands.QUICK, tmp_path / "pae_latents_quick" / "pae-seed1")
    torch.set_num_threads(torch_threads)
    again.pop("train_seconds")
    told = found["numbers"]["pae"]["1"]
    assert again == pytest.approx({name: told[name] for name in again}, rel=1e-4, abs=1e-9)
