"""The colour of a detected object, as GenEval tells it: CLIP on the object alone, on a grey ground.

Shape letters: H and W height and width of the picture, N objects, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.compositional.geneval_prompts import COLORS

__all__ = ["ColorClassifier", "Embedder", "color_prompts", "crop_object", "pil_crop_ends"]

_GREY: Final = 0x99

# Crops that are embedded at a time.
_BATCH: Final = 16


class Embedder(Protocol):
    """What the classifier needs of a CLIP; :func:`lightning_gen.metrics.extraction.clip.load_clip` gives one."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights."""
        ...

    def embed_images(self, images: Sequence[Tensor], /) -> Tensor:
        """Embed pictures.

        Args:
            images: uint8, each (3, H, W).

        Returns:
            (B, D) of length 1.
        """
        ...

    def embed_texts(self, texts: Sequence[str], /) -> Tensor:
        """Embed texts.

        Args:
            texts: any number.

        Returns:
            (B, D) of length 1.
        """
        ...


def color_prompts(class_name: str) -> list[list[str]]:
    """The three texts for each colour.

    Args:
        class_name: the object, as the prompt names it.

    Returns:
        One list per colour, in the order of ``COLORS``.

    Source: arXiv:2310.11513, section on colour; the wording is that of its code.
    """
    return [
        [
            f"a photo of a {color} {class_name}",
            f"a photo of a {color}-colored {class_name}",
            f"a photo of a {color} object",
        ]
        for color in COLORS
    ]


def pil_crop_ends(box: Tensor) -> tuple[int, int, int, int]:
    """Whole pixels of a box.

    Every end is rounded to the nearest whole number, halves to the even one, as Pillow's ``crop`` does.

    Args:
        box: float, (4,), x0, y0, x1, y1 with x0 <= x1 and y0 <= y1.

    Returns:
        x0, y0, x1, y1; x1 and y1 are one beyond the last pixel.

    Raises:
        ValueError: ends in the wrong order.

    deviates: a box that rounds to nothing is widened to one pixel; there the original code stops with an error.
    """
    left, top, right, bottom = box.tolist()
    if not (left <= right and top <= bottom):
        raise ValueError(f"the box {box.tolist()} is not x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    x0, y0, x1, y1 = round(left), round(top), round(right), round(bottom)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def crop_object(image: Tensor, box: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cut an object out of a picture.

    Args:
        image: uint8, (3, H, W).
        box: float, (4,), pixels x0, y0, x1, y1.
        mask: bool, (H, W), pixels of the object; what else is in the box becomes grey, #999999. None = all is kept.

    Returns:
        uint8, (3, y1 - y0, x1 - x0), black where the box reaches beyond the picture.

    Source: arXiv:2310.11513, section on colour.
    """
    if mask is not None:
        image = torch.where(mask.to(image.device), image, _GREY)
    height, width = image.shape[-2:]
    x0, y0, x1, y1 = pil_crop_ends(box)
    inside = image[:, min(max(y0, 0), height) : max(y1, 0), min(max(x0, 0), width) : max(x1, 0)]
    out = image.new_zeros(3, y1 - y0, x1 - x0)
    top, left = max(-y0, 0), max(-x0, 0)
    out[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return out


class ColorClassifier:
    """Which of GenEval's ten colours an object has.

    w_c = normalised mean of the normalised embeddings of the three texts of colour c;  colour = argmax_c <w_c, image>

    GenEval takes CLIP ViT-L/14 with OpenAI's weights; another CLIP works, and its fingerprint belongs to the result.

    Args:
        clip: embeds pictures and texts.

    Source: arXiv:2310.11513, section on colour.
    """

    def __init__(self, clip: Embedder) -> None:
        self.clip = clip
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, source: str, model: str | None = None, revision: str | None = None) -> ColorClassifier:
        """Read a CLIP from a local folder or the hub.

        Args:
            source: local folder or hub id, for instance ``openai/clip-vit-large-patch14``.
            model: open_clip's name of the architecture, for weights in its layout.
            revision: branch, tag or commit of the hub repository.

        Returns:
            The classifier.

        Raises:
            MissingWeightsError: the weights are absent or damaged.
        """
        from lightning_gen.metrics.extraction.clip import load_clip

        return cls(load_clip(source, model, revision))

    @property
    def fingerprint(self) -> str:
        """sha256 of CLIP's weights."""
        return self.clip.fingerprint

    def __call__(self, image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        """Name the colours of objects of one class in one picture.

        Args:
            image: uint8, (3, H, W).
            boxes: float, (N, 4), pixels x0, y0, x1, y1.
            masks: bool, (N, H, W), or None.
            class_name: what the objects are, as the prompt names it.

        Returns:
            One of ``COLORS`` per object; the first of equally likely ones.

        Raises:
            ValueError: a picture, boxes or masks of another kind or shape.
        """
        _check(image, boxes, masks)
        colors: list[str] = []
        for start in range(0, len(boxes), _BATCH):
            crops = [
                crop_object(image, boxes[number], None if masks is None else masks[number])
                for number in range(start, min(start + _BATCH, len(boxes)))
            ]
            pictures = self.clip.embed_images(crops)
            likeness = pictures @ self._classifier(class_name).to(pictures.device).T
            colors += [COLORS[index] for index in likeness.argmax(1).tolist()]
        return colors

    def _classifier(self, class_name: str) -> Tensor:
        """The ten directions (10, D) of a class, made once."""
        if class_name not in self._texts:
            prompts = color_prompts(class_name)
            texts = self.clip.embed_texts([text for color in prompts for text in color])
            means = F.normalize(texts, dim=-1).reshape(len(prompts), len(prompts[0]), -1).mean(1)
            self._texts[class_name] = F.normalize(means, dim=-1)
        return self._texts[class_name]


def _check(image: Tensor, boxes: Tensor, masks: Tensor | None) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"need one uint8 picture (3, H, W), got {image.dtype} {tuple(image.shape)}: convert it with "
            f"lightning_gen.data.transforms.signed_to_uint8 or unit_to_uint8"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"need boxes of shape (N, 4), got {tuple(boxes.shape)}")
    expected = (boxes.shape[0], *image.shape[1:])
    if masks is not None and (masks.dtype != torch.bool or masks.shape != expected):
        raise ValueError(f"need bool masks of shape {expected}, got {masks.dtype} {tuple(masks.shape)}")
