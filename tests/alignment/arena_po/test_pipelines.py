"""Networks that predict noise, v or velocity: their own errors, and training through pipelines of diffusers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet
import pytest
import torch

from lightning_gen.alignment.arena_po.arena import ArenaOptions, fit_arena
from lightning_gen.alignment.arena_po.arena_gaps import GapOptions, pair_gaps, write_gaps
from lightning_gen.alignment.arena_po.arena_table import TableOptions
from lightning_gen.alignment.arena_po.cache import CacheSettings
from lightning_gen.alignment.arena_po.module import ArenaPO
from lightning_gen.alignment.arena_po.objectives import PairLoss
from lightning_gen.alignment.arena_po.reference import coder_digest
from lightning_gen.alignment.arena_po.settings import PairTimes, SampleSettings
from lightning_gen.alignment.arena_po.sources import FittedGaps, TableGaps, training_comparisons
from lightning_gen.alignment.policies import PipelinePolicy
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.preferences import HPDv3DataModule, PickAPicDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.synth.options import SynthOptions
from lightning_gen.data.synth.preference import pair_samples, winner_first_samples
from lightning_gen.data.writing import write_shards
from lightning_gen.training.randomness import normal
from tests.alignment.arena_po.worlds import ToyPairs, fit, module, moved, pairs, trained_weights
from tests.alignment.worlds import ToyPolicy
from tests.harness.tiny_pipelines import scheduler_of, write_tiny_pipeline

LORA = LoRASettings(2, 4.0)
SMALL: dict[str, Any] = {"lora": LORA, "samples": SampleSettings(2, "euler", 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def pipeline(folder: Path, name: str) -> PipelinePolicy:
    """``sd15_v`` is a Stable Diffusion that predicts v, as 2.1 does."""
    place = folder / name
    if not place.exists():
        scheduler = scheduler_of("sd15") if name == "sd15_v" else None
        if scheduler is not None:
            scheduler.register_to_config(prediction_type="v_prediction")
        write_tiny_pipeline(place, "sd15" if name == "sd15_v" else name, scheduler)  # type: ignore[arg-type]
    return PipelinePolicy(str(place), dtype="float32", prompt_cache=str(folder / "prompts" / name))


@pytest.mark.parametrize("name", ["sd15", "sd15_v"])
def test_errors_are_those_that_the_paper_counts(name: str, folder: Path) -> None:
    """Computed as in the published trainer: whole steps, variance-preserving states, the network's own target."""
    model = module(policy=pipeline(folder, name), drop_rate=0.0, **SMALL)
    ready = model.ready(pairs(0, 3, size=16), True)
    noisy = model.noised(ready)
    with torch.no_grad():
        found = model.errors(model.policy.velocity(noisy.x_t, noisy.t, noisy.text), noisy, ready)
        table, index = model.training_times, ready.winner.index
        steps = torch.searchsorted(table, noisy.t[:3])
        assert torch.equal(table[steps], noisy.t[:3]) and len(table) == 1000
        bars = model.policy.family.alpha_bars[steps][:, None, None, None].float()
        eps = normal(model.seed, "pair noise", 0, index, (4, 8, 8))
        text = model.policy.encode_prompts(ready.winner.caption).sequence
        for side, ours in enumerate((found.winner, found.loser)):
            x_0 = model.clean(ready)[:, side]
            x = bars.sqrt() * x_0 + (1 - bars).sqrt() * eps
            predicted = model.policy.network(x, steps, encoder_hidden_states=text).sample
            wanted = bars.sqrt() * eps - (1 - bars).sqrt() * x_0 if name == "sd15_v" else eps
            torch.testing.assert_close(ours, (predicted - wanted).square().mean((1, 2, 3)), rtol=2e-4, atol=1e-6)
    assert model.kind == ("v_prediction" if name == "sd15_v" else "epsilon")


def test_latents_are_drawn_anew_in_every_pass(folder: Path) -> None:
    model = module(policy=pipeline(folder, "sd15"), **SMALL)
    first, again, later = (model.clean(model.ready(pairs(0, 2, epoch, size=16), True)) for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, later)
    twins = pairs(0, 2, size=16)
    object.__setattr__(twins, "loser", twins.winner)
    drawn = model.clean(model.ready(twins, True))
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])
    mode = module(policy=pipeline(folder, "sd15"), posterior="mode", **SMALL)
    assert torch.equal(mode.clean(mode.ready(twins, True))[:, 0], mode.clean(mode.ready(twins, True))[:, 1])


