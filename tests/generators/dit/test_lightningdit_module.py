"""LightningDiT in LatentDiffusion: its loss, times, samplers and published settings. t = 0 is clean, t = 1 is noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_gen.commands.trainer import read_config
from lightning_gen.flow import paths
from lightning_gen.flow.guidance import guided
from lightning_gen.flow.solvers import euler
from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.module import LatentDiffusion
from lightning_gen.generators.dit.objective import direction_loss, flow_matching_loss
from lightning_gen.generators.dit.training import Sampling, TimeSampling
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.nn.tokens import Tokens, pack, patchify
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.training.optim import AdamW, WarmupCosine
from tests.harness import TrainingChecks

F64 = torch.float64
CONFIGS = Path(__file__).parents[3] / "configs"
GUIDED = Sampling(249, "euler", 2.5, guidance=2.5, guidance_high=0.75, start=1.0)


def lightning(**settings: Any) -> LatentDiffusion:
    given = {
        "variant": "lightningdit_w24_d2_h2_qknorm",
        "num_classes": 8,
        "direction_weight": 1.0,
        "optimizer": AdamW(learning_rate=3e-3),
        "sampling": Sampling(3, "euler_maruyama", 2.5, start=1.0),
    }
    return LatentDiffusion(PixelSpace(8), **{**given, **settings})


class TestLightningDiffusion(TrainingChecks):
    def module(self) -> LightningModule:
        return lightning()

    def data(self) -> LightningDataModule:
        return ShapesDataModule(global_batch_size=4, samples=32, val_samples=4, tags=["colors", "two_object"])

    def config(self) -> dict[str, Any]:
        space = {"class_path": "lightning_gen.generators.spaces.PixelSpace", "init_args": {"patch": 8}}
        arguments = {"space": space, "variant": "lightningdit_w24_d2_h2", "num_classes": 8, "direction_weight": 1.0}
        return {"class_path": "lightning_gen.generators.dit.module.LatentDiffusion", "init_args": arguments}


# ---------------------------------------------------------------------- loss


def _pair(batch: Tokens) -> tuple[Tensor, Tensor]:
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    shape = batch.values.shape
    return torch.randn(shape, dtype=F64, generator=first), torch.randn(shape, dtype=F64, generator=second)


def test_direction_loss_is_one_minus_the_cosine_over_channels(batch: Any) -> None:
    tokens = batch(40, garbage=5.0)
    guess, truth = _pair(tokens)
    images = []
    for i in range(4):
        a, b = guess[i][tokens.mask[i]], truth[i][tokens.mask[i]]
        images.append((1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean())
    expected = torch.stack(images).mean()
    torch.testing.assert_close(direction_loss(guess, truth, tokens), expected)
    torch.testing.assert_close(direction_loss(3 * truth, truth, tokens), torch.zeros((), dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(direction_loss(-truth, truth, tokens), torch.tensor(2.0, dtype=F64))
    packed = pack(tokens.with_values(torch.cat([guess, truth], -1)))
    a, b = packed.values.chunk(2, -1)
    torch.testing.assert_close(direction_loss(a, b, packed), expected)


def test_a_prediction_of_nought_has_no_direction_and_no_gradient(batch: Any) -> None:
    tokens = batch()
    guess, truth = _pair(tokens)
    guess[0] = 0
    guess.requires_grad_()
    loss = direction_loss(guess, truth, tokens)
    loss.backward()
    assert bool((guess.grad[0] == 0).all()) and bool(guess.grad.isfinite().all()) and bool((guess.grad[1] != 0).any())
    others = direction_loss(guess[1:], truth[1:], tokens_of(tokens, slice(1, None)))
    torch.testing.assert_close(loss, 0.25 * (1 + 3 * others))


def tokens_of(tokens: Tokens, rows: slice) -> Tokens:
    image = torch.where(tokens.mask, tokens.image - rows.start, -1)
    return Tokens(
        *(part[rows] for part in (tokens.values, tokens.mask, tokens.row, tokens.col, image, tokens.sizes)),
        tokens.patch,
    )


def test_the_module_adds_the_two_losses() -> None:
    from lightning_gen.generators.dit.objective import noised_tokens
    from lightning_gen.training.randomness import normal

    data = ShapesDataModule(global_batch_size=4, samples=8, val_samples=4)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        model = lightning(direction_weight=weight)
        model.configure_model()
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.add_(0.1)
        losses[weight] = float(model._loss(batch, "validation", 0.0).detach())
    latents = model.space.encode(batch)
    time = model.learning.times.draw(0, "validation time", batch.epoch, batch.index)
    eps = normal(0, "validation noise", batch.epoch, batch.index, tuple(latents.values.shape[1:]))
    x_t, target = noised_tokens(latents, eps, time)
    none = torch.zeros(len(batch), dtype=torch.bool)
    v = model.velocity_of(x_t, time, model.condition(batch, none)).detach()
    mse, direction = float(flow_matching_loss(v, target, latents)), float(direction_loss(v, target, latents))
    assert losses[0.0] == pytest.approx(mse, rel=1e-5) and direction > 0.01
    assert losses[1.0] == pytest.approx(mse + direction, rel=1e-5)
    assert losses[2.0] == pytest.approx(mse + 2 * direction, rel=1e-5)


def test_times_are_shifted_in_their_own_direction() -> None:
    """Logit-normal, then s = 0.7 in reversed time: r' = s r / (1 + (s - 1) r) has its median at 0.7 / 1.7."""
    index = torch.arange(20_000)
    drawn = TimeSampling(shift=paths.reversed_shift(0.7)).draw(0, "t", 0, index)
    house = TimeSampling().draw(0, "t", 0, index).double()
    r = paths.reversed_time(house)
    expected = paths.reversed_time(0.7 * r / (1 - 0.3 * r))
    torch.testing.assert_close(drawn.double(), expected, atol=1e-6, rtol=0)
    assert float(drawn.median()) == pytest.approx(1 - 0.7 / 1.7, abs=0.01)


