"""From what a user writes behind ``--from`` to a source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from lightning_gen.data.convert.columns import choose_columns
from lightning_gen.data.convert.edit_folders import edit_folders
from lightning_gen.data.convert.edits import EDIT_NEEDED, EDIT_OPTIONAL, EditRows
from lightning_gen.data.convert.hpdv3 import HPDV2_NEEDED, HPDV3_NEEDED, HPDV3_OPTIONAL, HPDv2Rows, HPDv3Rows
from lightning_gen.data.convert.hub import hub_folder
from lightning_gen.data.convert.image_folder import image_folder
from lightning_gen.data.convert.lists import LIST_ENDINGS, ListTable
from lightning_gen.data.convert.parquet import ParquetTable
from lightning_gen.data.convert.pickapic import PAIR_NEEDED, PAIR_OPTIONAL, PairRows, UserRule
from lightning_gen.data.convert.pico_banana import PICO_NEEDED, PICO_OPTIONAL, PicoBananaRows, refuse_other_lists
from lightning_gen.data.convert.prompts import PROMPT_NEEDED, PromptRows
from lightning_gen.data.convert.records import Source
from lightning_gen.data.convert.relation252k import RELATION_NEEDED, RELATION_OPTIONAL, RelationRows
from lightning_gen.data.convert.tables import RowReader, Table, TableSource
from lightning_gen.data.convert.text_image import PICTURE_NEEDED, PICTURE_OPTIONAL, PictureRows
from lightning_gen.data.convert.wds import Dots, WdsSource
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.shard_lists import expand_pattern

__all__ = ["FORMATS", "ROWS", "Request", "open_source", "open_table"]

_SPLIT = re.compile(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?")
_KNOWN_SPLITS = ("train", "validation", "val", "test", "train_sft", "test_sft")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be read, in the user's words.

    Attributes:
        where: file, folder, pattern, or name of a data set on the hub.
        split: which split of the input; None = the only one.
        rows: what rows of a table mean, see :data:`ROWS`; ``auto`` = their columns tell.
        fields: field -> column, where the columns have other names than usual.
        keep: further columns that are copied into the metadata.
        images: folder below which the files lie that rows name; None = that of the table.
        classes: whether the first folder below an image folder is the class.
        class_names: the classes in order, one a line; None = in order of names.
        dots: what a dot in a name inside a foreign tar means.
        user: what takes the place of annotators' numbers.
        title: where the data come from, for people; None = the name of the file or folder.
        revision: of a data set on the hub.
        include: patterns of the files to fetch from the hub.
    """

    where: str
    split: str | None = None
    rows: str = "auto"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    images: Path | None = None
    classes: bool = False
    class_names: Path | None = None
    dots: Dots = "auto"
    user: UserRule = "hash"
    title: str | None = None
    revision: str | None = None
    include: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The input as a local path."""
        return Path(self.where)


def open_source(kind: str, request: Request) -> Source:
    """Open an input.

    Args:
        kind: its format, one of :data:`FORMATS`.
        request: which one, and how it is to be read.

    Returns:
        The source; nothing but names, headers and column names has been read.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: it is something else, or a column is missing.
        ValueError: an unknown format.
    """
    if kind not in FORMATS:
        raise ValueError(f"--from {kind}: known are {', '.join(FORMATS)}")
    if kind != "hf" and not any(mark in request.where for mark in "*{") and not request.path.exists():
        raise FileNotFoundError(f"there is no {request.where}")
    return FORMATS[kind][1](request)


def open_table(request: Request) -> tuple[ParquetTable | ListTable, str]:
    """Open a table whatever its rows are: parquet files, or a list.

    Args:
        request: a file, a folder or a pattern, and the split.

    Returns:
        The table and its split; nothing but names has been read.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: no such split, or several and none chosen; a folder with no list or several.
    """
    path = request.path
    if path.suffix == ".parquet" or any(mark in request.where for mark in "*{"):
        return _parquet_table(request)
    if not path.exists():
        raise FileNotFoundError(f"there is no {request.where}")
    return _parquet_table(request) if path.is_dir() and any(path.rglob("*.parquet")) else _list_table(request)


def _parquet_table(request: Request) -> tuple[ParquetTable, str]:
    root, names = _files(request, ".parquet")
    chosen, split = _one_split(names, request)
    return ParquetTable(root, tuple(chosen)), split


def _list_table(request: Request) -> tuple[ListTable, str]:
    path = _list_file(request, tuple(LIST_ENDINGS))
    return ListTable(path.parent, path.name), request.split or path.stem


def _parquet(request: Request) -> Source:
    table, split = _parquet_table(request)
    return _table(table, request, table.root, split)


def _list(request: Request) -> Source:
    table, split = _list_table(request)
    return _table(table, request, table.root, split)


def _of_kind(rows: str) -> Callable[[Request], Source]:
    def opened(request: Request) -> Source:
        return _list(dataclasses.replace(request, rows=rows, title=request.title or rows))

    return opened


def _prompts(request: Request) -> Source:
    path = _list_file(request, tuple(LIST_ENDINGS))
    named = dataclasses.replace(request, rows="prompts", title=request.title or path.resolve().parent.name)
    return _table(ListTable(path.parent, path.name), named, path.parent, request.split or path.stem)


def _image_folder(request: Request) -> Source:
    names: bool | Sequence[str] = request.classes
    if request.class_names is not None:
        names = request.class_names.read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
    return image_folder(request.path, names, title=request.title or "")


def _edit_folders(request: Request) -> Source:
    return edit_folders(request.path, request.title or "")


def _wds(request: Request) -> Source:
    root, names = _files(request, ".tar")
    return WdsSource(root, tuple(names), request.dots, request.title or root.resolve().name)


def _hub(request: Request) -> Source:
    folder = hub_folder(request.where, request.revision, request.include)
    found = dataclasses.replace(request, where=str(folder), title=request.title or request.where.rstrip("/"))
    if any(folder.rglob("*.parquet")):
        return _parquet(found)
    if any(folder.rglob("*.tar")):
        return _wds(found)
    if any(path.suffix in LIST_ENDINGS and path.suffix != ".txt" for path in folder.iterdir()):
        return _list(found)
    return _image_folder(found)


def _table(table: Table, request: Request, root: Path, split: str) -> Source:
    title = request.title or request.path.resolve().name
    columns = table.columns()
    kind = request.rows if request.rows != "auto" else _guess(columns, request.fields)
    if kind not in ROWS:
        raise ValueError(f"--rows {kind}: known are auto, {', '.join(ROWS)}")
    needed, optional, make = ROWS[kind]
    chosen = choose_columns(columns, needed, optional, request.fields, request.where)
    reader = make(chosen, request)
    return TableSource(table, reader, request.images or root, title, split, request.keep)


def _guess(columns: Sequence[str], given: Mapping[str, str]) -> str:
    """The first kind of rows all of whose fields have a column."""
    for kind in ("hpdv3", "hpdv2", "relation252k", "pairs", "edits", "pictures"):
        needed = ROWS[kind][0]
        names = {field: (given[field],) if field in given else usual for field, usual in needed.items()}
        if all(any(name in columns for name in usual) for usual in names.values()):
            return kind
    raise DataError(
        f"the columns {', '.join(columns)} are none of pairs, edits or pictures: say with --rows what a row is, and "
        "with --fields FIELD=COLUMN which column holds what"
    )


def _files(request: Request, ending: str) -> tuple[Path, list[str]]:
    """Folder and names of the files that the user means: one file, a folder, or a pattern."""
    path = request.path
    if path.is_file():
        return path.parent, [path.name]
    if path.is_dir():
        found = [
            one for one in path.rglob(f"*{ending}") if not any(p.startswith(".") for p in one.parts[len(path.parts) :])
        ]
        root = path
    else:
        root = path.parent
        found = [Path(name) for name in expand_pattern(request.where)]
        found = [one for one in found if one.is_file()] or list(root.glob(path.name))
    if not found:
        raise FileNotFoundError(f"{request.where}: there is no {ending[1:]} file")
    return root, sorted(one.relative_to(root).as_posix() for one in found)


def _one_split(names: Iterable[str], request: Request) -> tuple[list[str], str]:
    """Files of one split, told by names like ``train-00000-of-00645.parquet`` or ``train/0000.parquet``."""
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(_split_of(name), []).append(name)
    if request.split in by_split:
        return by_split[request.split], request.split
    if request.split is not None and set(by_split) != {""}:
        raise DataError(f"{request.where} has no split {request.split}; it has: {', '.join(sorted(by_split))}")
    if len(by_split) > 1:
        raise DataError(f"{request.where} has the splits {', '.join(sorted(by_split))}: choose one with --split")
    split, chosen = next(iter(by_split.items()))
    return chosen, request.split or split or "train"


def _split_of(name: str) -> str:
    path = Path(name)
    match = _SPLIT.fullmatch(path.stem)
    if match:
        return match.group(1)
    return next((part for part in (path.stem, *reversed(path.parts[:-1])) if part in _KNOWN_SPLITS), "")


def _list_file(request: Request, endings: tuple[str, ...]) -> Path:
    """The list that the user means: a file, or the one of that split in a folder."""
    path = request.path
    if path.is_file():
        return path
    lists = sorted(one for one in path.iterdir() if one.suffix.lower() in endings and one.is_file())
    lists = [one for one in lists if one.suffix != ".txt"] or lists
    named = [one for one in lists if one.stem == (request.split or "train")]
    chosen = named or (lists if request.split is None else [])
    if len(chosen) != 1:
        found = ", ".join(one.name for one in lists) or "no list"
        raise DataError(f"{path} holds {found}: name the file, or the split with --split")
    return chosen[0]


_Columns = Mapping[str, tuple[str, ...]]
_Made = Callable[[dict[str, str], Request], RowReader]


def _pico(columns: dict[str, str], request: Request) -> RowReader:
    refuse_other_lists(request.where, columns)
    return PicoBananaRows(columns)


ROWS: Final[dict[str, tuple[_Columns, _Columns, _Made]]] = {
    "pairs": (PAIR_NEEDED, PAIR_OPTIONAL, lambda columns, request: PairRows(columns, request.user)),
    "pictures": (PICTURE_NEEDED, PICTURE_OPTIONAL, lambda columns, request: PictureRows(columns)),
    "edits": (
        EDIT_NEEDED,
        EDIT_OPTIONAL,
        lambda columns, request: EditRows(columns, request.title or request.path.resolve().name),
    ),
    "hpdv3": (HPDV3_NEEDED, HPDV3_OPTIONAL, lambda columns, request: HPDv3Rows(columns)),
    "hpdv2": (HPDV2_NEEDED, {}, lambda columns, request: HPDv2Rows(columns)),
    "relation252k": (RELATION_NEEDED, RELATION_OPTIONAL, lambda columns, request: RelationRows(columns)),
    "pico_banana": (PICO_NEEDED, PICO_OPTIONAL, _pico),
    "prompts": (PROMPT_NEEDED, {}, lambda columns, request: PromptRows(columns)),
}
"""What rows can be -> needed columns, further columns, reader."""

FORMATS: Final[dict[str, tuple[str, Callable[[Request], Source]]]] = {
    "hf": ("a data set of the Hugging Face hub: a folder that was fetched, or OWNER/NAME", _hub),
    "parquet": ("parquet files: Pick-a-Pic, pictures with captions or classes, edit pairs", _parquet),
    "csv": ("a list (csv, tsv, json, jsonl) whose rows name files", _list),
    "imagefolder": ("a folder of pictures, the first folder below it the class with --classes", _image_folder),
    "wds": ("tars of other people in the manner of WebDataset", _wds),
    "hpdv3": ("train.json or test.json of HPDv3 beside its images", _of_kind("hpdv3")),
    "hpdv2": ("train.json of HPDv2 beside its images", _of_kind("hpdv2")),
    "relation252k": ("Relation252K: JSON lines, source and target side by side in one file", _of_kind("relation252k")),
    "picobanana": ("Pico-Banana-400K: the mapped sft.jsonl", _of_kind("pico_banana")),
    "editfolders": ("two folders source and target with the same names", _edit_folders),
    "prompts": ("prompts: a text file with one a line, or JSON lines", _prompts),
}
"""What ``--from`` knows -> what it is, and who opens it."""
