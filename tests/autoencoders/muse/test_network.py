"""The network: which gradient reaches which parameter, geometry, and counts at the paper's size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.muse.network import (
    MuseNetwork,
    MuseOutput,
    MuseShape,
    SynergisticBlock,
    dead_parameters,
    rotary_1d,
    scale_gradient,
    space_to_depth,
)
from lightning_gen.nn.rope import Rotary
from lightning_gen.training.initialisation import initialise
from tests.autoencoders.muse.tiny import SHAPE
from tests.harness.network import NetworkChecks, stir

PIXELS = (2, 3, 16, 24)


def pixels() -> Tensor:
    return torch.randn(PIXELS, generator=torch.Generator().manual_seed(0))


def network(routing: Any = "strict", **settings: Any) -> MuseNetwork:
    made = MuseNetwork(SHAPE, routing, **settings)
    initialise(made, 0)
    stir(made)
    return made


def losses(output: MuseOutput) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(a.shape, generator=generator) for a in output.attentions]
    text = torch.randn(output.embeddings[0].shape, generator=generator)
    return {
        "rec": output.images.square().mean(),
        "topo": torch.stack([(a * m).sum() for a, m in zip(output.attentions, maps, strict=True)]).sum(),
        "itc": torch.stack([(e * text).sum() for e in output.embeddings]).sum() * output.temperature.sum(),
    }


def reached(made: MuseNetwork, name: str) -> set[str]:
    """Names of the parameters on which a loss has a gradient other than 0."""
    found = losses(made(pixels()))[name]
    parameters = dict(made.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(losses(made(pixels()))[name], list(parameters.values()), allow_unused=True)
    del found
    return {key for key, g in zip(parameters, gradients, strict=True) if g is not None and bool(g.any())}


def names(*parts: str, blocks: tuple[int, ...] = (0, 1, 2)) -> set[str]:
    return {f"synergy.{block}.{part}.weight" for block in blocks for part in parts}


QK = ("query", "key", "query_norm", "key_norm")
VALUES = ("value", "out", "gate", "up", "down", "norm1", "norm2")


class TestHarness(NetworkChecks):
    def network(self) -> nn.Module:
        return MuseNetwork(SHAPE)

    def batch(self) -> Tensor:
        return pixels()

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        found = losses(network(batch))
        return torch.stack(list(found.values())).sum()


class TestJointOnTwoDimensions(NetworkChecks):
    def network(self) -> nn.Module:
        shape = MuseShape(SHAPE.encoder, SHAPE.decoder, 16, 2, 2, 4, 12, "2d")
        return MuseNetwork(shape, "joint", itc_layers="all")

    def batch(self) -> Tensor:
        return pixels()

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        return torch.stack(list(losses(network(batch)).values())).sum()


def test_strict_routing_reaches_exactly_what_the_paper_says() -> None:
    """Check 1, strict."""
    made = network("strict")
    assert reached(made, "topo") == names(*QK)
    head = {"head.0.weight", "head.2.weight", "temperature.log"}
    assert reached(made, "itc") == names("semantic", blocks=(2,)) | head
    found = reached(made, "rec")
    assert not found & (names(*QK) | names("semantic") | head)
    assert names(*VALUES) <= found and "adapter.1.weight" in found and "to_latent.weight" in found


def test_official_routing_reaches_exactly_what_the_released_code_does() -> None:
    """Check 1, official: the table of section 2.5."""
    made = network("official", topo_layers="last")
    topo, itc, rec = (reached(made, name) for name in ("topo", "itc", "rec"))
    assert topo & names(*QK) == names(*QK, blocks=(2,))
    assert topo & names(*VALUES, blocks=(2,)) == names("norm1", blocks=(2,))
    assert names(*VALUES, blocks=(0, 1)) <= topo and not topo & names("semantic")
    assert not rec & names(*QK) and not itc & names(*QK)
    assert itc & names("semantic") == names("semantic", blocks=(2,))
    assert names(*VALUES, blocks=(0, 1)) <= itc and not itc & names(*VALUES, blocks=(2,))
    assert names(*VALUES) <= rec
    for found in (topo, itc, rec):
        assert "adapter.1.weight" in found and any(name.startswith("encoder.") for name in found)
    for found in (topo, itc):
        assert not any(name.startswith(("to_latent", "decoder")) for name in found)


def test_joint_routing_stops_nowhere() -> None:
    made = network("joint", topo_layers="last")
    assert names(*QK) <= reached(made, "rec")
    assert names(*QK, blocks=(0, 1)) <= reached(made, "itc") & reached(made, "topo")


def test_dead_parameters_are_those_that_no_loss_reaches() -> None:
    for routing in ("strict", "official", "joint"):
        for topo_layers in ("all", "last"):
            made = network(routing, topo_layers=topo_layers)
            frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
            alive = set().union(*(reached(made, name) for name in ("rec", "topo", "itc")))
            synergy = {name for name, _ in made.named_parameters() if name.startswith("synergy.")}
            dead = set(dead_parameters(3, routing, topo_layers, "last"))  # type: ignore[arg-type]
            assert dead == frozen == synergy - alive, (routing, topo_layers)


def test_the_shield_changes_no_number() -> None:
    """Check 2: bit for bit the same in all three routings."""
    outputs = [network(routing)(pixels()) for routing in ("strict", "official", "joint")]
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
            assert all(torch.equal(x, y) for x, y in pairs)


def test_finite_differences_see_what_autograd_is_told_not_to() -> None:
    """Check 3: a stop-gradient, not a branch that is cut off."""
    made = network("strict").double()
    weight = made.synergy[-1].query.weight
    loss = losses(made(pixels().double()))["rec"]
    (gradient,) = torch.autograd.grad(loss, [weight], allow_unused=True)
    assert gradient is None
    with torch.no_grad():
        weight[0, 0] += 1e-3
    assert losses(made(pixels().double()))["rec"] != loss


def test_gradient_scale_shrinks_what_reaches_the_blocks_alone() -> None:
    """Check 8."""
    made = network().double()
    found = []
    for factor in (1.0, 0.25):
        loss = made(pixels().double(), factor).images.square().mean()
        wanted = [made.adapter[1].weight, made.to_latent.weight, made.synergy[0].value.weight]
        found.append(torch.autograd.grad(loss, wanted))
    (adapter, latent, value), (adapter_less, latent_less, value_less) = found
    assert torch.allclose(adapter_less, 0.25 * adapter, rtol=1e-12) and adapter.any()
    assert torch.allclose(value_less, 0.25 * value, rtol=1e-12)
    assert torch.equal(latent, latent_less)
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(scale_gradient(x, 0.5), x)


def test_a_frozen_encoder_runs_without_a_graph() -> None:
    made = network()
    made(pixels(), train_encoder=False).images.sum().backward()
    assert all(p.grad is None for p in made.encoder.parameters())
    assert made.adapter[1].weight.grad is not None


def test_space_to_depth_merges_neighbours() -> None:
    """Check 6, and grids that are not square or odd."""
    merged, grid = space_to_depth(torch.arange(16.0).view(1, 16, 1), (4, 4))
    assert grid == (2, 2)
    assert merged[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    two = torch.stack([torch.arange(16.0), torch.arange(16.0) + 100], -1)[None]
    assert space_to_depth(two, (4, 4))[0][0, 0].tolist() == [0, 100, 1, 101, 4, 104, 5, 105]
    merged, grid = space_to_depth(torch.arange(15.0).view(1, 15, 1), (3, 5))
    assert grid == (1, 2) and merged[0].tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]
    with pytest.raises(ValueError, match="15 tokens cannot be merged two by two on a grid of 4 x 4"):
        space_to_depth(torch.zeros(1, 15, 1), (4, 4))


def attention_scores(block: SynergisticBlock, n: Tensor, rotary: Rotary) -> Tensor:
    return block._attention(n, rotary, True).log()


def test_positions_are_one_dimensional_and_relative() -> None:
    """Check 7."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=generator)
    block = SynergisticBlock(16, 1).double()
    from lightning_gen.autoencoders.muse.network import _turn

    place = torch.arange(40)[None]
    rotary = rotary_1d(place, 16, dtype=torch.float64)
    turned_q = _turn(q.expand(1, 40, 1, 16), rotary, True)[0, :, 0]
    turned_k = _turn(k.expand(1, 40, 1, 16), rotary, True)[0, :, 0]
    scores = turned_q @ turned_k.T
    for shift in (1, 5):
        assert torch.allclose(scores[:-shift, :-shift], scores[shift:, shift:])
    assert torch.equal(turned_q[0], q)
    # Pairs are (i, i + d/2): the first pair turns by exactly one radian per place.
    first = torch.stack([turned_q[1, 0], turned_q[1, 8]])
    angle = torch.tensor(1.0, dtype=torch.float64)
    expected = torch.stack([q[0] * angle.cos() - q[8] * angle.sin(), q[8] * angle.cos() + q[0] * angle.sin()])
    assert torch.allclose(first, expected)
    # (row 0, last column) and (row 1, first column) are neighbours: the grid's width is not known.
    made = network()
    square, _ = made._angles((2, 3), torch.zeros(1, 6, 16))
    line, _ = made._angles((1, 6), torch.zeros(1, 6, 16))
    assert torch.equal(square.cos, line.cos)
    del block


