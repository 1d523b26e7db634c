"""GenEval as a reward: what a detector finds, held against the objects, numbers, colours and positions of a prompt.

The rules are those of ``metrics/compositional/geneval_rules.py``; any detector fits, also an exact one.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_gen.backbones.weights import MissingWeightsError, fetch_weights, read_config
from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.interfaces import Detector
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.metrics.compositional.geneval_prompts import TAGS, GenEvalPrompt, parse_prompt
from lightning_gen.metrics.compositional.geneval_rules import RuleResult
from lightning_gen.metrics.detectors import (
    GENEVAL_NAMES,
    ColorClassifier,
    GroundingDINODetector,
    Mask2FormerDetector,
)
from lightning_gen.metrics.geneval import GenEvalJudge, NamesColors
from lightning_gen.metrics.images import Images
from lightning_gen.metrics.judging.judges import image_sha256
from lightning_gen.rewards.applicability import check_batch
from lightning_gen.rewards.weights import needs_of_clip, needs_of_network
from lightning_gen.training.needs import ModelNeeds, add_needs

__all__ = ["GenEvalReward"]

_DETECTORS: Final[dict[str, Callable[[str], Detector]]] = {
    "mask2former": Mask2FormerDetector,
    "grounding-dino": GroundingDINODetector,
}

_Part = TypeVar("_Part")
_PARTS: Final[weakref.WeakValueDictionary[Hashable, Any]] = weakref.WeakValueDictionary()
_LOADING: Final = threading.RLock()
_REMEMBERED: Final = 4096
"""Verdicts that a shared judge keeps: more than the pictures of a rollout on one device."""


class GenEvalReward:
    """GenEval's record of a prompt, met or not, or how nearly.

    ``dense``: the mean of a list to which every clause adds 1 - |want - found| / want (negative for many false
    positives) and, with a colour or a position, 0 if that number is wrong, else 1 - |want - of that colour| / want
    and 1 or 0 for the position. ``strict``: 1 if all clauses are met with exact numbers, else 0. ``benchmark``: 1 if
    GenEval's verdict is correct, else 0 (more objects than wanted do no harm, ``exclude`` counts).

    Prompts without GenEval's record (``tag``, ``include``) or with a tag that GenEval does not know are not applicable;
    a record that is wrong is an error. Weights are read by ``load`` or by the first picture.

    Rewards that name the same weights share the networks, also with their copies; where the rules are the same, too, a
    picture that one of them has judged is not looked at again by the others.

    Args:
        detector: finds objects: folder or hub id of a Mask2Former of COCO's instances, GenEval's kind
            (``facebook/mask2former-swin-small-coco-instance``), or of a Grounding DINO; or a detector. Where it names
            colours, too (a method ``colors``), nothing else does.
        score: which of the three.
        colors: names colours.
        color_clip: a CLIP that names colours, as GenEval does: folder or hub id (``openai/clip-vit-large-patch14``).
            One of the two, where the detector names none and prompts ask for colours.
        classes: all classes of the detector; None = its attribute ``classes``, or GenEval's 80.
        rules: the numbers; None = those of the benchmark (threshold 0.3, 0.9 for counting, 16 objects of a class).

    Raises:
        ValueError: ``colors`` and ``color_clip``, or another score.

    Source: arXiv:2310.11513; repository yifan123/flow_grpo (dense, strict). deviates: see ``apply_rules``.
    """

    def __init__(
        self,
        detector: str | Detector,
        score: Literal["dense", "strict", "benchmark"] = "dense",
        colors: NamesColors | None = None,
        color_clip: str | None = None,
        classes: tuple[str, ...] | None = None,
        rules: GenEvalRules | None = None,
    ) -> None:
        if score not in ("dense", "strict", "benchmark"):
            raise ValueError(f"score is dense, strict or benchmark, got {score!r}")
        if colors is not None and color_clip is not None:
            raise ValueError("colours are named by `colors` or by `color_clip`, not by both")
        self.score, self.color_clip, self.classes, self.rules = score, color_clip, classes, rules
        self._detector, self._colors = detector, colors
        self._judge: GenEvalJudge | None = None

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether the weights that are named are here, see ``RewardSuite.needs``."""
        detector, clip = init_args.get("detector"), init_args.get("color_clip")
        parts = [needs_of_network("GenEval's detector", detector)] if isinstance(detector, str) else []
        return add_needs([*parts, *([needs_of_clip("CLIP of GenEval's colours", clip)] if clip is not None else [])])

    def load(self) -> None:
        """Read the weights, if that has not happened yet.

        Raises:
            MissingWeightsError: they are absent or damaged, or those of another kind of network.
        """
        if self._judge is not None:
            return
        if isinstance(self._detector, str) and self._colors is None:
            key = ("judge", self._detector, self.color_clip, self.classes and tuple(self.classes), self.rules)
            self._judge = _shared(key, lambda: self._open(_RememberingJudge))
        else:
            self._judge = self._open(GenEvalJudge)

    def _open(self, kind: type[GenEvalJudge]) -> GenEvalJudge:
        detector, colors = self._detector, self._colors
        if isinstance(detector, str):
            detector = _shared(("detector", detector), lambda: _open_detector(str(self._detector)))
        if self.color_clip is not None:
            colors = _shared(("colors", self.color_clip), lambda: ColorClassifier.load(str(self.color_clip)))
        classes = self.classes or getattr(detector, "classes", None) or GENEVAL_NAMES
        return kind(detector, classes, colors or getattr(detector, "colors", None), self.rules)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, here or in another process, shares the networks of its own process, or reads them anew."""
        return {**self.__dict__, "_judge": None}

    @property
    def judge(self) -> GenEvalJudge:
        """Detector, colours and rules, loaded."""
        self.load()
        assert self._judge is not None
        return self._judge

    @property
    def fingerprint(self) -> str | None:
        """Detector, colours, rules and score; None where one of them does not say what it is."""
        judge = self.judge
        parts = [getattr(judge.detector, "fingerprint", None)]
        if isinstance(judge.colors, ColorClassifier):
            parts.append(judge.colors.fingerprint)
        elif judge.colors is not None and judge.colors != getattr(judge.detector, "colors", None):
            parts.append(getattr(judge.colors, "fingerprint", None))
        if None in parts:
            return None
        return f"geneval-{self.score} {' '.join(map(str, parts))} {judge.classes} {judge.rules}"

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """See :class:`SaysWhereItApplies`."""
        for key in ("tag", "include"):
            if key not in metadata:
                return f'the metadata lack "{key}" of GenEval\'s record, they have: {", ".join(metadata) or "nothing"}'
        if metadata["tag"] not in TAGS:
            return f"GenEval does not know the tag {metadata['tag']!r}; known: {', '.join(TAGS)}"
        return None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: B records of GenEval: ``tag`` and ``include``, perhaps ``exclude``.

        Returns:
            float32, (B,), at most 1; NaN where there is no record of GenEval.

        Raises:
            ValueError: images, prompts and metadata that do not belong together; a record that is wrong; a class that
                the detector does not know; a colour is asked for and nothing names colours.
        """
        check_batch(images, prompts, metadata)
        judge = self.judge
        rows = [row for row, prompt in enumerate(prompts) if self.inapplicable(prompt, metadata[row]) is None]
        asked = [
            parse_prompt({**metadata[row], "prompt": prompts[row]}, f"prompt {prompts[row]!r}", judge.classes)
            for row in rows
        ]
        scores = torch.full((len(images),), torch.nan)
        if not rows:
            return scores
        for network in (judge.detector, getattr(judge.colors, "clip", None)):
            if isinstance(network, nn.Module):
                network.to(images.device)
        with torch.no_grad():
            results = judge(unit_to_uint8(images[rows]), asked)
        for row, result in zip(rows, results, strict=True):
            values = {"dense": result.reward, "strict": result.exact, "benchmark": result.correct}
            scores[row] = float(values[self.score])
        return scores