@pytest.mark.parametrize(("name", "lora"), [("sd15", False), ("sdxl", True), ("sd3", True)])
def test_pipelines_are_trained_like_any_other_model(name: str, lora: bool, folder: Path, tmp_path: Path) -> None:
    times = PairTimes("logit_normal") if name == "sd3" else PairTimes()
    how = SMALL | {"lora": LORA if lora else None}
    model = module(ArenaPO, policy=pipeline(folder, name), times=times, **how)
    assert model.kind == ("velocity" if name == "sd3" else "epsilon")
    start = trained_weights(model)
    trainer = fit(model, ToyPairs(4, 2, edge=16), tmp_path, steps=2)
    assert sum(not torch.equal(value, start[key]) for key, value in trained_weights(model).items()) > len(start) // 2
    assert float(trainer.callback_metrics["train/logit_deviation"]) > 0
    assert model.make(["xx"]).shape == (1, 3, 16, 16)
    model.save_pretrained(tmp_path / "out")
    assert any((tmp_path / "out").glob("*.safetensors"))


def test_checkpointed_blocks_learn_the_same(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        how = SMALL | {"activation_checkpointing": checkpointing}
        model = moved(module(policy=pipeline(folder, "sd15"), **how), 0.02)
        model.train()
        model.training_step(model.ready(pairs(0, 2, size=16), True), 0).backward()
        found.append([value.grad.clone() for value in model.parameters() if value.requires_grad])
    assert any(bool(value.any()) for value in found[0])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_both_networks_see_the_same_where_numbers_are_rounded(lora: bool, folder: Path, tmp_path: Path) -> None:
    """So the start is checked as exactly as in float32."""
    how = SMALL | {"lora": LORA if lora else None}
    model = module(policy=pipeline(folder, "sd15"), **how)
    trainer = fit(model, ToyPairs(4, 2, edge=16), tmp_path, steps=1, precision="bf16-mixed")
    assert float(trainer.callback_metrics["train/logit"]) == 0 == float(trainer.callback_metrics["train/drift_winner"])


def test_kept_latents_are_one_draw_for_all_passes(folder: Path, tmp_path: Path) -> None:
    cache = CacheSettings(str(tmp_path / "cache"), draws=2, latents=True)
    model = module(policy=pipeline(folder, "sd15"), cache=cache, **SMALL)
    fit(model, ToyPairs(2, 2, edge=16), tmp_path, steps=1)
    kept = torch.from_numpy(model.cache._latents[:].copy())
    model.cache._latents[1] = torch.nan
    ready = model.ready(pairs(0, 2, epoch=1, size=16), True)
    assert ready.draw == 1 and ready.clean is None
    torch.testing.assert_close(model.clean(ready), kept)
    card = json.loads((tmp_path / "cache/cache.json").read_text())
    assert card["precision"] == "32-true" and card["text"] == repr(model.policy.lengths)
    assert card["autoencoder"] == coder_digest(model.policy)
    next(model.policy.vae.network.parameters()).data += 1
    assert card["autoencoder"] != coder_digest(model.policy) and coder_digest(ToyPolicy()) is None


# ---------------------------------------------------------------------- from annotations to training


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    write_shards(pair_samples(SynthOptions(count=60, size=16, ties=0.1)), folder / "pick")
    return folder / "pick"


def pick(shards: Path, **rest: Any) -> PickAPicDataModule:
    return PickAPicDataModule(str(shards), resolution=16, global_batch_size=4, num_workers=0, **rest)


def tabled(data: Any, fitted: FittedGaps, folder: Path, how: GapOptions = GapOptions()) -> str:  # noqa: B008
    """Write the arena that was fitted to a DataModule's pairs, and the table of their gaps, whose path it returns."""
    fitted.open(data)
    assert fitted.arena is not None
    fitted.arena.save(folder / "arena.json")
    comparisons = training_comparisons(data)
    write_gaps(folder / "gaps.parquet", fitted.arena, comparisons, pair_gaps(fitted.arena, comparisons, how), how)
    return str(folder / "gaps.parquet")


def test_an_arena_is_fitted_to_the_training_pairs(folder: Path, shards: Path, tmp_path: Path) -> None:
    gaps = FittedGaps()
    model = module(ArenaPO, policy=pipeline(folder, "sd15"), gaps=gaps, **SMALL)
    trainer = fit(model, pick(shards), tmp_path, steps=2)
    assert gaps.arena is not None
    assert [one.name for one in gaps.arena.leaderboard()] == ["fine", "good", "fair", "poor"]
    assert 0.3 < float(trainer.callback_metrics["train/gap"]) < 3


def test_a_table_of_gaps_gives_the_same_as_an_arena(folder: Path, shards: Path, tmp_path: Path) -> None:
    data, fitted = pick(shards), FittedGaps()
    table, loaded = TableGaps(tabled(data, fitted, tmp_path)), FittedGaps(str(tmp_path / "arena.json"))
    for source in (table, loaded):
        source.open(data)
    joined = pick(shards, gaps=str(tmp_path / "gaps.parquet"))
    for made in (data, joined):
        made.setup("fit")
    for batch, other in zip(data.train_loader(0), joined.train_loader(0), strict=True):
        expected = fitted(batch, True)
        assert bool(batch.gap.isnan().all())
        for source in (table, loaded):
            for one, two in zip(source(batch, True), expected, strict=True):
                torch.testing.assert_close(one, two)
        torch.testing.assert_close(other.gap, expected.gap)
    unsure = module(ArenaPO, policy=pipeline(folder, "sd15"), gaps=table, loss=PairLoss("expected_margin"), **SMALL)
    assert torch.isfinite(unsure.training_step(unsure.ready(batch, True), 0))


def test_gaps_of_another_data_set_are_refused(folder: Path, shards: Path, tmp_path: Path) -> None:
    write_shards(pair_samples(SynthOptions(count=40, size=16, seed=5)), tmp_path / "other")
    data, fitted = pick(shards), FittedGaps()
    table, other = TableGaps(tabled(data, fitted, tmp_path)), pick(tmp_path / "other")
    with pytest.raises(DataError, match="fitted to other annotations"):
        FittedGaps(str(tmp_path / "arena.json")).open(other)
    table.open(other)
    other.setup("fit")
    with pytest.raises(DataError, match="of another data set"):
        table(next(iter(other.train_loader(0))), True)
    with pytest.raises(ValueError, match="leave_one_out one for every pair"):
        FittedGaps(gaps=GapOptions(leave_one_out=True))
    with pytest.raises(RuntimeError, match="fitted when training starts"):
        FittedGaps()(pairs(), True)
    with pytest.raises(ValueError, match="pairs of one place"):
        FittedGaps().open(ToyPairs())
    with pytest.raises(ValueError, match="FittedGaps has unknown_models: drop, which leaves pairs of unknown models"):
        FittedGaps(options=ArenaOptions(unknown_models="drop"))
    dropping = fit_arena(training_comparisons(data), ArenaOptions(unknown_models="drop"))
    dropping.save(tmp_path / "dropping.json")
    with pytest.raises(ValueError, match=r"the arena .*dropping.json has unknown_models: drop"):
        FittedGaps(str(tmp_path / "dropping.json")).open(data)
    strange = fitted(pairs(), True)
    assert bool(strange.gap.isfinite().all())  # the toy pairs' models, fine and poor, have met here


def test_a_table_says_nothing_about_pairs_of_another_set(folder: Path, shards: Path, tmp_path: Path) -> None:
    write_shards(pair_samples(SynthOptions(count=20, size=16, seed=5)), tmp_path / "other")
    path = tabled(pick(shards), FittedGaps(), tmp_path)
    model = module(ArenaPO, policy=pipeline(folder, "sd15"), gaps=TableGaps(path), **SMALL)
    data = pick(shards, val=str(tmp_path / "other"), gaps=path)
    trainer = fit(model, data, tmp_path, steps=1, limit_val_batches=1, val_check_interval=1)
    found = trainer.callback_metrics
    assert float(found["train/gap"]) > 0 and "val/implicit_accuracy" in found and "val/gap" not in found
    table, same = TableGaps(path), pick(shards, val=str(shards))
    table.open(same)
    assert bool(table(next(iter(same.evaluation_loader("val"))), False).gap.isfinite().all())


def test_training_pairs_without_a_row_are_refused_with_what_to_do(shards: Path, tmp_path: Path) -> None:
    path = tabled(pick(shards), FittedGaps(), tmp_path)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 2), tmp_path / "two.parquet")
    table, data = TableGaps(str(tmp_path / "two.parquet")), pick(shards)
    table.open(data)
    model = module(ArenaPO, gaps=table)
    unknown = 0
    for batch in data.train_loader(0):
        missing = int(table(batch, True).gap.isnan().sum())
        unknown += missing == 4
        with pytest.raises(ValueError, match=rf"{missing} of 4 pairs .* set data.gaps to it, also where model.gaps is"):
            model.ready(batch, True)
    assert unknown > 0, "batches of which no pair has a row"


