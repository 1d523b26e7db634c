"""The LightningModule: its step, its stages, and its life under a real Trainer."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_gen.autoencoders.muse.curriculum import parameter_groups, trained_stage
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.muse.stages import PAPER_STAGES, Stage, locate_stage
from lightning_gen.cli import main
from lightning_gen.nn.routing import GradientRouter
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.training.callbacks.gradient_routing import GradientRouting
from lightning_gen.training.ema import EMA
from lightning_gen.training.strategies import FSDP2Strategy
from tests.autoencoders.muse.tiny import SHAPE, batch, data, module, stage, with_images
from tests.harness import TrainingChecks, fit, needs_cpu_fsdp2, two_processes

MANUAL: dict[str, Any] = {"gradient_clip_val": None}


def train(model: Muse, folder: Path, steps: int = 1, **options: Any) -> Trainer:
    return fit(model, data(), folder, max_steps=steps, **{**MANUAL, **options})


class TestHarness(TrainingChecks):
    """Stage 3 with its discriminator, LeCam's averages and a contrast over all ranks."""

    options: ClassVar[dict[str, Any]] = MANUAL

    def module(self) -> LightningModule:
        # Biases of keys, and of channels that are a group of their own, have a gradient of rounding errors alone, which
        # Adam makes as large as any other.
        shape = dataclasses.replace(SHAPE, encoder=dataclasses.replace(SHAPE.encoder, attention_bias=False))
        # The discriminator hardly moves, for the same reason; its gradients are compared below.
        settings = {"shape": shape, "discriminator_width": 64}
        return module(stage(3, learning_rate=1e-3, discriminator_learning_rate=1e-6), **settings)

    def data(self) -> LightningDataModule:
        return data()

    def config(self) -> dict[str, Any]:
        arguments = {
            "routing": "official",
            "topo_layers": "last",
            "stages": [{"kind": 2, "steps": 7, "warmup_steps": 1}],
        }
        return {"class_path": "lightning_gen.autoencoders.muse.module.Muse", "init_args": arguments}


def moments_job(strategy: str, folder: Path, devices: int) -> list[Tensor]:
    """What Adam remembers of the discriminator's first gradient."""
    model = module(stage(3), discriminator_width=64)
    train(model, folder, 1, strategy=strategy, devices=devices)
    optimizer = model.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
    return [optimizer.state[p]["exp_avg"].clone() for group in optimizer.param_groups for p in group["params"]]


def test_two_ranks_judge_as_one(tmp_path: Path) -> None:
    alone = moments_job("auto", tmp_path / "one", 1)
    first, second = two_processes(moments_job, "ddp", tmp_path / "two", 2)
    largest = max(x.abs().max().item() for x in alone)
    for a, b, c in zip(alone, first, second, strict=True):
        assert torch.equal(b, c) and (a - b).abs().max().item() < 1e-3 * largest


