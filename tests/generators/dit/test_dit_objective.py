"""Flow-matching loss on tokens. t = 0 is clean, t = 1 is noise."""

from collections.abc import Callable

import pytest
import torch

from lightning_gen.flow.schedules import linear_grid
from lightning_gen.flow.solvers import euler
from lightning_gen.generators.dit.network import DiT
from lightning_gen.generators.dit.objective import (
    drop_labels,
    flow_matching_loss,
    flow_matching_losses,
    noised_tokens,
    token_times,
)
from lightning_gen.generators.dit.sampler import sample_latents
from lightning_gen.nn.norms import layer_norm
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpack
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.randomness import normal, uniform

from .conftest import LABEL, TIME

F64 = torch.float64
Batch = Callable[..., Tokens]


def _noise(tokens: Tokens) -> torch.Tensor:
    return torch.randn(tokens.values.shape, dtype=F64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("packed", [False, True])
def test_noised_tokens_run_from_latents_to_noise(batch: Batch, packed: bool) -> None:
    latents = pack(batch()) if packed else batch()
    eps = _noise(latents)
    x_t, target = noised_tokens(latents, eps, torch.zeros(4, dtype=F64))
    assert torch.equal(x_t.values, latents.values)
    x_t, target = noised_tokens(latents, eps, torch.ones(4, dtype=F64))
    assert torch.equal(x_t.values, eps) and torch.equal(target, eps - latents.values)
    x_t, target = noised_tokens(latents, eps, TIME)
    times = token_times(latents, TIME)
    for i in range(4):
        assert set(times[latents.image == i].tolist()) == {float(TIME[i])}
    torch.testing.assert_close(x_t.values - times[..., None] * target, latents.values)


def test_every_image_weighs_the_same(batch: Batch) -> None:
    tokens = batch(40, garbage=5.0)
    zero = torch.zeros_like(tokens.values)
    wrong = torch.where(tokens.image[..., None] == 3, 2.0, zero)  # 3 of 28 tokens
    torch.testing.assert_close(flow_matching_losses(wrong, zero, tokens), torch.tensor([0.0, 0, 0, 4.0], dtype=F64))
    assert float(flow_matching_loss(wrong, zero, tokens)) == pytest.approx(1.0)


def test_loss_is_the_plain_mean_per_image_padded_or_packed(network: DiT, batch: Batch) -> None:
    padded = batch(30)
    target = padded.with_values(_noise(padded))
    prediction = padded.with_values(network(padded, TIME, LABEL))
    expected = torch.stack(
        [(prediction.values[i][m] - target.values[i][m]).square().mean() for i, m in enumerate(padded.mask)]
    )
    torch.testing.assert_close(flow_matching_losses(prediction.values, target.values, padded), expected)
    both = padded.with_values(torch.cat([prediction.values, target.values], -1))
    together = pack(both)
    p, t = together.values.chunk(2, -1)
    torch.testing.assert_close(flow_matching_losses(p, t, together), expected)
    torch.testing.assert_close(flow_matching_loss(p, t, together), expected.mean())
    assert unpack(together).num_images == 4


def test_padding_gets_exactly_no_gradient_even_from_overflow(batch: Batch) -> None:
    tokens = batch(30)
    prediction = tokens.values.clone().masked_fill_(~tokens.mask[..., None], 1e300).requires_grad_()
    loss = flow_matching_loss(prediction, torch.zeros_like(tokens.values), tokens)
    loss.backward()
    assert bool(loss.isfinite()) and prediction.grad is not None
    assert bool((prediction.grad[~tokens.mask] == 0).all())
    assert bool((prediction.grad[tokens.mask] != 0).all())
    counts = tokens.mask.sum(1)[:, None, None] * tokens.values.shape[-1] * 4
    torch.testing.assert_close(prediction.grad[tokens.mask], (2 * tokens.values / counts)[tokens.mask])


def test_sixteen_bit_predictions_are_compared_in_single_precision(batch: Batch) -> None:
    tokens = batch(dtype=torch.bfloat16)
    loss = flow_matching_loss(tokens.values, tokens.values + 2**-4, tokens)
    assert loss.dtype == torch.float32


def test_class_dropout(batch: Batch) -> None:
    label = torch.tensor([0, 4, 2, -1, 3])
    u = torch.tensor([0.05, 0.0999, 0.1, 0.9, 0.5])
    assert drop_labels(label, u, 0.1, 5).tolist() == [5, 5, 2, 5, 3]
    assert drop_labels(label, u, 0.0, 5).tolist() == [0, 4, 2, 5, 3]
    assert drop_labels(label, u, 1.0, 5).tolist() == [5] * 5
    with pytest.raises(ValueError, match="dropped labels"):
        drop_labels(label, u, 1.1, 5)


def test_training_on_one_colour_per_class_learns_the_classes() -> None:
    """After a short training the conditional flow ends at the colour of its class, whatever noise it starts from."""
    network = DiT("w32_d2_h2", 4, 2, layer_scale=0.5)
    initialise(network, 0)
    data = layer_norm(normal(0, "data", 0, torch.arange(2), (1, 4))).expand(2, 4, 4)
    label = torch.arange(2).repeat(16)
    canvas = patchify([torch.zeros(1, 8, 8)] * 32, 4)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 250)
    for step in range(250):
        index = torch.arange(32) + 32 * step
        time, noise = uniform(0, "time", 0, index, ()), normal(0, "noise", 0, index, (4, 4))
        x_t, target = noised_tokens(canvas.with_values(data[label]), noise, time)
        hidden = drop_labels(label, uniform(0, "drop", 0, index, ()), 0.1, 2)
        loss = flow_matching_loss(network(x_t, time, hidden), target, canvas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    noise = canvas.with_values(normal(1, "noise", 0, torch.arange(32), (4, 4)))
    out = sample_latents(network, noise, label, times=linear_grid(20), solver=euler, reprojected=False).values
    own = (out - data[label]).square().mean((1, 2))
    other = (out - data[1 - label]).square().mean((1, 2))
    assert float(own.mean()) < 0.1 and float(own.max()) < 0.3 < float(other.min())
