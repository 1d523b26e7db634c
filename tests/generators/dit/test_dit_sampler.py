"""Sampling latents. t = 1 is noise, t = 0 is clean."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.schedules import linear_grid
from lightning_gen.flow.solvers import SOLVERS, Step
from lightning_gen.generators.dit.network import DiT
from lightning_gen.generators.dit.sampler import class_velocity, latent_noise, reproject, sample_latents
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpack

from .conftest import CHANNELS, CLASSES, LABEL, SIZES

F64 = torch.float64
Batch = Callable[..., Tokens]
GRID = linear_grid(6)


def test_scale_one_and_zero_are_the_two_networks(network: DiT, batch: Batch) -> None:
    plain = sample_latents(network, batch(), LABEL, times=GRID)
    assert torch.equal(sample_latents(network, batch(), LABEL, times=GRID, guidance=Guidance(1.0)).values, plain.values)
    nothing = torch.full_like(LABEL, CLASSES)
    unconditional = sample_latents(network, batch(), nothing, times=GRID)
    zero = sample_latents(network, batch(), LABEL, times=GRID, guidance=Guidance(0.0))
    torch.testing.assert_close(zero.values, unconditional.values)
    assert float((plain.values - unconditional.values).abs().max()) > 1e-2


def test_guided_step_by_hand(network: DiT, batch: Batch) -> None:
    noise = batch()
    times = torch.tensor([0.8, 0.3], dtype=F64)
    v = [class_velocity(network, noise, label)(noise.values, 0.8) for label in (LABEL, torch.full_like(LABEL, CLASSES))]
    expected = noise.values - 0.5 * (v[1] + 3.0 * (v[0] - v[1]))
    out = sample_latents(network, noise, LABEL, times=times, guidance=Guidance(3.0, 0.1, 0.9), reprojected=False)
    torch.testing.assert_close(out.values[noise.mask], expected[noise.mask])


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_network_calls(network: DiT, batch: Batch, name: str) -> None:
    calls: list[float] = []
    handle = network.register_forward_hook(lambda m, args, out: calls.append(float(args[1][0])))
    steps: list[Step] = []
    sample_latents(network, batch(), LABEL, times=GRID, solver=SOLVERS[name], callback=steps.append)
    single = 11 if name == "heun" else 6
    assert len(calls) == single and len(steps) == 6
    calls.clear()
    inside = Guidance(4.0, 0.1, 0.9)
    sample_latents(network, batch(), LABEL, times=GRID, solver=SOLVERS[name], guidance=inside)
    asked = set(calls)
    handle.remove()
    assert len(calls) == single + sum(2 if name == "heun" and t != GRID[0] else 1 for t in asked if 0.1 <= t <= 0.9)


@pytest.mark.parametrize("guidance", [None, Guidance(3.0, 0.1, 0.9, rescale=0.7)])
def test_packed_padded_and_single_samples_are_equal(network: DiT, batch: Batch, guidance: Guidance | None) -> None:
    options = {"times": GRID, "guidance": guidance}
    padded = sample_latents(network, batch(), LABEL, **options)
    assert bool((padded.values[~padded.mask] == 0).all())
    longer = sample_latents(network, batch(40, garbage=8.0), LABEL, **options)
    torch.testing.assert_close(unpack(longer).values, padded.values)
    packed = sample_latents(network, pack(batch()), LABEL, **options)
    torch.testing.assert_close(unpack(packed).values, padded.values)


def test_reprojection_is_idempotent_and_gives_the_sphere(network: DiT, batch: Batch) -> None:
    raw = sample_latents(network, batch(), LABEL, times=GRID, reprojected=False)
    out = sample_latents(network, batch(), LABEL, times=GRID)
    torch.testing.assert_close(out.values[out.mask], reproject(raw).values[raw.mask])
    torch.testing.assert_close(reproject(out).values, out.values, atol=5e-5, rtol=0)
    z = out.values[out.mask]
    torch.testing.assert_close(z.mean(-1), torch.zeros(len(z), dtype=F64), atol=1e-7, rtol=0)
    torch.testing.assert_close(z.var(-1, unbiased=False), torch.ones(len(z), dtype=F64), atol=1e-3, rtol=0)
    assert float((raw.values - out.values).abs().max()) > 0.1


def test_noise_of_a_picture_depends_on_its_number_alone() -> None:
    index = torch.tensor([7, 3, 11, 5])
    noise = latent_noise(SIZES, 4, CHANNELS, 0, index)
    for i, size in enumerate(SIZES):
        alone = latent_noise([size], 4, CHANNELS, 0, index[i : i + 1])
        assert torch.equal(alone.values[0], noise.values[i, : alone.values.shape[1]])
    reference = patchify([torch.zeros(1, *size) for size in SIZES], 4)
    for name in ("mask", "row", "col", "image", "sizes"):
        assert torch.equal(getattr(noise, name), getattr(reference, name))
    assert not torch.equal(noise.values, latent_noise(SIZES, 4, CHANNELS, 1, index).values)
    big = latent_noise([(256, 256)], 4, CHANNELS, 0, torch.zeros(1, dtype=torch.int64)).values
    assert float(big.mean()) == pytest.approx(0, abs=0.02) and float(big.std()) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="4 pictures"):
        latent_noise(SIZES, 4, CHANNELS, 0, index[:3])


def test_states_stay_in_single_precision_beside_a_sixteen_bit_network(network: DiT, batch: Batch) -> None:
    exact = sample_latents(network, batch(), LABEL, times=GRID)
    out = sample_latents(network.bfloat16(), batch(dtype=torch.float32), LABEL, times=GRID)
    assert out.values.dtype == torch.float32
    assert float((out.values.double() - exact.values).abs().mean()) < 0.05


def test_no_global_randomness_and_no_graph(network: DiT, batch: Batch) -> None:
    state = torch.get_rng_state()
    out = sample_latents(network, batch(), LABEL, times=GRID, guidance=Guidance(2.0, rescale=1.0))
    latent_noise([(8, 8)], 4, 3, 0, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(state, torch.get_rng_state()) and not out.values.requires_grad


def test_the_default_grid_is_fifty_steps_of_unipc(network: DiT, batch: Batch) -> None:
    times: list[float] = []
    sample_latents(network, batch(), LABEL, callback=lambda step: times.append(step.time))
    assert times == linear_grid(50)[:-1].tolist()


def test_gaussian_data_through_a_stand_in_network(batch: Batch) -> None:
    """With the best velocity for N(0.3, 0.5^2) in the network's place, noise becomes such numbers."""

    class Stand(DiT):
        def forward(self, tokens: Tokens, time: Tensor, label: Tensor) -> Tensor:
            t, x = time[0], tokens.values
            return (x - (1 - t) * 0.3) * (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) - 0.3

    noise = latent_noise([(256, 256)], 4, CHANNELS, 0, torch.zeros(1, dtype=torch.int64))
    network = Stand("w32_d1_h2", CHANNELS, CLASSES)
    out = sample_latents(
        network, noise, torch.zeros(1, dtype=torch.int64), times=linear_grid(50, 1.0), reprojected=False
    )
    assert float(out.values.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(out.values.std()) == pytest.approx(0.5, abs=0.02)


def test_a_class_out_of_range_is_refused_before_any_step(network: DiT, batch: Batch) -> None:
    with pytest.raises(ValueError, match="class 6 of image 1 is out of range"):
        sample_latents(network, batch(), torch.tensor([0, 6, 0, 0]), times=GRID)
