"""Lists of shards as people and timm write them: patterns with number ranges, counts behind a bar, ``_info.json``."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from lightning_gen.data.quarantine import ShardError

__all__ = ["Listed", "expand_pattern", "parse_info", "pattern_name", "split_count"]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COUNT = re.compile(r"(.*)\|([^|]*)")
_MOST = 1_000_000


class Listed(NamedTuple):
    """Shards without an index.

    Attributes:
        name: of the split.
        locations: of the tars, in order.
        stated: how many samples they should have, by location ("" = together).
    """

    name: str
    locations: list[str]
    stated: dict[str, int]


def expand_pattern(pattern: str) -> list[str]:
    """Write out the number ranges of a shard pattern.

    Args:
        pattern: for instance ``train-{0000..1023}.tar``; several ranges and none are fine.

    Returns:
        The names in order; the first number's width is kept.

    Raises:
        ValueError: a range of more than a million numbers.
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > _MOST:
        raise ValueError(f"the range {match.group()} stands for {len(numbers)} shards")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + f"{number:0{len(first)}d}" + rest for number in numbers for rest in expand_pattern(tail)]


def split_count(text: str, shown: str) -> tuple[str, int | None]:
    """Take the number of samples from the end of what a user wrote.

    Args:
        text: for instance ``train-{0000..0003}.tar|4000``.
        shown: the same for messages.

    Returns:
        What stands before the last bar, and the number; the text itself and None where there is no bar.

    Raises:
        ShardError: something else stands behind the bar.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        return text, None
    pattern, number = match.groups()
    if not number.strip().isdigit():
        raise ShardError(f"{shown}: behind the bar stands the number of samples, got {number.strip()!r}")
    return pattern, int(number)


def pattern_name(file: str) -> str:
    """A name for the split of a pattern.

    Args:
        file: base name of its first shard.

    Returns:
        The name without ending and trailing numbers.
    """
    return _RANGE.sub("", file.removesuffix(".tar")).rstrip("-_0123456789") or "shards"


def parse_info(text: str | bytes, info: str, split: str) -> tuple[str, list[str], list[int]]:
    """Read timm's ``_info.json``.

    Args:
        text: its content.
        info: its location, for messages.
        split: which split; empty = the only one.

    Returns:
        Name of the split, its shards as they are listed, and the samples of each (none where it does not say).

    Raises:
        ShardError: it is no such list, or has no such split.
    """
    try:
        splits = json.loads(text)["splits"]
        if not split and len(splits) == 1:
            split = next(iter(splits))
        if split not in splits:
            folder = info.removesuffix("_info.json").rstrip("/")
            raise ShardError(f"{info} has the splits {', '.join(sorted(splits))}: write {folder}#SPLIT")
        names = [str(name) for name in splits[split]["filenames"]]
        return split, names, [int(length) for length in splits[split].get("shard_lengths") or []]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{info} is not a shard list in timm's form ({error})") from None
