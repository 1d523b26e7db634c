"""A user's own file: a small model and a small data module. The tests copy it into a folder as `my_idea.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_gen.training.preflight import DataNeeds, ModelNeeds, WeightNeed

GIB = 1024**3


class ToyModel(pl.LightningModule):
    """A linear map with momentum, so that a checkpoint without optimiser state would show."""

    def __init__(self, dim: int = 4, learning_rate: float = 0.05, widths: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(dim, 1)
        self.learning_rate = learning_rate
        self.widths = widths

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", self.net(batch[0]).square().mean(), batch_size=len(batch[0]))

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


class SlowToSave(ToyModel):
    """Takes a minute to write its checkpoint of step 4: time enough to be killed while it writes."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.global_step == 4:
            checkpoint["slow"] = _Slow()


class _Slow:
    def __reduce__(self) -> Any:
        import time

        Path("writing").touch()
        time.sleep(60)
        return (dict, ())


class Published(ToyModel):
    """Knows the layout its weights are published in."""

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "published.txt").write_text(str(float(self.net.weight.sum())))


class Sharded(ToyModel):
    """Sharded by FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Huge(ToyModel):
    """Says what it needs, and must never be built."""

    def __init__(self, parameters: int = 10**15, weights: str = "somewhere/gated") -> None:
        raise AssertionError("built before the preflight said yes")

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        weight = WeightNeed(
            "a gated backbone", init_args["weights"], found=False, hint="ask its owner, then set weights"
        )
        return ModelNeeds(
            trainable=init_args["parameters"],
            frozen=10**6,
            largest_block=10**9,
            activation_bytes_per_token=1e6,
            weights=(weight,),
        )


class Small(ToyModel):
    """Says that it needs little."""

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        return ModelNeeds(trainable=init_args["dim"] + 1)


class Rows:
    """Two rows a batch; says where it stands and goes on from there."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.next = rows, 0

    def __len__(self) -> int:
        return len(self.rows) // 2

    def __iter__(self) -> Iterator[list[Tensor]]:
        for index in range(self.next, len(self)):
            self.next = index + 1
            yield [self.rows[2 * index : 2 * index + 2]]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class ToyData(pl.LightningDataModule):
    """Random rows, the same ones every time."""

    def __init__(self, dim: int = 4, num_rows: int = 8) -> None:
        super().__init__()
        self.dim, self.num_rows = dim, num_rows

    def train_dataloader(self) -> Rows:
        return Rows(torch.randn(self.num_rows, self.dim, generator=torch.Generator().manual_seed(0)))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class MissingData(ToyData):
    """Says that its shards are not there."""

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> DataNeeds:
        return DataNeeds(
            tokens_per_global_batch=1000,
            global_batch_size=7,
            missing=("train: no manifest at shards/, make it with the converter",),
        )
