"""Words come back from pictures: all letters, all lengths, noise and JPEG, some pixels beside their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_gen.metrics.compositional.ocr import score_texts
from lightning_gen.shapes.glyphs import ALPHABET, GLYPHS, LONGEST
from lightning_gen.shapes.reader import GlyphReader
from lightning_gen.shapes.render import compress, noisy, render
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS
from tests.shapes.worlds import scenes


def test_letters_differ_from_each_other_and_fill_their_cells() -> None:
    glyphs = np.stack(list(GLYPHS.values()))
    assert glyphs.shape == (26, 7, 5)
    apart = np.abs(glyphs[:, None] - glyphs[None]).sum((2, 3)) + 99 * np.eye(26)
    assert apart.min() >= 2
    assert glyphs.any(2).all(), "every row has ink, so that the height of a word tells its scale"
    assert glyphs.any(1).all()


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (64, 64)])
def test_every_letter_comes_back_in_every_colour(size: tuple[int, int]) -> None:
    reader, grounds, colors = GlyphReader(), list(BACKGROUNDS), list(COLORS)
    for number, letter in enumerate(ALPHABET):
        ground, color = grounds[number % 4], colors[number % 10]
        ((word, confidence),) = reader(render(Scene((), ground, letter, color), size))
        assert word == letter
        assert confidence > 0.99


def test_words_of_all_lengths_come_back_through_noise_and_jpeg() -> None:
    generator, reader = np.random.default_rng(0), GlyphReader()
    for number in range(60):
        letters = generator.choice(list(ALPHABET), 1 + number % LONGEST)
        word, color = "".join(letters), list(COLORS)[number % 10]
        picture = render(Scene((), list(BACKGROUNDS)[number % 4], word, color), (32, 32))
        spoiled = compress(noisy(picture, generator), 90)
        assert [text for text, _ in reader(spoiled)] == [word]
        assert [text for text, _ in reader(spoiled.float() / 255)] == [word]


@pytest.mark.parametrize("shift", [(0, 1), (-2, 1), (7, 0), (-9, -1)])
def test_a_word_may_stand_beside_its_place(shift: tuple[int, int]) -> None:
    picture = render(Scene((), "mist", "HOUSE", "blue"), (32, 32)).roll(shift, (1, 2))
    assert GlyphReader()(picture)[0][0] == "HOUSE"


@pytest.mark.parametrize("shift", [(0, 0), (1, -1), (-2, 1)])
def test_a_blot_of_ink_does_not_hide_a_word(shift: tuple[int, int]) -> None:
    picture = render(Scene((), "sand", "HOUSE", "blue"), (32, 32)).roll(shift, (1, 2))
    picture[:, 1:4, 2:4] = torch.tensor(COLORS["blue"], dtype=torch.uint8)[:, None, None]
    assert GlyphReader()(picture)[0][0] == "HOUSE"


def test_figures_and_empty_pictures_are_not_read_as_words() -> None:
    reader = GlyphReader()
    assert reader(torch.full((3, 32, 32), 128, dtype=torch.uint8)) == []
    assert [reader(render(scene, (32, 32))) for _, scene in scenes(60)] == [[]] * 60


def test_the_reader_serves_the_ocr_score() -> None:
    words = ["CAT", "DOG", "OX"]
    pictures = torch.stack([render(Scene((), "gray", word, "red"), (32, 32)) for word in words])
    prompts = [f'a photo of the word "{word}"' for word in ("CAT", "DIG", "CAT")]
    assert [one.score for one in score_texts(GlyphReader(), pictures, prompts)] == pytest.approx([1, 2 / 3, 0])
    assert len(GlyphReader().fingerprint) == 64


def test_other_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one picture"):
        GlyphReader()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="share in"):
        GlyphReader(1.5)
