"""Exact rewards of the embedded world: what is asked for, what is written, colours, edges, and the layout of a picture.

Each has the shape of ``interfaces.Reward``, lies in [0, 1], and is NaN at prompts that it says it does not apply to
(``inapplicable``). Nothing is learned and nothing is random. Like other measures of looks, the last three can be driven
up by pictures that nobody wants; that is what they are for. GenEval's own rules with this world's detector, and the OCR
score of other readers, are ``rewards.GenEvalReward`` and ``rewards.OCRReward``.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lightning_gen.shapes.detector import FoundObject, find_objects, name_backgrounds
from lightning_gen.shapes.grammar import Phrase, Request, parse_prompt
from lightning_gen.shapes.layout import stands
from lightning_gen.shapes.reader import GlyphReader

__all__ = ["ColorHarmony", "Layout", "RequestMatch", "Sharpness", "WordMatch"]

_SEEN: Final = 0.3
"""Objects of a lower score are not there; GenEval's threshold."""
_COLORFUL: Final = 0.25
"""Largest minus smallest channel above which a pixel has a hue; no background reaches it."""


class RequestMatch:
    """How much of what the prompt asks for the exact detector finds, after the manner of GenEval.

    ``dense``: the mean of a list, divided by 1 + the number of objects of kinds that nobody asked for; the list holds
        max(0, 1 - |want - found| / want)  for each kind that is asked for,
        min(found / want, 1)               for each colour of a kind,
        1 or 0                             for the relation, and for the background.
    ``strict``: 1 where that is 1, else 0.

    Prompts outside the grammar and prompts for a word are not applicable. deviates: GenEval has no background, does
    not count other kinds, and lets its score fall below 0; ``rewards.GenEvalReward`` is exactly its rule.

    Args:
        score: which of the two.

    Raises:
        ValueError: another score.
    """

    def __init__(self, score: Literal["dense", "strict"] = "dense") -> None:
        if score not in ("dense", "strict"):
            raise ValueError(f"score is dense or strict, got {score!r}")
        self.score = score

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply, or None; see ``rewards.applicability``."""
        if '"' in prompt:
            return "the prompt asks for a word"
        return _outside(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1], or NaN.
        """
        scores = torch.full((len(images),), math.nan)
        rows = [row for row, prompt in enumerate(prompts) if self.inapplicable(prompt, metadata[row]) is None]
        if rows:
            grounds = name_backgrounds(images[rows])
            for row, objects, ground in zip(rows, _objects(images[rows]), grounds, strict=True):
                met = _met(parse_prompt(prompts[row]), objects, ground)
                scores[row] = met if self.score == "dense" else float(met == 1)
        return scores


class WordMatch:
    """How much of the word that the prompt quotes is read in the picture.

    reward = 1 if the word is part of what was read, else 1 - min(Levenshtein(read, word), |word|) / |word|

    Prompts outside the grammar and prompts that quote no word are not applicable.

    Args:
        least: share of the picture that what is read must explain, see ``GlyphReader``.

    Source: repository yifan123/flow_grpo, flow_grpo/ocr.py.
    """

    def __init__(self, least: float = 0.55) -> None:
        self.reader = GlyphReader(least)

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply, or None; see ``rewards.applicability``."""
        return _outside(prompt) if '"' in prompt else "the prompt quotes no word"

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1], or NaN.
        """
        scores = torch.full((len(images),), math.nan)
        for row, prompt in enumerate(prompts):
            if self.inapplicable(prompt, metadata[row]) is None:
                read = "".join(word for word, _ in self.reader(images[row].detach().cpu()))
                scores[row] = _read_share(read, parse_prompt(prompt).word)
        return scores


class ColorHarmony:
    """Whether the hues of a picture are alike or opposite.

    reward = |sum_p c_p exp(2 i h_p)| / sum_p c_p,  over pixels p of chroma c = max - min of the channels above 0.25,
    h = the hue as an angle

    1 for one hue, or for two complementary ones; 1/2 and less for three or more that are spread out. Backgrounds,
    black and white have no hue; a picture without any scores 0. Applies to all prompts.
    """

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply, or None; see ``rewards.applicability``."""
        return None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: not used.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1].
        """
        pixels = images.detach().double().clamp(0, 1).flatten(2)
        red, green, blue = pixels.unbind(1)
        # The hue is the angle of the colour seen along the grey axis.
        hue = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
        chroma = pixels.amax(1) - pixels.amin(1)
        chroma = chroma.where(chroma > _COLORFUL, 0)
        whole = chroma.sum(1)
        length = torch.polar(chroma, 2 * hue).sum(1).abs()
        return (length / whole.clamp(min=1e-12)).float().clamp(max=1)


