"""The LightningModules: their steps, and their life under a real Trainer. Check 14 of the requirement is here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.refine import PAERefine
from lightning_gen.autoencoders.pae.settings import Cascade, LossWeights, Semantics
from lightning_gen.autoencoders.pae.upsampling import Bicubic
from lightning_gen.backbones.patch_features import UntrainedPatches
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.cli import main
from lightning_gen.data.latents.encoding import PictureEncoder
from lightning_gen.nn.tokens import patchify
from lightning_gen.training.ema import EMA
from lightning_gen.training.optim import AdamW
from tests.autoencoders.pae.tiny import ADVERSARY, SHAPE, batch, data, encoder, module, shape
from tests.harness import TrainingChecks, fit, needs_cpu_fsdp2, two_processes

OFF = LossWeights(lpips=0.0, adversarial=0.0, ssr=0.0, mcr=0.0, scr=0.0)
GAN = LossWeights(lpips=0.0)


def refine(**settings: Any) -> PAERefine:
    given: dict[str, Any] = {
        "encoder": encoder(),
        "shape": SHAPE,
        "restorer": "w16_d1_h2",
        "upsampler": Bicubic(),
        "fine_size": 16,
        "sigma": 1.0,
        "optimizer": AdamW(learning_rate=3e-3),
    }
    return PAERefine(**{**given, **settings})


class PAEChecks(TrainingChecks):
    def learned(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Without the biases of keys, to which attention is blind."""
        if name.endswith("qkv.bias"):
            queries, _, values = value.chunk(3)
            return torch.cat([queries, values])
        return value[:0] if name.endswith("k_proj.bias") else value


class TestAdversarialTraining(PAEChecks):
    """Discriminator from the second step on, heard from the third: two optimisers in four steps of all kinds."""

    # Two optimisers are stepped by hand; Lightning's own clipping would be refused.
    options: ClassVar[dict[str, Any]] = {"gradient_clip_val": None}

    def module(self) -> LightningModule:
        return module(losses=GAN, adversary=ADVERSARY, gradient_clip=1.0)

    def data(self) -> LightningDataModule:
        return data()

    def config(self) -> dict[str, Any]:
        return {
            "class_path": "lightning_gen.autoencoders.pae.module.PAE",
            "init_args": {
                "encoder": {
                    "class_path": "lightning_gen.backbones.patch_features.UntrainedPatches",
                    "init_args": {"patch": 4, "width": 16},
                },
                "shape": {"channels": 6, "prior_width": 16, "prior_heads": 2, "prior_patch": 4, "grid": 4},
                "losses": {"ssr": 0.1},
                "cascade": {"angles": [10.0, 20.0, 30.0]},
            },
        }


class TestRefinement(PAEChecks):
    def module(self) -> LightningModule:
        return refine()

    def data(self) -> LightningDataModule:
        return data()

    def config(self) -> dict[str, Any]:
        return {
            "class_path": "lightning_gen.autoencoders.pae.refine.PAERefine",
            "init_args": {
                "encoder": {"class_path": path_of_encoder()},
                "restorer": "w16_d1_h2",
                "shape": {"channels": 6},
            },
        }


# ------------------------------------------------------------------ one step


def logged(model: PAE, given: Any) -> dict[str, float]:
    """Terms of a step without a trainer: the parts of ``training_step`` that do not touch optimisers."""
    found: dict[str, float] = {}
    model.log = lambda name, value, **_: found.__setitem__(name, float(value))  # type: ignore[method-assign]
    model._optimizers = list  # type: ignore[method-assign]
    model._backward = lambda loss, critic: loss.backward()  # type: ignore[method-assign]
    model._step = lambda: None  # type: ignore[method-assign]
    found["returned"] = float(model.training_step(given, 0))
    return found


def ready(**settings: Any) -> PAE:
    model = module(**settings)
    model.configure_model()
    model._load_targets()
    return model


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    found = logged(ready(), batch())
    wanted = found["train/l1"] + 0.2 * found["train/ssr"] + 0.5 * found["train/mcr"] + found["train/scr"]
    assert found["returned"] == pytest.approx(wanted, rel=1e-6)
    plain = logged(ready(losses=OFF, refined=None), batch())
    assert set(plain) == {"train/l1", "train/loss", "returned"}


