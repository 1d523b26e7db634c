"""Inception as the TorchScript file ``inception-2015-12-05.pt``, run as it is.

How its parameters are called inside was not verified, so nothing here depends on it, only on what the users of the file
rely on: ``layers``, and the arguments of its call.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import ordinary_construction
from lightning_gen.metrics.extraction.inception import INCEPTION_SIZE, NUM_CLASSES, NUM_POOL

__all__ = ["ScriptedInception", "probe_pictures"]


class ScriptedInception(nn.Module):
    """The TorchScript file behind the call of :class:`InceptionV3`.

    ``pool`` is what ``layers`` returns for scaled pixels, as clean-fid calls it. ``logits`` = pool W^T, where W is the
    tensor of 1008 x 2048 values whose softmax equals the file's own answer to ``no_output_bias=True``; a file without
    such a tensor is refused.

    Args:
        path: the file.

    Raises:
        ValueError: not TorchScript, or not this network.

    Source: GaParmar/clean-fid ``inception_torchscript.py`` (``layers``), NVlabs/stylegan2-ada-pytorch
        ``metrics/inception_score.py`` (``no_output_bias``).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with warnings.catch_warnings(), ordinary_construction():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, the published file is not
            try:
                loader: Any = torch.jit.load
                self.script: Any = loader(str(path), map_location="cpu").eval()
                self.register_buffer("classifier", self._find_classifier())
            except (RuntimeError, AttributeError, TypeError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ValueError(f"not inception-2015-12-05.pt ({type(error).__name__}: {reason[:160]})") from None

    classifier: Tensor

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of one pass.

        Args:
            images: float32, (B, 3, 299, 299), range [-1, 1].

        Returns:
            ``pool`` (B, 2048), ``logits`` (B, 1008), without bias.
        """
        pool = self._layers(images)
        return {"pool": pool, "logits": pool @ self.classifier.T}

    def _layers(self, images: Tensor) -> Tensor:
        # Otherwise the first passes are slow, and later ones are fused and rounded in another way.
        jit: Any = torch.jit
        with jit.optimized_execution(False):
            pool: Tensor = self.script.layers(images).flatten(1)
        return pool

    @torch.no_grad()
    def _find_classifier(self) -> Tensor:
        """(1008, 2048), the weights of the last layer: those that explain the file's own probabilities."""
        images = probe_pictures(1)
        pool = self._layers(images)
        if pool.shape != (1, NUM_POOL):
            raise ValueError(f"layers returned {tuple(pool.shape)}, expected (1, {NUM_POOL})")
        wanted = self.script(images * 128 + 128, no_output_bias=True).flatten(1)
        for tensor in (*self.script.parameters(), *self.script.buffers()):
            if sorted(tensor.shape) != [NUM_CLASSES, NUM_POOL]:
                continue
            weight: Tensor = tensor if tensor.shape[0] == NUM_CLASSES else tensor.T
            if torch.allclose((pool @ weight.T).softmax(1), wanted, rtol=1e-2, atol=1e-4):
                return weight.detach().clone()
        raise ValueError(f"no tensor of {NUM_CLASSES} x {NUM_POOL} explains its class probabilities")


def probe_pictures(count: int) -> Tensor:
    """Pictures that differ from each other and are not flat, to see whether a network runs.

    Args:
        count: B.

    Returns:
        float32, (B, 3, 299, 299), range [-1, 1].
    """
    rows = torch.linspace(-1, 1, INCEPTION_SIZE)
    waves = [torch.outer((5 * (index + 1) * rows).sin(), (3 * rows + index).cos()) for index in range(3 * count)]
    return torch.stack(waves).reshape(count, 3, INCEPTION_SIZE, INCEPTION_SIZE)