def snapshot(model: Muse) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def changed(model: Muse, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.network.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_stage_changes_what_it_trains_and_nothing_else(kind: int, tmp_path: Path) -> None:
    """Check 11."""
    model = module(stage(kind))
    model.configure_model()
    before = snapshot(model)
    train(model, tmp_path)
    found = changed(model, before)
    encoder = {name for name in before if name.startswith("encoder.")}
    head = {"head.0.weight", "head.2.weight", "temperature.log", "synergy.2.semantic.weight"}
    assert bool(found & encoder) == (kind == 3)
    assert found & head == (set() if kind == 1 else head)
    assert {"adapter.1.weight", "to_latent.weight", "synergy.0.query.weight", "synergy.2.value.weight"} <= found
    assert any(name.startswith("decoder.") for name in found)
    assert not found & {f"synergy.{i}.semantic.weight" for i in range(2)}
    assert (model.discriminator is None) == (kind != 3)


def test_optimiser_groups_and_rates() -> None:
    """Check 11: stage 3 has four groups, the encoder at half the rate."""
    model = Muse(shape=SHAPE, stages=PAPER_STAGES[2:])
    groups = parameter_groups(model.network, 1e-4, 5e-5, 2.5e-5)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("encoder", 2.5e-5, 1e-4),
        ("encoder", 2.5e-5, 0.0),
        ("rest", 5e-5, 1e-4),
        ("rest", 5e-5, 0.0),
    ]
    model.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1)
    optimizers, schedulers = model.configure_optimizers()
    assert len(optimizers[0].param_groups) == 4 and len(optimizers) == 2
    assert [g["initial_lr"] for g in optimizers[0].param_groups] == [2.5e-5, 2.5e-5, 5e-5, 5e-5]
    assert optimizers[1].param_groups[0]["initial_lr"] == 1e-4
    counted = sum(p.numel() for g in groups for p in g["params"])
    assert counted == sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    undecayed = [p for g in (groups[1], groups[3]) for p in g["params"]]
    names = dict(model.network.named_parameters())
    inside = {name for name, p in names.items() if any(p is other for other in undecayed)}
    assert "encoder.model.embeddings.patch_embeddings.projection.weight" in inside  # its name holds "embedding"
    assert "to_latent.bias" in inside and "adapter.1.weight" not in inside
    only = Muse(shape=SHAPE, stages=PAPER_STAGES[:1])
    assert [g["name"] for g in parameter_groups(only.network, 1e-4, 4e-4, 2e-4)] == ["rest", "rest"]
    del schedulers


def test_learning_rates_of_stage_one() -> None:
    """Check 13."""
    first = PAPER_STAGES[0]
    rates = [first.learning_rate * first.factor(step) for step in (0, 1000, 2000, 26000, 50000)]
    assert rates == pytest.approx([0, 2e-4, 4e-4, 2.05e-4, 1e-5], abs=1e-12)
    assert first.factor(60_000) == pytest.approx(1e-5 / 4e-4)


def test_the_papers_stages() -> None:
    numbers = [dataclasses.astuple(s) for s in PAPER_STAGES]
    assert numbers == [
        (1, 50_000, 4e-4, 2_000, 1e-5, 2.0, 0.0, 1.1, 0.5, 1_000_000, 0.1, 4e-4, 0.5),
        (2, 50_000, 2e-4, 5_000, 1e-5, 5.0, 0.2, 1.1, 0.5, 1_000_000, 0.1, 2e-4, 0.5),
        (3, 50_000, 5e-5, 1_000, 1e-6, 0.2, 0.1, 2.0, 1.0, 0, 0.5, 1e-4, 0.5),
    ]
    assert [locate_stage(PAPER_STAGES, step) for step in (0, 49_999, 50_000, 149_999, 150_000)] == [
        (0, 0),
        (0, 49_999),
        (1, 0),
        (2, 49_999),
        (2, 50_000),
    ]
    with pytest.raises(ValueError, match="kind of a stage is 1, 2 or 3"):
        Stage(kind=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="warmup_steps between 0 and steps"):
        Stage(steps=10, warmup_steps=11)


def test_a_stage_without_its_predecessor_is_refused(tmp_path: Path) -> None:
    for settings, problem in (
        (
            {"start": "previous_stage"},
            "stage 2 continues the weights of stage 1, and none are given: set model.init_from",
        ),
        ({"encoder_source": None}, "the encoder would start from random weights: set model.encoder_source"),
        ({"teacher": None}, "structure_weight above 0 but model.teacher is not set"),
        ({"text": None}, "semantic_weight above 0 but model.text is not set"),
    ):
        with pytest.raises(ValueError, match=problem):
            train(module(stage(2), **settings), tmp_path)
    with pytest.raises(ValueError, match="perceptual_weight above 0 but model.perceptual"):
        train(module(stage(2, perceptual_weight=1.0)), tmp_path)