class Sharpness:
    """How steep the edges of a picture are.

    reward = sum d^2 / (A sum d),  d = the largest difference of a channel between neighbours, across and down,
    A = the largest range of a channel over the picture

    1 where every edge goes from darkest to lightest within one step, 1/k where it takes k of them; a picture of one
    colour scores 0. Applies to all prompts.
    """

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply, or None; see ``rewards.applicability``."""
        return None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: not used.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1].
        """
        pixels = images.detach().double().clamp(0, 1)
        steps = [(pixels[..., 1:, :] - pixels[..., :-1, :]), (pixels[..., 1:] - pixels[..., :-1])]
        differences = torch.cat([step.abs().amax(1).flatten(1) for step in steps], 1)
        flat = pixels.flatten(2)
        extent = (flat.amax(2) - flat.amin(2)).amax(1)
        scale = (extent * differences.sum(1)).clamp(min=1e-12)
        return (differences.square().sum(1) / scale).float().clamp(max=1)


class Layout:
    """Whether objects stand whole, apart and balanced in the picture.

    reward = (inside + apart + balanced) / 3
    inside   = share of the objects whose squares of half edge radius lie in the picture
    apart    = share of the pairs of objects whose squares do not overlap, 1 without a pair
    balanced = 1 - max(|x - W/2| / (W/2), |y - H/2| / (H/2)),  (x, y) = mean of the centres weighted by radius^2

    A picture without objects scores 0. Prompts for a word are not applicable.
    """

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply, or None; see ``rewards.applicability``."""
        return "the prompt asks for a word" if '"' in prompt else None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1], or NaN.
        """
        scores = torch.full((len(images),), math.nan)
        rows = [row for row, prompt in enumerate(prompts) if self.inapplicable(prompt, metadata[row]) is None]
        if rows:
            height, width = images.shape[-2:]
            for row, objects in zip(rows, _objects(images[rows]), strict=True):
                scores[row] = _laid_out(objects, height, width)
        return scores


def _outside(prompt: str) -> str | None:
    try:
        parse_prompt(prompt)
    except ValueError as error:
        return f"the prompt is not one of the embedded world: {error}"
    return None


def _objects(images: Tensor) -> list[list[FoundObject]]:
    return [[one for one in found if one.score >= _SEEN] for found in find_objects(images.float())]


def _met(request: Request, objects: Sequence[FoundObject], background: str) -> float:
    """The dense score of ``RequestMatch``."""
    kinds, colors = collections.Counter[str](), collections.Counter[tuple[str, str]]()
    for phrase in request.phrases:
        kinds[phrase.kind] += phrase.count
        if phrase.color:
            colors[phrase.kind, phrase.color] += phrase.count
    seen = collections.Counter(one.kind for one in objects)
    painted = collections.Counter((one.kind, one.color) for one in objects)
    parts = [max(0.0, 1 - abs(want - seen[kind]) / want) for kind, want in kinds.items()]
    parts += [min(painted[pair] / want, 1.0) for pair, want in colors.items()]
    if request.relation is not None:
        first, second = ([one for one in objects if _is(one, phrase)] for phrase in request.phrases)
        pairs = [(one, other) for one in first for other in second if one is not other]
        parts.append(float(any(stands(one, other, request.relation) for one, other in pairs)))
    if request.background is not None:
        parts.append(float(background == request.background))
    others = sum(number for kind, number in seen.items() if kind not in kinds)
    return sum(parts) / len(parts) / (1 + others)


def _is(found: FoundObject, phrase: Phrase) -> bool:
    return found.kind == phrase.kind and phrase.color in (None, found.color)


def _read_share(read: str, word: str) -> float:
    from torchmetrics.functional.text import edit_distance

    distance = 0.0 if word in read else float(edit_distance(read, word, reduction="sum"))
    return 1 - min(distance, len(word)) / len(word)


def _laid_out(objects: Sequence[FoundObject], height: int, width: int) -> float:
    if not objects:
        return 0.0
    inside = [min(one.x, one.y, width - one.x, height - one.y) >= one.radius for one in objects]
    apart = [
        max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius
        for number, one in enumerate(objects)
        for other in objects[:number]
    ]
    mass = sum(one.radius**2 for one in objects)
    x, y = (sum(one.radius**2 * getattr(one, axis) for one in objects) / mass for axis in ("x", "y"))
    balanced = 1 - max(abs(2 * x / width - 1), abs(2 * y / height - 1))
    shares = sum(inside) / len(inside), sum(apart) / len(apart) if apart else 1.0, max(balanced, 0.0)
    return sum(shares) / 3
