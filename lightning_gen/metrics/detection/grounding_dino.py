"""Grounding DINO through transformers: boxes for any class that can be named, without masks.

Its scores are not those of GenEval's detector: results carry their own protocol id and must not be quoted as GenEval.

Shape letters: B images, Q queries, T text tokens, C classes, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from lightning_gen.backbones.weights import MissingWeightsError, fetch_files
from lightning_gen.interfaces import Detections
from lightning_gen.metrics.detection.detector_network import FrozenDetector, measuring, swin_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "GroundedBoxes",
    "GroundingDINODetector",
    "Prompt",
    "boxes_from_queries",
    "class_tokens",
    "detection_prompt",
]

# The network cuts its text at the tokens with these numbers, which are written into its code.
_DELIMITERS: Final = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}


class Prompt(NamedTuple):
    """The text that the network reads.

    Attributes:
        text: lower case, ``"cat. traffic light."``.
        spans: where each class stands in it, first character and one beyond the last.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class GroundedBoxes(NamedTuple):
    """Objects in one picture, the surest first.

    Attributes:
        scores: float, (N,), in [0, 1].
        labels: int64, (N,), number of the class in the prompt.
        queries: int64, (N,), query that found the object.
        boxes: float, (N, 4), pixels x0, y0, x1, y1 within the picture.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor
    boxes: Tensor


def detection_prompt(classes: Sequence[str]) -> Prompt:
    """Write classes in the form that the network was trained with: lower case, each followed by a full stop.

    Args:
        classes: at least one name; none may hold a full stop or a question mark, which end a phrase.

    Returns:
        The text, and where each class stands.

    Raises:
        ValueError: no class, an empty one, one that would be cut, or the same class twice.
    """
    plain = [" ".join(name.lower().split()) for name in classes]
    if not plain:
        raise ValueError("no classes to look for: give at least one name")
    for name, text in zip(classes, plain, strict=True):
        if not text or "." in text or "?" in text:
            raise ValueError(f"{name!r} cannot be asked for: a class is a phrase without a full stop or question mark")
        if plain.count(text) > 1:
            raise ValueError(f"the class {text!r} is asked for twice")
    spans, start = [], 0
    for text in plain:
        spans.append((start, start + len(text)))
        start += len(text) + len(". ")
    return Prompt(". ".join(plain) + ".", tuple(spans))


def class_tokens(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Which tokens belong to which class.

    Args:
        offsets: T places of tokens in the text, first character and one beyond the last; (0, 0) for special tokens.
        spans: C places of the classes in the text.

    Returns:
        bool, (C, T); full stops and special tokens belong to no class.

    Raises:
        ValueError: a class without a token.
    """
    places, wanted = torch.tensor(offsets), torch.tensor(spans)[:, :, None]
    starts, ends = places.T
    inside: Tensor = (starts >= wanted[:, 0]) & (ends <= wanted[:, 1]) & (ends > starts)
    empty = (~inside.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the tokenizer has no token for class number {empty[0]} of the prompt: name it differently")
    return inside


def boxes_from_queries(
    logits: Tensor,
    boxes: Tensor,
    tokens: Tensor,
    size: tuple[int, int],
    threshold: float = 0.25,
    text_threshold: float = 0.25,
) -> GroundedBoxes:
    """Turn the queries of one picture into detections.

    s_qc = max over the tokens t of class c of sigmoid(logits_qt)

    A query counts if its best s_qc is above ``threshold``; it then names each class with s_qc above ``text_threshold``
    (both strictly), and s_qc is the score. Boxes (centre and size, as shares of the picture) become corners in pixels,
    cut at the edge of the picture; what has no area left is dropped. Equal scores keep the order of (query, class).

    Args:
        logits: float, (Q, at least T), minus infinity where there is no token.
        boxes: float, (Q, 4), x and y of the centre, width, height, each in [0, 1].
        tokens: bool, (C, T), tokens of each class.
        size: H and W of the picture.
        threshold: least score of a query's best class, in [0, 1].
        text_threshold: least score of any class that it names, in [0, 1].

    Returns:
        The detections.

    Raises:
        ValueError: shapes that do not belong together, or numbers that are NaN.

    Source: arXiv:2303.05499. deviates: the library collects all tokens above ``text_threshold`` into one phrase, which
    may mix classes, and its score is the best over all tokens, full stops and special tokens included.
    """
    if logits.ndim != 2 or boxes.shape != (logits.shape[0], 4) or tokens.ndim != 2:
        raise ValueError(
            f"need logits (Q, T), boxes (Q, 4) and tokens (C, T), got {tuple(logits.shape)}, {tuple(boxes.shape)} and "
            f"{tuple(tokens.shape)}"
        )
    if tokens.shape[1] > logits.shape[1]:
        raise ValueError(f"{tokens.shape[1]} text tokens, but the network gives scores for {logits.shape[1]}")
    if logits.isnan().any() or boxes.isnan().any():
        raise ValueError("the detector's output is NaN: look at its weights and at the picture")
    shares = logits[:, : tokens.shape[1]].sigmoid()
    # One class at a time: all queries x classes x tokens at once would be large for a long prompt.
    scores = torch.stack([shares[:, own].amax(1) for own in tokens.to(shares.device)], 1)
    named = (scores.amax(1, keepdim=True) > threshold) & (scores > text_threshold)
    corners = _corners(boxes, size)
    named &= (corners[:, 2:] > corners[:, :2]).all(1)[:, None]
    queries, labels = named.nonzero(as_tuple=True)
    order = scores[queries, labels].argsort(descending=True, stable=True)
    queries, labels = queries[order], labels[order]
    return GroundedBoxes(scores[queries, labels], labels, queries, corners[queries])


def _corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    centre, extent = boxes[:, :2], boxes[:, 2:]
    edge = boxes.new_tensor([size[1], size[0]])
    return (
        torch.cat([(centre - extent / 2) * edge, (centre + extent / 2) * edge], 1).clamp(min=0).minimum(edge.repeat(2))
    )


class GroundingDINODetector(FrozenDetector):
    """Grounding DINO, for classes that COCO does not have; satisfies :class:`lightning_gen.interfaces.Detector`.

    The published networks are ``IDEA-Research/grounding-dino-tiny`` and ``-base``. Its scores run lower than
    Mask2Former's, so GenEval's thresholds (0.3, and 0.9 for counting) do not fit it: calibrate the rules first.

    Args:
        source: folder with ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and
            ``tokenizer.json``, or a hub id.
        threshold: least score of a query's best class, in [0, 1].
        text_threshold: least score of any class that a query names, in [0, 1].
        revision: branch, tag or commit of the hub repository.
        name: how protocol ids call it; None = from the architecture, ``"gdino-swin-t-hf"`` for a tiny Swin.

    Raises:
        MissingWeightsError: the weights or the tokenizer are absent, damaged, or not of a Grounding DINO.
        ImportError: transformers is not installed.

    Source: arXiv:2303.05499.
    """

    prescribed_by_geneval: Final = False
    """GenEval prescribes another detector."""

    def __init__(
        self,
        source: str,
        threshold: float = 0.25,
        text_threshold: float = 0.25,
        revision: str | None = None,
        name: str | None = None,
    ) -> None:
        for which, value in (("threshold", threshold), ("text_threshold", text_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{which} must be in [0, 1], got {value}")
        tokenizer = _read_tokenizer(fetch_files(source, ["tokenizer.json"], revision=revision))
        super().__init__(source, revision, "grounding-dino", "GroundingDinoForObjectDetection")
        self.tokenizer = tokenizer
        self.threshold, self.text_threshold = threshold, text_threshold
        backbone = self.config.backbone_config
        self.name = name or f"gdino-swin-{swin_name(backbone.embed_dim, backbone.depths)}-hf"

    def forward(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        """Detect objects.

        Args:
            images: float, (B, 3, H, W) in [0, 1]; the next call may bring another size.
            classes: names to look for, for instance ``"traffic light"``.

        Returns:
            One record per image, the surest object first, with the names as they were asked for and without masks.

        Raises:
            ValueError: images that are not such a batch, or classes that do not fit into a prompt.
        """
        size = self._size_of(images)
        names = tuple(dict.fromkeys(classes))
        prompt = detection_prompt(names)
        text = self.tokenizer.encode(prompt.text)
        limit = self.config.max_text_len
        if len(text.ids) > limit:
            raise ValueError(
                f"{len(names)} classes are {len(text.ids)} tokens, the network reads {limit}: ask for fewer at a time"
            )
        tokens = class_tokens(text.offsets, prompt.spans)
        with measuring(images.device):
            pixels, (height, width) = self._take(images)
            pixel_mask = torch.zeros(pixels[:, 0].shape, dtype=torch.int64, device=images.device)
            pixel_mask[:, :height, :width] = 1
            ids = torch.tensor([text.ids], device=images.device).expand(images.shape[0], -1)
            output = self.network(
                pixel_values=pixels,
                pixel_mask=pixel_mask,
                input_ids=ids,
                token_type_ids=torch.zeros_like(ids),
                attention_mask=torch.ones_like(ids),
            )
            found = [
                boxes_from_queries(logits, boxes, tokens, size, self.threshold, self.text_threshold)
                for logits, boxes in zip(output.logits, output.pred_boxes, strict=True)
            ]
        return [
            Detections(one.boxes, one.scores, tuple(names[label] for label in one.labels.tolist())) for one in found
        ]


def _read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without the cutting and filling up that may have been saved with it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError("Grounding DINO needs transformers: pip install transformers") from None
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise MissingWeightsError(f"{path} is not a readable tokenizer ({error}): copy it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token, number in _DELIMITERS.items():
        if tokenizer.token_to_id(token) != number:
            raise MissingWeightsError(
                f"{path} gives {token!r} the number {tokenizer.token_to_id(token)}, the network expects {number}: "
                f"copy the tokenizer from the source of the weights"
            )
    return tokenizer
