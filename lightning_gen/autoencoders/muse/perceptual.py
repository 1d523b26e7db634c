"""The perceptual loss of the TiTok recipe: LPIPS and the logits of an ImageNet classifier.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_weights, find_weights, read_config
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.training.needs import WeightNeed

__all__ = ["PerceptualLoss"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class PerceptualLoss:
    """LPIPS on VGG16 and the mean squared error of a classifier's logits.

    L = (w_1 LPIPS(y, x) + w_2 mean (logits(y) - logits(x))^2) / (w_1 + w_2), over the parts that have weights

    Args:
        lpips_trunk: path of torchvision's VGG16 weights, see ``metrics.lpips.LPIPS``; None = without LPIPS.
        lpips_heads: path of LPIPS's linear weights; None = the copy of torchmetrics.
        classifier: folder or hub id of an ImageNet classifier with ``config.json`` and safetensors, in timm's layout or
            a ``ConvNextForImageClassification`` of transformers; paper: ConvNeXt-S; None = without.
        lpips_weight: w_1.
        classifier_weight: w_2.
        size: edge in pixels to which pictures are brought for the classifier.

    Raises:
        ValueError: neither part is there, or a weight is negative.

    Source: arXiv:2605.05646 (perceptual loss); the classifier's logits, not its features, as in arXiv:2406.07550.
    """

    def __init__(
        self,
        lpips_trunk: str | None = None,
        lpips_heads: str | None = None,
        classifier: str | None = None,
        lpips_weight: float = 1.0,
        classifier_weight: float = 0.1,
        size: int = 224,
    ) -> None:
        if lpips_trunk is None and classifier is None:
            raise ValueError("a perceptual loss needs lpips_trunk, classifier or both")
        if min(lpips_weight, classifier_weight) < 0 or lpips_weight + classifier_weight <= 0 or size < 1:
            raise ValueError(
                f"weights of the perceptual loss are not negative and not all 0, got {lpips_weight} and "
                f"{classifier_weight}; size is at least 1, got {size}"
            )
        self.lpips_trunk, self.lpips_heads, self.classifier = lpips_trunk, lpips_heads, classifier
        self.lpips_weight, self.classifier_weight, self.size = lpips_weight, classifier_weight, size
        self._lpips: LPIPS | None = None
        self._classifier: FrozenModule | None = None

    def need(self) -> WeightNeed | None:
        """Whether the classifier is here, for the preflight."""
        if self.classifier is None:
            return None
        folder, problem = find_weights(self.classifier)
        hint = "" if folder is not None else f"{problem}. Give its folder, or classifier: null"
        return WeightNeed("classifier of the perceptual loss", self.classifier, folder is not None, hint)

    def load(self) -> None:
        """Read the weights, if that has not happened yet.

        Raises:
            FileNotFoundError: no file at ``lpips_trunk``.
            MissingWeightsError: the classifier is absent, damaged or of another kind.
        """
        if self.lpips_trunk is not None and self._lpips is None:
            self._lpips = LPIPS(self.lpips_trunk, "vgg", self.lpips_heads)
        if self.classifier is not None and self._classifier is None:
            self._classifier = FrozenModule(_load_classifier(self.classifier))

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            prediction: (B, 3, H, W), clamped to [-1, 1] here.
            target: the same shape, in [-1, 1].

        Returns:
            Scalar.
        """
        self.load()
        y, x = prediction.clamp(-1, 1).float(), target.clamp(-1, 1).float()
        total, weight = y.new_zeros(()), 0.0
        if self._lpips is not None:
            self._lpips.to(y.device)
            total, weight = total + self.lpips_weight * self._lpips(y, x).mean(), weight + self.lpips_weight
        if self._classifier is not None:
            self._classifier.to(y.device)
            with torch.no_grad():
                wanted = self._logits(x)
            total = total + self.classifier_weight * F.mse_loss(self._logits(y), wanted)
            weight += self.classifier_weight
        return total / weight

    def _logits(self, images: Tensor) -> Tensor:
        assert self._classifier is not None
        pixels = F.interpolate(
            (images + 1) / 2, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )
        mean, std = (images.new_tensor(value)[:, None, None] for value in (_MEAN, _STD))
        output: Any = self._classifier.network((pixels - mean) / std)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.float()


def _load_classifier(source: str) -> nn.Module:
    folder = fetch_weights(source)
    config = read_config(folder)
    try:
        with ordinary_construction():
            if "architecture" in config:
                import timm
                from safetensors.torch import load_file

                arguments = {**(config.get("model_args") or {}), "num_classes": config.get("num_classes", 1000)}
                network: nn.Module = timm.create_model(config["architecture"], pretrained=False, **arguments)
                network.load_state_dict(load_file(folder / "model.safetensors"))
                return network
            from transformers import AutoModelForImageClassification

            loaded: nn.Module = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            return loaded
    except Exception as error:  # whatever the libraries dislike about the files
        reason = str(error).strip().splitlines() or [""]
        raise MissingWeightsError(
            f"{folder} holds no image classifier of timm or transformers whose weights fit its config.json "
            f"({type(error).__name__}: {reason[0][:200]})"
        ) from None
