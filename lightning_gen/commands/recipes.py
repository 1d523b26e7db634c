"""`lightning recipes list|show|copy`: the configurations that ship with the package.

A recipe is named by its file without the ending: ``vitok_v2_tiny``. Wherever a configuration file is expected, a
recipe's name is accepted, and so is ``configs/vitok_v2_tiny.yaml`` from a folder that has no such file. Overrides,
which are laid over a recipe by a second ``--config``, are named with their folder: ``overrides/pae_kl``.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import shutil
import sys
from pathlib import Path

__all__ = ["main", "overrides", "recipes", "resolve"]

_PACKAGE = Path(__file__).resolve().parent.parent
_LOOKS_LIKE_A_FILE = re.compile(r"[\w./\\~ -]+")


def recipes() -> dict[str, Path]:
    """All shipped configurations.

    Returns:
        Recipe name -> file, sorted by name.
    """
    return {file.stem: file for file in sorted(_folder().glob("*.yaml"))}


def overrides() -> dict[str, Path]:
    """All shipped overrides: the few keys in which a variant differs from a recipe.

    Returns:
        ``overrides/<name>`` -> file, sorted by name.
    """
    return {f"overrides/{file.stem}": file for file in sorted(_folder().glob("overrides/*.yaml"))}


def _folder() -> Path:
    """Inside the package in a wheel, beside it in a source tree."""
    shipped = _PACKAGE / "_configs"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "configs"


def resolve(value: str) -> str:
    """Turn what was given for a configuration file into the path of one.

    Args:
        value: path, recipe name, ``overrides/<name>``, either of them as ``configs/<name>.yaml``, an address with a
            protocol, or configuration text.

    Returns:
        The path; addresses and configuration text unchanged.

    Raises:
        FileNotFoundError: if it names neither a file nor a recipe.
    """
    if Path(value).is_file() or "://" in value or not _LOOKS_LIKE_A_FILE.fullmatch(value):
        return value
    path = Path(value)
    shipped = recipes() | overrides()
    name = path.as_posix().removesuffix(path.suffix).removeprefix("configs/")
    if path.suffix in ("", ".yaml", ".yml") and name in shipped:
        return str(shipped[name])
    close = difflib.get_close_matches(name, shipped, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise FileNotFoundError(
        f"{value!r} is neither a file nor a shipped recipe; {hint}`lightning recipes list` shows the recipes"
    )


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``recipes``.

    Returns:
        0, or 2 when a recipe does not exist or a file is in the way.
    """
    parser = argparse.ArgumentParser("lightning recipes", description="The configurations that ship with the package.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="name and first comment line of every recipe")
    show = verbs.add_parser("show", help="print a recipe")
    show.add_argument("name")
    copy = verbs.add_parser("copy", help="copy a recipe, to change it")
    copy.add_argument("name")
    copy.add_argument("target", nargs="?", default=".", help="file or folder, by default the current folder")
    copy.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(argv)
    if options.verb == "list":
        return _list()
    try:
        source = Path(resolve(options.name))
    except FileNotFoundError as error:
        parser.error(str(error))
    if options.verb == "show":
        sys.stdout.write(source.read_text(encoding="utf-8"))
        return 0
    return _copy(parser, source, Path(options.target), options.force)


def _list() -> int:
    shipped = recipes() | overrides()
    width = max((len(name) for name in shipped), default=0)
    for name, file in shipped.items():
        print(f"{name:<{width}}  {_first_sentence(file)}")
    return 0


def _first_sentence(file: Path) -> str:
    """Of the comment at the head of a file, however many lines it takes."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(line.strip("# ") for line in head))[0]


def _copy(parser: argparse.ArgumentParser, source: Path, target: Path, force: bool) -> int:
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        parser.error(f"{target} exists; give another name or --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(target)
    return 0