def test_a_validation_by_itself_has_gaps(folder: Path, shards: Path, tmp_path: Path) -> None:
    model = module(ArenaPO, policy=pipeline(folder, "sd15"), gaps=FittedGaps(), **SMALL)
    trainer = pl.Trainer(accelerator="cpu", logger=False, limit_val_batches=1, enable_progress_bar=False)
    trainer.validate(model, datamodule=pick(shards, val=str(shards)), verbose=False)
    assert float(trainer.callback_metrics["val/gap"]) > 0


def test_the_mean_gap_is_that_of_the_pairs_that_are_sure_enough(tmp_path: Path) -> None:
    write_shards(winner_first_samples(SynthOptions(count=60, size=16)), tmp_path / "pairs")
    how = {"resolution": 16, "global_batch_size": 1, "num_workers": 0}
    data = HPDv3DataModule(str(tmp_path / "pairs"), min_confidence=0.8, **how)  # type: ignore[arg-type]
    fitted = FittedGaps()
    fitted.open(data)
    gaps = torch.cat([fitted(batch, True).gap for batch in data.train_loader(0)])
    assert 10 < len(gaps) < 55 and float(gaps.mean()) == pytest.approx(1, rel=1e-5)
    assert fitted.arena is not None and fitted.arena.dataset["games"] == len(gaps)
    fitted.arena.save(tmp_path / "arena.json")
    FittedGaps(str(tmp_path / "arena.json")).open(data)
    every = HPDv3DataModule(str(tmp_path / "pairs"), **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"confidence of 0.8 at least, .* fit it with --min-confidence 0.0"):
        FittedGaps(str(tmp_path / "arena.json")).open(every)


