"""Check 1: names and exact parameter counts."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import PRESETS, PUBLISHED, Variant

COUNTS = {
    "350M-f16x16": (51_209_744, 303_239_936, 354_449_680),
    "350M-f16x32": (51_226_144, 303_256_320, 354_482_464),
    "350M-f16x64": (51_258_944, 303_289_088, 354_548_032),
    "5B-f16x16": (456_011_792, 4_538_414_848, 4_994_426_640),
    "5B-f16x32": (456_060_960, 4_538_464_000, 4_994_524_960),
    "5B-f16x64": (456_159_296, 4_538_562_304, 4_994_721_600),
    "5B-f32x64": (463_237_184, 4_545_642_496, 5_008_879_680),
    "5B-f32x128": (463_433_856, 4_545_839_104, 5_009_272_960),
    "5B-f32x256": (463_827_200, 4_546_232_320, 5_010_059_520),
    "Bd4-B/1x16x64": (28_958_016, 85_595_136, 114_553_152),
    "Gd4-G/1x16x64": (144_781_120, 1_148_173_248, 1_292_954_368),
    "Ld2-Ld22/1x16x64": (26_056_000, 278_086_144, 304_142_144),
    "w32_d2_h2-w48_d3_h3/1x4x8": (25_576, 86_112, 111_688),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    variant = Variant.parse(name)
    with torch.device("meta"):
        network = ViTokV2Network(variant)
    encoder, decoder, total = (
        sum(p.numel() for p in part.parameters()) for part in (network.encoder, network.decoder, network)
    )
    assert (encoder, decoder, total) == COUNTS[name]
    assert (variant.encoder_parameters, variant.decoder_parameters) == (encoder, decoder)


def test_every_published_model_is_counted() -> None:
    assert set(PUBLISHED) < set(COUNTS)


def test_hidden_widths_and_block_sizes() -> None:
    assert {name: stack.hidden for name, stack in PRESETS.items()} == {
        "B": 2048,
        "L": 2736,
        "G": 4608,
        "T": 8208,
        "E": 10944,
    }
    blocks = {name: stack.block_parameters for name, stack in PRESETS.items()}
    assert [blocks[name] for name in "BLGT"] == [7_079_552, 12_601_472, 35_835_408, 113_400_064]


@pytest.mark.parametrize(
    ("name", "ratio"), [("5B-f16x64", 12), ("5B-f16x32", 24), ("5B-f16x16", 48), ("5B-f32x256", 12)]
)
def test_compression(name: str, ratio: int) -> None:
    assert Variant.parse(name).compression == ratio


def test_overrides_and_the_common_mlp_factor() -> None:
    variant = Variant.parse("Lw512d3h8-w1408_d40_h16_m4.0/1x8x12")
    assert (variant.encoder.width, variant.encoder.depth, variant.encoder.heads) == (512, 3, 8)
    assert (variant.decoder.width, variant.decoder.depth, variant.decoder.heads) == (1408, 40, 16)
    assert variant.encoder.mlp_factor == variant.decoder.mlp_factor == 4.0
    assert (variant.patch, variant.channels) == (8, 12)


@pytest.mark.parametrize("name", [*PUBLISHED, "w32_d2_h2-w48_d3_h3/1x4x8", "Lw512d3h8-w1408_d40_h16_m4.0/1x8x12"])
def test_names_can_be_read_back(name: str) -> None:
    variant = Variant.parse(name)
    assert Variant.parse(variant.name) == variant
    assert variant.name == PUBLISHED.get(name, variant.name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("5B-f8x64", "unknown ViTok-v2 variant '5B-f8x64'; known names: 350M-f16x16"),
        ("Xd4-T/1x16x64", "cannot read 'Xd4'"),
        ("Td4-T/4x16x64", "temporal stride 4"),
        ("Tq4-T/1x16x64", "cannot read 'Tq4'"),
        ("w64_d2-T/1x16x64", "must give w<width>_d<depth>_h<heads>"),
        ("w66_d2_h4-T/1x16x64", "head width 66/4 must be a multiple of 4"),
        ("w64_d0_h4-T/1x16x64", "at least one block"),
        ("Td4-T/1x0x64", "at least 1"),
    ],
)
def test_bad_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Variant.parse(name)
    assert message in str(caught.value)
