"""Row bands give the numbers of the whole image, and memory that does not grow with its height."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_gen.autoencoders.vitok_v2 import bands
from lightning_gen.autoencoders.vitok_v2.bands import decode_in_bands, encode_in_bands
from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.nn.tokens import patchify, unpatchify


@pytest.fixture
def network() -> ViTokV2Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTokV2Network(Variant.parse("w32_d2_h2-w48_d3_h3/1x4x8"), layer_scale=0.5).double()


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("band_rows", [1, 3, 7, 100])
def test_bands_equal_the_whole(network: ViTokV2Network, radius: int, band_rows: int) -> None:
    tokens = patchify([picture(91, 37)], 4, length=250)
    whole = network.encode(tokens, radius)
    latents = encode_in_bands(network, tokens, radius, band_rows)
    torch.testing.assert_close(latents.values[0], whole.values[0][whole.mask[0]], atol=1e-12, rtol=0)
    strips = list(decode_in_bands(network, latents, radius, band_rows))
    expected = unpatchify(network.decode(whole, radius))[0]
    torch.testing.assert_close(torch.cat(strips, dim=1), expected, atol=1e-12, rtol=0)


def test_order_of_tokens_does_not_matter(network: ViTokV2Network) -> None:
    latents = network.encode(patchify([picture(40, 24)], 4), 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    fields = ("values", "mask", "row", "col", "image")
    shuffled = dataclasses.replace(latents, **{name: getattr(latents, name)[:, order] for name in fields})
    a, b = (torch.cat(list(decode_in_bands(network, x, 1, 3)), dim=1) for x in (latents, shuffled))
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [20, 80])
def test_blocks_keep_a_fixed_number_of_rows(
    network: ViTokV2Network, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    radius, band_rows, width = 2, 3, 6 * 48 * 8
    kept: list[int] = []
    push = bands._BandedBlock.push

    def recorded(self: bands._BandedBlock, *args: object, **kwargs: object) -> torch.Tensor | None:
        out = push(self, *args, **kwargs)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in (*self._pending, *self._memory)}
        kept.append(sum(storage.nbytes() for storage in storages.values()) // width)
        return out

    monkeypatch.setattr(bands._BandedBlock, "push", recorded)
    with torch.no_grad():
        latents = network.encode(patchify([picture(4 * rows, 24)], 4), radius)
        list(decode_in_bands(network, latents, radius, band_rows))
    # x, u and q of r waiting rows; k and v (until the next cat, with the rows just dropped) of at most 3 r + band rows
    assert len(kept) == 3 * -(-rows // band_rows)
    assert max(kept) <= 3 * radius + 2 * (3 * radius + band_rows)


def test_impossible_requests_are_refused(network: ViTokV2Network) -> None:
    tokens = patchify([picture(16, 16)], 4)
    with pytest.raises(ValueError, match="one image at a time, got 2"):
        encode_in_bands(network, patchify([picture(8, 8), picture(8, 8)], 4), 1)
    with pytest.raises(ValueError, match="at least 1 row"):
        encode_in_bands(network, tokens, 1, 0)
    with pytest.raises(ValueError, match="every token of the 4 x 4 grid exactly once"):
        encode_in_bands(network, dataclasses.replace(tokens, row=tokens.row.clamp(max=2)), 1)
    network.encoder.blocks[0] = torch.nn.Identity()
    with pytest.raises(ValueError, match="row bands need plain blocks, found Identity"):
        encode_in_bands(network, tokens, 1)