def test_l1_is_of_pixels_between_0_and_1() -> None:
    model, given = ready(losses=OFF, refined=None), batch()
    found = logged(model, given)["train/l1"]
    from lightning_gen.autoencoders.pae.prior import look

    prior = look(model.encoder, given.images, (4, 4))
    made = model.network(prior.pixels, prior.features, (4, 4)).images[0]
    assert found == pytest.approx((made - (given.images + 1) / 2).abs().mean().item(), rel=1e-5)


def test_draws_depend_on_sample_and_epoch_only() -> None:
    model, given = ready(losses=dataclasses.replace(OFF, mcr=0.5), refined=None), batch(4)
    z = torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(0))
    first = model._perturb(given)(z)
    torch.manual_seed(99)
    part = dataclasses.replace(given, index=given.index[1:3])
    torch.testing.assert_close(model._perturb(part)(z[1:3]), first[:, 1:3])
    assert (model._perturb(dataclasses.replace(given, epoch=1))(z) - first).abs().max() > 0.1
    equal = model._perturb(given)(z[:1].expand(4, -1, -1))
    assert (equal[:, 0] - equal[:, 1]).abs().max() > 0.1  # every sample has its own direction


def test_continuity_waits_for_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = dataclasses.replace(OFF, mcr=0.5)
    model, given = ready(losses=losses, refined=None, cascade=Cascade(start=3)), batch(4)
    found = logged(model, given)
    assert "train/mcr" not in found and found["train/loss"] == found["train/l1"]
    few = model.flops_per_step(given)
    monkeypatch.setattr(type(model), "global_step", 3)
    assert "train/mcr" in logged(model, given) and model.flops_per_step(given) > 1.5 * few
    with pytest.raises(ValueError, match=r"cascade.start is an optimiser step, 0 or later, got -1"):
        Cascade(start=-1)


def test_switches_of_the_cascade() -> None:
    z = torch.nn.functional.normalize(torch.randn(2, 16, 6), dim=-1) * 6**0.5

    def moved(choice: Cascade, latents: torch.Tensor = z) -> torch.Tensor:
        model = module(cascade=choice)
        found: torch.Tensor = model._perturb(batch())(latents)
        return found

    def way(there: torch.Tensor, angle: float) -> torch.Tensor:
        """The direction that a token was moved along."""
        radians = torch.deg2rad(torch.tensor(angle))
        return (there / radians.cos() - z) / radians.tan() if angle else there

    shared, own = moved(Cascade((30.0, 60.0))), moved(Cascade((30.0, 60.0), shared_direction=False))
    torch.testing.assert_close(way(shared[0], 30.0), way(shared[1], 60.0), rtol=1e-3, atol=1e-3)
    assert (way(own[0], 30.0) - way(own[1], 60.0)).abs().max() > 0.1
    for detach in (False, True):
        leaf = z.clone().requires_grad_()
        assert moved(Cascade(detach_latent=detach), leaf).requires_grad is not detach
    assert moved(Cascade(renorm=False))[1].norm(dim=-1).mean() > 10 * moved(Cascade())[1].norm(dim=-1).mean()
    for wrong in ((85.0, 42.5), (), (0.0, 10.0), (45.0, 90.0)):
        with pytest.raises(ValueError, match=r"rise within \(0, 90\)"):
            Cascade(wrong)


def test_terms_of_the_semantics_can_be_left_out() -> None:
    losses = LossWeights(lpips=0.0, adversarial=0.0, ssr=0.0, mcr=0.0)
    parts = [
        logged(ready(losses=losses, semantics=Semantics(*on)), batch())["train/scr"] for on in ((1, 0), (0, 1), (1, 1))
    ]
    assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-5)


