"""The colour of an object: the crop against Pillow's, the arithmetic of the prompts, and a tiny CLIP."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.compositional.geneval_prompts import COLORS
from lightning_gen.metrics.detection.colors import ColorClassifier, color_prompts, crop_object, pil_crop_ends
from lightning_gen.metrics.extraction.clip import load_clip
from tests.harness.tiny_clip import write_tiny_clip

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def picture(height: int = 9, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


class Script:
    """Embeds a picture as its mean colour, and texts as told; notes what it was asked."""

    fingerprint = "script"

    def __init__(self, texts: dict[str, list[float]] | None = None) -> None:
        self.texts = texts
        self.asked: list[list[str]] = []
        self.seen: list[list[Tensor]] = []

    def embed_images(self, images: Sequence[Tensor]) -> Tensor:
        self.seen.append([*images])
        return F.normalize(torch.stack([image.double().mean((1, 2)) + 1e-3 for image in images]), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.asked.append([*texts])
        return torch.tensor([self._text(text) for text in texts], dtype=torch.float64)

    def _text(self, text: str) -> list[float]:
        if self.texts is not None:
            return self.texts[text]
        shade = next((rgb for color, rgb in RGB.items() if color in text), (-1, -1, -1))
        return [part / 255 for part in shade]


def test_the_texts_are_the_benchmarks() -> None:
    assert len(color_prompts("cat")) == 10
    assert color_prompts("tv remote")[5] == [
        "a photo of a purple tv remote",
        "a photo of a purple-colored tv remote",
        "a photo of a purple object",
    ]


def test_crops_are_pillows() -> None:
    image, rng = picture(), random.Random(0)
    mask = picture(seed=1)[0] > 100
    grey = Image.new("RGB", (12, 9), color="#999")
    cut = Image.composite(as_pil(image), grey, Image.fromarray(mask.numpy()))
    boxes = [
        [0.5, 1.5, 2.5, 3.5],
        [0.0, 0.0, 12.0, 9.0],
        [-2.4, -0.6, 4.0, 3.0],
        [8.0, 6.0, 14.2, 11.0],
        [13, 1, 15, 4],
    ]
    for _ in range(200):
        left, top = rng.uniform(-3, 11), rng.uniform(-3, 8)
        boxes.append([left, top, left + rng.uniform(1.01, 8), top + rng.uniform(1.01, 6)])
    for box in boxes:
        exact = torch.tensor(box, dtype=torch.float64)
        for ours, theirs in ((crop_object(image, exact), as_pil(image)), (crop_object(image, exact, mask), cut)):
            assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(theirs.crop(tuple(box)))), box


def test_halves_round_to_even_and_nothing_becomes_a_pixel() -> None:
    assert pil_crop_ends(torch.tensor([0.5, 1.5, 2.5, 3.5])) == (0, 2, 2, 4)
    assert pil_crop_ends(torch.tensor([3.2, 4.0, 3.4, 4.0])) == (3, 4, 4, 5)
    with pytest.raises(ValueError, match="x0 <= x1"):
        pil_crop_ends(torch.tensor([2.0, 0.0, 1.0, 1.0]))


def test_the_object_is_told_from_its_ground_by_the_mask() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[2] = 255  # blue, with a red object
    image[:, 2:5, 3] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:5, 3] = True
    box, clip = torch.tensor([[1.0, 1.0, 6.0, 6.0]]), Script()
    classifier = ColorClassifier(clip)
    assert classifier(image, box, None, "ball") == ["blue"]
    # 22 of 25 pixels are grey: the mean is nearly grey with a touch of red, and grey is nearest to white.
    assert classifier(image, box, mask, "ball") == ["white"]
    assert classifier(image, torch.tensor([[3.0, 2.0, 4.0, 5.0]]), mask, "ball") == ["red"]
    crop = clip.seen[1][0]
    assert crop.shape == (3, 5, 5) and crop[:, 0, 0].tolist() == [0x99] * 3 and crop[:, 1, 2].tolist() == [255, 0, 0]


def test_texts_are_normalised_before_and_after_the_mean() -> None:
    texts = {text: [-1.0, 0.0, 0.0] for color in color_prompts("cat") for text in color}
    # Red: one long text along x and two along y. Its direction is (1, 2) / sqrt(5), whatever the lengths.
    texts |= dict(zip(color_prompts("cat")[0], [[9.0, 0, 0], [0, 1.0, 0], [0, 0.5, 0]], strict=True))
    # Green: along x, from three texts so far apart that their mean is short.
    texts |= dict(zip(color_prompts("cat")[3], [[1.0, 0, 0], [0.28, 0, 0.96], [0.28, 0, -0.96]], strict=True))
    image = torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    # Green 0.894, red 0.8. Red would win with 0.955 if its long text counted more, and with 0.596 against 0.465 if the
    # means kept their lengths.
    assert ColorClassifier(Script(texts))(image, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), None, "cat") == ["green"]


def test_texts_of_a_class_are_embedded_once_and_crops_in_batches() -> None:
    clip = Script()
    classifier = ColorClassifier(clip)
    image = torch.tensor(RGB["green"], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(37, 4)
    assert classifier(image, boxes, torch.ones(37, 8, 8, dtype=torch.bool), "cup") == ["green"] * 37
    assert classifier(image, boxes[:1], None, "cup") == ["green"]
    assert [len(images) for images in clip.seen] == [16, 16, 5, 1]
    assert clip.asked == [[text for color in color_prompts("cup") for text in color]]
    assert classifier(image, boxes[:0], None, "fork") == [] and len(clip.asked) == 1
    assert classifier(image, boxes[:1], None, "fork") == ["green"] and len(clip.asked) == 2


def test_the_first_of_equal_colours() -> None:
    same = {text: [1.0, 1.0, 1.0] for color in color_prompts("cat") for text in color}
    assert ColorClassifier(Script(same))(picture(), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), None, "cat") == [COLORS[0]]


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_a_tiny_clip_from_a_folder(tmp_path: Path, layout: str) -> None:
    folder = write_tiny_clip(tmp_path / "clip", layout)  # type: ignore[arg-type]
    classifier, clip = ColorClassifier.load(str(folder)), load_clip(str(folder))
    image, boxes = picture(40, 48), torch.tensor([[0.0, 0.0, 20.0, 30.0], [10.2, 5.0, 44.0, 38.7]])
    masks = torch.rand(2, 40, 48, generator=torch.Generator().manual_seed(0)) > 0.3
    crops = [crop_object(image, box, mask) for box, mask in zip(boxes, masks, strict=True)]
    directions = torch.stack([clip.embed_texts(texts).mean(0) for texts in color_prompts("cat")])
    likeness = clip.embed_images(crops) @ F.normalize(directions, dim=-1).T
    assert classifier(image, boxes, masks, "cat") == [COLORS[index] for index in likeness.argmax(1)]
    assert classifier.fingerprint == clip.fingerprint


def test_other_kinds_of_pictures_boxes_and_masks_are_refused() -> None:
    classifier, boxes = ColorClassifier(Script()), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="need one uint8 picture"):
        classifier(picture().float(), boxes, None, "cat")
    with pytest.raises(ValueError, match=r"boxes of shape \(N, 4\)"):
        classifier(picture(), boxes[0], None, "cat")
    with pytest.raises(ValueError, match=r"bool masks of shape \(1, 9, 12\)"):
        classifier(picture(), boxes, torch.ones(1, 9, 12), "cat")
