"""Guided upsampling and the refined reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoders.pae.objective import low_pass
from lightning_gen.autoencoders.pae.upsampling import AnyUp, Bicubic, JointBilateral, structural_reference
from lightning_gen.backbones.weights import MissingWeightsError

HUB = """
import torch

class Up(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))

    def forward(self, image, features, output_size=None, q_chunk_size=None):
        self.seen = (image.mean().item(), q_chunk_size)
        return self.gain * torch.nn.functional.interpolate(features, size=output_size)

def anyup(pretrained=True):
    assert not pretrained
    return Up()
"""


def edge() -> tuple[Tensor, Tensor]:
    """Features and a picture that change at the same place, which no coarse cell ends at."""
    image = torch.full((1, 3, 32, 32), -1.0)
    image[..., 14:] = 1.0
    features = torch.zeros(1, 2, 4, 4)
    features[..., 2:] = 1.0
    return features, image


def test_colours_sharpen_edges_of_features() -> None:
    features, image = edge()
    guided = JointBilateral(color=0.2).upsample(features, image, (32, 32))
    plain = Bicubic().upsample(features, image, (32, 32))
    assert guided.shape == plain.shape == (1, 2, 32, 32)
    # place 12 is on the dark side, place 19 on the bright one
    assert guided[0, 0, 16, 12] < 0.05 and guided[0, 0, 16, 19] > 0.95
    assert plain[0, 0, 16, 14] > 0.2


def test_weights_sum_to_one_and_a_flat_picture_gives_plain_smoothing() -> None:
    flat = torch.zeros(2, 3, 16, 16)
    constant = torch.full((2, 5, 4, 4), 3.0)
    torch.testing.assert_close(JointBilateral().upsample(constant, flat, (16, 16)), torch.full((2, 5, 16, 16), 3.0))
    with pytest.raises(ValueError, match="positive deviations"):
        JointBilateral(color=0.0)


def test_the_reference_is_made_step_by_step() -> None:
    h = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = structural_reference(h, images, (4, 4), Bicubic(), (16, 16), 0.4, 2.0)
    maps = h.transpose(1, 2).unflatten(-1, (4, 4))
    fine = low_pass(F.interpolate(maps, size=(16, 16), mode="bicubic"), 0.4, 2.0)
    wanted = F.interpolate(fine, size=(4, 4), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad


def test_any_up_comes_from_a_checkout_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUB)
    torch.save({"gain": torch.tensor(2.0)}, tmp_path / "anyup.pth")
    upsampler = AnyUp(str(tmp_path), str(tmp_path / "anyup.pth"), chunk=7)
    features, image = edge()
    found = upsampler.upsample(features, image, (8, 8))
    torch.testing.assert_close(found, 2 * F.interpolate(features, size=(8, 8)))
    mean, chunk = upsampler._network(torch.device("cpu")).seen
    assert chunk == 7 and -2 < mean < 2
    with pytest.raises(MissingWeightsError, match="JointBilateral does without both"):
        AnyUp(str(tmp_path / "nowhere"), "x").upsample(features, image, (8, 8))
