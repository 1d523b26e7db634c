"""Everything that stands in the card of the embedded world's image encoder.

(a) linear probes on its features, on pictures that it has not seen: which pairs of colour and kind are there, how many
    objects; beside the same probes on an encoder with random weights and on the mean colours of a grid of cells
(b) Frechet distances between sets of scenes: what the features see, against two sets of the same kind

    python benchmarks/shapes_encoder.py --card data/shapes_encoder
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes_base import filled
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.shipped import shipped_or_given
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.frechet import Gaussian, Moments, frechet_distance
from lightning_gen.metrics.intervals import wilson_interval
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.shapes.degraded import Degraded
from lightning_gen.shapes.encoder import ShapesEncoder, ShapesFeatures, readings
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import TAG_SHARES, draw_request
from lightning_gen.shapes.render import compress, noisy, render
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.randomness import numpy_generator

_BATCH, _STEPS = 256, 60
_TAGS = [tag for tag in TAG_SHARES if tag != "word"]
Change = Callable[[Tensor, int], Tensor]


class Cells(nn.Module):
    """The mean colours of 4 x 4 cells: what can be read without any learning."""

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


def scenes(count: int, purpose: str, skewed: bool = False, size: int = 32, change: Change | None = None) -> Tensor:
    """Pictures of objects, uint8, (N, 3, size, size), a function of the purpose and the number."""
    pictures = []
    for number in range(count):
        generator = numpy_generator(0, f"encoder {purpose}", number)
        tag = _TAGS[int(generator.random() * len(_TAGS))]
        picture = render(draw_scene(draw_request(generator, skewed, tag), generator), (size, size))
        pictures.append(picture if change is None else change(picture, number))
    return torch.stack(pictures)


def painted(count: int, strength: float, size: int = 32) -> Tensor:
    """Pictures of a painter of known strength."""
    painter, pictures = Degraded(strength, (size, size)), []
    for number in range(count):
        generator = numpy_generator(0, f"encoder painter {strength}", number)
        tag = _TAGS[int(generator.random() * len(_TAGS))]
        pictures.append(painter.picture(draw_request(generator, False, tag), generator))
    return torch.stack(pictures)


def features(extractor: ModuleExtractor, images: Tensor) -> Tensor:
    """Features of many pictures, (N, D)."""
    parts = [extractor(images[start : start + _BATCH])["pool"] for start in range(0, len(images), _BATCH)]
    return torch.cat(parts)


def probe(seen: Tensor, unseen: Tensor, true: Tensor, loss: Callable[[Tensor, Tensor], Tensor], outputs: int) -> Tensor:
    """A linear layer trained on the features of some pictures, on those of others: (N, outputs).

    Args:
        seen: features to train on, standardised here.
        unseen: features to answer for.
        true: targets of ``seen``.
        loss: to minimise, with a little weight decay.
        outputs: numbers per picture.

    Returns:
        Its answers.
    """
    mean, std = seen.mean(0), seen.std(0).clamp(min=1e-6)
    x = (seen - mean) / std
    weight, bias = torch.zeros(outputs, x.shape[1], requires_grad=True), torch.zeros(outputs, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        solver.zero_grad()
        value = loss(x @ weight.T + bias, true) + 1e-5 * weight.square().sum()
        value.backward()
        return value

    solver.step(step)
    return (((unseen - mean) / std) @ weight.T + bias).detach()


def probes(extractors: Mapping[str, ModuleExtractor], train: int, test: int, size: int) -> list[dict[str, Any]]:
    """Part (a)."""
    sets = scenes(train, "train", size=size), scenes(test, "test", size=size)
    true, asked = (readings(images.float() / 255) for images in sets)
    rows = []
    for name, extractor in extractors.items():
        seen, unseen = (features(extractor, images) for images in sets)
        pairs = probe(seen, unseen, true.pairs, F.binary_cross_entropy_with_logits, true.pairs.shape[1])
        number = probe(seen, unseen, true.number, F.cross_entropy, 5)
        right = {
            "pairs": int(((pairs > 0) == (asked.pairs > 0)).all(1).sum()),
            "number": int((number.argmax(1) == asked.number).sum()),
        }
        rows.append(
            {"features": name, "dimensions": seen.shape[1], "size": size, "pictures": test}
            | {key: {"share": value / test, "interval": wilson_interval(value, test)} for key, value in right.items()}
        )
    return rows


def distances(extractors: Mapping[str, ModuleExtractor], count: int) -> list[dict[str, Any]]:
    """Part (b): every set against the same ``count`` even, clean scenes."""

    def with_noise(picture: Tensor, number: int) -> Tensor:
        return noisy(picture, numpy_generator(0, "encoder noise", number), 12.0)

    sets = {
        "other even scenes (what is left of 0 with so many pictures)": scenes(count, "other"),
        "skewed scenes: twelve pairs are rare": scenes(count, "skewed", skewed=True),
        "noise of 12 levels": scenes(count, "noise", change=with_noise),
        "JPEG at quality 50": scenes(count, "jpeg", change=lambda picture, _: compress(picture, 50)),
        "a painter of strength 2": painted(count, 2.0),
        "a painter of strength 0": painted(count, 0.0),
        "a painter of strength -1.5": painted(count, -1.5),
    }
    reference = scenes(count, "reference")
    own = {name: gaussian(features(extractor, reference)) for name, extractor in extractors.items()}
    return [
        {"set": what, "pictures": count}
        | {name: frechet_distance(own[name], gaussian(features(extractors[name], images))) for name in extractors}
        for what, images in sets.items()
    ]


def gaussian(rows: Tensor) -> Gaussian:
    """Mean and covariance of features."""
    moments = Moments(rows.shape[1], rows[0])
    moments.add(rows)
    return moments.gaussian()


def random_encoder(width: int) -> ShapesEncoder:
    """The same network, not trained."""
    encoder = ShapesEncoder(width)
    initialise(encoder, 0)
    return encoder


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The card's tables by the names of their places."""

    def told(one: Mapping[str, Any]) -> str:
        return f"{100 * one['share']:.1f} [{100 * one['interval'][0]:.1f}, {100 * one['interval'][1]:.1f}]"

    rows = [
        f"| {row['features']} ({row['dimensions']}) | {row['size']} | {told(row['pairs'])} | {told(row['number'])} |"
        for row in found["probes"]
    ]
    head = "| features | pixels | all pairs right, % [95 %] | number right, % |\n| --- | --- | --- | --- |"
    names = [key for key in found["distances"][0] if key not in ("set", "pictures")]
    lines = [f"| {row['set']} | {' | '.join(f'{row[name]:.3f}' for name in names)} |" for row in found["distances"]]
    top = f"| against even, clean scenes | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}"
    return {"probes": "\n".join([head, *rows]), "distances": "\n".join([top, *lines])}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shapes_encoder", help="folder (the shipped ones)")
    parser.add_argument("--card", type=Path, help="folder whose README.md gets the tables; score.json goes there too")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes_encoder_score"), help="without --card: folder")
    parser.add_argument("--train", type=int, default=8000, help="pictures that the probes learn from (%(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="pictures that they are asked about (%(default)s)")
    parser.add_argument("--count", type=int, default=5000, help="pictures of every set in (b) (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="of the pictures in (a) (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    out = options.card or options.out
    out.mkdir(parents=True, exist_ok=True)
    file = Path(shipped_or_given(options.weights)) / "model.safetensors"
    trained = ShapesFeatures(options.weights)
    extractors = {
        "encoder": ModuleExtractor(trained, "shapes-encoder"),
        "random weights": ModuleExtractor(random_encoder(trained.encoder.width), "random"),
        "mean colours of 4 x 4 cells": ModuleExtractor(Cells(), "cells"),
    }
    found = {
        "weights": {"sha256": file_sha256(file), "bytes": file.stat().st_size},
        "probes": [row for size in options.sizes for row in probes(extractors, options.train, options.test, size)],
        "distances": distances(extractors, options.count),
    }
    (out / "score.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    made = tables(found)
    print("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()))
    if options.card is not None:
        card = options.card / "README.md"
        card.write_text(filled(card.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(f"\nsaved under {out}")


if __name__ == "__main__":
    main()
