"""A small image encoder that knows the embedded world: for Frechet features, perceptual losses and linear probes.

It learns to read pictures as the exact detector does: which pairs of colour and kind are there, how many objects, and
roughly where each kind and colour stands.

Shape letters: B images, H and V height and width, D features, G cells along each side of the map.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.frozen import ordinary_construction
from lightning_gen.backbones.shipped import shipped_or_given
from lightning_gen.backbones.weights import fetch_weights, read_config
from lightning_gen.data.batches import ImageBatch
from lightning_gen.shapes.detector import find_objects
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.weights import require_fit

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["Readings", "ShapesEncoder", "ShapesEncoderTraining", "ShapesFeatures", "readings"]

_CELLS: Final = 4
_MOST: Final = 4
_LEAST: Final = 32
_PAIRS: Final = len(COLORS) * len(KINDS)


class ShapesEncoder(nn.Module):
    """Convolutions at full, half, quarter and eighth size; any picture of at least 32 pixels.

    Args:
        width: channels of the first stage; those after it have 2, 4 and 4 times as many.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        self.width, self.num_features = width, sizes[-1]
        self.stages = nn.ModuleList(
            _Stage(before, after, 1 if number == 0 else 2)
            for number, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False))
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """What every stage sees.

        Args:
            images: float, (B, 3, H, V) in [-1, 1].

        Returns:
            Four maps (B, C, H / 2^s, V / 2^s), s = 0..3.

        Raises:
            ValueError: pictures of fewer than 32 pixels along a side.
        """
        if min(images.shape[-2:]) < _LEAST:
            raise ValueError(f"the encoder takes pictures of at least {_LEAST} pixels, got {tuple(images.shape[-2:])}")
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """One vector per picture: the mean over the places of the last map.

        Args:
            images: float, (B, 3, H, V) in [-1, 1].

        Returns:
            (B, D).
        """
        return self.features(images)[-1].mean((2, 3))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json.

        Args:
            folder: made if it does not exist.
        """
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, target / "model.safetensors")
        config = {"kind": "ShapesEncoder", "width": self.width}
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path = "shapes_encoder") -> Self:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            source: folder, hub id, or the name of the shipped weights.

        Returns:
            The encoder in float32, frozen, in eval mode.

        Raises:
            MissingWeightsError: the files are absent or damaged, or the weights are no safetensors.
            ValueError: the folder holds something else.
        """
        from safetensors.torch import load_file

        folder = fetch_weights(shipped_or_given(source))
        config = read_config(folder)
        if config.get("kind") != "ShapesEncoder":
            raise ValueError(f"{folder} holds {config.get('kind')!r}, not a ShapesEncoder")
        if not isinstance(config.get("width"), int):
            raise ValueError(f"{folder}/config.json does not say the width of the encoder")
        encoder, state = cls(config["width"]), load_file(folder / "model.safetensors")
        require_fit(encoder, state, str(folder))
        encoder.load_state_dict(state)
        return encoder.requires_grad_(False).eval()


