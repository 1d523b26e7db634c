"""`lightning demo shapes`: its sheet, what it reads, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.commands.demo_shapes import PROMPTS, read_pictures
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.generators.dit.text_module import TextLatentDiffusion, TextSize
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.metrics.compositional.geneval_prompts import TAGS
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import RARE
from lightning_gen.shapes.render import render
from lightning_gen.shapes.tokenizer import ShapesTokenizer
from lightning_gen.training.randomness import numpy_generator

ASKED = ("a photo of a red star left of a moon", "a painting of two rings")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    model = TextLatentDiffusion(PixelSpace(8), ShapesTokenizer(), variant="w24_d1_h2", text=TextSize(16, 1, 2))
    model.configure_model()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["demo", "shapes", *options])
        assert end.value.code == 2
        message: str = capsys.readouterr().err
        assert "Traceback" not in message and message.startswith("lightning demo shapes: error: ")
        return message

    return run


def test_the_sheet_shows_the_pictures_pixel_for_pixel(weights: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "sheet.png"
    options = ["--weights", str(weights), "--output", str(out), "--steps", "3", "--guidance", "2", "--seed", "4"]
    assert main(["demo", "shapes", *ASKED, *options]) == 0
    model = TextLatentDiffusion.from_pretrained(weights)
    made = signed_to_uint8(model.make(ASKED, sampling=Sampling(steps=3, shift=3.0, guidance=2.0), seed=4))
    with Image.open(out) as sheet:
        # Two columns of 224 pixels with gaps of 12, below one line of title; the title asks for three tiles of width.
        assert sheet.size == (3 * 224, 12 + 18 + 12 + 18 + 224 + 3 * 18 + 12)
        for number, image in enumerate(made):
            tile = np.array(sheet.crop((12 + 236 * number, 60, 236 + 236 * number, 284)))
            wanted = image.permute(1, 2, 0).repeat_interleave(7, 0).repeat_interleave(7, 1)
            assert int((torch.from_numpy(tile).int() - wanted.int()).abs().max()) <= 1
    printed = capsys.readouterr().out
    assert all(prompt in printed for prompt in ASKED)
    assert "of 2 right by GenEval's rules; 3 steps, guidance 2, seed 4;" in printed and "images/s" in printed
    assert printed.count("reads ") == 2


def test_several_pictures_of_a_prompt_stand_in_a_row(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    options = ["--weights", str(weights), "--output", str(out), "--steps", "1", "--pictures", "5"]
    assert main(["demo", "shapes", ASKED[0], ASKED[1], *options]) == 0
    with Image.open(out) as sheet:
        assert sheet.size == (5 * 236 + 12, 42 + 2 * (18 + 224 + 3 * 18 + 12))


def test_the_default_prompts_show_the_world() -> None:
    requests = [parse_prompt(prompt) for prompt in PROMPTS]
    assert {request.tag for request in requests} == {*TAGS, "word"}
    assert any((phrase.color, phrase.kind) in RARE for request in requests for phrase in request.phrases)
    assert [request.prompt() for request in requests] == list(PROMPTS)


def test_what_is_drawn_is_read_and_judged() -> None:
    requests = [parse_prompt(prompt) for prompt in PROMPTS]
    images = torch.stack(
        [render(draw_scene(one, numpy_generator(0, "read", n)), (32, 32)) for n, one in enumerate(requests)]
    )
    found = read_pictures(images, requests)
    assert all(read.right and not read.failures for read in found)
    assert found[3].text.startswith("a yellow triangle on ") and found[7].text == 'the word "CAT"'
    assert found[4].text.endswith(" on sand")
    swapped = read_pictures(images.flip(0), requests)
    assert not any(read.right for read in swapped) and all(read.failures for read in swapped)
    empty = read_pictures(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), requests[:1])[0]
    assert empty.text == "nothing on gray" and not empty.right


def test_what_makes_no_sense_is_refused_with_its_reason(refused: Any, weights: Path, tmp_path: Path) -> None:
    assert "at 'dragon': expected a colour or a kind" in refused("a photo of a red dragon")
    assert "there is no folder nowhere" in refused("--weights", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused("--weights", "empty")
    given = ("--weights", str(weights))
    assert "at least one step" in refused(*given, "--steps", "0")
    assert "--pictures is at least 1" in refused(*given, "--pictures", "0")
    assert "ends in .png" in refused(*given, "--output", "sheet.jpg")
    Path("taken").write_text("")
    assert "taken is a file" in refused(*given, "--output", "taken/sheet.png")
    Path("folder.png").mkdir()
    assert "is a folder" in refused(*given, "--output", "folder.png")


def test_help_has_examples(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "shapes", "--help"])
    assert end.value.code == 0
    assert 'lightning demo shapes "a photo of a purple square" --pictures 8' in capsys.readouterr().out
