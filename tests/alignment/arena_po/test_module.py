"""Learning from pairs: what is shared inside a pair, what never changes, what resumes, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_gen.alignment.arena_po.cache import CacheSettings
from lightning_gen.alignment.arena_po.diagnostics import Displacement, pair_diagnostics
from lightning_gen.alignment.arena_po.module import ArenaPO, DiffusionDPO
from lightning_gen.alignment.arena_po.objectives import PairErrors, PairLoss, dpo_logits
from lightning_gen.alignment.arena_po.settings import Adafactor, PairTimes, SampleSettings, WarmupConstant
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.training.optim import AdamW
from lightning_gen.training.strategies import FSDP2Strategy
from tests.alignment.arena_po.worlds import LORA, ToyPairs, fit, module, moved, pairs, trained_weights
from tests.alignment.worlds import ToyPolicy, tiny_world
from tests.harness import needs_cpu_fsdp2, two_processes

WAYS = pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
NO_DROP = {"drop_rate": 0.0}


def errors(model: Any, batch: Any) -> PairErrors:
    ready = model.ready(batch, True)
    noisy = model.noised(ready)
    found: PairErrors = model.errors(model.policy.velocity(noisy.x_t, noisy.t, noisy.text), noisy, ready)
    return found


def logits(model: Any, batch: Any) -> Tensor:
    return dpo_logits(errors(model, batch), model.loss.beta).detach()


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(part.detach().numpy().tobytes() for part in tensors)).hexdigest()


# ---------------------------------------------------------------------- a pair


@WAYS
def test_the_reference_is_the_starting_point(lora: bool) -> None:
    model = module(lora=lora)
    assert logits(model, pairs()).tolist() == [0.0] * 8
    ready = model.ready(pairs(), True)
    assert float(model.training_step(ready, 0).detach()) == pytest.approx(math.log(2))
    arena = module(ArenaPO, lora, loss=PairLoss("margin", strength=0.7))
    expected = torch.nn.functional.softplus(0.7 * pairs().gap).mean()
    assert float(arena.training_step(arena.ready(pairs(), True), 0).detach()) == pytest.approx(float(expected))


@WAYS
def test_both_pictures_of_a_pair_see_one_time_one_noise_and_one_prompt(lora: bool) -> None:
    model, batch = moved(module(lora=lora, **NO_DROP)), pairs()
    noisy = model.noised(model.ready(batch, True))
    (x_w, x_l), (t_w, t_l) = noisy.x_t.chunk(2), noisy.t.chunk(2)
    assert torch.equal(t_w, t_l) and len(set(t_w.tolist())) == 8
    difference = (1 - t_w)[:, None, None, None] * (batch.winner.images - batch.loser.images)  # type: ignore[operator]
    torch.testing.assert_close(x_w - x_l, difference)
    assert torch.equal(*noisy.text.sequence.chunk(2))
    twins = dataclasses.replace(batch, loser=batch.winner)
    assert logits(model, twins).tolist() == [0.0] * 8
    z = logits(model, batch)
    swapped = dataclasses.replace(batch, winner=batch.loser, loser=batch.winner)
    assert bool((z != 0).all()) and torch.equal(logits(model, swapped), -z)


def test_pairs_do_not_depend_on_their_batch_and_passes_differ() -> None:
    model = moved(module())
    whole = logits(model, pairs(0, 8))
    halves = torch.cat([logits(model, pairs(0, 4)), logits(model, pairs(4, 4))])
    torch.testing.assert_close(halves, whole)
    assert not torch.allclose(logits(model, pairs(0, 8, epoch=1)), whole)
    dropped = [text for text in model.ready(pairs(0, 400), True).winner.caption if not text]
    assert 50 < len(dropped) < 110 and all(model.ready(pairs(), False).winner.caption)
    assert all(module(**NO_DROP).ready(pairs(0, 100), True).winner.caption)


def test_times_are_those_that_the_model_was_trained_at() -> None:
    index, table = torch.arange(4000), torch.linspace(0.01, 0.94, 1000, dtype=torch.float64)
    times = PairTimes().draw(0, 0, index, table)
    assert times.dtype == torch.float64 and bool(torch.isin(times, table).all())
    assert len(times.unique()) > 950 and abs(float(times.mean()) - float(table.mean())) < 0.02
    turbo = PairTimes(steps=(249, 499, 749, 999)).draw(0, 0, index, table)
    assert torch.equal(turbo.unique(), table[[249, 499, 749, 999]])
    assert float(PairTimes(below=200).draw(0, 0, index, table).max()) == float(table[199])
    middle = PairTimes("logit_normal").draw(0, 0, index, table.float())
    assert abs(float(middle.median()) - 0.5) < 0.03
    assert float(PairTimes("uniform", shift=3.0).draw(0, 0, index, table).median()) > 0.7
    for wrong, message in (
        ({"steps": (1000,)}, "trained at 1000 times"),
        ({"below": 1001}, "trained at 1000 times"),
    ):
        with pytest.raises(ValueError, match=message):
            PairTimes(**wrong).draw(0, 0, index, table)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give one of the two"):
        PairTimes(steps=(1,), below=3)


# ---------------------------------------------------------------------- training


@WAYS
def test_the_winner_is_learned_and_the_reference_stays(lora: bool, tmp_path: Path) -> None:
    model = module(lora=lora, loss=PairLoss(beta=20.0), **NO_DROP)
    policy = model.policy
    frozen = [value for name, value in policy.named_parameters() if "lora" not in name]
    kept = frozen if lora else list(model.reference.network.network.parameters())
    before, started = digest(kept), trained_weights(model)
    trainer = fit(model, ToyPairs(), tmp_path, steps=50)
    assert digest(kept) == before and all(value.grad is None for value in kept)
    assert any(not torch.equal(value, started[name]) for name, value in trained_weights(model).items())
    assert float(trainer.callback_metrics["train/implicit_accuracy"]) == 1.0
    assert float(trainer.callback_metrics["train/loss"]) < 0.6
    assert float(trainer.callback_metrics["train/drift_winner"]) < 0
    with torch.no_grad(), model.reference.model() as reference:
        text, x, t = policy.encode_prompts(["xx"]), torch.ones(1, 3, 2, 2), torch.tensor([0.4])
        assert torch.equal(reference.velocity(x, t, text), ToyPolicy().velocity(x, t, text))
        assert not torch.equal(reference.velocity(x, t, text), model.policy.velocity(x, t, text)) or lora


@pytest.mark.parametrize("mode", ["sft", "kto", "mapo", "dspo", "ipo", "margin_const"])
def test_every_sibling_trains_through_the_same_step(mode: Any, tmp_path: Path) -> None:
    model = module(loss=PairLoss(mode, beta=20.0, odds_scale=1.0), **NO_DROP)
    start = trained_weights(model)
    trainer = fit(model, ToyPairs(), tmp_path, steps=10)
    found = trainer.callback_metrics
    assert any(not torch.equal(value, start[name]) for name, value in trained_weights(model).items())
    assert math.isfinite(float(found["train/loss"]))
    assert ("train/drift_winner" in found) == (mode not in ("sft", "mapo"))
    assert model.reference is None or mode not in ("sft", "mapo")


@pytest.mark.parametrize("mode", ["margin", "scale", "weight", "soft", "regress", "smpo"])
def test_every_way_of_a_gap_trains_through_the_same_step(mode: Any, tmp_path: Path) -> None:
    model = module(ArenaPO, loss=PairLoss(mode, beta=20.0), **NO_DROP)
    trainer = fit(model, ToyPairs(), tmp_path, steps=10)
    found = trainer.callback_metrics
    assert float(found["train/implicit_accuracy"]) > 0.5 and float(found["train/gap"]) == 2.5
    assert -1 <= float(found["train/logit_gap_correlation"]) <= 1


@WAYS
def test_a_resumed_run_is_the_run_that_was_not_stopped(lora: bool, tmp_path: Path) -> None:
    def made() -> Any:
        return module(lora=lora, loss=PairLoss(beta=20.0), warmup=WarmupConstant(3))

    whole = made()
    fit(whole, ToyPairs(), tmp_path / "whole", steps=4)
    keeper = ModelCheckpoint(tmp_path / "kept", filename="two", every_n_train_steps=2)
    fit(made(), ToyPairs(), tmp_path / "half", steps=2, callbacks=[keeper], enable_checkpointing=True)
    again = made()
    fit(again, ToyPairs(), tmp_path / "half", steps=4, ckpt_path=tmp_path / "kept/two.ckpt")
    expected, found = trained_weights(whole), trained_weights(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    kept = torch.load(tmp_path / "kept/two.ckpt", weights_only=True)["state_dict"]
    assert set(kept) == set(expected)
    other = module(lora=not lora, configure=False)
    with pytest.raises(ValueError, match="weights are not those of this run"):
        fit(other, ToyPairs(), tmp_path / "other", ckpt_path=tmp_path / "kept/two.ckpt")
    other = module(lora=lora, policy=ToyPolicy(seed=1))
    with pytest.raises(ValueError, match=r"began from other weights \([0-9a-f]{16}\) than .* set model.policy"):
        fit(other, ToyPairs(), tmp_path / "other", ckpt_path=tmp_path / "kept/two.ckpt")


def job(mode: Any, strategy: str, folder: Path, devices: int) -> dict[str, Tensor]:
    """Both halves of every batch, on one rank as micro-batches or on two."""
    model = module(loss=PairLoss(mode, beta=20.0))

    class Half(ToyPairs):
        def batches(self, epoch: int) -> Any:
            rank = 0 if devices == 1 else self.trainer.global_rank  # type: ignore[union-attr]
            for first in range(0, self.total, self.size):
                if devices == 1:
                    yield pairs(first, self.size, epoch)
                else:
                    yield pairs(first + rank * self.size // 2, self.size // 2, epoch)

    fit(model, Half(), folder, steps=2, strategy=strategy, devices=devices)
    return trained_weights(model)


@pytest.mark.parametrize("mode", ["none", "kto"])
def test_two_processes_train_as_one(mode: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    alone = job(mode, "auto", tmp_path / "one", 1)
    (tmp_path / "two").mkdir()
    first, second = two_processes(job, mode, "ddp", tmp_path / "two", 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def worded(batch: PreferenceBatch) -> PreferenceBatch:
    """With prompts that the embedded world understands."""
    caption = ("a red star",) * len(batch)
    return dataclasses.replace(batch, winner=dataclasses.replace(batch.winner, caption=caption))


def sharded_job(lora: Any, folder: Path, devices: int, known: tuple[bool, ...]) -> dict[str, Tensor]:
    """Train the embedded world's network in miniature, ``known`` = which ranks have the reference's errors already."""
    model = module(policy=tiny_world(), lora=lora, configure=False, loss=PairLoss(beta=20.0),
                   cache=CacheSettings(str(folder / "errors"), draws=1, latents=False))  # fmt: skip

    class Half(ToyPairs):
        def batches(self, epoch: int) -> Any:
            rank = 0 if self.trainer is None else self.trainer.global_rank
            for first in range(0, self.total, self.size):
                part = self.size // devices
                yield worded(pairs(first + rank * part, part, epoch, size=8))

        def teardown(self, stage: str) -> None:
            policy: Any = model.reference.policy if lora is None else model.policy
            inside = [weight for block in policy.network.blocks() for weight in block.parameters()]
            found["sharded"] = torch.tensor(float(all(isinstance(weight, DTensor) for weight in inside)))

    found: dict[str, Tensor] = {}
    strategy: Any = "auto" if devices == 1 else FSDP2Strategy()
    fit(model, Half(edge=8), folder, steps=2, strategy=strategy, devices=devices)
    rank = 0 if devices == 1 else torch.distributed.get_rank()
    weights = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    if known:
        model.at_start = False
        ready = model.ready(worded(pairs(rank * 4, 4, size=8)), True)
        ready = dataclasses.replace(ready, reference=ready.reference if known[rank] else None)
        noisy = model.noised(ready)
        errors = model.errors(model.policy.velocity(noisy.x_t, noisy.t, noisy.text), noisy, ready)
        found["reference"] = errors.reference_winner
    return found | weights


@needs_cpu_fsdp2
@WAYS
def test_sharded_processes_train_as_one_and_wait_for_each_other(lora: bool, tmp_path: Path) -> None:
    adapter = LoRASettings(2, 4.0) if lora else None
    (tmp_path / "one").mkdir()
    alone = sharded_job(adapter, tmp_path / "one", 1, ())
    (tmp_path / "two").mkdir()
    both = two_processes(sharded_job, adapter, tmp_path / "two", 2, (True, False))
    assert float(alone.pop("sharded")) == 0
    for found in both:
        assert float(found["sharded"]) == 1, "a copy of the network on every device"
        for name, value in alone.items():
            # Steps are 0.01 long, also along gradients so small that their rounding shows.
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4)
    assert bool(torch.stack([found["reference"] for found in both]).isfinite().all())


def test_accumulated_pairs_are_logged_together(tmp_path: Path) -> None:
    model = module(ArenaPO, loss=PairLoss("margin", beta=20.0), **NO_DROP)
    trainer = fit(model, ToyPairs(16, 2), tmp_path, steps=1, accumulate_grad_batches=8)
    one = module(ArenaPO, loss=PairLoss("margin", beta=20.0), **NO_DROP)
    other = fit(one, ToyPairs(16, 16), tmp_path, steps=1)
    for name in ("train/loss", "train/gap", "train/gap_90", "train/error_winner"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(other.callback_metrics[name]), rel=1e-5)
    for (_, a), (_, b) in zip(trained_weights(model).items(), trained_weights(one).items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_weight_of_a_pair_counts() -> None:
    model, batch = moved(module()), pairs()
    half = dataclasses.replace(batch, weight=torch.full((8,), 0.5))
    whole, less = (float(model.training_step(model.ready(part, True), 0).detach()) for part in (batch, half))
    assert less == pytest.approx(0.5 * whole)


def test_validation_judges_other_pairs_and_pictures_can_be_looked_at(tmp_path: Path) -> None:
    model = module(loss=PairLoss(beta=20.0), samples=SampleSettings(3, "euler", 2.0), **NO_DROP)
    trainer = fit(model, ToyPairs(), tmp_path, steps=20, limit_val_batches=1.0, check_val_every_n_epoch=5)
    assert float(trainer.callback_metrics["val/implicit_accuracy"]) > 0.9
    preferred, generated = model.pictures(pairs())
    assert len(preferred.images) == len(generated.images) == 8 and generated.images[0].shape == (3, 2, 2)


@WAYS
def test_pictures_for_prompts_of_the_trained_network_and_of_the_reference(lora: bool, tmp_path: Path) -> None:
    def made(name: str, **rest: Any) -> tuple[Any, list[Tensor]]:
        adapter = LoRASettings(2, 4.0) if lora else None
        model = module(policy=tiny_world(), lora=adapter, samples=SampleSettings(3), configure=False)
        trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
                             enable_checkpointing=False, default_root_dir=tmp_path / name)  # fmt: skip
        trainer.predict(model, PromptDataModule(predict=str(prompts), global_batch_size=2), **rest)
        folder = tmp_path / name / "predictions"
        assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]
        files = [folder / f"0000{number}/samples/0000.png" for number in range(3)]
        return model, [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na blue circle\na red star\n")
    trained = moved(module(policy=tiny_world(), lora=LoRASettings(2, 4.0) if lora else None))
    checkpoint = {"state_dict": trained_weights(trained), "pytorch-lightning_version": pl.__version__}
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    model, tuned = made("tuned", ckpt_path=tmp_path / "moved.ckpt", weights_only=True)
    untouched, start = made("start")
    with model.reference.model() as model.policy:
        wanted = model.make(["a red star", "a blue circle"])
    for found, expected in zip(start, signed_to_uint8(wanted), strict=False):
        assert int((found.int() - expected.int()).abs().max()) <= 1, "without a checkpoint: the reference"
    assert all(not torch.equal(one, other) for one, other in zip(tuned, start, strict=True))
    assert not torch.equal(start[0], start[2]), "a prompt of another number has another noise"
    with pytest.raises(ValueError, match="pictures are made for prompts: --data PromptDataModule"):
        untouched.predict_step(untouched.ready(worded(pairs(size=8)), False), 0)


# ---------------------------------------------------------------------- weights and optimisers


def test_training_goes_on_from_an_adapter_which_is_the_reference(tmp_path: Path) -> None:
    first = moved(module())
    first.save_pretrained(tmp_path / "adapter")
    model = module(init_adapter=str(tmp_path / "adapter"))
    assert logits(model, pairs()).tolist() == [0.0] * 8
    x, t, text = torch.ones(1, 3, 2, 2), torch.tensor([0.4]), model.policy.encode_prompts(["xx"])
    with torch.no_grad():
        now, before = model.policy.velocity(x, t, text), first.policy.velocity(x, t, text)
        torch.testing.assert_close(now, before)
        assert not torch.allclose(now, ToyPolicy().velocity(x, t, text))
    keeper = ModelCheckpoint(tmp_path, filename="three", every_n_train_steps=3)
    fit(model, ToyPairs(), tmp_path, steps=3, callbacks=[keeper], enable_checkpointing=True)
    with torch.no_grad(), model.reference.model() as reference:
        torch.testing.assert_close(reference.velocity(x, t, text), before)
    moved(first).save_pretrained(tmp_path / "adapter")
    for rest in ({}, {"init_adapter": str(tmp_path / "adapter")}):
        with pytest.raises(ValueError, match="began from other weights"):
            fit(module(**rest), ToyPairs(), tmp_path, ckpt_path=tmp_path / "three.ckpt")


def test_a_checkpoint_fills_a_model_that_was_only_described() -> None:
    """As `lightning export` does it."""
    trained = moved(module())
    described = module(configure=False)
    assert not list(described.parameters())
    described.on_load_checkpoint({"state_dict": trained_weights(trained)})
    assert described.bank.names == ("default",)


def test_learning_rates_rise_and_stay() -> None:
    optimizer = Adafactor(1e-2).build_groups([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])
    schedule, rates = WarmupConstant(4).build(optimizer), []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    assert optimizer.param_groups[0]["scale_parameter"] is False is optimizer.param_groups[0]["relative_step"]
    assert WarmupConstant(0)._factor()(0) == 1.0
    with pytest.raises(ValueError, match="positive learning_rate"):
        Adafactor(0.0)


def test_adafactor_trains(tmp_path: Path) -> None:
    model = module(lora=False, optimizer=Adafactor(1e-2, weight_decay=0.0), loss=PairLoss(beta=20.0))
    trainer = fit(model, ToyPairs(), tmp_path, steps=20, gradient_clip_val=None)
    assert float(trainer.callback_metrics["train/implicit_accuracy"]) > 0.8


# ---------------------------------------------------------------------- cache


def counting(model: Any) -> list[int]:
    """How often the reference is asked."""
    asked, original = [], model.reference.model

    def watched() -> Any:
        asked.append(1)
        return original()

    model.reference.model = watched
    return asked


@WAYS
def test_a_second_run_reads_what_the_first_one_wrote(lora: bool, tmp_path: Path) -> None:
    def run(name: str, cache: CacheSettings | None, steps: int = 6) -> tuple[Any, list[int]]:
        model = module(lora=lora, cache=cache, loss=PairLoss(beta=20.0))
        asked = counting(model)
        fit(model, ToyPairs(), tmp_path / name, steps)
        return model, asked

    kept = CacheSettings(str(tmp_path / "cache"), draws=3, latents=True)
    first, asked = run("first", kept)
    assert len(asked) == 6 and first.cache.complete
    second, asked = run("second", kept)
    assert asked == [] and (second.reference is None) is not lora
    plain, _ = run("plain", None)
    for name, value in trained_weights(second).items():
        assert torch.equal(value, trained_weights(first)[name])
        assert torch.equal(value, trained_weights(plain)[name])
    batch = second.ready(pairs(0, 8, epoch=4), True)
    assert batch.draw == 1 and batch.reference.shape == (8, 2) and batch.clean.shape == (8, 2, 3, 2, 2)
    torch.testing.assert_close(batch.clean[:, 0], pairs().winner.images)


def test_pairs_that_never_come_are_not_waited_for(tmp_path: Path) -> None:
    kept, data = CacheSettings(str(tmp_path / "cache"), draws=1), ToyPairs(left_out=3)
    first = module(lora=False, cache=kept)
    fit(first, data, tmp_path, steps=1)
    assert not first.cache.complete
    whole, last = module(lora=False, cache=kept), module(lora=False, cache=kept)
    fit(whole, data, tmp_path, steps=2)
    assert whole.cache.complete
    fit(last, data, tmp_path, steps=1)
    assert last.reference is None


def test_validation_keeps_the_reference_beside_a_cache_that_knows_everything(tmp_path: Path) -> None:
    kept = CacheSettings(str(tmp_path / "cache"), draws=1)
    fit(module(lora=False, cache=kept), ToyPairs(), tmp_path, steps=2)
    judged = {"limit_val_batches": 1.0, "check_val_every_n_epoch": 1}
    model = module(lora=False, cache=kept)
    trainer = fit(model, ToyPairs(), tmp_path, steps=2, **judged)
    assert model.cache.complete and math.isfinite(float(trainer.callback_metrics["val/loss"]))

    class Unjudged(ToyPairs):
        val = None

        def val_dataloader(self) -> Any:
            return []

    freed = module(lora=False, cache=kept)
    fit(freed, Unjudged(), tmp_path, steps=2, **judged)
    assert freed.reference is None


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    kept = CacheSettings(str(tmp_path / "cache"), draws=1)
    fit(module(cache=kept), ToyPairs(), tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"belongs to another run: data differ \(data is 'toy' there and 'other'"):
        fit(module(cache=kept), ToyPairs(fingerprint="other"), tmp_path, steps=1)
    with pytest.raises(ValueError, match="another run: model differ"):
        fit(module(cache=kept, policy=ToyPolicy(seed=1)), ToyPairs(), tmp_path, steps=1)
    with pytest.raises(ValueError, match="another run: precision differ"):
        fit(module(cache=kept), ToyPairs(), tmp_path, steps=1, precision="bf16-mixed")
    with pytest.raises(ValueError, match="another run: draws, seed differ"):
        fit(module(cache=dataclasses.replace(kept, draws=2), seed=4), ToyPairs(), tmp_path, steps=1)
    large = ToyPairs()
    large.resolution = 512  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="another run: resolution differ"):
        fit(module(cache=kept), large, tmp_path, steps=1)
    random = ToyPairs()
    random.flip_probability = 0.5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"data.flip_probability is 0.5: set data.flip_probability to 0"):
        fit(module(cache=kept), random, tmp_path, steps=1)


def test_a_reference_that_is_not_the_starting_point_is_refused(tmp_path: Path) -> None:
    kept = CacheSettings(str(tmp_path / "cache"), draws=1)
    first = module(cache=kept)
    fit(first, ToyPairs(), tmp_path, steps=2)
    first.cache._errors[:] *= 1.2
    first.cache._errors.flush()
    with pytest.raises(ValueError, match=r"not the starting point: .* differ by up to 16.7%"):
        fit(module(cache=kept), ToyPairs(), tmp_path, steps=1)
    first.cache._errors[:] *= 1.02 / 1.2
    first.cache._errors.flush()
    with pytest.raises(ValueError, match=r"up to 2.0% \(allowed: 5.0%\), and logits, .* up to [1-9].* \(allowed: 0.5"):
        fit(module(cache=kept), ToyPairs(), tmp_path, steps=1)
    fit(module(cache=kept, loss=PairLoss(beta=1.0)), ToyPairs(), tmp_path, steps=1)
    other = module(lora=False, loss=PairLoss(beta=1e-3))
    moved(other, 0.01)
    with pytest.raises(ValueError, match=r"the reference is not the starting point: .* \(allowed: 0.1%\)"):
        fit(other, ToyPairs(), tmp_path, steps=1, precision="bf16-mixed")


# ---------------------------------------------------------------------- what is refused, and what is said


def test_pairs_without_a_gap_are_counted_and_refused() -> None:
    model = module(ArenaPO)
    unknown = dataclasses.replace(pairs(), gap=torch.tensor([1.0, torch.nan, 2, 3, torch.nan, 4, 5, torch.inf]))
    with pytest.raises(ValueError, match=r"3 of 8 pairs of a batch have no gap \(NaN\).* 'fine' and 'poor'"):
        model.ready(unknown, True)
    with pytest.raises(ValueError, match="8 of 8 pairs of a batch have no gap and its deviation"):
        module(ArenaPO, loss=PairLoss("expected_margin")).ready(pairs(), True)
    with pytest.raises(ValueError, match="8 of 8 pairs of a batch have no gap and its deviation"):
        module(ArenaPO, loss=PairLoss("margin", variance_discount=0.1)).ready(pairs(), True)
    assert bool(module().ready(unknown, True).gap.isnan().any())


@pytest.mark.parametrize("mode", ["margin", "regress", "scale", "weight", "soft", "smpo"])
def test_a_negative_gap_never_prefers_the_loser(mode: Any) -> None:
    negative = dataclasses.replace(pairs(), gap=-pairs().gap)
    model = module(ArenaPO, loss=PairLoss(mode))
    if mode in ("margin", "regress"):
        assert model.ready(negative, True).gap[0] == -1, "an offset may be negative"
        return
    with pytest.raises(ValueError, match=f"8 of 8 gaps of a batch are negative, with which the loss {mode} prefers"):
        model.ready(negative, True)


def test_what_cannot_work_is_refused() -> None:
    ties = dataclasses.replace(pairs(), preference=torch.tensor([1.0, 0.5, 1, 1, 0.5, 1, 1, 1]))
    with pytest.raises(ValueError, match="2 of 8 pairs of a batch are ties"):
        module().ready(ties, True)
    with pytest.raises(ValueError, match="the loss margin needs the gap of every pair: use ArenaPO"):
        module(loss=PairLoss("margin"))
    with pytest.raises(ValueError, match="dspo needs what the reference predicts"):
        module(loss=PairLoss("dspo"), cache=CacheSettings("x"))
    with pytest.raises(ValueError, match=r"give model.lora its shape"):
        module(lora=False, init_adapter="x")
    with pytest.raises(ValueError, match=r"drop_rate lies in \[0, 1\]"):
        module(drop_rate=2.0)


def test_weights_in_half_precision_are_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 2 trained tensors are bfloat16, .* set model.policy.dtype to float32"):
        fit(module(lora=False, policy=ToyPolicy().bfloat16()), ToyPairs(), tmp_path, steps=1)
    with pytest.raises(ValueError, match="trained tensors are bfloat16"):
        fit(module(), ToyPairs(), tmp_path, steps=1, precision="bf16-true")
    module(policy=ToyPolicy().bfloat16())._require_precision()  # an adapter is float32 whatever it adapts


def test_a_distilled_model_is_warned_about(tmp_path: Path) -> None:
    model = module()
    model.policy.is_distilled = True
    with pytest.warns(UserWarning, match="distilled to few steps") as caught:
        fit(model, ToyPairs(), tmp_path, steps=1)
    assert sum("distilled to few steps" in str(one.message) for one in caught) == 1


def test_the_numbers_of_a_step() -> None:
    z = torch.tensor([2.0, -1.0, 0.0, 1.0])
    gap = torch.tensor([4.0, 1.0, 2.0, 3.0])
    rest = torch.tensor([[1.0, 2.0, 0.5, 1.0]]).repeat(4, 1)
    rows = torch.cat([torch.ones(4, 1), z[:, None], gap[:, None], rest], 1)
    loss, constant = PairLoss("margin", strength=0.4), PairLoss("margin_const", strength=0.4)
    found = pair_diagnostics(rows, loss)
    assert float(found["implicit_accuracy"]) == 0.625 and float(found["margin_satisfied"]) == 0.25
    assert float(found["drift_winner"]) == 0.5 and float(found["drift_loser"]) == 1.0
    assert float(found["logit_gap_correlation"]) == pytest.approx(float(torch.corrcoef(torch.stack([z, gap]))[0, 1]))
    rows[0, 2] = torch.nan
    unknown = pair_diagnostics(rows, loss)
    assert "gap" not in unknown and "margin_satisfied" not in unknown and "logit" in unknown
    assert float(pair_diagnostics(rows, constant)["margin_satisfied"]) == 0.5, "z > gamma, whatever the gap"


def test_displacement_is_reported_once() -> None:
    # At the published temperature a thousandth of an error is nats.
    rows = torch.tensor([[0.6, 1.0, 1.0, 1.001, 1.003, 1.0, 1.0]])
    away = pair_diagnostics(rows, PairLoss())
    assert float(away["reward_winner"]) == pytest.approx(-2.5, rel=1e-3)
    assert float(away["reward_loser"]) == pytest.approx(-7.5, rel=1e-3)
    watch, near = Displacement(2.0, 3), {**away, "reward_winner": torch.tensor(-1.9)}
    assert watch.seen(away, 0) == 1 and watch.seen(near, 2) == 0
    with pytest.warns(UserWarning, match=r"for 3 steps .* \(implicit rewards -2.50 and -7.50 nats\)"):
        assert watch.seen(away, 2) == 3
    assert watch.seen(away, 3) == 4


def test_a_resumed_run_goes_on_counting_displaced_steps() -> None:
    stopped, resumed = module(), module()
    stopped._displaced = 7
    checkpoint: dict[str, Any] = {"state_dict": stopped.state_dict()}
    stopped.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed._displaced == 7


def test_needs_counts_the_network_that_is_trained() -> None:
    full = DiffusionDPO.needs({"policy": "shapes_base"})
    small = DiffusionDPO.needs({"policy": "shapes_base", "lora": dataclasses.asdict(LORA) | {"targets": None}})
    model = DiffusionDPO("shapes_base")
    model.configure_model()
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert 0 < small.trainable < full.trainable == trained < full.frozen == small.frozen
    assert AdamW(1e-3)  # the optimiser of the small configurations
