"""What Diffusion-DPO costs beside an ordinary training step that passes as many pictures through the network.

    python benchmarks/speed/dpo.py

a  the whole network is trained, the reference is asked in every step: a fourth pass beside a forward and a backward one
b  the same with the reference's errors from the cache
c  an adapter is trained, the reference is the same network with it off: the weights' own gradients are spared, so the
   fourth pass is a larger share: half of a step, where of a whole network it is a third
d  the same with the cache
m  bytes at the peak of a step, weights and moments included: an adapter, the network with it off as the reference,
   against the same adapter with a frozen copy of the network
n  the same against a whole network that is trained, and its frozen copy

Both sides see the same clean latents, times, noise and prompts. Ratios are time(plain) / time(DPO): 0.74 is 1.36 times
as long. A random network in the shape of Stable Diffusion 3.5, on the CPU.

Shape letters: B pairs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Row, compare, peak_bytes, report, with_standard_options
from rl_models import MEDIUM, TINY, PolicyShape, be_quiet, bytes_of, open_policy, write_pipeline
from torch import Tensor

from lightning_gen.alignment.arena_po.module import DiffusionDPO
from lightning_gen.alignment.arena_po.objectives import mean_square_error
from lightning_gen.alignment.arena_po.pairs import PairGaps, ReadyPairs
from lightning_gen.alignment.arena_po.reference import CopiedReference
from lightning_gen.alignment.arena_po.settings import PairTimes, WarmupConstant
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import ImageBatch, PreferenceBatch

__all__ = ["Steps", "main"]

ONLINE, CACHED = 1 / 1.36, 1 / 1.05
ADAPTER = LoRASettings(16, 32.0)


def _images(count: int, canvas: int) -> ImageBatch:
    index, size = torch.arange(count), torch.full((count, 2), canvas)
    valid, keys = torch.ones(count, dtype=torch.bool), tuple(map(str, range(count)))
    pixels = torch.zeros(count, 3, canvas, canvas)
    return ImageBatch(pixels, torch.full((count,), -1), index, valid, size, keys, 0, ("a red circle",) * count)


class Steps:
    """A module with its optimiser and one batch, and the two ways to make a step of it.

    Args:
        folder: of the pipeline.
        shape: its sizes.
        pairs: B.
        lora: shape of the adapter; None = the whole network.
        copied: the reference is a copy of the network also where an adapter is trained.
    """

    def __init__(
        self, folder: Path, shape: PolicyShape, pairs: int, lora: LoRASettings | None, copied: bool = False
    ) -> None:
        policy = open_policy(folder, shape, folder / "prompts")
        twin = CopiedReference(policy) if copied else None
        self.module = DiffusionDPO(
            policy, lora=lora, drop_rate=0.0, times=PairTimes("uniform"), warmup=WarmupConstant(0)
        )
        self.module.configure_model()
        self.module.reference = twin or self.module.reference
        made: Any = self.module.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = made["optimizer"]
        generator = torch.Generator().manual_seed(0)
        clean = torch.randn(pairs, 2, *shape.latents, generator=generator)
        images, one = _images(pairs, shape.canvas), torch.ones(pairs)
        batch = PreferenceBatch(images, images, one, one, one, (("a", "b"),) * pairs)
        self.online = ReadyPairs.of(batch, PairGaps(one, one, one), 0, None, clean)
        with torch.no_grad():
            found = self._errors()
        self.cached = ReadyPairs.of(batch, PairGaps(one, one, one), 0, found, clean)

    def _errors(self) -> Tensor:
        module, noisy = self.module, self.module.noised(self.online)
        errors = module.errors(module.policy.velocity(noisy.x_t, noisy.t, noisy.text), noisy, self.online)
        return torch.stack([errors.reference_winner, errors.reference_loser], 1)

    def dpo(self, batch: ReadyPairs) -> Callable[[], None]:
        """A step of Diffusion-DPO.

        Args:
            batch: with or without the reference's errors.

        Returns:
            The call.
        """
        return lambda: self._step(lambda: self.module.training_step(batch, 0))

    def plain(self) -> None:
        """An ordinary step: noise, predict, mean squared error, over as many pictures."""

        def loss() -> Tensor:
            noisy = self.module.noised(self.online)
            v = self.module.policy.velocity(noisy.x_t, noisy.t, noisy.text)
            return mean_square_error(v, noisy.velocity).mean()

        self._step(loss)

    def peak(self) -> int:
        """Bytes at the peak of a step: weights, those of a copy, moments, and what the step allocates."""
        step = self.dpo(self.online)
        step()
        self.optimizer.zero_grad()
        twin: Any = getattr(self.module.reference, "network", None)
        weights = bytes_of(self.module.policy.network, *([] if twin is None else [twin.network]))
        moments = [part for state in self.optimizer.state.values() for part in state.values()]
        return weights + sum(part.nbytes for part in moments if isinstance(part, Tensor)) + peak_bytes(step)

    def _step(self, loss: Callable[[], Tensor]) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(loss())
        torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.optimizer.step()


def rows(folder: Path, shape: PolicyShape, pairs: int, repetitions: int, parts: str) -> list[Row]:
    """Measure.

    Args:
        folder: of the pipeline.
        shape: its sizes.
        pairs: B.
        repetitions: timed pairs of calls per row.
        parts: letters of the questions.

    Returns:
        One row per question.
    """
    found = []
    for name, lora, letters in (("whole network", None, "ab"), ("adapter", ADAPTER, "cd")):
        if not set(letters) & set(parts):
            continue
        steps = Steps(folder, shape, pairs, lora)
        cases = (("reference asked", steps.online, ONLINE), ("reference cached", steps.cached, CACHED))
        for letter, (case, batch, target) in zip(letters, cases, strict=True):
            if letter in parts:
                found.append(
                    compare(
                        letter, f"{name}, {case}", steps.dpo(batch), steps.plain, repetitions, target=target,
                        items=2 * pairs, clock=time.process_time,
                    )
                )  # fmt: skip
    return found + (_memory(folder, shape, pairs, parts) if set("mn") & set(parts) else [])


def _memory(folder: Path, shape: PolicyShape, pairs: int, parts: str) -> list[Row]:
    ours, found = Steps(folder, shape, pairs, ADAPTER).peak(), []
    for letter, name, lora in (("m", "an adapter and a copy", ADAPTER), ("n", "a whole network and a copy", None)):
        if letter in parts:
            other = Steps(folder, shape, pairs, lora, copied=lora is not None).peak()
            found.append(Row(letter, f"bytes against {name}", other / ours, (other / ours,) * 2, ours, other))
    return found


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        argv: options; None = those of the command line.
    """
    parser = with_standard_options(argparse.ArgumentParser(description=__doc__), "benchmarks/results/speed_dpo.json")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of a step")
    parser.add_argument("--part", default="abcdmn", help="letters of the questions")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    be_quiet()
    shape, repetitions = (TINY, 1) if options.quick else (MEDIUM, options.repetitions)
    with tempfile.TemporaryDirectory() as place:
        folder = write_pipeline(Path(place) / "pipeline", shape)
        found = rows(folder, shape, options.pairs, repetitions, options.part)
    settings = {"pairs": options.pairs, "threads": options.threads, "quick": options.quick, "canvas": shape.canvas}
    report(found, options.out, settings, "pictures")


if __name__ == "__main__":
    main()
