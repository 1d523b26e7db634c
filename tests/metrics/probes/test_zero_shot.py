"""Zero-shot classification with a text encoder whose embeddings are known."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.probes import ZeroShot, class_embeddings, openai_templates

TEXTS = {"a cat.": [3.0, 0, 0], "many cat.": [0.0, 1, 0], "a dog.": [0.0, 0, 2.0], "many dog.": [0.0, 0, 5.0]}


def encoder(texts: Sequence[str]) -> Tensor:
    return torch.tensor([TEXTS[text] for text in texts])


def test_the_templates_are_those_of_open_clip() -> None:
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.origin is not None
    names = runpy.run_path(str(Path(found.origin).parent / "zero_shot_metadata.py"))
    assert openai_templates() == tuple(template("{}") for template in names["OPENAI_IMAGENET_TEMPLATES"])
    assert len(openai_templates()) == 80 and openai_templates()[0] == "a bad photo of a {}."


def test_sentences_are_averaged_then_normalised() -> None:
    half = 0.5**0.5
    templates = ["a {}.", "many {}."]
    found = class_embeddings(encoder, ["cat", "dog"], templates)
    assert torch.allclose(found, torch.tensor([[half, half, 0], [0, 0, 1]]))
    raw = class_embeddings(encoder, ["cat", "dog"], templates, normalise_each=False)
    assert torch.allclose(raw[0], torch.tensor([3.0, 1, 0]) / 10**0.5)
    asked: list[str] = []

    def any_text(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return torch.ones(len(texts), 2)

    class_embeddings(any_text, ["{a}", "b"])
    assert len(asked) == 160 and asked[0] == "a bad photo of a {a}."


def test_the_nearest_class_counts_once_per_image() -> None:
    metric = ZeroShot(torch.tensor([[10.0, 0], [0, 0.1]]))
    images = torch.tensor([[1.0, 0.9], [0.1, 5], [2, 3], [1, 0]])
    metric.update(images, torch.tensor([0, 1, 0, 0]), torch.arange(4))
    assert float(metric.compute()) == 0.75
    metric.update(images[2:], torch.tensor([0, 0]), torch.tensor([2, 2]))
    metric.update(images[2:], torch.tensor([0, 0]), torch.tensor([8, 9]), torch.tensor([False, False]))
    assert float(metric.compute()) == 0.75
    [found] = metric.measurements(encoder="clip-l14")
    assert found.protocol.id == "zero-shot/clip-l14" and found.protocol.count == 4 and found.value == 0.75


def test_what_makes_no_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 different names"):
        class_embeddings(encoder, ["cat", "cat"])
    with pytest.raises(ValueError, match="must hold one"):
        class_embeddings(encoder, ["cat", "dog"], ["a photo"])
    with pytest.raises(ValueError, match="gave \\(1, 2\\) for 2 texts"):
        class_embeddings(lambda texts: torch.ones(1, 2), ["cat", "dog"], ["a {}.", "many {}."])
    metric = ZeroShot(torch.eye(2))
    with pytest.raises(ValueError, match="labels from 0 to 2, of 2 classes"):
        metric.update(torch.eye(2), torch.tensor([0, 2]), torch.arange(2))
    with pytest.raises(ValueError, match="expected \\(B, 2\\)"):
        metric.update(torch.eye(3), torch.arange(3), torch.arange(3))
