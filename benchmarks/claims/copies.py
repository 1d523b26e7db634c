"""Pairs of pictures by copies of the shipped base, some of them degraded, with noisy labels, as shards on the disk.

Shape letters: B pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from alignment_training import STEPS, fresh_requests, held_out_requests
from PIL import Image
from report import write
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_gen.alignment.arena_po.module import DiffusionDPO
from lightning_gen.alignment.arena_po.settings import SampleSettings
from lightning_gen.data.synth.drawing import encode
from lightning_gen.data.writing import write_shards
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.rewards import RequestMatch
from lightning_gen.training.randomness import normal, numpy_generator

__all__ = ["WORLDS", "Copy", "World", "pairs_of", "qualities", "worn"]

PART: Final = 64
"""Pictures that are made at once."""
ELSEWHERE: Final = 1 << 20
"""Number of the first picture: the benchmark's begin at 0, and must not have the same noise."""
_QUALITIES: Final = "qualities.json"


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of the base.

    Attributes:
        wear: standard deviation of the noise on its weights, in that of each tensor.
        guidance: with which it samples; 1 = none.
    """

    wear: float = 0.0
    guidance: float = 1.0


_COPIES: Final[Mapping[str, Copy]] = {
    "guided": Copy(guidance=3.0),
    "plain": Copy(),
    "scratched": Copy(wear=0.1),
    "mended": Copy(wear=0.2, guidance=3.0),
    "worn": Copy(wear=0.2),
    "broken": Copy(wear=0.3),
    "wrecked": Copy(wear=0.4),
}


@dataclasses.dataclass(frozen=True)
class World:
    """Who makes the pictures, and how well is judged.

    Attributes:
        copies: names of four.
        noise: P(a wins) = sigmoid((r_a - r_b) / noise), r = how much of what is asked for is in the picture.
    """

    copies: tuple[str, ...] = ("guided", "plain", "worn", "broken")
    noise: float = 0.25


WORLDS: Final[Mapping[str, World]] = {
    "usual": World(),
    "sure": World(noise=0.05),
    "noisy": World(noise=1.0),
    "narrow": World(("guided", "plain", "scratched", "mended")),
    "wide": World(("guided", "plain", "broken", "wrecked")),
}


def pairs_of(base: DiffusionDPO, world: World, seed: int, count: int, folder: Path) -> Path:
    """Shards with pairs of a world, made when they are not there yet.

    Args:
        base: not trained yet; it is as it was when this returns.
        world: who makes them.
        seed: of prompts, copies, noise and labels. Worlds that differ in the noise of the labels have the same
            pictures, which are made once.
        count: of pairs; none is for a prompt of the benchmark, or for one that pilots look at.
        folder: of all pairs.

    Returns:
        The folder of the shards.
    """
    name = f"{'-'.join(world.copies)}-{count}-seed{seed}"
    pictures, out = folder / f"{name}.safetensors", folder / f"{name}-noise{world.noise}"
    requests = _requests(seed, count)
    if not pictures.exists():
        _paint(base, world, seed, requests, pictures)
    if not (out / "manifest.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        made = load_file(pictures)
        write(out / _QUALITIES, json.dumps(_means(world, made), indent=1))
        write_shards(_samples(world, seed, requests, made), out, source="copies of shapes_base")
    return out


def qualities(pairs: Path) -> dict[str, float]:
    """True capability of every copy: the mean of its pictures' rewards.

    Args:
        pairs: folder of the shards.

    Returns:
        Copy -> mean, in [0, 1].
    """
    found: dict[str, float] = json.loads((pairs / _QUALITIES).read_text(encoding="utf-8"))
    return found


def _requests(seed: int, count: int) -> Sequence[Request]:
    taken = {one.prompt() for one in (*benchmark_requests(), *held_out_requests(138))}
    return fresh_requests(seed, "pairs of copies", count, taken)


def _paint(base: DiffusionDPO, world: World, seed: int, requests: Sequence[Request], path: Path) -> None:
    """Two pictures of every request, by two different copies."""
    count = len(requests)
    draws = numpy_generator(seed, "which copies", 0).random((count, len(world.copies)))
    who = torch.from_numpy(draws.argsort(1)[:, :2].copy())  # (count, 2)
    images = torch.empty(count, 2, 3, 32, 32, dtype=torch.uint8)
    rewards = torch.empty(count, 2)
    match = RequestMatch("dense")
    for number, name in enumerate(world.copies):
        copy = _COPIES[name]
        how = SampleSettings(STEPS, "euler", copy.guidance)
        with worn(base, copy.wear):
            for rows in (who == number).nonzero().split(PART):
                prompts = [requests[row].prompt() for row in rows[:, 0].tolist()]
                made = base.make(prompts, ELSEWHERE + 2 * rows[:, 0] + rows[:, 1], how).add(1).div(2)
                images[rows[:, 0], rows[:, 1]] = made.mul(255).round().byte()
                asked = [requests[row].metadata() for row in rows[:, 0].tolist()]
                rewards[rows[:, 0], rows[:, 1]] = match(made, prompts, asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({"images": images, "who": who, "rewards": rewards}, part)
    part.replace(path)


@contextlib.contextmanager
def worn(base: DiffusionDPO, wear: float) -> Iterator[None]:
    """Run a block of code with noise on the weights of the base; the encoder of prompts stays as it is.

    Args:
        base: the model.
        wear: standard deviation of the noise, in that of each tensor; always the same noise.

    Yields:
        Nothing.
    """
    network = base.policy.network
    kept = {
        name: value.detach().clone()
        for name, value in network.named_parameters()
        if wear and not value.requires_grad and value.ndim > 1 and "text_encoder" not in name
    }
    with torch.no_grad():
        for number, (name, value) in enumerate(kept.items()):
            noise = normal(0, "wear", number, torch.zeros(1, dtype=torch.int64), tuple(value.shape))[0]
            network.get_parameter(name).add_(wear * value.std() * noise)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                network.get_parameter(name).copy_(value)


def _means(world: World, made: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(made["rewards"][made["who"] == number].mean()) for number, name in enumerate(world.copies)}


def _samples(
    world: World, seed: int, requests: Sequence[Request], made: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Pairs in the package's format; a label looks at both rewards through noise."""
    chances = numpy_generator(seed, "labels of pairs", 0).random(len(requests))
    first, second = made["rewards"].double().numpy().T
    wins = chances < 1 / (1 + np.exp((second - first) / world.noise))
    for row, request in enumerate(requests):
        record: dict[str, Any] = {"caption": request.prompt(), "label_0": float(wins[row])}
        fields: dict[str, bytes] = {}
        for side in (0, 1):
            record[f"model_{side}"] = world.copies[int(made["who"][row, side])]
            picture = Image.fromarray(made["images"][row, side].permute(1, 2, 0).numpy())
            fields[f"{side}.png"] = encode(picture, "PNG")
        fields["json"] = json.dumps(record, sort_keys=True).encode()
        yield f"{row:09d}", fields
