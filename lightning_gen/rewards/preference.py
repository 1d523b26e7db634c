"""PickScore, CLIPScore, HPSv2.1 and the aesthetic score as rewards, by the formulas of Flow-GRPO and DiffusionNFT.

The scorers are those of ``metrics/preference.py``; here they see 8-bit pictures, go where these are, and have the
signature of a reward. Weights are local, or come from the hub; they are read by ``load`` or by the first picture, so
that a configuration can be built and checked where there are none.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.extraction.clip import load_clip
from lightning_gen.metrics.preference import AestheticScore, CLIPScore, HPSv21, PickScore, PreferenceScorer
from lightning_gen.rewards.applicability import AppliesEverywhere, check_batch
from lightning_gen.rewards.weights import needs_of_clip, needs_of_file
from lightning_gen.training.needs import ModelNeeds, add_needs

__all__ = ["AestheticReward", "CLIPScoreReward", "HPSv21Reward", "PickScoreReward", "ScorerReward"]

_PICKSCORE: Final = "yuvalkirstain/PickScore_v1"
_OPENAI_L14: Final = "openai/clip-vit-large-patch14"
_VIT_H14: Final = "ViT-H-14"


class ScorerReward(AppliesEverywhere, ABC):
    """A learned score as a reward. Pictures are rounded to 8 bits, so no gradient goes back to them."""

    def __init__(self) -> None:
        self._scorer: PreferenceScorer | None = None

    @abstractmethod
    def _read(self) -> PreferenceScorer:
        """The scorer, with its weights."""

    def load(self) -> None:
        """Read the weights, if that has not happened yet.

        Raises:
            MissingWeightsError: they are absent or damaged.
        """
        if self._scorer is None:
            self._scorer = self._read()

    @property
    def scorer(self) -> PreferenceScorer:
        """The score, loaded."""
        self.load()
        assert self._scorer is not None
        return self._scorer

    @property
    def fingerprint(self) -> str:
        """The protocol of the score and the sha256 of its weights."""
        return f"{self.scorer.protocol.id} {self.scorer.fingerprint}"

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1]; the scorer moves to their device.
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,).

        Raises:
            ValueError: images, prompts and metadata that do not belong together.
        """
        check_batch(images, prompts, metadata)
        scorer = self.scorer.to(images.device)
        with torch.no_grad():
            scores: Tensor = scorer(unit_to_uint8(images), prompts)
        return scores


class PickScoreReward(ScorerReward):
    """PickScore / 26.

    reward = exp(logit_scale) cos(image, text) / 26,  about 0.65 to 0.9; tables show 26 times that

    Args:
        clip: the published weights, or their local copy.
        processor: folder or hub id of tokenizer and picture settings, where they are not beside the weights; those of
            the paper are in ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``.

    Source: arXiv:2305.01569 section 3; the divisor: repositories yifan123/flow_grpo and NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str = _PICKSCORE, processor: str | None = None) -> None:
        super().__init__()
        self.clip, self.processor = clip, processor

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether the weights are here, see ``RewardSuite.needs``."""
        return needs_of_clip("PickScore", init_args.get("clip", _PICKSCORE), processor=init_args.get("processor"))

    def _read(self) -> PreferenceScorer:
        return PickScore(load_clip(self.clip, processor=self.processor), divide=True)


class CLIPScoreReward(ScorerReward):
    """CLIPScore: the cosine under CLIP, which is logits_per_image / 100.

    Args:
        clip: ViT-L/14 of OpenAI, its local copy, or another CLIP.

    Source: arXiv:2104.08718; repository NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str = _OPENAI_L14) -> None:
        super().__init__()
        self.clip = clip

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether the weights are here, see ``RewardSuite.needs``."""
        return needs_of_clip("CLIP of CLIPScore", init_args.get("clip", _OPENAI_L14))

    def _read(self) -> PreferenceScorer:
        return CLIPScore(self.clip)


class HPSv21Reward(ScorerReward):
    """HPSv2.1: the cosine under a fine-tuned open_clip ViT-H-14.

    Args:
        clip: path of ``HPS_v2.1_compressed.pt`` (repository ``xswu/HPSv2``), or a folder in the layout of open_clip.

    Source: arXiv:2306.09341; repository NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str) -> None:
        super().__init__()
        self.clip = clip

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether the weights are here, see ``RewardSuite.needs``."""
        return needs_of_clip("HPSv2.1", init_args["clip"], _VIT_H14)

    def _read(self) -> PreferenceScorer:
        return HPSv21(self.clip)


class AestheticReward(ScorerReward):
    """LAION's aesthetic score v2, as it is: about 1 to 10. Prompts do not matter.

    Args:
        head: path of ``sac+logos+ava1-l14-linearMSE.pth``, or of the same tensors as safetensors.
        clip: ViT-L/14 of OpenAI, on whose embeddings the head was trained, or its local copy.

    Source: repositories christophschuhmann/improved-aesthetic-predictor and yifan123/flow_grpo.
    """

    def __init__(self, head: str, clip: str = _OPENAI_L14) -> None:
        super().__init__()
        self.head, self.clip = head, clip

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether the weights are here, see ``RewardSuite.needs``."""
        clip = needs_of_clip("CLIP of the aesthetic score", init_args.get("clip", _OPENAI_L14))
        return add_needs([needs_of_file("the aesthetic head", init_args["head"]), clip])

    def _read(self) -> PreferenceScorer:
        return AestheticScore(self.head, self.clip)
