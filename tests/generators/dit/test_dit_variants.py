"""Names and parameter counts."""

import pytest
import torch

from lightning_gen.generators.dit.network import DiT
from lightning_gen.generators.dit.variants import DiTShape, dit_shape

COUNTS = [
    ("L", 1000, 311_269_440),
    ("L", 21_841, 332_610_624),
    ("G", 1000, 1_170_197_632),
    ("G", 21_841, 1_206_210_880),
    ("w1152_d28_h16", 1000, 456_959_872),
    ("w1152_d28_h16", 21_841, 480_968_704),
]


@pytest.mark.parametrize(("name", "classes", "count"), COUNTS)
def test_published_counts_on_the_meta_device_and_in_closed_form(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        network = DiT(name, 64, classes)
    assert all(p.device.type == "meta" for p in network.parameters()) and not list(network.buffers())
    assert sum(p.numel() for p in network.parameters()) == count
    assert dit_shape(name).parameters(64, classes) == count
    blocks = list(network.blocks())
    assert len(blocks) == dit_shape(name).depth
    assert {sum(p.numel() for p in block.parameters()) for block in blocks} == {dit_shape(name).block_parameters}


def test_names() -> None:
    assert dit_shape("L") == DiTShape(1024, 24, 16) == dit_shape("w1024_d24_h16")
    assert dit_shape("G") == DiTShape(1728, 32, 24) and dit_shape("G").hidden == 4608
    assert dit_shape("Ld12") == DiTShape(1024, 12, 16)
    assert dit_shape("Lw512h8") == DiTShape(512, 24, 8)
    assert dit_shape("w64_d2_h4_m4") == DiTShape(64, 2, 4, 4.0) and dit_shape("w64_d2_h4_m4").hidden == 256
    assert dit_shape("w64_d2_h4_m2.5").mlp_factor == 2.5


@pytest.mark.parametrize(
    "name", ["", "X", "XL", "l", "w64", "w64_d2", "d2_h4", "L_", "w64_d2_h4_d3", "w64.5_d2_h4", "w64_d2_h4_q1", "L d12"]
)
def test_unknown_names_are_refused_with_examples(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown size .*B, L, G.*w1152_d28_h16"):
        dit_shape(name)


@pytest.mark.parametrize(
    ("name", "word"), [("w64_d2_h3", "divide"), ("w24_d2_h4", "multiple of 4"), ("Ld0", "positive")]
)
def test_impossible_sizes_are_refused(name: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dit_shape(name)
