"""The embedded world's rewards: pictures of their prompts are worth 1, each fault costs what the formula says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.compositional.ocr import ocr_score
from lightning_gen.shapes.render import render
from lightning_gen.shapes.rewards import ColorHarmony, Layout, RequestMatch, Sharpness, WordMatch
from lightning_gen.shapes.scene import Scene, SceneObject
from tests.shapes.worlds import scenes

STAR, MOON = SceneObject("star", "red", 0.28, 0.3, 0.18), SceneObject("moon", "blue", 0.72, 0.3, 0.18)


def drawn(*scenes_: Scene, size: int = 64) -> Tensor:
    return torch.stack([render(scene, (size, size)) for scene in scenes_]).float() / 255


def matched(prompt: str, *objects: SceneObject, background: str = "gray") -> float:
    return float(RequestMatch()(drawn(Scene(objects, background)), [prompt], [{}]))


def test_pictures_of_their_prompts_are_worth_one() -> None:
    requests, worlds = zip(*scenes(60), strict=True)
    prompts, images = [request.prompt() for request in requests], drawn(*worlds, size=32)
    for score in ("dense", "strict"):
        assert RequestMatch(score)(images, prompts, [{}] * 60).tolist() == [1.0] * 60
    others = RequestMatch("strict")(images.roll(1, 0), prompts, [{}] * 60)
    assert others.mean() < 0.2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a red star and a blue moon", 1.0),
        ("a photo of a star left of a moon", 1.0),
        ("a photo of a star right of a moon", 2 / 3),
        ("a photo of a red star and a green moon", 3 / 4),
        ("a photo of two stars and a moon", (1 / 2 + 1) / 2),
        ("a photo of two red stars and a moon", (1 / 2 + 1 + 1 / 2) / 3),
        ("a photo of a star and a ring", 1 / 2 / 2),
        ("a photo of a star", 1 / 2),
        ("a photo of a star and a moon on a gray background", 1.0),
        ("a photo of a star and a moon on a sand background", 2 / 3),
    ],
)
def test_each_fault_costs_what_the_formula_says(prompt: str, expected: float) -> None:
    assert matched(prompt, STAR, MOON) == pytest.approx(expected)
    strict = RequestMatch("strict")(drawn(Scene((STAR, MOON))), [prompt], [{}])
    assert float(strict) == float(expected == 1)


def test_an_empty_picture_is_worth_nothing_and_too_many_objects_cost() -> None:
    assert matched("a photo of a red star") == 0
    assert matched("a photo of a star", STAR, SceneObject("star", "red", 0.72, 0.7, 0.18)) == 0
    three = [SceneObject("star", "red", x, y, 0.17) for x, y in ((0.28, 0.28), (0.72, 0.28), (0.5, 0.75))]
    assert matched("a photo of two stars", *three) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("word", "target"), [("CAT", "CAT"), ("CAT", "CAR"), ("HOUSE", "CAT"), ("CATS", "CAT")])
def test_words_are_scored_as_by_ocr(word: str, target: str) -> None:
    image = drawn(Scene((), "mist", word, "blue"), size=32)
    score = WordMatch()(image, [f'a photo of the word "{target}"'], [{}])
    assert float(score) == pytest.approx(ocr_score(word, target))


def test_a_picture_without_a_word_scores_nothing() -> None:
    assert float(WordMatch()(drawn(Scene((), "mist")), ['a photo of the word "CAT"'], [{}])) == 0


def test_rewards_say_where_they_do_not_apply() -> None:
    prompts = ["a photo of a star", 'a photo of the word "CAT"', "a photo of a dog"]
    images, records = drawn(*[Scene((STAR,))] * 3), [{}] * 3
    expected = {RequestMatch: [False, True, True], WordMatch: [True, False, True], Layout: [False, True, False]}
    for kind, missing in expected.items():
        reward = kind()
        assert [reward.inapplicable(prompt, {}) is not None for prompt in prompts] == missing
        assert reward(images, prompts, records).isnan().tolist() == missing
    assert "dog" in str(RequestMatch().inapplicable(prompts[2], {}))


def solid(*colors: tuple[float, float, float]) -> Tensor:
    """Stripes of equal width."""
    return torch.tensor(colors, dtype=torch.float64).T.repeat_interleave(6, 1)[:, None].expand(3, 6, -1)[None]


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        ([(1, 0, 0), (0.5, 0, 0)], 1.0),
        ([(1, 0, 0), (0, 1, 1)], 1.0),
        ([(1, 0, 0), (0.5, 1, 0)], 0.0),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1)], 0.0),
        ([(1, 0, 0), (1, 1, 0)], 0.5),
        ([(1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 0)], 0.0),
        ([(1, 0, 0), (0.4, 0.5, 0.6), (0.8, 0.9, 0.7)], 1.0),
    ],
)
def test_harmony_is_one_hue_or_two_opposite_ones(colors: list[tuple[float, float, float]], expected: float) -> None:
    assert float(ColorHarmony()(solid(*colors), [""], [{}])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("height", [1.0, 0.3])
def test_sharpness_is_one_over_the_steps_of_an_edge(steps: int, height: float) -> None:
    ramp = torch.cat([torch.zeros(4), torch.arange(1, steps) / steps, torch.ones(4)]).double() * height
    image = ramp.expand(1, 3, 5, -1)
    assert float(Sharpness()(image, [""], [{}])) == pytest.approx(1 / steps)
    assert float(Sharpness()(image.transpose(2, 3), [""], [{}])) == pytest.approx(1 / steps)


def test_sharpness_of_blurred_and_of_plain_pictures() -> None:
    image = drawn(Scene((STAR, MOON)))
    blurred = F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    sharp, soft, plain = Sharpness()(torch.cat([image, blurred, torch.full_like(image, 0.4)]), [""] * 3, [{}] * 3)
    assert sharp > 1.5 * soft > 0
    assert plain == 0


def test_layout_counts_what_is_whole_apart_and_balanced() -> None:
    left, right = SceneObject("circle", "red", 0.25, 0.5, 0.15), SceneObject("circle", "blue", 0.75, 0.5, 0.15)
    cut = SceneObject("circle", "red", 0.05, 0.5, 0.15)
    touching = SceneObject("circle", "blue", 0.44, 0.5, 0.15)
    images = drawn(
        Scene((left, right)), Scene((left,)), Scene((cut, right)), Scene((left, touching)), Scene(()), size=128
    )
    both, alone, partly, close, nothing = Layout()(images, [""] * 5, [{}] * 5).tolist()
    assert both == pytest.approx(1, abs=0.01)
    assert alone == pytest.approx((1 + 1 + 0.5) / 3, abs=0.01)
    assert partly < (0.5 + 1 + 1) / 3
    assert close == pytest.approx((1 + 0 + 0.69) / 3, abs=0.02)
    assert nothing == 0


@pytest.mark.parametrize("reward", [RequestMatch, ColorHarmony, Sharpness, Layout])
def test_any_picture_scores_between_nothing_and_one(reward: Any) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = reward()(images, ["a photo of two red stars"] * 6, [{}] * 6)
    assert scores.dtype == torch.float32
    assert not math.isnan(float(scores.sum()))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_another_score_is_refused() -> None:
    with pytest.raises(ValueError, match="dense or strict"):
        RequestMatch("loose")
