"""PickScore, CLIPScore, HPSv2.1 and the aesthetic score as rewards, by the formulas of Flow-GRPO and DiffusionNFT.

The scorers are those of ``metrics/preference.py``; here they see 8-bit pictures, go where these are, and have the
signature of a reward. Weights are local, or come from the hub.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.preference import AestheticScore, CLIPScore, HPSv21, PickScore, PreferenceScorer
from lightning_gen.rewards.applicability import AppliesEverywhere, check_batch

__all__ = ["AestheticReward", "CLIPScoreReward", "HPSv21Reward", "PickScoreReward", "ScorerReward"]


class ScorerReward(AppliesEverywhere):
    """A scorer as a reward. Pictures are rounded to 8 bits, so no gradient goes back to them.

    Args:
        scorer: a learned score.
    """

    def __init__(self, scorer: PreferenceScorer) -> None:
        self.scorer = scorer

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
        self.scorer.to(images.device)
        with torch.no_grad():
            scores: Tensor = self.scorer(unit_to_uint8(images), prompts)
        return scores


class PickScoreReward(ScorerReward):
    """PickScore / 26.

    reward = exp(logit_scale) cos(image, text) / 26,  about 0.65 to 0.9; tables show 26 times that

    Args:
        clip: the published weights, or their local copy.

    Source: arXiv:2305.01569 section 3; the divisor: repositories yifan123/flow_grpo and NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str = "yuvalkirstain/PickScore_v1") -> None:
        super().__init__(PickScore(clip, divide=True))


class CLIPScoreReward(ScorerReward):
    """CLIPScore: the cosine under CLIP, which is logits_per_image / 100.

    Args:
        clip: ViT-L/14 of OpenAI, its local copy, or another CLIP.

    Source: arXiv:2104.08718; repository NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__(CLIPScore(clip))


class HPSv21Reward(ScorerReward):
    """HPSv2.1: the cosine under a fine-tuned open_clip ViT-H-14.

    Args:
        clip: path of ``HPS_v2.1_compressed.pt`` (repository ``xswu/HPSv2``), or a folder in the layout of open_clip.

    Source: arXiv:2306.09341; repository NVlabs/DiffusionNFT.
    """

    def __init__(self, clip: str) -> None:
        super().__init__(HPSv21(clip))


class AestheticReward(ScorerReward):
    """LAION's aesthetic score v2, as it is: about 1 to 10. Prompts do not matter.

    Args:
        head: path of ``sac+logos+ava1-l14-linearMSE.pth``, or of the same tensors as safetensors.
        clip: ViT-L/14 of OpenAI, on whose embeddings the head was trained, or its local copy.

    Source: repositories christophschuhmann/improved-aesthetic-predictor and yifan123/flow_grpo.
    """

    def __init__(self, head: str, clip: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__(AestheticScore(head, clip))