def test_two_dimensional_positions_know_the_grid() -> None:
    made = MuseNetwork(MuseShape(SHAPE.encoder, SHAPE.decoder, 16, 1, 2, 4, 12, "2d"))
    square, line = (made._angles(grid, torch.zeros(1, 6, 16))[0].cos for grid in ((2, 3), (1, 6)))
    assert not torch.equal(square, line)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_any_grid_comes_back_in_its_size(size: tuple[int, int]) -> None:
    output = network()(torch.randn(1, 3, *size))
    cells = size[0] // 8 * (size[1] // 8)
    assert output.images.shape == (1, 3, *size)
    assert output.latents.shape == (1, cells, 6)
    assert output.attentions[0].shape == (1, 2, cells, cells)
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(1))


def test_published_size() -> None:
    with torch.device("meta"):
        made = MuseNetwork()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in made.named_children()}
    assert sum(p.numel() for p in made.synergy[0].parameters()) == 3_408_512
    assert count["decoder"] == 159_223_171 and count["encoder"] == 304_012_288
    assert count["adapter"] == 4096 + 4096 * 512 and count["head"] == 512 * 512 + 512 * 768
    assert sum(p.numel() for p in made.parameters()) == 486_459_556
    assert made.decoder.shape.factor == 32 and made.shape.patch == 28
    assert isinstance(made.decoder_adapter, nn.Identity)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        MuseShape(width=12, heads=2, positions="2d")
    with pytest.raises(ValueError, match="routing is strict, official or joint"):
        SynergisticBlock(16, 2, "loose")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        MuseShape(depth=0)