def test_stages_chain_by_checkpoint_and_take_the_average(tmp_path: Path) -> None:
    first, average = module(stage(1), start="previous_stage"), EMA([0.5])
    keeper = ModelCheckpoint(tmp_path, filename="one", every_n_train_steps=2)
    train(first, tmp_path, 2, callbacks=(average, keeper))
    path = tmp_path / "one.ckpt"
    assert trained_stage(str(path)) == 1
    second = module(stage(2), start="previous_stage", init_from=str(path), encoder_source=None)
    train(second, tmp_path, 0)
    second.configure_model()
    with average.averaged(first):
        wanted = snapshot(first)
    assert not changed(second, wanted)
    with pytest.raises(ValueError, match=r"stage 3 continues the weights of stage 2, .*one.ckpt is of stage 1"):
        train(module(stage(3), start="previous_stage", init_from=str(path)), tmp_path)
    assert main(["export", str(path), str(tmp_path / "exported"), "--weights", "ema"]) == 0
    assert trained_stage(str(tmp_path / "exported")) == 1
    again = Muse.from_pretrained(str(tmp_path / "exported"))
    assert not changed(again, wanted)
    loaded = Muse.load_from_checkpoint(path, weights_only=True)
    assert loaded.settings.shape == SHAPE and loaded.stages == first.stages


def test_one_run_goes_through_all_stages(tmp_path: Path) -> None:
    model = module(stage(1, steps=2), stage(2, steps=1), stage(3, steps=1), start="previous_stage")
    model.configure_model()
    seen: list[tuple[int, float]] = []

    class Watch(EMA):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append((trainer.global_step, float(trainer.callback_metrics["train/stage"])))

    before = snapshot(model)
    train(model, tmp_path, 3, callbacks=(Watch([0.5]),))
    assert seen == [(1, 1.0), (2, 1.0), (3, 2.0)], "the discriminator's steps must not count"
    assert not [name for name in changed(model, before) if name.startswith("encoder.")]
    again = module(stage(1, steps=2), stage(2, steps=1), stage(3, steps=1), start="previous_stage")
    seen.clear()
    train(again, tmp_path, 4, callbacks=(Watch([0.5]),))
    assert seen[-1] == (4, 3.0) and [n for n in changed(again, before) if n.startswith("encoder.")]


def test_an_export_names_the_stage_that_was_reached(tmp_path: Path) -> None:
    plan = (stage(1, steps=2), stage(2, steps=2), stage(3, steps=2))
    for steps, reached in ((1, 1), (2, 1), (3, 2)):
        folder = tmp_path / str(steps)
        model = module(*plan, start="previous_stage")
        keeper = ModelCheckpoint(folder, filename="kept", every_n_train_steps=steps)
        train(model, folder, steps, callbacks=(keeper,))
        model.save_pretrained(folder / "direct")
        assert main(["export", str(folder / "kept.ckpt"), str(folder / "exported")]) == 0
        assert trained_stage(str(folder / "direct")) == trained_stage(str(folder / "exported")) == reached


def test_captions_are_wanted_from_stage_two_on(tmp_path: Path) -> None:
    model = module(stage(2))
    train(model, tmp_path)
    images = batch().images
    assert isinstance(images, Tensor)
    output = model._forward(images, model.stages[0])
    with pytest.raises(ValueError, match=r"no captions, .*TextImageDataModule.*keys k0, k1, k2"):
        model.loss_terms(output, images, batch(captions=False), model.stages[0])
    with pytest.raises(ValueError, match="no captions"):
        model.loss_terms(output, images, dataclasses.replace(batch(), caption=("",) * 4), model.stages[0])
    assert "semantics" in model.loss_terms(output, images, batch(), model.stages[0])
    assert "semantics" not in model.loss_terms(output, images, batch(captions=False), stage(1))


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    model = module(stage(3, structure_weight=0.3, semantic_weight=0.7, discriminator_weight=0.2))
    trainer = train(model, tmp_path)
    found = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items()}
    total = found["reconstruction"] + 0.3 * found["structure"] + 0.7 * found["semantics"] + 0.2 * found["adversarial"]
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    assert found["discriminator"] == pytest.approx(1.0, abs=0.3)