def test_only_the_network_learns_and_all_of_it_does() -> None:
    model = ready()
    with torch.no_grad():
        model.network.modulator.fusion_proj.weight.normal_(std=0.1)
    logged(model, batch())
    assert all(p.grad is not None and p.grad.any() for p in model.network.parameters())
    assert model.target is not None
    assert all(p.grad is None for frozen in (model.encoder.network, model.target.network) for p in frozen.parameters())


# ------------------------------------------------------------------ under a trainer


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    """Check 14, with LPIPS: the trunk is random, of VGG's shape."""
    model = module(
        losses=LossWeights(lpips=0.5),
        adversary=dataclasses.replace(ADVERSARY, discriminator_start=0, generator_start=0),
    )
    model.perceptual = tiny_lpips()
    before: list[torch.Tensor] = []

    def frozen() -> list[torch.Tensor]:
        assert model.target is not None and model.perceptual is not None
        parts = (model.encoder.network, model.target.network, model.perceptual.network, ADVERSARY.encoder.network)
        return [p for part in parts for p in part.parameters()]

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.extend(p.detach().clone() for p in frozen())
            self.trained = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    look = Look()
    fit(model, data(), tmp_path, max_steps=1, callbacks=(look,), gradient_clip_val=None)
    assert len(before) > 10 and all(torch.equal(a, b) for a, b in zip(before, frozen(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in frozen())
    changed = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, look.trained[n])}
    assert changed == {"network", "discriminator"}
    assert not [name for name in model.state_dict() if not name.startswith(("network.", "discriminator."))]


