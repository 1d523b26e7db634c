"""The kinds of synthetic sets: a table that other rooms may extend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from lightning_gen.data.synth.edits import edit_samples, edit_truth
from lightning_gen.data.synth.imagenet import class_samples, class_truth
from lightning_gen.data.synth.options import Sample, SynthOptions
from lightning_gen.data.synth.preference import pair_samples, pair_truth, winner_first_samples
from lightning_gen.data.synth.text_image import caption_samples, caption_truth

__all__ = ["KINDS", "Kind", "register"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A synthetic set.

    Attributes:
        summary: a line for people.
        samples: options -> samples, a pure function.
        truth: options -> what is true of the set, plain JSON values; written beside it.
    """

    summary: str
    samples: Callable[[SynthOptions], Iterator[Sample]]
    truth: Callable[[SynthOptions], dict[str, Any]]


KINDS: dict[str, Kind] = {
    "preference": Kind("pairs like Pick-a-Pic's by four models of known strength", pair_samples, pair_truth),
    "hpdv3": Kind("the same, the preferred picture first, with confidence and votes", winner_first_samples, pair_truth),
    "imagenet": Kind("labelled pictures, one pattern per class", class_samples, class_truth),
    "text_image": Kind("pictures of coloured shapes with captions that name them", caption_samples, caption_truth),
    "edits": Kind("scenes before and after an edit with its parameters", edit_samples, edit_truth),
}
"""Name -> kind. Another room adds its own with :func:`register`."""


def register(name: str, kind: Kind) -> None:
    """Add a kind.

    Args:
        name: what `lightning data synth` calls it.
        kind: the kind.

    Raises:
        ValueError: the name is taken.
    """
    if name in KINDS:
        raise ValueError(f"there is a synthetic set {name!r} already")
    KINDS[name] = kind
