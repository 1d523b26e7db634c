"""How fast training is: images and tokens per second, padding, and model-FLOP utilisation."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gen.interfaces import CountsFlops
from lightning_gen.nn.tokens import Tokens

__all__ = ["Throughput", "matmul_rate"]

_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


@dataclasses.dataclass
class _Window:
    """What has been counted since ``start``; token counts stay on the device until they are read.

    ``waited`` is what the data module had waited by then; a pause moves ``start`` on.
    """

    start: float
    waited: float
    batches: int = 0
    images: int = 0
    places: int = 0
    tokens: Tensor | int = 0
    flops: float = 0.0


class Throughput(Callback):
    """Logs the speed of training, averaged over windows of some batches.

    images/s = images of all ranks / seconds;  tokens/s counts real tokens only;
    padding = 1 - real tokens / places in the batch;
    waiting = seconds in which the trainer waited for a batch / seconds, mean over ranks;
    utilisation = FLOPs of the model / (seconds * measured matrix-product rate of all devices)

    Seconds are those of a clock on the wall. The first batches (compilation, memory allocation) are left out, and so is
    the time of validation and of writing checkpoints; waiting for data is not. The share of waiting needs a data module
    with ``counters()["wait_seconds"]`` (all of this package have it); without it the wait for the one batch after a
    checkpoint goes unseen. Utilisation needs ``module.flops_per_step(batch)``; recomputation does not count as work, as
    usual, and since the rate is measured in the dtype of autocast, float8 products can exceed 1.

    Args:
        window: batches per measurement, >= 1.
        warmup: first batches of a run that are not measured, >= 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, window: int = 20, warmup: int = 5) -> None:
        if window < 1 or warmup < 0:
            raise ValueError(f"Throughput needs window >= 1 and warmup >= 0, got {window} and {warmup}")
        self.window = window
        self.warmup = warmup
        self._clock: Callable[[], float] = time.perf_counter
        self._rate: Callable[[torch.device, torch.dtype], float] = matmul_rate
        self._unmeasured = warmup
        self._current: _Window | None = None
        self._paused: tuple[float, float] | None = None
        self._latest: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start over: a new fit compiles and allocates again."""
        self._unmeasured = self.warmup
        self._current, self._paused, self._latest = None, None, {}
        if self.warmup == 0:
            self._current = _Window(self._clock(), _seconds_waited(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the clock run on after an interruption, which ended when the trainer began to wait for this batch."""
        if self._current is not None and self._paused is not None:
            began, waited = self._paused
            self._current.start += self._clock() - began - (_seconds_waited(trainer) - waited)
        self._paused = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, close the window when it is full, and log the latest measurement."""
        if self._unmeasured > 0:
            self._unmeasured -= 1
        elif self._current is not None:
            self._count(self._current, pl_module, batch)
            if self._current.batches == self.window:
                self._latest = self._measure(self._current, trainer, pl_module)
                self._current = None
        if self._current is None and self._unmeasured == 0:
            _synchronise(pl_module.device)
            self._current = _Window(self._clock(), _seconds_waited(trainer))
        for name, value in self._latest.items():
            shown = name in ("images_per_second", "model_flop_utilisation")
            pl_module.log(f"throughput/{name}", value, prog_bar=shown, batch_size=_num_images(batch))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock."""
        self._pause(trainer, pl_module)

    def _pause(self, trainer: Trainer, module: LightningModule) -> None:
        if self._paused is None and self._current is not None:
            _synchronise(module.device)
            self._paused = self._clock(), _seconds_waited(trainer)

    def _count(self, window: _Window, module: LightningModule, batch: Any) -> None:
        window.batches += 1
        window.images += _num_images(batch)
        images = getattr(batch, "images", None)
        if isinstance(images, Tokens):
            window.places += images.mask.numel()
            window.tokens = window.tokens + images.mask.sum()
        if isinstance(module, CountsFlops):
            window.flops += module.flops_per_step(batch)

    def _measure(self, window: _Window, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        _synchronise(module.device)
        seconds = max(self._clock() - window.start, 1e-9)
        rate = self._rate(module.device, _compute_dtype(str(trainer.precision))) if window.flops else 0.0
        # float64 holds any of these counts exactly enough; devices without it (mps) make do with float32.
        exact = torch.float32 if module.device.type == "mps" else torch.float64
        waiting = (_seconds_waited(trainer) - window.waited) / seconds
        counts = [window.images, float(window.tokens), window.places, window.flops, rate, waiting]
        mine = torch.tensor(counts, dtype=exact, device=module.device)
        images, tokens, places, flops, all_rates, waiting = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        measured = {"images_per_second": images / seconds}
        if _counts_waiting(trainer):
            measured["waiting_fraction"] = waiting / trainer.world_size
        if places:
            measured["tokens_per_second"] = tokens / seconds
            measured["padding_fraction"] = 1.0 - tokens / places
        if flops:
            measured["model_flop_utilisation"] = flops / (seconds * all_rates)
        return measured


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how fast a device multiplies large square matrices; once per process, device and dtype.

    rate = 2 n^3 / seconds, the best of several products

    Args:
        device: which one.
        dtype: of the factors.

    Returns:
        Floating-point operations per second.
    """
    size = 512 if device.type == "cpu" else 4096 if dtype in (torch.float32, torch.float64) else 8192
    generator = torch.Generator(device=device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(6):  # the first ones warm the device up; the best is taken anyway
            _synchronise(device)
            start = time.perf_counter()
            for _ in range(4):
                left @ right
            _synchronise(device)
            best = min(best, (time.perf_counter() - start) / 4)
    return 2.0 * size**3 / best


def _counts_waiting(trainer: Trainer) -> bool:
    return hasattr(getattr(trainer, "datamodule", None), "counters")


def _seconds_waited(trainer: Trainer) -> float:
    """What this rank has waited for training batches so far; 0 where nobody counts."""
    if not _counts_waiting(trainer):
        return 0.0
    return float(cast(Any, trainer).datamodule.counters().get("wait_seconds", 0.0))


def _num_images(batch: Any) -> int:
    return len(batch)


def _compute_dtype(precision: str) -> torch.dtype:
    return _DTYPES.get(precision.split("-")[0], torch.float32)


def _synchronise(device: torch.device) -> None:
    """Wait until the device has finished what was asked of it; without this the clock measures the queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