def tiny_lpips() -> Any:
    """An LPIPS-like frozen distance; the real one is tested where it lives."""
    from lightning_gen.backbones.frozen import FrozenModule

    class Distance(FrozenModule):
        def forward(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert target.abs().max() <= 1
            found: torch.Tensor = (self.network(made) - self.network(target)).square().mean((1, 2, 3))
            return found

    return Distance(torch.nn.Conv2d(3, 4, 3))


class Weights(Callback):
    """The discriminator after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(torch.cat([p.detach().flatten() for p in pl_module.discriminator.parameters()]))


def test_the_discriminator_learns_from_its_step_on_and_steps_are_counted_once(tmp_path: Path) -> None:
    model, seen, average = module(losses=GAN, adversary=ADVERSARY), Weights(), EMA([0.9])
    trainer = fit(model, data(), tmp_path, max_steps=3, callbacks=(seen, average), gradient_clip_val=None)
    assert trainer.global_step == 3 and len(seen.seen) == 3
    first = torch.cat([p.detach().flatten() for p in initial_discriminator().parameters()])
    assert torch.equal(seen.seen[0], first) and not torch.equal(seen.seen[1], first)
    assert {"train/adversarial", "train/adversarial_weight", "train/discriminator"} <= set(trainer.logged_metrics)
    assert 0 < trainer.logged_metrics["train/adversarial_weight"] <= 1e4
    raw = model.network.decoder.head.weight.detach().clone()
    with average.averaged(model):
        assert not torch.equal(model.network.decoder.head.weight, raw)


def initial_discriminator() -> torch.nn.Module:
    model = module(losses=GAN, adversary=ADVERSARY)
    model.configure_model()
    assert model.discriminator is not None
    return model.discriminator


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"losses": OFF}, {"l1"}),
        ({"losses": dataclasses.replace(OFF, kl=1e-6), "shape": shape(latent="kl")}, {"l1", "kl"}),
        ({"losses": dataclasses.replace(OFF, vf=0.1)}, {"l1", "vf"}),
    ],
    ids=["plain", "kl", "vf"],
)
def test_the_auto_encoders_of_the_comparison_are_switches(tmp_path: Path, settings: Any, names: set[str]) -> None:
    model = module(refined=None, **settings)
    trainer = fit(model, data(), tmp_path, max_steps=1, gradient_clip_val=None)
    assert {key.removeprefix("train/") for key in trainer.logged_metrics} == {*names, "loss"}
    model.save_pretrained(tmp_path / "folder")
    again = PAE.from_pretrained(str(tmp_path / "folder"))
    given = batch().images
    torch.testing.assert_close(again.encode(given).values, model.encode(given).values)


def test_stage_one_takes_the_projector_of_stage_zero(tmp_path: Path) -> None:
    first = refine()
    keeper = ModelCheckpoint(tmp_path, filename="stage0", every_n_train_steps=1)
    trainer = fit(first, data(), tmp_path, max_steps=1, callbacks=(keeper,))
    assert {"train/representation", "train/gram"} <= set(trainer.logged_metrics)
    assert main(["export", str(tmp_path / "stage0.ckpt"), str(tmp_path / "exported")]) == 0
    for source in ("stage0.ckpt", "exported"):
        model = module(refined=str(tmp_path / source))
        model._load_targets()
        assert model.target is not None
        for a, b in zip(model.target.network.parameters(), first.network.projector.parameters(), strict=True):
            assert torch.equal(a, b)
    other = module(refined=str(tmp_path / "exported"), shape=shape(channels=5))
    with pytest.raises(ValueError, match=r"refined for another auto-encoder: channels 6 for 5"):
        other._load_targets()


def test_stage_one_without_stage_zero_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"needs the refined prior of stage 0: train it \(lightning fit --config pae_refine"
    ):
        fit(module(refined=None), data(), tmp_path, max_steps=1, gradient_clip_val=None)
    with pytest.raises(MissingWeightsError, match="stage 0's weights are not at nowhere"):
        module(refined="nowhere")._load_targets()
    (tmp_path / "other").mkdir()
    with pytest.raises(MissingWeightsError, match="export stage 0 there"):
        module(refined=str(tmp_path / "other"))._load_targets()
    missing = [need for need in PAE.needs({"encoder": {"class_path": path_of_encoder()}}).weights if not need.found]
    assert [need.what.split(" ")[0] for need in missing] == ["refined", "VGG16"]


def path_of_encoder() -> str:
    return "lightning_gen.backbones.patch_features.UntrainedPatches"


def test_settings_that_exclude_each_other_are_refused() -> None:
    cases = [
        ({"losses": LossWeights(lpips=0.0), "adversary": None}, "describe it in model.init_args.adversary"),
        ({"losses": LossWeights(adversarial=0.0)}, "needs VGG16"),
        ({"shape": shape(latent="plain")}, "needs shape.latent: sphere"),
        ({"losses": dataclasses.replace(OFF, kl=1.0)}, "losses.kl is for shape.latent: kl"),
        ({"shape": shape(latent="kl"), "losses": dataclasses.replace(OFF, scr=1.0)}, "which has no Gaussian"),
    ]
    for settings, words in cases:
        with pytest.raises(ValueError, match=words):
            module(**settings)._load_targets()
    for wrong in (lambda: LossWeights(ssr=-1.0), lambda: LossWeights(l1=0.0), lambda: module(gradient_clip=0.0)):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (UntrainedPatches(patch=8, width=16), "set shape.prior_patch to 8"),
        (UntrainedPatches(patch=4, width=12), "set shape.prior_width to 12"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(tmp_path: Path, prior: UntrainedPatches, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(module(encoder=prior), data(), tmp_path, max_steps=1, gradient_clip_val=None)


def test_a_prior_with_another_grid_is_refused(tmp_path: Path) -> None:
    class Coarse(UntrainedPatches):
        def _features(self, pixels: torch.Tensor) -> torch.Tensor:
            return super()._features(pixels)[:, ::2]

    with pytest.raises(ValueError, match="gives 8 tokens for 16 x 16 pixels, the grid of the latents is 4 x 4"):
        fit(module(encoder=Coarse(4, 16)), data(), tmp_path, max_steps=1, gradient_clip_val=None)


def test_precision_that_would_cast_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 32-true or bf16-mixed"):
        fit(module(), data(), tmp_path, max_steps=1, gradient_clip_val=None, precision="bf16-true")


# ------------------------------------------------------------------ use


def test_encode_and_decode_pictures_of_any_size(tmp_path: Path) -> None:
    model = module()
    with pytest.raises(RuntimeError, match=r"no weights yet: use PAE.from_pretrained"):
        model.encode(torch.zeros(3, 32, 32))
    model.configure_model()
    pictures = [torch.rand(3, 32, 32) * 2 - 1, torch.rand(3, 20, 45) * 2 - 1]
    latents = model.encode(pictures)
    assert latents.sizes.tolist() == [[32, 32], [20, 45]] and latents.patch == 8 and latents.values.shape[-1] == 6
    images = model.decode(latents)
    assert [tuple(image.shape) for image in images] == [(3, 32, 32), (3, 20, 45)]
    assert all(image.abs().max() <= 1 for image in images)
    alone = model.decode(model.encode(pictures[1]))
    torch.testing.assert_close(alone[0], images[1], rtol=1e-4, atol=1e-5)
    tokens = model.encode(patchify(pictures, 8))
    torch.testing.assert_close(tokens.values, latents.values, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="are not those of this PAE"):
        model.decode(dataclasses.replace(latents, patch=16))
    assert PictureEncoder(model).channels == 6  # what caches latents


def test_a_folder_holds_the_prior_too(tmp_path: Path) -> None:
    model = module()
    model.configure_model()
    model.save_pretrained(tmp_path / "folder")
    again = PAE.from_pretrained(str(tmp_path / "folder"))
    given = batch().images
    assert torch.equal(again.encode(given).values, model.eval().encode(given).values)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(MissingWeightsError, match="holds no config.json"):
        PAE.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("losses", [{"adversarial": 0.5}, {"vf": 0.1}], ids=["adversary", "alignment"])
def test_what_only_training_needs_stays_behind(losses: dict[str, float], tmp_path: Path) -> None:
    given = {"adversary": ADVERSARY} if "adversarial" in losses else {}
    model = module(losses=dataclasses.replace(OFF, **losses), refined=None, **given)
    keeper = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=1)
    fit(model, data(), tmp_path, max_steps=1, callbacks=(keeper,), gradient_clip_val=None)
    stored = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith(PAE.training_only) for name in stored)
    assert main(["export", str(tmp_path / "kept.ckpt"), str(tmp_path / "exported")]) == 0
    exported = PAE.from_pretrained(str(tmp_path / "exported"))
    assert not any(name.startswith(PAE.training_only) for name in exported.state_dict())
    assert torch.equal(exported.network.decoder.head.weight, model.network.decoder.head.weight)


def test_a_checkpoint_alone_can_be_exported_and_resumed_only_by_its_like(tmp_path: Path) -> None:
    model = module(losses=OFF, refined=None)
    keeper = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=1)
    fit(model, data(), tmp_path, max_steps=1, callbacks=(keeper,), gradient_clip_val=None)
    torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert main(["export", str(tmp_path / "kept.ckpt"), str(tmp_path / "exported")]) == 0
    again = PAE.from_pretrained(str(tmp_path / "exported"))
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), again.network.parameters(), strict=True))
    other = module(losses=OFF, refined=None, shape=shape(channels=5))
    with pytest.raises(ValueError, match=r"holds another PAE: channels 6 for 5"):
        fit(other, data(), tmp_path, max_steps=2, ckpt_path=tmp_path / "kept.ckpt", gradient_clip_val=None)
    warm = module(init_from=str(tmp_path / "exported"))
    warm.configure_model()
    assert torch.equal(warm.network.decoder.head.weight, model.network.decoder.head.weight)


def test_pictures_show_what_the_cascade_compares() -> None:
    model = module()
    model.configure_model()
    rows = model.pictures(batch())
    assert [row.caption for row in rows] == [
        "original",
        "reconstruction",
        "latent turned by 42.5 degrees",
        "latent turned by 85 degrees",
    ]
    assert model.flops_per_step(batch(2)) == pytest.approx(2 * model.flops_per_step(batch(1)))


def test_the_constructor_allocates_nothing() -> None:
    model = PAE(encoder())
    assert all(p.device.type == "meta" for p in model.parameters())
    given = {"encoder": {"class_path": path_of_encoder()}}
    needs = PAE.needs(given)
    assert needs.trainable == sum(p.numel() for p in model.network.parameters())
    kept = [PAE.needs({**given, "activation_checkpointing": x}).activation_bytes_per_token for x in (True, False)]
    assert kept[0] < kept[1] / 4


class Start(Callback):
    """Weights and vectors of the discriminator are away from their start, where much is 0."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in pl_module.network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def gradients(accumulate: int, folder: Path, **settings: Any) -> tuple[dict[str, float], list[list[torch.Tensor]]]:
    """What a step logs; what Adam remembers of both first gradients; where power iteration stands."""
    model = module(accumulate=accumulate, **settings)
    trainer = fit(model, data(), folder / str(accumulate), max_steps=1, callbacks=(Start(),), gradient_clip_val=None)
    found: Any = model.optimizers(use_pl_optimizer=False)
    moments = [
        [o.state[p]["exp_avg"].clone() for group in o.param_groups for p in group["params"] if p in o.state]
        for o in (found if isinstance(found, list) else [found])
    ]
    vectors = [] if model.discriminator is None else model.discriminator.singular_vectors()
    return {name: float(value) for name, value in trainer.logged_metrics.items()}, [*moments, vectors]


AT_ONCE = dataclasses.replace(ADVERSARY, discriminator_start=0, generator_start=0, maximum=1e6)


@pytest.mark.parametrize(
    "settings",
    [
        {"losses": GAN, "adversary": AT_ONCE},
        {"losses": dataclasses.replace(OFF, vf=0.1), "refined": None},
        {"losses": dataclasses.replace(OFF, kl=1e-3), "refined": None, "shape": shape(latent="kl")},
        {"losses": GAN, "adversary": dataclasses.replace(AT_ONCE, discriminator_start=1, generator_start=1)},
    ],
    ids=["adversarial", "vf", "kl", "silent"],
)
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(count: int, settings: Any, tmp_path: Path) -> None:
    """Adaptive weights are those of all pictures, and power iteration moves as far as in one part."""
    logged, whole = gradients(1, tmp_path, **settings)
    in_parts, parts = gradients(count, tmp_path, **settings)
    assert in_parts == pytest.approx(logged, rel=1e-4)
    if "adversary" in settings and settings["adversary"] is AT_ONCE:
        assert {"train/adversarial", "train/adversarial_weight", "train/discriminator"} <= set(logged)
    for mine, theirs in zip(parts, whole, strict=True):
        largest = max((x.abs().max().item() for x in theirs), default=0.0)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * largest)


