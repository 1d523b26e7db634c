"""How a verb ends when its input is at fault: one message, exit code 2, no stack trace."""

from __future__ import annotations

import difflib
import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from lightning_gen import COMPONENTS

__all__ = ["deliberate", "explain", "explain_interpolation", "fail"]

# What a bad value in a configuration, a missing file or a checkpoint of another model raises.
_ABOUT_INPUT = (ValueError, OSError, TypeError, LookupError, ImportError, RuntimeError)

# Lines that describe jsonargparse's search through the alternatives of a type.
_NOISE = re.compile(
    "|".join(
        [
            r"Does not validate against any of the Union",
            r"Subtypes: ",
            r"Errors:$",
            r"Expected a <class 'NoneType'>",
            r"Given value type: ",
            r"NestedArg\(",
        ]
    )
)


def fail(verb: str, message: str) -> NoReturn:
    """End the process.

    Args:
        verb: the verb that was called.
        message: what was wrong, where, and what to do.

    Raises:
        SystemExit: always, with code 2.
    """
    sys.stderr.write(f"lightning {verb}: error: {message}\n".replace(" :", ":", 1))
    raise SystemExit(2)


def explain(message: str, args: Iterable[str], files: Iterable[Path]) -> str:
    """Shorten a parser's message and say where the key it complains about was written.

    Args:
        message: the parser's message.
        args: command-line arguments.
        files: configuration files that were read.

    Returns:
        The message for people.
    """
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.search(line)]
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if unknown:
        # The alternatives are named before what was wrong with each of them: the last ones are those of this value.
        subtypes = re.findall(r"Subtypes: .*", message[: unknown.start()])
        is_set = bool(subtypes) and "WeightedShards]" in subtypes[-1]
        lines.append(_plain_set(unknown.group(1)) if is_set else _no_class(unknown.group(1)))
    key = _key(message)
    typed = any(arg.startswith("--") and arg.partition("=")[0].rpartition(".")[2].lstrip("-") == key for arg in args)
    places = ["the command line"] if typed else list(_places(key, files))
    if places:
        lines.append(f"  written in {', '.join(places)}")
    return "\n".join(lines)


def _no_class(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in COMPONENTS], 1, 0.8)
    meant = next((known for known in COMPONENTS if [known.lower()] == close), None)
    if meant is not None:
        return f"  {name!r} is no class this package knows: did you mean {meant}?"
    return (
        f"  {name!r} is no class this package knows ({', '.join(sorted(COMPONENTS))}); "
        "name other classes as package.module.Class"
    )


def _plain_set(place: str) -> str:
    return (
        f"  a list of sets holds entries {{shards: {place}, weight: 1.0}}, not plain places; a single set is written "
        f"without the brackets: {place}"
    )


def _key(message: str) -> str | None:
    """Last part of the key that a message is about; the option that was refused, if there is one."""
    for pattern in (r"[Oo]ption '([\w.]+)'", r"[Kk]ey[: ]+['\"]([\w.]+)['\"]", r"['\"]([\w.]+)['\"]"):
        found = re.search(pattern, message)
        if found:
            return found.group(1).rpartition(".")[2]
    return None


def _places(key: str | None, files: Iterable[Path]) -> Iterator[str]:
    if key is None:
        return
    pattern = re.compile(rf"(^|[\s{{,-]){re.escape(key)}\s*(:|$)")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                yield f"{file}:{number}"


def explain_interpolation(error: Exception, verb: str) -> str:
    """Say which ${...} cannot be filled in.

    Args:
        error: OmegaConf's, or a RecursionError from references that lead back to themselves.
        verb: the verb, which OmegaConf takes for the first part of every key.

    Returns:
        The message for people.
    """
    if isinstance(error, RecursionError):
        return "a ${...} in the configuration leads back to itself"
    text = str(error)
    place = re.search(rf"full_key: (?:{verb}\.)?(\S+)", text)
    missing = re.search(rf"resolved to '(?:{verb}\.)?([^']+)'", text)
    reason = f"there is no {missing.group(1)} to take the value from" if missing else text.splitlines()[0]
    return f"{place.group(1) if place else 'a ${...} in the configuration'}: {reason}"


def deliberate(error: BaseException | None) -> BaseException | None:
    """Find the error that this package raised on purpose, about its input.

    Its own message then says everything, and a stack trace would only hide it. Errors that come from anywhere else are
    defects and keep their trace; so do all with the environment variable ``LIGHTNING_GEN_TRACEBACK=1``.

    Args:
        error: what was caught.

    Returns:
        The error itself, or the one that jsonargparse wrapped when it built a class; None if it is a defect.
    """
    if os.environ.get("LIGHTNING_GEN_TRACEBACK") == "1":
        return None
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames:
            return None
        last = frames[-1]
        if isinstance(error, _ABOUT_INPUT) and _is_raise_of_this_package(last):
            return error
        if "jsonargparse" not in Path(last.filename).parts:
            return None
        error = error.__cause__ or error.__context__
    return None


def _is_raise_of_this_package(frame: traceback.FrameSummary) -> bool:
    package = Path(__file__).resolve().parent.parent
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return Path(frame.filename).resolve().is_relative_to(package) and line.lstrip().startswith("raise")