# ---------------------------------------------------------------------- samplers


def published_grid(points: int, shift: float, end: float = 1.0) -> Tensor:
    """Times of the published sampler, 0 = noise."""
    t = torch.linspace(0, end, points, dtype=F64)
    return shift * t / (1 + (shift - 1) * t)


def test_the_grid_is_the_published_one() -> None:
    times = GUIDED.times()
    assert len(times) == 250 and float(times[0]) == 1 and float(times[-1]) == 0
    torch.testing.assert_close(paths.reversed_time(times), published_grid(250, 0.4), atol=1e-14, rtol=0)
    official = Sampling(250, "euler_maruyama", 2.5, start=1.0, sde_endpoint="official").times()
    torch.testing.assert_close(paths.reversed_time(official[:-1]), published_grid(250, 0.4, 0.996), atol=1e-14, rtol=0)
    exact = Sampling(250, "euler_maruyama", 2.5, start=1.0).times()
    assert float(exact[-2]) == pytest.approx(0.004) and len(exact) == 251


@pytest.mark.parametrize(("scale", "begin"), [(2.5, 0.25), (3.3, 0.30)])
def test_guidance_begins_where_the_published_one_does(scale: float, begin: float) -> None:
    sampling = Sampling(249, "euler", 2.5, guidance=scale, guidance_high=paths.reversed_time(begin), start=1.0)
    acts = [sampling.strength().acts(float(t)) for t in sampling.times()]
    assert acts == [bool(t >= begin) for t in published_grid(250, 0.4)] and True in acts and False in acts

    def conditional(x: Tensor, t: float) -> Tensor:
        return torch.arange(32.0).expand(1, 4, 32)

    def unconditional(x: Tensor, t: float) -> Tensor:
        return -torch.ones(1, 4, 32)

    x = torch.zeros(1, 4, 32)
    field = guided(conditional, unconditional, sampling.strength())
    torch.testing.assert_close(field(x, 1 - begin + 0.01), conditional(x, 0))
    # All 32 channels are guided.
    torch.testing.assert_close(field(x, 1 - begin - 0.01), -1 + scale * (torch.arange(32.0).expand(1, 4, 32) + 1))
    plain = guided(conditional, unconditional, Sampling(249, "euler", 2.5, guidance=1.0).strength())
    for t in (0.1, 0.9):
        assert torch.equal(plain(x, t), conditional(x, t))


def test_closed_form_of_the_guided_sampler() -> None:
    """Data N(0, s^2) with s = 0.5: the exact flow takes 1 to 0.5, Euler on the published grid to 0.49492."""
    s = 0.5

    def velocity(x: Tensor, t: float) -> Tensor:
        r = paths.reversed_time(t)
        return paths.reversed_velocity(x * (r * s**2 - (1 - r)) / (r**2 * s**2 + (1 - r) ** 2))

    end = euler(velocity, torch.ones(1, dtype=F64), GUIDED.times())
    assert float(end) == pytest.approx(0.49492, abs=5e-6)


