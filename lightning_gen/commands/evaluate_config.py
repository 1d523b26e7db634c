"""`lightning evaluate --config FILE`: several evaluations in one YAML, with the options of the verbs as keys."""

from __future__ import annotations

import argparse
import difflib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["arguments_of", "run"]

Guard = Callable[[str, Callable[[], int]], int]


def run(config: str, verbs: Mapping[str, argparse.ArgumentParser], guarded: Guard) -> int:
    """Check all evaluations of a file, then run them one after the other.

    Args:
        config: path of the file, or name of a recipe.
        verbs: name of a verb -> its parser.
        guarded: runs one evaluation; ends the process with one message where its input is at fault.

    Returns:
        The largest code that an evaluation ended with.

    Raises:
        ValueError: the file is no list of evaluations, has a key that a verb does not know, or an evaluation could not
            run, see ``evaluate_checks.check_ahead``; says where.
    """
    from .evaluate_checks import check_ahead
    from .recipes import resolve

    path = Path(resolve(config))
    planned = [_parsed(where, verb, keys, verbs) for where, verb, keys in _evaluations(path, verbs)]
    made: list[Path] = []
    for where, options in planned:
        guarded(f"{options.verb} ({where})", _nothing_to_say(functools.partial(check_ahead, options, made.copy())))
        if getattr(options, "out", None) is not None:
            made.append(options.out)
    codes = []
    for where, options in planned:
        print(f"{where}: lightning evaluate {options.verb}", file=sys.stderr)
        codes.append(guarded(f"{options.verb} ({where})", functools.partial(options.run, options)))
    return max(codes)


def _nothing_to_say(check: Callable[[], None]) -> Callable[[], int]:
    def checked() -> int:
        check()
        return 0

    return checked


def _evaluations(path: Path, verbs: Mapping[str, argparse.ArgumentParser]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    import yaml

    try:
        content = _without_repeats(path.read_text(encoding="utf-8"), path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("evaluations"), list) or not content["evaluations"]:
        raise ValueError(f"{path} must hold `evaluations:`, a list of verbs with their options")
    if unknown := set(content) - {"evaluations", "out"}:
        raise ValueError(f"{path}: unknown key {sorted(map(str, unknown))[0]!r}; known: evaluations, out")
    used: dict[str, int] = {}
    for number, entry in enumerate(content["evaluations"], 1):
        where = f"{path}, evaluation {number}"
        if not isinstance(entry, dict) or entry.get("verb") not in verbs:
            verb = entry.get("verb") if isinstance(entry, dict) else entry
            raise ValueError(f"{where}: verb is {verb!r}; known: {', '.join(verbs)}")
        keys = {str(key).replace("_", "-"): value for key, value in entry.items()}
        verb = keys.pop("verb")
        used[verb] = used.get(verb, 0) + 1
        if content.get("out") is not None and "out" not in keys and _writes_a_folder(verbs[verb]):
            # One folder each, named by its verb.
            name = verb if used[verb] == 1 else f"{verb}-{used[verb]}"
            keys["out"] = str(Path(str(content["out"])) / name)
        yield where, verb, keys


def _without_repeats(text: str, path: Path) -> Any:
    """Read YAML; of a key that is written twice it would silently keep the last value."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types here
        """Refuses repeated keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set[str]()
            for key, _ in node.value:
                # As options: batch_size and batch-size are one.
                name = str(key.value).replace("_", "-")
                if name in seen:
                    raise ValueError(f"{path}, line {key.start_mark.line + 1}: {key.value} is written twice")
                seen.add(name)
            return dict(super().construct_mapping(node, deep))

    return yaml.load(text, Loader)  # noqa: S506  a SafeLoader


def _writes_a_folder(parser: argparse.ArgumentParser) -> bool:
    return any("--out" in action.option_strings and not action.required for action in parser._actions)


def _parsed(
    where: str, verb: str, keys: Mapping[str, Any], verbs: Mapping[str, argparse.ArgumentParser]
) -> tuple[str, argparse.Namespace]:
    arguments = arguments_of(verbs[verb], keys, f"{where} ({verb})")
    try:
        options = verbs[verb].parse_args(arguments)
    except SystemExit:
        # The parser has said what is wrong; this says where.
        sys.stderr.write(f"written in {where} ({verb})\n")
        raise
    options.verb = verb
    return where, options


def arguments_of(parser: argparse.ArgumentParser, keys: Mapping[str, Any], where: str) -> list[str]:
    """The command line that says the same as some keys.

    Args:
        parser: of the verb.
        keys: name of an option without dashes (or of a positional argument) -> its value; None = its default.
        where: for messages.

    Returns:
        Arguments.

    Raises:
        ValueError: a key that is no option, or a value of the wrong kind.
    """
    known = {_key(action): action for action in parser._actions if action.dest != "help"}
    positional, optional = list[str](), list[str]()
    for key, value in keys.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{where}: unknown key {key!r}; {hint}known: {', '.join(sorted(known))}")
        action = known[key]
        if value is None or value is False:
            if value is False and action.nargs != 0:
                raise ValueError(f"{where}: {key} takes a value, got false")
            continue
        if isinstance(value, Mapping):
            raise ValueError(f"{where}: {key} takes a value or a list, got keys ({', '.join(map(str, value))})")
        values = (
            [str(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
        )
        if action.nargs == 0:
            if value is not True:
                raise ValueError(f"{where}: {key} is true or false, got {value!r}")
            optional.append(action.option_strings[0])
        elif action.option_strings:
            # With "=" a value may begin with a dash; a list cannot.
            flag = action.option_strings[-1]
            optional += [f"{flag}={values[0]}"] if len(values) == 1 and action.nargs is None else [flag, *values]
        else:
            positional += values
    return [*optional, *(["--", *positional] if positional else [])]


def _key(action: argparse.Action) -> str:
    return action.option_strings[-1].lstrip("-") if action.option_strings else action.dest