def test_the_discriminator_starts_when_it_is_told_to(tmp_path: Path) -> None:
    model = module(stage(3, discriminator_start=1))
    model.configure_model()
    assert model.discriminator is not None and model.lecam is not None
    before = copy.deepcopy(model.discriminator.state_dict())
    train(model, tmp_path, 1)
    assert all(torch.equal(x, before[name]) for name, x in model.discriminator.state_dict().items())
    assert model.lecam.average_real == 0
    again = module(stage(3, discriminator_start=1))
    trainer = train(again, tmp_path, 2)
    assert again.discriminator is not None and again.lecam is not None and trainer.global_step == 2
    assert all(not torch.equal(x, before[name]) for name, x in again.discriminator.state_dict().items())
    assert again.lecam.average_real != 0


def test_the_temperature_stays_below_100(tmp_path: Path) -> None:
    for clamp in (True, False):
        model = module(stage(2), clamp_logit_scale=clamp)
        model.configure_model()
        with torch.no_grad():
            model.network.temperature.log.fill_(7.0)
        train(model, tmp_path)
        assert (model.network.temperature.log.item() <= 4.6052) == clamp


def test_strict_routing_leaves_structure_and_semantics_nothing_in_common(tmp_path: Path) -> None:
    """Check 10, last part; and joint routing lets them meet."""
    for routing, shared in (("strict", False), ("official", True), ("joint", True)):
        model = module(stage(3), routing=routing)
        callback = GradientRouting(every_n_steps=1)
        trainer = train(model, tmp_path / routing, callbacks=(callback,))
        found = callback.last
        assert found is not None and found.losses == ("rec", "topo", "itc")
        topo, itc = found.losses.index("topo"), found.losses.index("itc")
        assert (found.cos_full[topo, itc] != 0) == shared, routing
        assert bool(found.cos_shared[topo, itc].isnan()) == (not shared)
        assert float(trainer.callback_metrics["routing/cos_full/topo-itc"]) == pytest.approx(
            found.cos_full[topo, itc].item()
        )
        reached = {g for g, there in zip(found.groups, found.norms[topo] > 0, strict=True) if there}
        assert (reached == {"q, k earlier", "q, k last"}) == (routing == "strict")
        assert (tmp_path / routing / "routing" / "step_00000000.png").read_bytes().startswith(b"\x89PNG")


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = module()
    groups = model.routing_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)) == len(list(model.network.parameters()))
    GradientRouter(groups)


def test_a_module_without_separate_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="routing_losses"):
        GradientRouting().setup(None, LightningModule(), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every_n_steps >= 1"):
        GradientRouting(0)


def test_features_for_probes() -> None:
    model = module()
    model.configure_model()
    images = batch(3, (20, 33)).images
    assert isinstance(images, Tensor)
    with torch.no_grad():
        features, embedding, dense = (
            f(images) for f in (model.probe_features, model.image_embedding, model.dense_features)
        )
    assert features.shape == (3, 16) and embedding.shape == (3, 12) and dense.shape == (3, 16, 3, 5)
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(3), atol=1e-6)


