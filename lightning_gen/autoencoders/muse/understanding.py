"""What a tokenizer understands, measured in the test loop: a linear probe, zero-shot classification, segmentation.

Shape letters: B images, D width of the probed features, E width of the text embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.metrics.labelled_features import FeatureTable, LabelledFeatures
from lightning_gen.metrics.probes.linear import LinearProbe
from lightning_gen.metrics.probes.segmentation_test import SegmentationTest
from lightning_gen.metrics.probes.zero_shot import ZeroShot, class_embeddings

__all__ = ["Understanding"]


class Understanding(nn.Module):
    """Linear probe on features of the test pictures' classes, zero-shot accuracy, mIoU; each may be left out.

    Logged as ``test/linear_probe_best`` (chosen on the pictures it is quoted for, as published numbers are),
    ``test/linear_probe_last``, ``test/zero_shot`` and ``test/miou``.

    Args:
        width: D.
        probe: trains the linear map; None = none.
        probe_data: its *validation* pictures train the map: they are cropped in the middle and not mirrored, as the
            protocol wants it. Its ``val`` names the training set; needed with ``probe``.
        class_names: K names for zero-shot classification; empty = none.
        segmentation: trains a linear map on the dense features; it has pictures of its own. None = none.

    Raises:
        ValueError: a probe without pictures to train it.

    Source: arXiv:2605.05646 (linear probe, zero-shot, ADE20K).
    """

    def __init__(
        self,
        width: int,
        probe: LinearProbe | None = None,
        probe_data: pl.LightningDataModule | None = None,
        class_names: Sequence[str] = (),
        segmentation: SegmentationTest | None = None,
    ) -> None:
        super().__init__()
        if (probe is None) != (probe_data is None):
            raise ValueError(
                "linear_probe and probe_data belong together: the probe is trained on the `val` pictures of probe_data"
            )
        self.probe, self.probe_data, self.class_names = probe, probe_data, tuple(class_names)
        self.width, self.segmentation = width, segmentation
        self.kept = LabelledFeatures(width)
        self.zero_shot: ZeroShot | None = None

    @property
    def reads_test_pictures(self) -> bool:
        """Whether anything is measured on the pictures of the test itself."""
        return self.probe is not None or bool(self.class_names)

    def begin(self, embed: Callable[[Sequence[str]], Tensor], device: torch.device) -> None:
        """Embed the classes.

        Args:
            embed: texts to unit vectors.
            device: of the module.
        """
        self.kept.reset()
        self.kept.to(device)
        if self.class_names:
            self.zero_shot = ZeroShot(class_embeddings(embed, self.class_names)).to(device)

    def update(self, features: Tensor, embeddings: Tensor, batch: ImageBatch) -> None:
        """Count a batch of test pictures.

        Args:
            features: (B, D).
            embeddings: unit vectors, (B, E).
            batch: labels, indices and validity.
        """
        if self.probe is not None:
            self.kept.update(features, batch.index, batch.label, batch.valid)
        if self.zero_shot is not None:
            self.zero_shot.update(embeddings, batch.label, batch.index, batch.valid)

    def log(
        self, module: pl.LightningModule, features: Callable[[ImageBatch], Tensor], dense: Callable[[Tensor], Tensor]
    ) -> None:
        """Train the probes and log what was measured; every rank calls it.

        Args:
            module: whose test has ended.
            features: of a batch, (B, D).
            dense: of images (B, 3, H, W), (B, D, h, w).
        """
        if self.probe is not None:
            with self.kept.on_all_ranks():
                tested = self.kept.table()
            result = self.probe.fit(self._trained_on(module.device, features), tested)
            module.log("test/linear_probe_best", result.best)
            module.log("test/linear_probe_last", result.last)
        if self.zero_shot is not None:
            module.log("test/zero_shot", self.zero_shot.compute().float())
        if self.segmentation is not None:
            module.log("test/miou", self.segmentation.run(dense, self.width).compute().float())

    def _trained_on(self, device: torch.device, features: Callable[[ImageBatch], Tensor]) -> FeatureTable:
        assert self.probe_data is not None
        self.probe_data.setup("validate")
        kept = LabelledFeatures(self.width).to(device)
        with torch.no_grad():
            for batch in self.probe_data.val_dataloader():
                moved: ImageBatch = batch.to(device)
                kept.update(features(moved), moved.index, moved.label, moved.valid)
        with kept.on_all_ranks():
            return kept.table()
