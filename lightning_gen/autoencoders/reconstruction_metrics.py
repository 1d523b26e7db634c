"""What every auto-encoder is measured by in validation and test: PSNR, SSIM, and distances between sets of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import lightning.pytorch as pl
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.features import ReconstructionFrechet
from lightning_gen.metrics.lpips import LPIPS, LearnedPerceptualSimilarity
from lightning_gen.metrics.reconstruction import PeakSignalToNoise, StructuralSimilarity

__all__ = ["ReconstructionMetrics"]


class ReconstructionMetrics(nn.Module):
    """PSNR and SSIM of every image, and for every extractor the Frechet distance to the originals.

    ``update`` and ``log`` in a step, ``log_distances`` in the hook at the end of the epoch. PSNR and SSIM are logged as
    ``val/psnr`` and ``val/ssim``, distances under their protocol ids, for instance ``val/rfid/adm-tf1/50k`` or
    ``val/rfdd@5000/dinov3-b16``.

    The SSIM is ViTok-v2's, ``ssim/gaussian-11-signed``: of pixels in [-1, 1] that are not rounded. That of tables is
    another number, see ``lightning evaluate rfid``.

    Args:
        prefix: ``val/`` or ``test/``.
        extractors: networks whose features are compared; DINO's give rFDD, all others rFID.
        lpips: the learned distance, logged as ``val/lpips``; None = not measured.
    """

    def __init__(self, prefix: str, extractors: Sequence[FeatureExtractor] = (), lpips: LPIPS | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        pixels: dict[str, Metric | MetricCollection] = {
            "psnr": PeakSignalToNoise(),
            "ssim": StructuralSimilarity(scale="signed"),
        }
        if lpips is not None:
            pixels["lpips"] = LearnedPerceptualSimilarity(lpips)
        self.pixels = MetricCollection(pixels, prefix=prefix)
        self._distances = nn.ModuleList(
            ReconstructionFrechet(extractor, "rfdd" if extractor.name.startswith("dino") else "rfid")
            for extractor in extractors
        )

    @property
    def distances(self) -> list[ReconstructionFrechet]:
        """One per extractor."""
        return cast(list[ReconstructionFrechet], list(self._distances))

    def update(
        self, prediction: Sequence[Tensor], target: Sequence[Tensor], valid: Tensor | None, index: Tensor
    ) -> None:
        """Count a batch.

        Args:
            prediction: B reconstructions (3, H, W) of any sizes, in [-1, 1].
            target: their originals.
            valid: bool, (B,); False = repeated only to fill the batch.
            index: int64, (B,), global sample indices; a picture counts once in the distances.

        Raises:
            ValueError: an original leaves [-1, 1], or there is a distance and a reconstruction that counts holds NaN.
        """
        self.pixels.update(prediction, target, valid)
        if self.distances:
            counts = [True] * len(prediction) if valid is None else valid.tolist()
            made, real = (
                [signed_to_uint8(image) for image, is_counted in zip(images, counts, strict=True) if is_counted]
                for images in (prediction, target)
            )
            numbers = index if valid is None else index[valid]
            for distance in self.distances:
                distance.update(made, real, index=numbers)

    def log(self, module: pl.LightningModule, batch_size: int) -> None:
        """Log PSNR and SSIM; Lightning computes them when the epoch is over.

        Args:
            module: whose step this is.
            batch_size: images of the batch.
        """
        module.log_dict(self.pixels, prog_bar=True, batch_size=batch_size)

    def log_distances(self, module: pl.LightningModule) -> None:
        """Log the distances over all pictures of all ranks and begin anew.

        Args:
            module: whose epoch has ended.
        """
        for distance in self.distances:
            # The two batches of the sanity check say nothing about a distance.
            if not module.trainer.sanity_checking:
                module.log_dict({f"{self.prefix}{name}": value for name, value in distance.compute().items()})
            distance.reset()
