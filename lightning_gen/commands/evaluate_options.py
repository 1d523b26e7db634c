"""Options that the verbs of `lightning evaluate` share, and what they mean."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lightning_gen.metrics.image_sets import ImageSet

__all__ = [
    "add_out",
    "add_work",
    "built",
    "check_pairs",
    "compressed",
    "images_of",
    "is_class_path",
    "new_file",
    "new_folder",
    "positive",
    "without_repeats",
]

_COMPRESSED: Final = (".jpg", ".jpeg", ".webp")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add where the report goes.

    Args:
        parser: of the verb.
    """
    parser.add_argument(
        "--out",
        type=new_folder,
        metavar="FOLDER",
        help="write metrics.json (numbers with their protocol cards), samples.jsonl and contact_sheet.png there",
    )


def add_work(parser: argparse.ArgumentParser, batch_size: int = 64) -> None:
    """Add how the work is done; none of it changes a number but by rounding.

    Args:
        parser: of the verb.
        batch_size: the default.
    """
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size", type=positive, default=batch_size, metavar="N", help="pictures at a time (%(default)s)"
    )
    work.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto = cuda if there is one (auto)")
    work.add_argument(
        "--threads", type=int, default=4, metavar="N", help="threads that decode pictures, 0 = none (%(default)s)"
    )


def positive(text: str) -> int:
    """A number of things.

    Args:
        text: as it was typed.

    Returns:
        The number, at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things: give 1 or more")
    return int(text)


def new_folder(text: str) -> Path:
    """A folder that can be written into, looked at before any work is done.

    Args:
        text: as it was typed.

    Returns:
        The path; nothing is made yet.

    Raises:
        argparse.ArgumentTypeError: there is a file in its place, or it cannot be made.
    """
    path = Path(text)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file: name a folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{there} cannot be written to")
    return path


def new_file(text: str) -> Path:
    """A file that can be written, looked at before any work is done.

    Args:
        text: as it was typed.

    Returns:
        The path; nothing is made yet.

    Raises:
        argparse.ArgumentTypeError: there is a folder in its place, or its folder cannot be made.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file")
    new_folder(str(path.parent))
    return path


def images_of(where: str, count: int | None = None) -> ImageSet:
    """Open pictures.

    Args:
        where: what the user wrote.
        count: use exactly this many, the first ones; None = all.

    Returns:
        The set.

    Raises:
        ValueError: there are fewer.
    """
    from lightning_gen.metrics.image_sets import open_images

    images = open_images(where)
    return images if count is None else images.first(count)


def compressed(images: ImageSet) -> list[str]:
    """What must be said where samples are stored in a format that loses detail.

    Args:
        images: the samples.

    Returns:
        One warning with their number, or nothing.
    """
    count = sum(name.lower().endswith(_COMPRESSED) for name in images.names)
    if not count:
        return []
    return [
        f"{count:,} of {len(images):,} pictures of {images.where} are stored as JPEG or WebP, which moves these "
        "numbers by itself unless it is lossless WebP: store PNG"
    ]


def check_pairs(images: ImageSet, others: ImageSet) -> list[str]:
    """Insist that two sets hold the same pictures in the same order; endings of names may differ, and be several.

    Args:
        images: one side.
        others: the other side.

    Returns:
        What must be known about the pairs: rows of an npz have no names, so that only their order tells.

    Raises:
        ValueError: other names, another order, or another number.
    """
    from lightning_gen.metrics.adm_npz import NpzImages

    if len(images) != len(others):
        raise ValueError(f"{images.where} has {len(images):,} pictures, {others.where} {len(others):,}")
    if isinstance(images, NpzImages) or isinstance(others, NpzImages):
        return ["rows of an npz have no names: pictures were paired in their order"]
    mine, theirs = ([_without_endings(name) for name in one.names] for one in (images, others))
    if mine != theirs:
        first, second = next(pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"{images.where} and {others.where} must hold pictures of the same names in the same order: {first} stands "
            f"against {second}"
        )
    return []


def _without_endings(name: str) -> str:
    """A name without endings of pictures: the reconstruction of photo.jpg is photo.jpg.png."""
    from lightning_gen.data.index import PICTURE_FIELDS

    path = PurePosixPath(name)
    while path.suffix.lower().removeprefix(".") in PICTURE_FIELDS:
        path = path.with_suffix("")
    return str(path)


@contextlib.contextmanager
def without_repeats() -> Iterator[None]:
    """Keep quiet about what stands beside the number as its note: Python's warnings of metrics.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning_gen.metrics")
        yield


def is_class_path(name: str) -> bool:
    """Whether a name means something to import, ``package.module.Name``.

    Args:
        name: what the user wrote.

    Returns:
        True for a dotted name, unless there is a file or folder of that name.
    """
    return "." in name and all(part.isidentifier() for part in name.split(".")) and not Path(name).exists()


def built(name: str, option: str, source: str | None) -> Any:
    """Call a class or function of the user.

    Args:
        name: ``package.module.Name``; a module of the current folder will do.
        option: the option it was given to, for messages.
        source: its only argument; None = it is called without any.

    Returns:
        What it returned.

    Raises:
        ValueError: there is nothing of this name, or it cannot be called so.
    """
    from lightning_gen.training.classes import class_named

    found = class_named(name, option)
    given = () if source is None else (source,)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some classes that are written in C do not tell
        return found(*given)
    try:
        signature.bind(*given)
    except TypeError as error:
        how = "without an argument" if source is None else f"with the argument {source!r}"
        raise ValueError(f"{option} {name}{signature} cannot be called {how}: {error}") from None
    return found(*given)
