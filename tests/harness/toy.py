"""A transformer of a few hundred parameters, with data, for testing what is shared.

Shape letters: B images, L tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.interfaces import Pictures
from lightning_gen.nn.tokens import Tokens, patchify, unpatchify
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform
from lightning_gen.training.strategies import prepare

__all__ = ["ToyBatch", "ToyBlock", "ToyData", "ToyModule", "ToyNetwork"]


DEFAULT_OPTIMIZER = AdamW(learning_rate=1e-2)


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.gamma = Gain(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return x + self.gamma(F.gelu(self.out(mixed.squeeze(1))))


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ToyNetwork(nn.Module):
    def __init__(self, width: int = 8, depth: int = 2, patch: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * patch * patch, width)
        self.layers = nn.ModuleList([ToyBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 3 * patch * patch)

    def blocks(self) -> Iterable[nn.Module]:
        return list(self.layers)

    def forward(self, tokens: Tokens) -> Tensor:
        x = self.embed(tokens.values)
        for layer in self.layers:
            x = layer(x, tokens.mask)
        out: Tensor = self.head(x)
        return out


@dataclasses.dataclass(frozen=True)
class ToyBatch:
    images: Tokens
    index: Tensor
    epoch: int = 0

    def __len__(self) -> int:
        return self.images.num_images

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ToyBatch:
        return ToyBatch(self.images.to(device, non_blocking), self.index.to(device), self.epoch)


class ToyModule(LightningModule):
    """Reconstructs noisy patches; trained in the ways that the house trains."""

    def __init__(
        self,
        width: int = 8,
        depth: int = 2,
        seed: int = 0,
        checkpointing: bool = False,
        compiled: bool = False,
        optimizer: AdamW = DEFAULT_OPTIMIZER,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.optimizer = optimizer
        with torch.device("meta"):
            self.network = ToyNetwork(width, depth)
        self.prepared = False

    def configure_model(self) -> None:
        if self.prepared:
            return
        self.prepared = True
        prepare(
            self.network,
            device_mesh=self.device_mesh,
            seed=self.hparams["seed"],
            activation_checkpointing=self.hparams["checkpointing"],
            compile_blocks=self.hparams["compiled"],
            compute_dtype=torch.bfloat16 if self.hparams["bfloat16"] else None,
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer.build(self)
        scheduler = WarmupCosine(final_learning_rate=1e-4).build(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: ToyBatch, batch_idx: int) -> Tensor:
        loss = self.error(batch)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: ToyBatch, batch_idx: int) -> None:
        self.log("val/loss", self.error(batch), batch_size=len(batch), sync_dist=True)

    def error(self, batch: ToyBatch) -> Tensor:
        """Mean over images of the mean squared error of their real tokens; the noise is keyed by image."""
        tokens = batch.images
        noise = normal(0, "toy noise", batch.epoch, batch.index, tuple(tokens.values.shape[1:]))
        out = self.network(tokens.with_values(tokens.values + 0.1 * noise))
        error = (out - tokens.values).float().square().mean(-1) * tokens.mask
        return (error.sum(-1) / tokens.mask.sum(-1)).mean()

    def pictures(self, batch: ToyBatch) -> list[Pictures]:
        made = unpatchify(batch.images.with_values(self.network(batch.images)))
        return [Pictures("original", unpatchify(batch.images)), Pictures("reconstruction", made)]

    def flops_per_step(self, batch: ToyBatch) -> float:
        return 1e6 * len(batch)


class ToyLoader:
    """Global batches of images of two sizes, each rank its share; remembers where it is."""

    def __init__(self, images: int, global_batch: int, rank: int, world: int, epoch: int) -> None:
        self.images, self.global_batch, self.rank, self.world, self.epoch = images, global_batch, rank, world, epoch
        self.position = 0

    def __len__(self) -> int:
        return self.images // self.global_batch

    def __iter__(self) -> Iterator[ToyBatch]:
        start, self.position = self.position, 0
        share = self.global_batch // self.world
        for number in range(start, len(self)):
            first = number * self.global_batch + self.rank * share
            index = torch.arange(first, first + share)
            self.position = number + 1
            yield toy_batch(index, self.epoch)
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def toy_batch(index: Tensor, epoch: int = 0) -> ToyBatch:
    sizes = [(8, 8) if number % 2 else (8, 5) for number in index.tolist()]
    pixels = uniform(0, "toy image", epoch, index, (3, 8, 8)) * 2 - 1
    images = [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)]
    return ToyBatch(patchify(images, 4), index, epoch)


class ToyData(LightningDataModule):
    def __init__(self, images: int = 12, global_batch: int = 4) -> None:
        super().__init__()
        self.images, self.global_batch = images, global_batch

    def _loader(self, epoch: int) -> ToyLoader:
        assert self.trainer is not None
        return ToyLoader(self.images, self.global_batch, self.trainer.global_rank, self.trainer.world_size, epoch)

    def train_dataloader(self) -> ToyLoader:
        assert self.trainer is not None
        return self._loader(self.trainer.current_epoch)

    def val_dataloader(self) -> ToyLoader:
        return self._loader(1000)
