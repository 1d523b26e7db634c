"""Pictures are a pure function of scene and size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lightning_gen.shapes.render import compress, noisy, render, render_pixels
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS
from tests.shapes.worlds import scenes


def test_a_scene_is_always_drawn_alike() -> None:
    drawn = [scene for _, scene in scenes(20, words=True)]
    first = [render(scene, (32, 48)) for scene in drawn]
    again = [render(Scene.from_json(scene.to_json()), (32, 48)) for scene in reversed(drawn)]
    assert all(torch.equal(a, b) for a, b in zip(first, again[::-1], strict=True))
    assert all((picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, 32, 48)) for picture in first)
    assert np.array_equal(render_pixels(drawn[0], (32, 48)), first[0].permute(1, 2, 0).numpy())


def test_colours_are_those_of_the_vocabulary() -> None:
    for color, rgb in COLORS.items():
        for ground, behind in BACKGROUNDS.items():
            picture = render(Scene((SceneObject("square", color, 0.5, 0.5, 0.2),), ground), (32, 32))
            assert tuple(picture[:, 16, 16].tolist()) == rgb
            assert tuple(picture[:, 0, 0].tolist()) == behind
            assert np.linalg.norm(np.subtract(rgb, behind)) >= 75


def test_an_object_is_where_the_scene_says_also_in_long_pictures() -> None:
    picture = render(Scene((SceneObject("circle", "red", 0.25, 0.75, 0.2),), "gray"), (64, 128))
    rows, columns = (picture[0].int() - 128).abs().gt(40).nonzero().float().mean(0).tolist()
    assert (rows + 0.5, columns + 0.5) == pytest.approx((48, 32), abs=0.3)


def test_an_object_at_the_border_is_cut_and_later_ones_lie_above() -> None:
    one = SceneObject("square", "red", 0.0, 1.0, 0.3)
    two = dataclasses.replace(one, color="blue", radius=0.1)
    picture = render(Scene((one, two), "sand"), (32, 32))
    assert tuple(picture[:, 31, 0].tolist()) == COLORS["blue"]
    assert tuple(picture[:, 25, 5].tolist()) == COLORS["red"]


def test_noise_is_as_strong_as_asked_for_and_jpeg_is_mild() -> None:
    flat = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    grain = noisy(flat, np.random.default_rng(0), 6.0).float() - 128
    assert float(grain.std()) == pytest.approx(6.0, rel=0.05)
    assert torch.equal(noisy(flat, np.random.default_rng(0)), noisy(flat, np.random.default_rng(0)))
    picture = render(next(scenes(1))[1], (32, 32))
    changed = (compress(picture, 90).float() - picture.float()).abs()
    assert 0 < float(changed.mean()) < 3


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="32 x 32 pixels or more, got 16 x 64"):
        render(Scene(()), (16, 64))
    with pytest.raises(ValueError, match="1 to 5 letters"):
        render(Scene((), word="TOOLONG"), (32, 32))
    with pytest.raises(ValueError, match="unknown kind 'cube'"):
        SceneObject("cube", "red", 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match="unknown colour 'mauve'"):
        SceneObject("star", "mauve", 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match="centre in"):
        SceneObject("star", "red", 1.5, 0.5, 0.2)
    with pytest.raises(ValueError, match="unknown background 'plaid'"):
        Scene((), "plaid")
    with pytest.raises(ValueError, match="of the word"):
        Scene((), word="A", word_color="mauve")