class _RememberingJudge(GenEvalJudge):
    """A judge that several rewards ask about the same pictures, one after the other or from several threads."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._judging = threading.Lock()
        self._known: OrderedDict[tuple[str, GenEvalPrompt], RuleResult] = OrderedDict()

    def __call__(self, images: Images, prompts: Sequence[GenEvalPrompt]) -> list[RuleResult]:
        keys = [(image_sha256(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        with self._judging:
            found = {key: self._known[key] for key in keys if key in self._known}
            new = {key: place for place, key in enumerate(keys) if key not in found}
            if new:
                judged = super().__call__([images[place] for place in new.values()], [key[1] for key in new])
                found |= zip(new, judged, strict=True)
                self._known |= found
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return [found[key] for key in keys]


def _shared(key: Hashable, make: Callable[[], _Part]) -> _Part:
    """What somebody holds under this key, or a new one; it lives as long as somebody holds it."""
    with _LOADING:
        part: _Part | None = _PARTS.get(key)
        if part is None:
            part = _PARTS[key] = make()
        return part


def _open_detector(source: str) -> Detector:
    folder = fetch_weights(source)
    kind = read_config(folder).get("model_type")
    if kind not in _DETECTORS:
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {kind!r}, no detector of {' or '.join(_DETECTORS)}: give another "
            "source, or a detector with its class_path"
        )
    return _DETECTORS[kind](source)
