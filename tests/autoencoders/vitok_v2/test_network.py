"""Checks 2 to 5, 7, 13 and 15 with non-trivial weights, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lightning_gen.autoencoders.vitok_v2.network import Reconstruction, ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.nn.norms import layer_norm
from lightning_gen.nn.tokens import Tokens, pack, pad_to, patchify, unpack, unpatchify
from tests.harness import NetworkChecks

TINY = Variant.parse("w32_d2_h2-w48_d3_h3/1x4x8")


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator, dtype=torch.float64) * 2 - 1 for size in sizes]


@pytest.fixture
def network() -> ViTokV2Network:
    # At the 1e-4 start of LayerScale every block is almost the identity and a broken one would pass.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTokV2Network(TINY, layer_scale=0.5).double()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def outputs(network: ViTokV2Network, tokens: Tokens) -> tuple[list[Tensor], list[Tensor]]:
    found: Reconstruction = network(tokens)
    latents = unpack(found.latents)
    return [z[m] for z, m in zip(latents.values, latents.mask, strict=True)], unpatchify(found.pixels)


def assert_equal_outputs(a: tuple[list[Tensor], list[Tensor]], b: tuple[list[Tensor], list[Tensor]]) -> None:
    for found, expected in zip((*a[0], *a[1]), (*b[0], *b[1]), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


class TestHarness(NetworkChecks):
    def network(self) -> ViTokV2Network:
        return ViTokV2Network(TINY, layer_scale=0.5)

    def batch(self) -> Tokens:
        return patchify([image.float() for image in images((11, 13), (16, 24))], 4)

    def loss(self, network: torch.nn.Module, batch: Tokens) -> Tensor:
        found = network(batch)
        return found.pixels.values[batch.mask].float().square().mean() + found.latents.values[batch.mask].pow(3).mean()


@pytest.mark.parametrize("factor", [2, 4])
def test_padding_changes_nothing_whatever_stands_in_it(network: ViTokV2Network, factor: int) -> None:
    tokens = patchify(images((11, 13)), 4)
    padded = pad_to(tokens, factor * tokens.values.shape[1])
    garbage = torch.randn(padded.values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = dataclasses.replace(
        padded,
        values=torch.where(padded.mask[..., None], padded.values, 50 * garbage),
        row=torch.where(padded.mask, padded.row, 77),
        col=torch.where(padded.mask, padded.col, -3),
    )
    assert_equal_outputs(outputs(network, padded), outputs(network, tokens))


def test_without_the_mask_padding_would_show(network: ViTokV2Network) -> None:
    unmasked = ViTokV2Network(TINY, layer_scale=0.5, mask_padding=False).double()
    unmasked.load_state_dict(network.state_dict())
    tokens = patchify(images((11, 13)), 4)
    padded = pad_to(tokens, 24)
    assert (unmasked.encode(padded).values[:, :12] - network.encode(tokens).values).abs().max() > 0.01


def test_images_of_a_batch_do_not_meet(network: ViTokV2Network) -> None:
    both = images((11, 13), (16, 24))
    together = outputs(network, patchify(both, 4))
    for i, image in enumerate(both):
        alone = outputs(network, patchify([image], 4))
        assert_equal_outputs(([together[0][i]], [together[1][i]]), alone)


@pytest.mark.parametrize("length", [None, 30, 50])
def test_packed_equals_padded(network: ViTokV2Network, length: int | None) -> None:
    tokens = patchify(images((11, 13), (16, 24), (5, 6), (16, 24), (30, 4)), 4)
    assert_equal_outputs(outputs(network, pack(tokens, length)), outputs(network, tokens))


@pytest.mark.parametrize("window", [None, 1])
def test_translation_of_all_coordinates_changes_nothing(network: ViTokV2Network, window: int | None) -> None:
    tokens = patchify(images((16, 24)), 4)
    moved = dataclasses.replace(tokens, row=tokens.row + 9, col=tokens.col - 4)
    z = network.encode(tokens, window).values
    torch.testing.assert_close(network.encode(moved, window).values, z, atol=1e-5, rtol=0)
    swapped = dataclasses.replace(tokens, row=tokens.col, col=tokens.row)
    scaled = dataclasses.replace(tokens, row=2 * tokens.row, col=2 * tokens.col)
    for other in (swapped, scaled):
        assert (network.encode(other).values - network.encode(tokens).values).abs().max() > 1e-3


@pytest.mark.parametrize("window", [None, 1])
def test_permuting_tokens_permutes_the_outputs(network: ViTokV2Network, window: int | None) -> None:
    tokens = patchify(images((16, 24), (11, 13)), 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    fields = ("values", "mask", "row", "col", "image")
    shuffled = dataclasses.replace(tokens, **{name: getattr(tokens, name)[:, order] for name in fields})
    expected = network.encode(tokens, window).values[:, order]
    found = network.encode(shuffled, window).values
    torch.testing.assert_close(found[shuffled.mask], expected[shuffled.mask], atol=1e-10, rtol=0)


def test_latents_are_normalised_per_token(network: ViTokV2Network) -> None:
    tokens = patchify(images((11, 13), (16, 24)), 4)
    with torch.no_grad():
        network.encoder.head.weight *= 10  # codes of variance 0.01 and more, so that the eps inside hardly shows
    z = network.encode(tokens).values
    assert z.mean(-1).abs().max() < 1e-6
    variance = z.var(-1, unbiased=False)
    assert variance.min() >= 1 - 1e-4 and variance.max() <= 1
    torch.testing.assert_close(layer_norm(z), z, atol=1e-4, rtol=0)
    with torch.no_grad():
        network.encoder.head.bias += 3.7
        torch.testing.assert_close(network.encode(tokens).values, z, atol=1e-9, rtol=0)
        network.encoder.head.weight *= 10
        network.encoder.head.bias *= 10
    torch.testing.assert_close(network.encode(tokens).values, z, atol=1e-3, rtol=0)


def test_latents_are_float32_under_autocast() -> None:
    network = ViTokV2Network(TINY, layer_scale=0.5)
    tokens = patchify([image.float() for image in images((11, 13))], 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(tokens)
    assert found.latents.values.dtype == torch.float32
    assert found.pixels.values.dtype == torch.bfloat16


def test_a_wide_window_is_full_attention(network: ViTokV2Network) -> None:
    tokens = patchify(images((24, 12), (8, 20)), 4)
    for radius in (5, 100):
        assert torch.equal(network.encode(tokens, radius).values, network.encode(tokens).values)
    assert not torch.allclose(network.encode(tokens, 4).values, network.encode(tokens).values)


def test_receptive_field_is_the_box_of_depth_times_radius(network: ViTokV2Network) -> None:
    tokens = patchify(images((36, 28)), 4)
    values = tokens.values.clone().requires_grad_()
    code = network.encoder(tokens.with_values(values), window_radius=2)
    code[0, 0].sum().backward()
    reached = values.grad[0].abs().sum(-1) > 0
    depth = TINY.encoder.depth
    assert torch.equal(reached, (tokens.row[0] <= 2 * depth) & (tokens.col[0] <= 2 * depth))


def test_blocks_are_almost_the_identity_at_the_start() -> None:
    network = ViTokV2Network(TINY).double()
    tokens = patchify(images((16, 24)), 4)
    z = network.encode(tokens)
    plain = network.decoder.head(network.decoder.embed(z.values))
    before = network.decode(z).values
    assert (before - plain).abs().max() < 5e-3
    with torch.no_grad():
        for block in network.decoder.blocks:
            block.ffn.fc2.weight.normal_()
            block.attn.out_proj.weight.normal_()
    moved = (network.decode(z).values - before).abs().max()
    assert 0 < moved < 1e-2


def test_one_block_is_the_formula(network: ViTokV2Network) -> None:
    """x + gamma (Attn(u) + SwiGLU(u)), written out with plain tensor operations."""
    block = network.encoder.blocks[0]
    tokens = patchify(images((8, 12)), 4)
    x = network.encoder.embed(tokens.values)

    def rms(v: Tensor, weight: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    u = rms(x, block.norm1.weight)
    q, k, v = (u @ block.attn.qkv_proj.weight.T).view(1, 6, 3, 2, 16).unbind(2)
    angle = []
    for place in (tokens.row[0], tokens.col[0]):
        angle.append(place[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8))
    turn = torch.polar(torch.ones(6, 8, dtype=torch.float64), torch.cat(angle, 1))[None, :, None]
    q, k = (
        torch.view_as_real(torch.view_as_complex(rms(t, w).reshape(1, 6, 2, 8, 2)) * turn).flatten(3)
        for t, w in ((q, block.attn.norm_q.weight), (k, block.attn.norm_k.weight))
    )
    weight = (torch.einsum("blhd,bmhd->bhlm", q, k) / 4).softmax(-1)
    attention = torch.einsum("bhlm,bmhd->blhd", weight, v).flatten(2) @ block.attn.out_proj.weight.T
    value, gate = (u @ block.ffn.fc1.weight.T).chunk(2, -1)
    feed = (gate * gate.sigmoid() * value) @ block.ffn.fc2.weight.T
    expected = x + block.layer_scale.gamma * (attention + feed)
    latents = network.encoder.head(network.encoder.blocks[1](expected, *_context(network, tokens)))
    torch.testing.assert_close(network.encoder(tokens), latents, atol=1e-9, rtol=0)


def _context(network: ViTokV2Network, tokens: Tokens) -> tuple[object, object]:
    from lightning_gen.nn.attention import plan_attention
    from lightning_gen.nn.rope import rotary_2d

    return rotary_2d(tokens.row, tokens.col, 16, dtype=torch.float64), plan_attention(tokens)


def test_stochastic_depth_scales_or_drops_whole_images(network: ViTokV2Network) -> None:
    tokens = patchify(images((11, 13), (16, 24)), 4)
    latents = network.encode(tokens)
    keep = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(network.decode(latents, keep=keep).values, network.decode(latents).values)
    keep[0] = 0
    dropped = network.decode(latents, keep=keep).values
    plain = network.decoder.head(network.decoder.embed(latents.values))
    torch.testing.assert_close(dropped[0, :12], plain[0, :12])
    torch.testing.assert_close(dropped[1], network.decode(latents).values[1])


@pytest.mark.parametrize("name", ["tanh", "kl"])
def test_other_bottlenecks(name: str) -> None:
    network = ViTokV2Network(TINY, bottleneck=name, layer_scale=0.5).double()
    tokens = patchify(images((16, 24)), 4)
    noise = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, noisy = network(tokens), network(tokens, None, noise)
    code = network.encoder(tokens).float()
    if name == "tanh":
        torch.testing.assert_close(clean.latents.values, code.tanh())
        torch.testing.assert_close(noisy.latents.values - clean.latents.values, 0.01 * noise, atol=1e-6, rtol=0)
        assert not clean.penalty.any()
    else:
        mean, log_variance = code.double().chunk(2, -1)
        normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
        standard = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
        expected = 0.01 * torch.distributions.kl_divergence(normal, standard).mean(-1)
        torch.testing.assert_close(clean.penalty.double(), expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(
            noisy.latents.values.double(), mean + (log_variance / 2).exp() * noise, atol=1e-5, rtol=0
        )