def test_pictures_of_different_sizes_are_encoded_and_decoded() -> None:
    from lightning_gen.nn.tokens import patchify

    model = module()
    model.configure_model()
    pictures = [torch.rand(3, *size) * 2 - 1 for size in ((16, 16), (9, 30), (16, 16))]
    with torch.no_grad():
        latents = model.encode(patchify(pictures, 4))
        images = model.decode(latents)
        alone = model.encode(pictures[1][None])
    assert [image.shape for image in images] == [picture.shape for picture in pictures]
    assert latents.grid.tolist() == [[2, 2], [2, 4], [2, 2]] and latents.patch == 8
    assert torch.allclose(latents.values[1][latents.mask[1]], alone.values[0], atol=1e-6)
    with pytest.raises(ValueError, match="are not those of this MUSE"):
        model.decode(dataclasses.replace(latents, patch=4))
    with pytest.raises(ValueError, match="pictures of one size per batch"):
        model._pictures(with_images(batch(3), patchify(pictures, 4)))


def test_the_constructor_allocates_nothing_and_needs_are_counted() -> None:
    model = Muse()
    assert all(p.device.type == "meta" for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 486_459_556
    with pytest.raises(RuntimeError, match=r"no weights yet: use Muse.from_pretrained"):
        model.encode(torch.zeros(1, 3, 28, 28))
    teacher = {
        "class_path": "lightning_gen.autoencoders.muse.teacher.DINOv3Attention",
        "init_args": {"source": "no/where"},
    }
    needs = Muse.needs({"teacher": teacher})
    assert needs.frozen == 304_012_288 and needs.trainable == 486_459_556 - 304_012_288
    assert [need.found for need in needs.weights] == [False]
    assert Muse.needs({"stages": [{"kind": 3}]}).frozen == 0


def test_validation_and_prediction(tmp_path: Path) -> None:
    model = module()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    (found,) = trainer.validate(model, datamodule=data(), verbose=False)
    assert {"val/psnr", "val/ssim"} <= set(found)
    rows = model.pictures(batch())
    assert [row.caption for row in rows] == ["original", "reconstruction"] and len(rows[1].images) == 4


def test_the_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=1)
    train(module(stage(1)), tmp_path, 1, callbacks=(keeper,))
    other = module(stage(1), shape=dataclasses.replace(SHAPE, depth=2))
    with pytest.raises(ValueError, match="MUSE of other sizes"):
        train(other, tmp_path, 2, ckpt_path=tmp_path / "kept.ckpt")


def test_half_precision_that_needs_scaling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 32-true or bf16-mixed"):
        train(module(stage(1)), tmp_path, precision="bf16-true")


def test_probes_in_the_test_loop(tmp_path: Path) -> None:
    """Check 12, wired: the probes and zero-shot run where `lightning test` runs."""
    from lightning_gen.metrics.probes import LinearProbe, SegmentationTest
    from lightning_gen.shapes.segments import ShapesSegments

    names = [f"kind {number}" for number in range(8)]
    probe = LinearProbe(num_classes=8, batch_size=16, epochs=2, validate_every=1)
    pictures = ShapesDataModule(
        val="even", tags=["single_object"], val_samples=24, global_batch_size=8, num_workers=0, seed=1
    )
    tested = ShapesDataModule(val="even", tags=["single_object"], val_samples=12, global_batch_size=8, num_workers=0)
    segmentation = SegmentationTest(
        ShapesSegments(6, numbered="kinds"),
        ShapesSegments(5, seed=1, numbered="kinds"),
        num_classes=9,
        size=32,
        batch_size=2,
        steps=2,
    )
    model = module(linear_probe=probe, probe_data=pictures, class_names=names, segmentation=segmentation)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    (found,) = trainer.test(model, datamodule=tested, verbose=False)
    for name in ("test/linear_probe_best", "test/linear_probe_last", "test/zero_shot", "test/miou"):
        assert 0 <= found[name] <= 1
    assert len(model.understanding.kept.table().labels) == 12
    with pytest.raises(ValueError, match="linear_probe and probe_data belong together"):
        module(linear_probe=probe)
    with pytest.raises(ValueError, match="needs the text tower"):
        trainer.test(module(class_names=names, text=None), datamodule=tested, verbose=False)


