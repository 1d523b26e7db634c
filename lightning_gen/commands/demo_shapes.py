"""`lightning demo shapes`: the shipped base of the embedded world makes pictures of prompts, and they are read back."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from .errors import deliberate, fail
from .options import Examples

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.generators.dit.text_module import TextLatentDiffusion
    from lightning_gen.generators.dit.training import Sampling
    from lightning_gen.shapes.grammar import Request

__all__ = ["PROMPTS", "Read", "main", "read_pictures"]

PROMPTS: Final = (
    "a photo of a star",
    "a picture of a circle and a cross",
    "a painting of three moons",
    "a drawing of a yellow triangle",
    "a photo of a ring left of a diamond on a sand background",
    "a photo of a red circle and a blue square",
    "a photo of a purple square",
    'an image of the word "CAT"',
)
"""One prompt of every task, the last but one with a pair of colour and kind that was rare in training."""

_BATCH: Final = 64
_TILE: Final = 224
_COLUMNS: Final = 4

_EPILOG = """\
examples:
  lightning demo shapes
  lightning demo shapes "a photo of a red star left of a moon" "a painting of three crosses" --output mine.png
  lightning demo shapes "a photo of a purple square" --pictures 8 --guidance 3 --seed 1
  lightning demo shapes --weights weights/base --steps 10

Eight kinds, ten colours, numbers up to four, four relations and four backgrounds: docs/shapes.md has the grammar.
"""


class Read(NamedTuple):
    """What a picture shows.

    Attributes:
        text: in words.
        right: whether GenEval's rules accept it for its prompt; for a word, whether it is that word.
        failures: what is wrong.
    """

    text: str
    right: bool
    failures: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``demo shapes``.

    Returns:
        0 after success, whatever the pictures show.
    """
    parser = argparse.ArgumentParser(
        "lightning demo shapes",
        description="Make pictures of the embedded world with the text-to-image base that comes with the package, "
        "write them as one labelled sheet, and say what the exact detector reads in each.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="a text of the grammar (one of every task)")
    parser.add_argument("--output", type=Path, default=Path("shapes.png"), help="PNG to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="of the solver (%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="S", help="1 = none (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the noise (%(default)s)")
    parser.add_argument("--pictures", type=int, default=1, metavar="N", help="for every prompt (%(default)s)")
    parser.add_argument("--weights", default="shapes_base", metavar="FOLDER", help="other weights (the shipped ones)")
    options = parser.parse_args(argv)
    try:
        _run(options)
    except Exception as error:
        about_input = deliberate(error)
        if about_input is None:
            raise
        fail("demo shapes", str(about_input))
    return 0


def _run(options: argparse.Namespace) -> None:
    # Everything that can be refused is refused before anything heavy is loaded.
    if options.pictures < 1:
        raise ValueError(f"--pictures is at least 1, got {options.pictures}")
    _require_writable(options.output)
    from lightning_gen.shapes.grammar import parse_prompt

    requests = [parse_prompt(prompt) for prompt in options.prompts or PROMPTS]
    from lightning_gen.data.transforms import signed_to_uint8
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion
    from lightning_gen.metrics.contact_sheet import Cell, draw_contact_sheet

    model = TextLatentDiffusion.from_pretrained(options.weights)
    sampling = dataclasses.replace(model.sampling, steps=options.steps, guidance=options.guidance)
    wanted = [request for request in requests for _ in range(options.pictures)]
    made, seconds = _make(model, [request.prompt() for request in wanted], sampling, options.seed)
    images = signed_to_uint8(made)
    found = read_pictures(images, wanted)
    for number, (request, read) in enumerate(zip(wanted, found, strict=True), 1):
        verdict = "right" if read.right else f"wrong ({'; '.join(read.failures)})"
        print(f"{number:>3}  {request.prompt()}\n     reads {read.text}: {verdict}")
    cells = [
        Cell([image], f"[{'right' if read.right else 'wrong'}] {request.prompt()}")
        for image, request, read in zip(images, wanted, found, strict=True)
    ]
    columns = options.pictures if options.pictures > 1 else _COLUMNS
    rows = [("", cells[start : start + columns]) for start in range(0, len(cells), columns)]
    right = f"{sum(read.right for read in found)} of {len(found)} right by GenEval's rules"
    how = f"{options.steps} steps, guidance {options.guidance:g}, seed {options.seed}"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(f"{right}; {how}", rows, _TILE).save(options.output)
    print(f"{right}; {how}; {len(wanted) / seconds:.1f} images/s\npicture {options.output}")


def _require_writable(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: the sheet is a PNG, give a name that ends in .png")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: give a file in it")
    blocked = next((parent for parent in output.parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        raise ValueError(f"--output {output} cannot be written: {blocked} is a file")


def _make(model: TextLatentDiffusion, prompts: Sequence[str], sampling: Sampling, seed: int) -> tuple[Tensor, float]:
    """Pictures (N, 3, H, W) in [-1, 1], and the seconds they took."""
    import torch

    model.make(prompts[:1], sampling=dataclasses.replace(sampling, steps=1))  # what is slow the first time only
    start, parts = time.perf_counter(), []
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        parts.append(model.make(batch, torch.arange(first, first + len(batch)), sampling, seed))
    return torch.cat(parts), time.perf_counter() - start


def read_pictures(images: Tensor, requests: Sequence[Request]) -> list[Read]:
    """Read pictures with the exact detector, and judge them.

    Args:
        images: uint8, (N, 3, H, W).
        requests: what each was to show.

    Returns:
        One record per picture.
    """
    from lightning_gen.metrics.compositional.geneval_prompts import parse_prompt
    from lightning_gen.metrics.geneval import GenEvalJudge
    from lightning_gen.shapes.detector import ShapesDetector
    from lightning_gen.shapes.reader import GlyphReader
    from lightning_gen.shapes.vocabulary import KINDS

    detector, reader = ShapesDetector(), GlyphReader()
    judge = GenEvalJudge(detector, KINDS, detector.colors)
    records = []
    for image, request, text in zip(images, requests, _in_words(images), strict=True):
        if request.word:
            words = [word for word, _ in reader(image)]
            read = f'the word "{words[0]}"' if words else "no word"
            right = words == [request.word]
            records.append(Read(read, right, () if right else (f'expected the word "{request.word}"',)))
        else:
            (result,) = judge(image[None], [parse_prompt(request.metadata())])
            records.append(Read(text, result.correct, tuple(failure.reason for failure in result.failures)))
    return records


def _in_words(images: Tensor) -> Iterator[str]:
    from lightning_gen.shapes.detector import ShapesDetector, find_objects, name_backgrounds
    from lightning_gen.shapes.grammar import Phrase

    units, least = images.float() / 255, ShapesDetector().least
    for objects, ground in zip(find_objects(units), name_backgrounds(units), strict=True):
        # Four is the largest number that the grammar has a word for.
        counts = collections.Counter((one.color, one.kind) for one in objects if one.score >= least)
        phrases = [
            Phrase(kind, color, count).text() if count <= 4 else f"{count} x {color} {kind}"
            for (color, kind), count in counts.items()
        ]
        yield f"{', '.join(phrases) or 'nothing'} on {ground}"
