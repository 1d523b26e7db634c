"""A toy extractor, and a LightningModule that evaluates pictures with it, alone or as one of two processes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.features import ImageGenerationMetrics
from lightning_gen.metrics.images import Images

__all__ = ["SIZES", "ToyExtractor", "evaluate", "partial_counts", "pictures"]

SIZES = {"pool": 8, "spatial": 6, "logits": 5}
SETTINGS: dict[str, Any] = {
    "metrics": ("gfid", "sfid", "inception_score", "precision_recall", "kid", "cmmd"),
    "split_size": 20,
    "kid_subsets": 5,
    "kid_subset_size": 40,
    "extrapolate": True,
}


class ToyExtractor(FeatureExtractor):
    """Weighted sums over 48 pixels. A row does not depend on the others, to the last bit."""

    def __init__(self, name: str = "toy", seed: int = 0) -> None:
        network = nn.Module()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(sum(SIZES.values()), 48, generator=generator) / 4
        network.register_parameter("weight", nn.Parameter(weight))
        super().__init__(network, name, SIZES)
        self.seen = 0

    def extract(self, images: Images) -> dict[str, Tensor]:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        self.seen += len(batch)
        pixels = batch.flatten(1).float() / 64
        weight: Any = self.network.weight
        rows = (pixels[:, None] * weight).sum(-1)
        pool, spatial, logits = rows.split(list(SIZES.values()), 1)
        return {"pool": pool, "spatial": spatial, "logits": logits}


def pictures(count: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


class Evaluation(LightningModule):
    """Counts real and generated pictures in its validation loop."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.metrics = ImageGenerationMetrics(ToyExtractor(), expected_count=101, **settings)
        self.fakes: list[Tensor] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real, fake, index = batch
        self.metrics.update(real, real=True, index=index)
        self.metrics.update(fake, index=index)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute())
        self.metrics.reset()


def evaluate(folder: Path, devices: int, batch_size: int) -> tuple[dict[str, float], dict[str, float], int]:
    """Two epochs over 101 pictures, which two ranks cannot share evenly; then a checkpoint.

    Returns:
        Values of the first epoch, values of the second epoch after loading the checkpoint into another module, and
        the number of pictures that this other module's extractor saw.
    """
    data = TensorDataset(pictures(101, 1), pictures(101, 2, 30, 200), torch.arange(101))
    loader = DataLoader(data, batch_size=batch_size)
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder),
    )  # fmt: skip
    module = Evaluation(reset_real_features=False, **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = trainer.validate(module, loader, verbose=False)[0]
        path = str(folder / "kept.ckpt")
        trainer.save_checkpoint(path)
        other = Evaluation(reset_real_features=False, **SETTINGS)
        second = trainer.validate(other, loader, ckpt_path=path, verbose=False)[0]
    seen: Any = other.metrics.extractor.seen
    return dict(first), dict(second), seen


def partial_counts(masked: bool) -> dict[str, float]:
    """Rank 0 counts 2,300 pictures, rank 1 none or two that only fill its batch."""
    metrics = ImageGenerationMetrics(ToyExtractor(), metrics=("gfid", "kid"), kid_subset_size=50, kid_subsets=2)
    rank = torch.distributed.get_rank()
    for real in (True, False):
        images = pictures(2300, int(real))
        if rank == 0:
            for batch in images.split(100):
                metrics.update(batch, real)
        elif masked:
            metrics.update(images[:2], real, valid=torch.tensor([False, False]))
    return {name: value.item() for name, value in metrics.compute().items()}
