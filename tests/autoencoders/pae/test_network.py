"""Modulator, sphere and decoder: checks 1 and 2 of the requirement, sizes, and the shared harness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.pae.layers import SmallLinear, sincos_positions, to_sphere
from lightning_gen.autoencoders.pae.network import DetailModulator, PAENetwork, PixelDecoder, RefineNetwork
from lightning_gen.autoencoders.pae.variants import PAEShape, Stack
from lightning_gen.training.initialisation import initialise
from tests.autoencoders.pae.tiny import SHAPE, shape
from tests.harness import NetworkChecks

GRID = (4, 4)


def inputs(seed: int = 0, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.randn(count, 16, 16, generator=generator)


def modulator(**changes: Any) -> DetailModulator:
    found = DetailModulator(shape(**changes))
    initialise(found, 0)
    return found


def test_narrow_layers_start_as_loud_as_those_of_the_paper() -> None:
    def deviations(inputs: int) -> tuple[float, float]:
        layer = SmallLinear(inputs, 512)
        initialise(layer, 0)
        rows = torch.randn(256, inputs, generator=torch.Generator().manual_seed(0))
        return float(layer.weight.detach().std()), float(layer(rows).detach().std())

    assert [deviations(inputs)[0] for inputs in (1024, 4096)] == pytest.approx([0.02, 0.02], rel=0.01)
    assert [deviations(inputs)[1] for inputs in (64, 256, 1024)] == pytest.approx([0.64] * 3, rel=0.05)


# ------------------------------------------------------------------ check 1


@pytest.mark.parametrize("fusion", ["sft", "add"])
def test_at_the_start_pixels_do_not_matter(fusion: Any) -> None:
    dam, (first, h), (second, _) = modulator(fusion=fusion), inputs(), inputs(1)
    expected = nn.functional.layer_norm(h, (16,), eps=1e-5)
    assert torch.equal(dam(first, h, GRID), expected) and torch.equal(dam(second, h, GRID), expected)
    with torch.no_grad():
        dam.fusion_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (dam(first, h, GRID) - dam(second, h, GRID)).abs().max() > 0.1


def test_at_the_start_only_the_fusion_learns() -> None:
    dam, (pixels, h) = modulator(), inputs()
    (dam(pixels, h, GRID) * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert dam.fusion_proj.weight.grad is not None and dam.fusion_proj.weight.grad.any()
    earlier = [*dam.layers.parameters(), *dam.patch_embed.parameters()]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in earlier)


def test_concatenation_sees_pixels_at_once_and_none_never() -> None:
    (first, h), (second, _) = inputs(), inputs(1)
    concat, none = modulator(fusion="concat"), modulator(fusion="none")
    assert (concat(first, h, GRID) - concat(second, h, GRID)).abs().max() > 1e-3
    assert torch.equal(none(first, h, GRID), none(second, h, GRID))
    assert not list(none.layers) and [name for name, _ in none.named_parameters()] == [
        "final_norm.weight",
        "final_norm.bias",
    ]


def test_the_pixel_branch_reads_the_prior() -> None:
    dam, (pixels, h) = modulator(fusion="concat"), inputs()
    with torch.no_grad():
        dam.fusion_proj.weight[:, :16] = 0  # what is left comes through the branch
        for layer in dam.layers:
            layer.cross_attention.proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (dam(pixels, h, GRID) - dam(pixels, inputs(3)[1], GRID)).abs().max() > 1e-3


def test_positions_put_the_column_first() -> None:
    table = sincos_positions(2, 3, 8)[0]
    f = torch.tensor([1.0, 0.01])
    for row in range(2):
        for col in range(3):
            wanted = torch.cat([(col * f).sin(), (col * f).cos(), (row * f).sin(), (row * f).cos()])
            torch.testing.assert_close(table[row * 3 + col], wanted)


# ------------------------------------------------------------------ check 2


def test_tokens_lie_on_the_sphere_and_scale_does_not_matter() -> None:
    z = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    token, sample = to_sphere(z), to_sphere(z, "sample")
    torch.testing.assert_close(token.square().mean(-1), torch.ones(2, 16), rtol=0, atol=1e-3)
    torch.testing.assert_close(sample.square().mean((1, 2)), torch.ones(2), rtol=0, atol=1e-3)
    assert (sample.square().mean(-1) - 1).abs().max() > 0.1
    torch.testing.assert_close(to_sphere(7.0 * z), token, rtol=1e-4, atol=1e-5)
    assert to_sphere(z, zero_mean=True).mean(-1).abs().max() < 1e-6
    assert token.mean(-1).abs().max() > 0.1


@pytest.mark.parametrize("axis", ["token", "sample"])
def test_the_network_encodes_to_its_sphere(axis: Any) -> None:
    network = PAENetwork(shape(norm_axis=axis))
    initialise(network, 0)
    z = network.encode(*inputs(), GRID)
    over = (-1,) if axis == "token" else (1, 2)
    assert (z.square().mean(over) - 1).abs().max() < 1e-2


def test_plain_latents_are_not_normalised_and_gaussian_ones_are_drawn() -> None:
    plain, gaussian = PAENetwork(shape(latent="plain")), PAENetwork(shape(latent="kl"))
    for network in (plain, gaussian):
        initialise(network, 0)
    assert (plain.encode(*inputs(), GRID).square().mean(-1) - 1).abs().max() > 0.1
    noise = torch.ones(2, 16, 6)
    drawn = gaussian(*inputs(), GRID, None, noise)
    mean, log_variance = drawn.codes.chunk(2, dim=-1)
    torch.testing.assert_close(drawn.latents, mean + (0.5 * log_variance).exp())
    torch.testing.assert_close(gaussian.encode(*inputs(), GRID), mean)


# ------------------------------------------------------------------ decoder and sizes


def test_one_pass_decodes_all_latents() -> None:
    network = PAENetwork(SHAPE)
    initialise(network, 0)
    found = network(*inputs(), GRID, lambda z: torch.stack([z + 1, z - 1]))
    assert found.images.shape == (3, 2, 3, 32, 32) and found.aligned is None
    for number, change in enumerate((0, 1, -1)):
        torch.testing.assert_close(found.images[number], network.decode(found.latents + change, GRID))


def test_patches_are_put_where_they_belong_in_the_units_of_the_prior() -> None:
    decoder = PixelDecoder(shape(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)))
    initialise(decoder, 0)
    patches = torch.arange(16 * 3 * 64).float().view(1, 16, 192)
    image = decoder._pixels(patches, GRID)
    row, col, channel, i, j = 2, 1, 1, 5, 3
    value = patches[0, row * 4 + col, channel * 64 + i * 8 + j] * 2.0 + 0.2
    assert image[0, channel, row * 8 + i, col * 8 + j] == value


def test_another_grid_than_the_trained_one() -> None:
    network = PAENetwork(SHAPE)
    initialise(network, 0)
    z = network.encode(torch.randn(1, 3, 8, 24), torch.randn(1, 12, 16), (2, 6))
    assert network.decode(z, (2, 6)).shape == (1, 3, 16, 48)


def test_parameters_of_the_published_size() -> None:
    with torch.device("meta"):
        network = PAENetwork(PAEShape())
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children() if part is not None
    }
    # counted by hand from the published names and shapes
    layer = 3 * 1024**2 + 3072 + 1024**2 + 1024 + 4 * (1024**2 + 1024) + 8 * 1024 + 8 * 1024**2 + 5 * 1024
    assert count["modulator"] == 6 * layer + 3 * 14 * 14 * 1024 + 1024 + 1024 * 2048 + 2048 + 2048
    attention = 3 * 1024**2 + 1024**2 + 1024
    assert count["projector"] == attention + 32 * 1024 * 9 + 32
    assert count["deprojector"] == attention + 32 * 1024 * 9 + 1024
    block = Stack.parse("L").block_parameters
    assert count["decoder"] == 24 * block + 1024 + 1024**2 + 1024 + 2048 + 1024 * 768 + 768
    assert len(list(network.blocks())) == 30


def test_decoders_by_name_and_by_size() -> None:
    assert Stack.parse("XL") == Stack(1152, 28, 16, 4096)
    assert Stack.parse("w64_d2_h4") == Stack(64, 2, 4, 256)
    for wrong in ("S", "w65_d2_h4", "w64_d0_h4"):
        with pytest.raises(ValueError):
            Stack.parse(wrong)
    for wrong in ({"fusion": "film"}, {"prior_heads": 3}, {"channels": 0}, {"latent": "vq"}):
        with pytest.raises(ValueError):
            shape(**wrong)


class TestNetwork(NetworkChecks):
    def network(self) -> nn.Module:
        return PAENetwork(SHAPE, alignment=True)

    def batch(self) -> Any:
        return inputs()

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        found = network(*batch, GRID, lambda z: z[None] + 0.5)
        return found.images.square().mean() + found.latents[..., 0].mean() + found.aligned.square().mean()


class TestRefineNetwork(NetworkChecks):
    def network(self) -> nn.Module:
        return RefineNetwork(SHAPE, Stack.parse("w16_d2_h2"))

    def batch(self) -> Any:
        return inputs()[1]

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        latents, restored = network(batch, GRID)
        return (restored - batch).square().mean() + latents[..., 0].mean()