def test_an_arena_is_used_with_the_names_and_softness_that_it_was_fitted_with(tmp_path: Path) -> None:
    write_shards(winner_first_samples(SynthOptions(count=60, size=16)), tmp_path / "pairs")
    data = pick(tmp_path / "pairs")
    reading, how = TableOptions(aliases={"fair": "good"}, soft="votes"), GapOptions()
    comparisons = training_comparisons(data, reading)
    arena = fit_arena(comparisons, None, dataclasses.asdict(reading))
    assert arena.names == ("fine", "good", "poor")
    arena.save(tmp_path / "arena.json")
    write_gaps(tmp_path / "gaps.parquet", arena, comparisons, pair_gaps(arena, comparisons, how), how)
    loaded, table = FittedGaps(str(tmp_path / "arena.json")), TableGaps(str(tmp_path / "gaps.parquet"))
    for source in (loaded, table):
        source.open(data)
    for batch in data.train_loader(0):
        for one, two in zip(loaded(batch, True), table(batch, True), strict=True):
            torch.testing.assert_close(one, two)


def test_gaps_without_a_unit_have_no_deviation(shards: Path, tmp_path: Path) -> None:
    data, how = pick(shards), GapOptions(normalisation="zscore_clip")
    fitted = FittedGaps(gaps=how)
    table = TableGaps(tabled(data, fitted, tmp_path, how))
    table.open(data)
    batch = next(iter(data.train_loader(0)))
    for source in (fitted, table):
        assert bool(source(batch, True).gap.isfinite().all()) and bool(source(batch, True).scale.isnan().all())
        model = module(ArenaPO, gaps=source, loss=PairLoss("expected_margin"))
        with pytest.raises(ValueError, match="4 of 4 pairs .* zscore_clip has no unit to count them in"):
            model.ready(batch, True)