def test_stochastic_pictures_depend_on_their_number_and_the_seed_alone() -> None:
    model = lightning()
    model.configure_model()
    label, nothing = torch.tensor([1, 2, 3]), torch.full((3,), 8)
    sizes, index = [(32, 32), (16, 24), (32, 16)], torch.tensor([4, 5, 6])
    together = model.generate(label, nothing, sizes, index)
    alone = model.generate(label[1:2], nothing[:1], sizes[1:2], index[1:2])
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.generate(label[1:2], nothing[:1], sizes[1:2], index[1:2], seed=7)[0], alone[0])
    flow = Sampling(3, "euler", 2.5, start=1.0)
    assert not torch.allclose(model.generate(label[1:2], nothing[:1], sizes[1:2], index[1:2], flow)[0], alone[0])


def test_step_noise_is_new_at_every_step() -> None:
    from lightning_gen.generators.dit.sampler import latent_noise, step_noise

    index = torch.tensor([3, 9])
    start = latent_noise([(16, 16), (16, 32)], 8, 32, 0, index)
    noise = step_noise(start, 0, index)
    first, second = noise(0), noise(1)
    assert torch.equal(first, noise(0)) and first.shape == start.values.shape
    assert bool((first[0, 4:] == 0).all())
    for a, b in ((first, second), (first, start.values), (first[:1, :4], first[1:, :4])):
        assert abs(float((a * b).sum() / a.norm() / b.norm())) < 0.3


# ---------------------------------------------------------------------- options and recipes


def test_options_of_the_other_network_are_refused() -> None:
    for option in ({"layer_scale": 0.1}, {"swa_radius": 2}):
        with pytest.raises(ValueError, match="has no such option: set it to null"):
            lightning(**option)
    with pytest.raises(ValueError, match="cannot be negative"):
        lightning(direction_weight=-1.0)
    assert isinstance(lightning().network, LightningDiT)


def test_needs_are_counted_without_building() -> None:
    needs = LatentDiffusion.needs({"variant": "lightningdit_xl_1_qknorm"})
    assert (needs.trainable, needs.frozen) == (674_965_856, 256 * 1152)
    assert LatentDiffusion.needs({}).trainable == 311_269_440


@pytest.mark.parametrize(
    ("name", "variant", "steps", "scale", "high"),
    [
        ("pae_lightningdit_xl_80ep", "lightningdit_xl_1", 100_000, 2.5, 0.75),
        ("pae_lightningdit_xl_800ep", "lightningdit_xl_1_qknorm", 1_000_000, 3.3, 0.70),
        ("pae_lightningdit_b", "lightningdit_b_1", 100_000, 2.5, 0.75),
    ],
)
def test_recipes_hold_the_published_values(name: str, variant: str, steps: int, scale: float, high: float) -> None:
    found = read_config(["fit", "--config", str(CONFIGS / f"{name}.yaml")])
    model, data, trainer = found["model"]["init_args"], found["data"]["init_args"], found["trainer"]
    assert (model["variant"], model["direction_weight"], model["drop_rate"]) == (variant, 1.0, 0.1)
    assert TimeSampling(**model["times"]) == TimeSampling("logit_normal", 0.0, 1.0, paths.reversed_shift(0.7))
    expected = Sampling(249, "euler", paths.reversed_shift(0.4), scale, 0.0, high, start=1.0)
    assert Sampling(**model["sampling"]) == expected
    optimizer = AdamW(**{**model["optimizer"], "betas": tuple(model["optimizer"]["betas"])})
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (2e-4, (0.9, 0.95), 0.0)
    schedule = WarmupCosine(**model["schedule"])
    assert {schedule.learning_rate(step, steps, 2e-4) for step in (1, 2, steps // 2, steps)} == {2e-4}
    assert (data["global_batch_size"], data["mirror_probability"], data["normalise"]) == (1024, 0.5, True)
    assert (trainer["max_steps"], trainer["precision"], trainer["gradient_clip_val"]) == (steps, "bf16-mixed", None)
    assert next(c for c in trainer["callbacks"] if "EMA" in c["class_path"])["init_args"]["decays"] == [0.9999]


def test_patches_of_pixels_are_a_grid_too() -> None:
    model = lightning(variant="lightningdit_w24_d1_h2_g4")
    model.configure_model()
    tokens = patchify(torch.zeros(1, 3, 32, 32), 8)
    assert model.network(tokens, torch.tensor([0.5]), torch.tensor([0])).shape == (1, 16, 192)
