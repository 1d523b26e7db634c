"""GenEval while a model is trained: pictures that are no pictures are not judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.generators.geneval_validation import GenEvalValidation
from lightning_gen.interfaces import Detections

RECORDS = [
    {"tag": "single_object", "prompt": f"a cat {number}", "include": [{"class": "cat", "count": 1}]}
    for number in range(3)
]


class Records:
    def records(self) -> list[dict[str, Any]]:
        return RECORDS


class Dark:
    """Sees a cat in every black picture, as a judge of NaN taken for black might."""

    name, fingerprint = "dark", "none"

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        return [Detections(box, torch.ones(1), ("cat",)) for _ in images]


def made(value: float) -> Any:
    def make(prompts: Sequence[str], numbers: Tensor) -> Tensor:
        images = torch.zeros(len(prompts), 3, 8, 8)
        images[1, 2, 3, 4] = value
        return images

    return make


def test_finite_pictures_are_judged() -> None:
    assert GenEvalValidation(Records(), Dark(), ["cat"]).run(made(3.0))["single_object"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pictures_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 pictures .* NaN or infinity, the first for the prompt 'a cat 1'"):
        GenEvalValidation(Records(), Dark(), ["cat"]).run(made(value))
