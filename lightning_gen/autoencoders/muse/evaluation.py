"""MUSE measured: reconstruction, distances between sets, and what probes read from its features.

Shape letters: B images, H and W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_gen.autoencoders.muse.codec import Building, MuseCodec
from lightning_gen.autoencoders.muse.convert import Settings
from lightning_gen.autoencoders.muse.text import TextTower
from lightning_gen.autoencoders.muse.understanding import Understanding
from lightning_gen.autoencoders.reconstruction_metrics import ReconstructionMetrics
from lightning_gen.autoencoders.reconstructions import Reconstructions, ReconstructionWriter
from lightning_gen.data.batches import ImageBatch
from lightning_gen.interfaces import Pictures
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.metrics.probes.linear import LinearProbe
from lightning_gen.metrics.probes.segmentation_test import SegmentationTest
from lightning_gen.nn.latent_maps import fill_up
from lightning_gen.nn.tokens import Tokens, unpatchify

__all__ = ["Measured", "MuseEvaluation"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is measured beside PSNR and SSIM; the arguments of ``Muse`` of the same names.

    Attributes:
        extractors: networks for rFID.
        lpips: the learned distance.
        linear_probe: trains a linear map on the features.
        probe_data: its validation pictures train the probe.
        class_names: for zero-shot classification.
        segmentation: trains and measures a segmentation probe.
    """

    extractors: Sequence[FeatureExtractor] = ()
    lpips: LPIPS | None = None
    linear_probe: LinearProbe | None = None
    probe_data: pl.LightningDataModule | None = None
    class_names: Sequence[str] = ()
    segmentation: SegmentationTest | None = None


class MuseEvaluation(MuseCodec):
    """The loops that do not train.

    Args:
        settings: what the weights mean.
        building: how the network is made ready.
        measured: beside PSNR and SSIM.
        text: embeds the classes of zero-shot classification, and captions in training.
    """

    def __init__(self, settings: Settings, building: Building, measured: Measured, text: TextTower | None) -> None:
        super().__init__(settings, building)
        self.text = text
        self.val_metrics = ReconstructionMetrics("val/", measured.extractors, measured.lpips)
        self.test_metrics = ReconstructionMetrics("test/", measured.extractors, measured.lpips)
        self.understanding = Understanding(
            settings.shape.width,
            measured.linear_probe,
            measured.probe_data,
            measured.class_names,
            measured.segmentation,
        )

    def configure_callbacks(self) -> list[pl.Callback]:
        """``predict`` writes what it reconstructs."""
        return [ReconstructionWriter()]

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image, and features for the distances.

        Args:
            batch: pictures of any sizes.
            batch_idx: not used.
        """
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Distances over the whole set."""
        self.val_metrics.log_distances(self)

    def on_test_start(self) -> None:
        """Embed the classes of zero-shot classification."""
        if not self.understanding.reads_test_pictures:
            return
        tower = self.text
        if self.understanding.class_names and tower is None:
            raise ValueError("zero-shot classification (model.class_names) needs the text tower: set model.text")
        self.understanding.begin(lambda texts: _embed(tower, texts, self.device), self.device)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image, features for the distances and for the probes.

        Args:
            batch: pictures of any sizes; with probes, of one size and with classes.
            batch_idx: not used.
        """
        self._evaluate(batch, self.test_metrics)
        if self.understanding.reads_test_pictures:
            semantic, embedding, _ = self._understand(self._pictures(batch))
            self.understanding.update(semantic.mean(1), embedding, batch)

    def on_test_epoch_end(self) -> None:
        """Distances and probes over the whole set."""
        self.test_metrics.log_distances(self)
        self.understanding.log(self, lambda batch: self.probe_features(self._pictures(batch)), self.dense_features)

    def _evaluate(self, batch: ImageBatch, metrics: ReconstructionMetrics) -> None:
        originals = unpatchify(batch.images) if isinstance(batch.images, Tokens) else list(batch.images)
        metrics.update(list(self.decode(self.encode(batch.images))), originals, batch.valid, batch.index)
        metrics.log(self, len(batch))

    @torch.no_grad()
    def pictures(self, batch: ImageBatch) -> list[Pictures]:
        """Originals above reconstructions, for the sample grid.

        Args:
            batch: pictures of any sizes.

        Returns:
            Two rows.
        """
        originals = unpatchify(batch.images) if isinstance(batch.images, Tokens) else list(batch.images)
        images = [image.float() for image in self.decode(self.encode(batch.images))]
        return [Pictures("original", originals), Pictures("reconstruction", images)]

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Reconstructions:
        """Reconstruct pictures; ``ReconstructionWriter`` puts them on disk.

        Args:
            batch: pictures of any sizes.
            batch_idx: not used.

        Returns:
            Originals, latents and reconstructions.
        """
        originals = unpatchify(batch.images) if isinstance(batch.images, Tokens) else list(batch.images)
        latents = self.encode(batch.images)
        return Reconstructions(batch.key, batch.valid, originals, latents, list(self.decode(latents)))

    def _pictures(self, batch: ImageBatch) -> Tensor:
        if isinstance(batch.images, Tokens):
            pictures = unpatchify(batch.images)
            if len({picture.shape for picture in pictures}) > 1:
                raise ValueError(
                    "MUSE trains on pictures of one size per batch, this one holds several: use ImageDataModule or "
                    "TextImageDataModule, whose batches have one shape each"
                )
            return fill_up(torch.stack(pictures), self.settings.shape.patch)
        return fill_up(batch.images, self.settings.shape.patch)


def _embed(tower: TextTower | None, texts: Sequence[str], device: torch.device) -> Tensor:
    assert tower is not None
    return tower.embed(texts, device)
