"""Options that the verbs of `lightning arena` share."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gen.alignment.arena_po.arena import Arena
    from lightning_gen.alignment.arena_po.arena_table import TableOptions

__all__ = ["add_arena", "add_reading", "reading_of", "say"]


def add_reading(parser: argparse.ArgumentParser, table: str = "TABLE") -> None:
    """Add the table and which of its columns is which.

    Args:
        parser: of the verb.
        table: how the table is called; in brackets it may be left away.
    """
    optional = table.startswith("[")
    parser.add_argument(
        "table",
        metavar=table.strip("[]"),
        nargs="?" if optional else None,
        help="parquet file, folder or pattern; json, jsonl, csv or tsv list; or shards of preference pairs",
    )
    parser.add_argument("--split", metavar="NAME", help="of a folder with several; the arena wants the training split")
    parser.add_argument(
        "--fields",
        nargs="+",
        default=None,
        metavar="FIELD=COLUMN",
        help="unusual columns: model_a, model_b, outcome, confidence, votes, pair_id",
    )


def add_arena(parser: argparse.ArgumentParser) -> None:
    """Add the arena that was fitted before.

    Args:
        parser: of the verb.
    """
    parser.add_argument("--arena", type=Path, required=True, metavar="FILE", help="arena.json of `lightning arena fit`")


def reading_of(arena: Arena, options: argparse.Namespace) -> TableOptions:
    """Read a table as the arena's own was read, but for what was given now.

    Args:
        arena: knows its aliases, softness and columns.
        options: of the call.

    Returns:
        How to read it.
    """
    from lightning_gen.data.convert.columns import parse_fields

    reading = arena.reading
    fields = reading.fields if options.fields is None else parse_fields(options.fields)
    split = reading.split if options.split is None else options.split
    return dataclasses.replace(reading, fields=fields, split=split)


def say(remarks: Iterable[str]) -> None:
    """Print what somebody should know.

    Args:
        remarks: sentences.
    """
    for remark in remarks:
        print(f"warning: {remark}", file=sys.stderr)
