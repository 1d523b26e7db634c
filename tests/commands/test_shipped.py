"""The weights that come with the package: found by name, small, those of their cards, and as good as the cards say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lightning_gen.backbones import shipped
from lightning_gen.backbones.shipped import SHIPPED, shipped_folder, shipped_or_given
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.generators.dit.text_module import TextLatentDiffusion
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.metrics.compositional.geneval_prompts import parse_prompt
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.frechet import Gaussian, Moments, frechet_distance
from lightning_gen.metrics.geneval import GenEvalJudge
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.degraded import Degraded
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.encoder import ShapesFeatures
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import draw_request
from lightning_gen.shapes.render import render
from lightning_gen.shapes.vocabulary import KINDS
from lightning_gen.training.randomness import numpy_generator

DATA = Path(shipped.__file__).parents[2] / "data"
MOST_BYTES = {"shapes_base": 8_000_000, "shapes_encoder": 4_000_000}

AT_MOST = 3
"""Verdicts of 62 that may be others on another machine, whose rounding differs."""


def test_names_are_folders_and_other_sources_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "lightning_gen")
    with pytest.raises(MissingWeightsError, match="shapes_base are not in this installation"):
        shipped_folder("shapes_base")
    for place in (tmp_path / "data" / "shapes_base", tmp_path / "lightning_gen" / "_data" / "shapes_base"):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_text("")
        # The wheel's comes first, so that an installed package never reads a folder that lies beside it by chance.
        assert shipped_folder("shapes_base") == place
    assert shipped_or_given("shapes_base") == str(place)
    assert shipped_or_given("./shapes_base") == "./shapes_base" and shipped_or_given("me/mine") == "me/mine"
    with pytest.raises(MissingWeightsError, match="choose one of shapes_base, shapes_encoder"):
        shipped_folder("shapes_bas")


@pytest.mark.parametrize("name", SHIPPED)
def test_size_and_sha256_are_those_of_the_card(name: str) -> None:
    file = shipped_folder(name) / "model.safetensors"
    stated = json.loads((DATA / name / "score.json").read_text())["weights"]
    assert file.stat().st_size == stated["bytes"] <= MOST_BYTES[name]
    assert file_sha256(file) == stated["sha256"]
    assert "not measured yet" not in (DATA / name / "README.md").read_text(encoding="utf-8")


def test_the_base_regenerates_its_own_score() -> None:
    """62 of the 553 prompts with the card's seeds: the same verdicts but for rounding, the same share but for chance.

    With other seeds the number of correct pictures would be binomial; 3.3 standard deviations hold 99.9 % of it.
    """
    stated = json.loads((DATA / "shapes_base" / "score.json").read_text())
    every, pictures, requests = 9, stated["pictures"], benchmark_requests()
    assert stated["every"] == 1
    found, model, detector = stated["guidance"]["1"], TextLatentDiffusion.from_pretrained(), ShapesDetector()
    assert Sampling(**stated["sampling"]) == model.sampling and len(found["verdicts"]) == len(requests) == 553
    numbers = list(range(0, len(requests), every))
    made = model.make(
        [requests[number].prompt() for number in numbers], torch.tensor(numbers) * pictures, seed=stated["seed"]
    )
    judge = GenEvalJudge(detector, KINDS, detector.colors)
    results = judge(signed_to_uint8(made), [parse_prompt(requests[number].metadata()) for number in numbers])
    right = [result.correct for result in results]
    changed = [n for n, one in zip(numbers, right, strict=True) if one != (found["verdicts"][n][0] == "1")]
    assert len(changed) <= AT_MOST, f"other verdicts on the prompts {changed}"
    share, total = found["images"]["value"], len(numbers)
    assert abs(sum(right) - share * total) <= 1 + 3.3 * math.sqrt(total * share * (1 - share))


def test_features_tell_painters_apart() -> None:
    """The worse a painter, the farther its pictures; mild noise is overlooked, it was in the training scenes."""
    extractor = ModuleExtractor(ShapesFeatures(), "shapes-encoder")

    def gaussian(purpose: str, strength: float | None) -> Gaussian:
        pictures = []
        for number in range(300):
            generator = numpy_generator(0, purpose, number)
            request = draw_request(generator, False, "two_object")
            if strength is None:
                pictures.append(render(draw_scene(request, generator), (32, 32)))
            else:
                pictures.append(Degraded(strength, (32, 32)).picture(request, generator))
        features = extractor(torch.stack(pictures))["pool"]
        moments = Moments(features.shape[1], features[0])
        moments.add(features)
        return moments.gaussian()

    clean = gaussian("one", None)
    others, fair, bad = (
        frechet_distance(clean, gaussian(name, strength))
        for name, strength in (("two", None), ("three", 0.0), ("four", -1.5))
    )
    assert fair > 3 * others and bad > 1.3 * fair
