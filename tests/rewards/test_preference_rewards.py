"""The learned scores as rewards: the papers' formulas on tiny random networks that were saved to disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.extraction.clip import CLIPModel
from lightning_gen.rewards.preference import AestheticReward, CLIPScoreReward, HPSv21Reward, PickScoreReward
from tests.harness.tiny_clip import write_tiny_clip

PROMPTS = ["a red cat", "two dogs on a sofa", "a blue car"]
RECORDS: list[dict[str, object]] = [{}, {}, {}]
IMAGES = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
WIDTHS, LAYERS = (16, 12, 8, 6, 4, 1), (0, 2, 4, 6, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def pickscore(folder: str) -> PickScoreReward:
    return PickScoreReward(folder)


@pytest.fixture(scope="module")
def clip(pickscore: PickScoreReward) -> CLIPModel:
    return pickscore.scorer.clip


@pytest.fixture(scope="module")
def cosine(clip: CLIPModel) -> Tensor:
    return (clip.embed_images(unit_to_uint8(IMAGES)).double() * clip.embed_texts(PROMPTS).double()).sum(1).float()


def test_pickscore_is_divided_by_26(pickscore: PickScoreReward, clip: CLIPModel, cosine: Tensor) -> None:
    scores = pickscore(IMAGES, PROMPTS, RECORDS)
    torch.testing.assert_close(scores, clip.logit_scale * cosine / 26, rtol=1e-5, atol=1e-6)
    assert "over-26" in pickscore.fingerprint and not scores.requires_grad


def test_clipscore_is_the_cosine(folder: str, cosine: Tensor) -> None:
    torch.testing.assert_close(CLIPScoreReward(folder)(IMAGES, PROMPTS, RECORDS), cosine, rtol=1e-5, atol=1e-6)


def test_hpsv2_is_the_cosine_of_open_clip(tmp_path: Path, cosine: Tensor) -> None:
    reward = HPSv21Reward(str(write_tiny_clip(tmp_path, "open_clip")))
    torch.testing.assert_close(reward(IMAGES, PROMPTS, RECORDS), cosine, rtol=1e-4, atol=1e-5)


def test_the_aesthetic_score_is_the_head_on_the_unit_vector(tmp_path: Path, folder: str, clip: CLIPModel) -> None:
    generator, state = torch.Generator().manual_seed(0), {}
    for layer, wide, narrow in zip(LAYERS, WIDTHS, WIDTHS[1:], strict=False):
        state[f"layers.{layer}.weight"] = torch.randn(narrow, wide, generator=generator) / math.sqrt(wide)
        state[f"layers.{layer}.bias"] = torch.randn(narrow, generator=generator)
    torch.save(state, tmp_path / "head.pth")
    expected = clip.embed_images(unit_to_uint8(IMAGES)).double()
    for layer in LAYERS:
        expected = expected @ state[f"layers.{layer}.weight"].double().T + state[f"layers.{layer}.bias"].double()
    scores = AestheticReward(str(tmp_path / "head.pth"), folder)(IMAGES, ["x"] * 3, RECORDS)
    torch.testing.assert_close(scores, expected[:, 0].float(), rtol=1e-5, atol=1e-5)


def test_pictures_are_scored_as_they_are_stored(pickscore: PickScoreReward) -> None:
    nearly = ((IMAGES * 255).round() + 0.3) / 255
    assert torch.equal(unit_to_uint8(nearly), unit_to_uint8(IMAGES))
    assert torch.equal(pickscore(nearly.clamp(0, 1), PROMPTS, RECORDS), pickscore(IMAGES, PROMPTS, RECORDS))


def test_other_weights_have_another_fingerprint(tmp_path: Path, pickscore: PickScoreReward) -> None:
    other = PickScoreReward(str(write_tiny_clip(tmp_path, seed=1)))
    assert other.fingerprint != pickscore.fingerprint


def test_one_prompt_and_record_per_picture(pickscore: PickScoreReward) -> None:
    for prompts, records in ((PROMPTS[:2], RECORDS), (PROMPTS, RECORDS[:2]), ("cat", RECORDS)):
        with pytest.raises(ValueError, match="one prompt and one record of metadata per image: got 3 images"):
            pickscore(IMAGES, prompts, records)
