"""Pairs of pictures by copies of the shipped base, most of them degraded, with noisy labels, as shards on the disk.

Shape letters: B pictures.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

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
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.rewards import RequestMatch
from lightning_gen.shapes.vocabulary import COLORS, KINDS, NUMBERS
from lightning_gen.training.randomness import numpy_generator

__all__ = ["HELD_OUT", "WORLDS", "Copy", "World", "misread", "pairs_of", "qualities"]

T = TypeVar("T")
PART: Final = 64
"""Pictures that are made at once."""
ELSEWHERE: Final = 1 << 20
"""Number of the first picture: the benchmark's begin at 0, and must not have the same noise."""
HELD_OUT: Final = 256
"""Pairs that nobody learns from."""
_QUALITIES: Final = "qualities.json"


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of the base.

    Its pictures are as clean as those of the base: with noise on the weights they would be broken in ways in which the
    base never breaks, and all that pairs could teach it is not to do what it does not do.

    Attributes:
        misreads: chance that it takes a colour, kind or number of the prompt for another.
        guidance: with which it samples; 1 = none.
    """

    misreads: float = 0.0
    guidance: float = 3.0


_COPIES: Final[Mapping[str, Copy]] = {
    "guided": Copy(),
    "plain": Copy(guidance=1.0),
    "hasty": Copy(0.1),
    "heedless": Copy(0.2),
    "careless": Copy(0.3),
    "confused": Copy(0.6),
    "lost": Copy(0.9),
}


@dataclasses.dataclass(frozen=True)
class World:
    """Who makes the pictures, and how well is judged.

    Attributes:
        copies: names of four.
        noise: P(a wins) = sigmoid((r_a - r_b) / noise), r = how much of what is asked for is in the picture. Pictures
            of the same r are a tie.
    """

    copies: tuple[str, ...] = ("guided", "plain", "careless", "confused")
    noise: float = 0.25


WORLDS: Final[Mapping[str, World]] = {
    "usual": World(),
    "sure": World(noise=0.05),
    "noisy": World(noise=1.0),
    "narrow": World(("guided", "plain", "hasty", "heedless")),
    "wide": World(("guided", "plain", "confused", "lost")),
}


def pairs_of(base: DiffusionDPO, world: World, seed: int, count: int, folder: Path) -> Path:
    """Shards with pairs of a world, made when they are not there yet.

    Args:
        base: not trained yet.
        world: who makes them.
        seed: of prompts, copies, noise and labels. Worlds that differ in the noise of the labels have the same
            pictures, which are made once.
        count: of pairs, those that turn out to be ties included; none is for a prompt of the benchmark, or for one that
            pilots look at.
        folder: of all pairs.

    Returns:
        A folder with the shards ``train`` and ``held_out``, the latter with labels without noise.
    """
    name = f"{'-'.join(world.copies)}-{count}-seed{seed}"
    pictures, out = folder / f"{name}.safetensors", folder / f"{name}-noise{world.noise}"
    requests = _requests(seed, count + HELD_OUT)
    if not pictures.exists():
        _paint(base, world, seed, requests, pictures)
    if not (out / _QUALITIES).exists():
        shutil.rmtree(out, ignore_errors=True)
        made = load_file(pictures)
        samples = list(_samples(world, seed, requests, made, count))
        for part, some in {"train": samples[:count], "held_out": samples[count:]}.items():
            write_shards(some, out / part, source="copies of shapes_base")
        write(out / _QUALITIES, json.dumps(_means(world, made), indent=1))
    return out


def qualities(pairs: Path) -> dict[str, float]:
    """True capability of every copy: the mean of its pictures' rewards.

    Args:
        pairs: what :func:`pairs_of` returned.

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
        for rows in (who == number).nonzero().split(PART):
            asked = [requests[row] for row in rows[:, 0].tolist()]
            places = (2 * rows[:, 0] + rows[:, 1]).tolist()
            read = [
                misread(request, copy.misreads, numpy_generator(seed, "misread", place))
                for request, place in zip(asked, places, strict=True)
            ]
            made = base.make([request.prompt() for request in read], ELSEWHERE + torch.tensor(places), how)
            made = made.add(1).div(2)
            images[rows[:, 0], rows[:, 1]] = made.mul(255).round().byte()
            wanted = [request.prompt() for request in asked], [request.metadata() for request in asked]
            rewards[rows[:, 0], rows[:, 1]] = match(made, *wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({"images": images, "who": who, "rewards": rewards}, part)
    part.replace(path)


def misread(request: Request, chance: float, generator: np.random.Generator) -> Request:
    """Take words of a request for others of their sort.

    Args:
        request: what is asked for.
        chance: of every colour, kind and number to be taken for another.
        generator: draws; who misreads more misreads all that one who misreads less does.

    Returns:
        What is read. Where two phrases are related, both stay single; what has no colour gets none.
    """

    def read(word: T, choices: Sequence[T]) -> T:
        other = choices[(choices.index(word) + int(generator.integers(1, len(choices)))) % len(choices)]
        return other if generator.random() < chance else word

    def heard(phrase: Phrase) -> Phrase:
        kind, color, count = read(phrase.kind, KINDS), read(phrase.color or "red", tuple(COLORS)), phrase.count
        number = read(count, tuple(NUMBERS)) if len(request.phrases) == 1 else count
        return Phrase(kind, color if phrase.color else None, number)

    return dataclasses.replace(request, phrases=tuple(heard(phrase) for phrase in request.phrases))


def _means(world: World, made: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(made["rewards"][made["who"] == number].mean()) for number, name in enumerate(world.copies)}


def _samples(
    world: World, seed: int, requests: Sequence[Request], made: Mapping[str, Tensor], count: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Pairs in the package's format; a label of the first ``count`` looks at both rewards through noise."""
    chances = numpy_generator(seed, "labels of pairs", 0).random(len(requests))
    first, second = made["rewards"].double().numpy().T
    wins = chances < 1 / (1 + np.exp((second - first) / world.noise))
    wins[count:] = (first > second)[count:]
    labels = np.where(first == second, 0.5, wins)
    for row, request in enumerate(requests):
        record: dict[str, Any] = {"caption": request.prompt(), "label_0": float(labels[row])}
        fields: dict[str, bytes] = {}
        for side in (0, 1):
            record[f"model_{side}"] = world.copies[int(made["who"][row, side])]
            picture = Image.fromarray(made["images"][row, side].permute(1, 2, 0).numpy())
            fields[f"{side}.png"] = encode(picture, "PNG")
        fields["json"] = json.dumps(record, sort_keys=True).encode()
        yield f"{row:09d}", fields
