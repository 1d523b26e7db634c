"""Preference pairs by models whose strength is known, so that whoever estimates it can be checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from lightning_gen.data.synth.drawing import COLOURS, encode, smooth
from lightning_gen.data.synth.options import Sample, SynthOptions

__all__ = ["STRENGTHS", "pair_samples", "pair_truth", "winner_first_samples"]

STRENGTHS: Final = {"fine": 2.0, "good": 1.0, "fair": 0.0, "poor": -1.5}
"""Model -> strength on the scale of Bradley and Terry: P(i beats j) = sigmoid((s_i - s_j) / noise)."""

_PLACES = ("meadow", "harbour", "desert", "forest", "street", "kitchen", "island", "valley")
_VOTERS = 9


def pair_samples(options: SynthOptions) -> Iterator[Sample]:
    """Pairs in random order, with ties.

    The pictures of a prompt share a smooth field; a model adds grain, the more the weaker it is.

    Args:
        options: size, ties and noise.

    Yields:
        ``0.jpg``, ``1.jpg`` and ``json`` in the package's pair format.
    """
    for number in range(options.count):
        rng = _generator(options.seed, number)
        models = [str(name) for name in rng.choice(list(STRENGTHS), 2, replace=False)]
        label = _judge(rng, models, options)
        yield _sample(options, number, rng, models, label, {})


def winner_first_samples(options: SynthOptions) -> Iterator[Sample]:
    """Pairs as HPDv3 has them: the preferred picture first, no ties, with votes.

    Args:
        options: size and noise.

    Yields:
        Like :func:`pair_samples`, with ``confidence`` and ``choice_dist``.
    """
    for number in range(options.count):
        rng = _generator(options.seed, number)
        models = [str(name) for name in rng.choice(list(STRENGTHS), 2, replace=False)]
        first = int(rng.binomial(_VOTERS, _chance(models, options.noise)))
        votes = [first, _VOTERS - first]
        if votes[1] > votes[0]:
            models, votes = models[::-1], votes[::-1]
        extra = {"confidence": votes[0] / _VOTERS, "choice_dist": votes}
        yield _sample(options, number, rng, models, 1.0, extra)


def pair_truth(options: SynthOptions) -> dict[str, Any]:
    """What is true of the pairs.

    Args:
        options: those of the set.

    Returns:
        Strengths of the models, and the rule by which a winner was drawn.
    """
    rule = "P(0 beats 1) = sigmoid((s_0 - s_1) / noise)" if options.noise else "the stronger model wins"
    return {"strengths": dict(STRENGTHS), "noise": options.noise, "ties": options.ties, "rule": rule}


def _generator(seed: int, number: int) -> np.random.Generator:
    from lightning_gen.training.randomness import numpy_generator

    return numpy_generator(seed, "synth pair", number)


def _chance(models: list[str], noise: float) -> float:
    gap = STRENGTHS[models[0]] - STRENGTHS[models[1]]
    return float(gap > 0) if noise == 0 else 1 / (1 + math.exp(-gap / noise))


def _judge(rng: np.random.Generator, models: list[str], options: SynthOptions) -> float:
    tie, first = rng.random(2)
    return 0.5 if tie < options.ties else float(first < _chance(models, options.noise))


def _sample(
    options: SynthOptions, number: int, rng: np.random.Generator, models: list[str], label: float, extra: dict[str, Any]
) -> Sample:
    colour, place = str(rng.choice(list(COLOURS))), str(rng.choice(_PLACES))
    clean = np.asarray(smooth(rng, options.size, options.size), np.float32)
    wanted = 0.6 * clean + 0.4 * np.array(COLOURS[colour], np.float32)
    record: dict[str, Any] = {"caption": f"a {colour} {place}", "label_0": label, **extra}
    record |= {"source": "synth", "split": "train", "row": number, "user": f"{int(rng.integers(8)):016x}"}
    fields = dict[str, bytes]()
    for stem, model in enumerate(models):
        fields[f"{stem}.jpg"] = _picture(rng, wanted, model)
        record[f"model_{stem}"] = model
        record[f"uid_{stem}"] = hashlib.blake2b(f"{options.seed} {number} {stem}".encode(), digest_size=16).hexdigest()
        record[f"h_{stem}"] = record[f"w_{stem}"] = options.size
    fields["json"] = json.dumps(record, sort_keys=True).encode()
    return f"{number:09d}", fields


def _picture(rng: np.random.Generator, wanted: np.ndarray[Any, Any], model: str) -> bytes:
    from PIL import Image

    grain = 24 * math.exp(-0.6 * STRENGTHS[model])
    noisy = wanted + grain * rng.standard_normal(wanted.shape, np.float32)
    return encode(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