def test_the_ramp_of_the_published_average(tmp_path: Path) -> None:
    """Decay 0 at the first update, then n / (n + 9)."""
    model, seen = module(stage(1)), []

    class Watch(EMA):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *rest)
            with self.averaged(pl_module):
                average = pl_module.network.to_latent.weight.detach().clone()
            seen.append((pl_module.network.to_latent.weight.detach().clone(), average))

    train(model, tmp_path, 3, callbacks=(Watch([0.999], ramp=True),))
    wanted = seen[0][0]
    assert torch.equal(seen[0][1], wanted)
    for earlier, (weight, average) in enumerate(seen[1:], start=1):
        decay = earlier / (earlier + 9)
        wanted = decay * wanted + (1 - decay) * weight
        assert torch.allclose(average, wanted, atol=1e-6)


def gradients(accumulate: int, folder: Path, **settings: Any) -> tuple[dict[str, float], list[list[Tensor]], Tensor]:
    """What a step logs, what Adam remembers of both first gradients, and LeCam's averages."""
    model = module(stage(3), accumulate=accumulate, lecam_weight=1.0, itc_layers="all", clip=1e6, **settings)
    model.configure_model()
    assert model.lecam is not None
    with torch.no_grad():
        model.lecam.average_real.fill_(0.3)
        model.lecam.average_fake.fill_(-0.4)
    trainer = train(model, folder / str(accumulate))
    found: Any = model.optimizers(use_pl_optimizer=False)
    moments = [[o.state[p]["exp_avg"].clone() for group in o.param_groups for p in group["params"]] for o in found]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return logged, moments, torch.stack([model.lecam.average_real, model.lecam.average_fake])


@pytest.mark.parametrize("count", [2, 3])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(count: int, tmp_path: Path) -> None:
    """The contrast sees all captions and LeCam all logits; everything else is a mean over images."""
    logged, whole, averages = gradients(1, tmp_path)
    in_parts, parts, same = gradients(count, tmp_path)
    assert in_parts == pytest.approx(logged, rel=1e-4)
    assert torch.allclose(same, averages, atol=1e-6)
    for mine, theirs in zip(parts, whole, strict=True):
        largest = max(x.abs().max().item() for x in theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


def parts_job(accumulate: int, strategy: str, folder: Path) -> list[list[Tensor]]:
    model = module(stage(3), accumulate=accumulate, clip=1e6)
    kind: Any = FSDP2Strategy() if strategy == "fsdp2" else strategy
    train(model, folder, 1, strategy=kind, devices=2)
    found: Any = model.optimizers(use_pl_optimizer=False)
    return [[_whole(o.state[p]["exp_avg"]) for g in o.param_groups for p in g["params"]] for o in found]


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.clone()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_cpu_fsdp2)])
def test_two_ranks_take_their_parts_as_one(strategy: str, tmp_path: Path) -> None:
    """Gradients are averaged with the last part alone, and hold all of them then."""
    wholes, _ = two_processes(parts_job, 1, strategy, tmp_path / "whole")
    first, second = two_processes(parts_job, 2, strategy, tmp_path / "parts")
    for mine, other, theirs in zip(first, second, wholes, strict=True):
        largest = max(x.abs().max().item() for x in theirs)
        for a, b, c in zip(mine, other, theirs, strict=True):
            assert torch.equal(a, b) and torch.allclose(a, c, rtol=1e-3, atol=5e-5 * largest)


def test_routing_of_a_step_in_parts_is_that_of_its_first_part() -> None:
    model, given = module(accumulate=2), batch()
    model.configure_model()
    model.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1)
    found = model.routing_losses(given)
    assert isinstance(given.images, Tensor)
    model.accumulate = 1
    half = dataclasses.replace(
        given, raw=given.images[:2], index=given.index[:2], key=given.key[:2], caption=given.caption[:2]
    )
    alone = model.routing_losses(half)
    assert {name: float(loss) for name, loss in found.items()} == {n: float(loss) for n, loss in alone.items()}