class ShapesFeatures(nn.Module):
    """The trained encoder as a network that a configuration names: pictures to vectors, for distances between sets.

    In ``extractors:`` it stands inside a ``ModuleExtractor``, and `lightning evaluate gfid` takes it as
    ``--extractor lightning_gen.shapes.encoder.ShapesFeatures``.

    Args:
        weights: see ``ShapesEncoder.from_pretrained``.
    """

    def __init__(self, weights: str = "shapes_encoder") -> None:
        super().__init__()
        with ordinary_construction():
            self.encoder = ShapesEncoder.from_pretrained(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Features.

        Args:
            images: float, (B, 3, H, V) in [-1, 1], H and V at least 32.

        Returns:
            (B, D).
        """
        features: Tensor = self.encoder(images)
        return features


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(before, after, 3, stride, 1)
        self.norm = nn.GroupNorm(8, after)
        self.mix = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.enter(x)))
        mixed: Tensor = x + F.silu(self.mix(x))
        return mixed


class Readings(NamedTuple):
    """What is true of some pictures.

    Attributes:
        pairs: float, (B, 80), 1 = an object of this colour and kind is there; colours outside, kinds inside.
        number: int64, (B,), of objects, at most 4.
        kinds: float, (B, 8, G, G), 1 = the centre of an object of this kind lies in the cell.
        colors: float, (B, 10, G, G), the same for colours.
    """

    pairs: Tensor
    number: Tensor
    kinds: Tensor
    colors: Tensor


def readings(images: Tensor) -> Readings:
    """Let the exact detector read pictures.

    Args:
        images: float, (B, 3, H, V) in [0, 1].

    Returns:
        Its findings as targets, on the CPU.
    """
    count, height, width = len(images), images.shape[2], images.shape[3]
    pairs, number = torch.zeros(count, _PAIRS), torch.zeros(count, dtype=torch.int64)
    kinds = torch.zeros(count, len(KINDS), _CELLS, _CELLS)
    colors = torch.zeros(count, len(COLORS), _CELLS, _CELLS)
    for row, objects in enumerate(find_objects(images)):
        number[row] = min(len(objects), _MOST)
        for found in objects:
            kind, color = KINDS.index(found.kind), list(COLORS).index(found.color)
            y, x = (min(_CELLS - 1, int(_CELLS * part)) for part in (found.y / height, found.x / width))
            pairs[row, color * len(KINDS) + kind] = kinds[row, kind, y, x] = colors[row, color, y, x] = 1
    return Readings(pairs, number, kinds, colors)


class ShapesEncoderTraining(pl.LightningModule):
    """Trains the encoder with ``ShapesDataModule``.

    L = BCE(pairs) + CE(count) + BCE(kinds in cells) + BCE(colours in cells)

    Args:
        width: of the encoder.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        width: int = 32,
        optimizer: AdamW = AdamW(learning_rate=2e-3, betas=(0.9, 0.99), weight_decay=0.01),  # noqa: B008 (frozen)
        schedule: WarmupCosine = WarmupCosine(0.02, 2e-5, 0.0),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"width": width}, logger=False)
        with torch.device("meta"):
            self.encoder = ShapesEncoder(width)
            features = self.encoder.num_features
            self.pairs, self.count = nn.Linear(features, _PAIRS), nn.Linear(features, _MOST + 1)
            self.places = nn.Conv2d(features, len(KINDS) + len(COLORS), 1)
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed

    def configure_model(self) -> None:
        """Fill the networks; does nothing the second time."""
        if next(self.parameters()).device.type == "meta":
            self.to_empty(device="cpu")
            initialise(self, self.seed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up cosine, stepped with the optimiser."""
        optimizer = self.optimizer.build(self)
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step.

        Args:
            batch: pictures of the embedded world.
            batch_idx: not used.

        Returns:
            The loss.
        """
        terms, _ = self._terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, batch_size=len(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Loss, and how many pictures are read without a mistake.

        Args:
            batch: pictures of the embedded world.
            batch_idx: not used.
        """
        terms, right = self._terms(batch)
        self.log("val/loss", torch.stack(list(terms.values())).sum(), batch_size=len(batch))
        self.log_dict(right, prog_bar=True, batch_size=len(batch))

    def _terms(self, batch: ImageBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert isinstance(batch.images, Tensor)
        true = Readings(*(part.to(self.device) for part in readings((batch.images + 1) / 2)))
        last = self.encoder.features(batch.images)[-1]
        pooled = last.mean((2, 3))
        pairs, count = self.pairs(pooled), self.count(pooled)
        places = F.adaptive_avg_pool2d(self.places(last), _CELLS)
        kinds, colors = places[:, : len(KINDS)], places[:, len(KINDS) :]
        terms = {
            "pairs": F.binary_cross_entropy_with_logits(pairs, true.pairs),
            "count": F.cross_entropy(count, true.number),
            "kinds": F.binary_cross_entropy_with_logits(kinds, true.kinds),
            "colors": F.binary_cross_entropy_with_logits(colors, true.colors),
        }
        right = {
            "val/pairs_right": ((pairs > 0) == (true.pairs > 0)).all(1).float().mean(),
            "val/count_right": (count.argmax(1) == true.number).float().mean(),
        }
        return terms, right

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder without the heads.

        Args:
            folder: made if it does not exist.
        """
        self.encoder.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that a checkpoint alone can be exported."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