def parts_job(accumulate: int, strategy: str, folder: Path) -> list[torch.Tensor]:
    from lightning_gen.training.strategies import FSDP2Strategy
    from tests.harness.training import whole_state

    model = module(losses=GAN, adversary=AT_ONCE, accumulate=accumulate)
    kind: Any = FSDP2Strategy() if strategy == "fsdp2" else strategy
    fit(model, data(8), folder, max_steps=2, strategy=kind, devices=2, gradient_clip_val=None)
    return list(whole_state(model).values())


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_cpu_fsdp2)])
def test_two_ranks_take_their_parts_as_one(strategy: str, tmp_path: Path) -> None:
    wholes, _ = two_processes(parts_job, 1, strategy, tmp_path / "whole")
    first, second = two_processes(parts_job, 2, strategy, tmp_path / "parts")
    for a, b, c in zip(first, second, wholes, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)


def test_parts_keep_less_for_the_backward_pass() -> None:
    arguments: dict[str, Any] = {
        "encoder": encoder(),
        "shape": {"grid": 4},
        "losses": {"lpips": 0, "adversarial": 0, "ssr": 0, "scr": 0},
    }
    once, four = PAE.needs(arguments), PAE.needs({**arguments, "accumulate": 4})
    assert four.activation_bytes_per_token == once.activation_bytes_per_token / 4 > 0
    with pytest.raises(ValueError, match="the number of parts of a step, 1 or more, got 0"):
        module(accumulate=0)
