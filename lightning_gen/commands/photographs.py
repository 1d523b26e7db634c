"""The colour photographs that come with scikit-image and scikit-learn, packed into shards.

Which picture is on which side is written in ``data/photographs/split.csv``, not drawn.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Photograph", "SHARDS", "pack_photographs", "photographs"]

_PACKAGE = Path(__file__).resolve().parent.parent

SHARDS: Final = Path("data/shards/photographs")
"""Where the shards go, below the current folder; `configs/vitok_v2_tiny.yaml` reads them there."""


class Photograph(NamedTuple):
    """One line of the split file.

    Attributes:
        key: name of the picture.
        split: ``train`` or ``val``.
        distribution: what to install to have it.
        module: the distribution's package.
        file: path below that package.
    """

    key: str
    split: str
    distribution: str
    module: str
    file: str

    def path(self) -> Path:
        """Where the picture lies; its package is found, not imported.

        Returns:
            Path of the file.

        Raises:
            ModuleNotFoundError: the package is not installed.
            FileNotFoundError: this version of the package comes without the picture.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"the photographs of the demo come with {self.distribution}, which is not installed: "
                'pip install "lightning-gen[demo]" (or pip install scikit-image scikit-learn)'
            )
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.distribution} {version(self.distribution)} comes without {self.file} (no {path}): reinstall "
                f"it, pip install --force-reinstall --no-deps {self.distribution}"
            )
        return path


def photographs(split: str | None = None) -> list[Photograph]:
    """The lines of the split file.

    Args:
        split: ``train`` or ``val``; None = both.

    Returns:
        Photographs in the order of the file.
    """
    with _split_file().open(newline="", encoding="utf-8") as file:
        lines = [Photograph(**row) for row in csv.DictReader(file)]
    return [line for line in lines if split in (None, line.split)]


def _split_file() -> Path:
    """Inside the package in a wheel, beside it in a source tree."""
    shipped = _PACKAGE / "_data" / "photographs" / "split.csv"
    return shipped if shipped.is_file() else _PACKAGE.parent / "data" / "photographs" / "split.csv"


def pack_photographs(folder: Path = SHARDS) -> list[Path]:
    """Write one shard per split; the bytes of the pictures are those of the packages.

    The same packages give the same shards, so packing again changes nothing for a run that is resumed.

    Args:
        folder: gets the folders ``train`` and ``val``.

    Returns:
        Both folders.

    Raises:
        ModuleNotFoundError: a package is not installed.
        FileNotFoundError: a package comes without a picture.
    """
    from lightning_gen.data.writing import write_shards

    splits = [("train", photographs("train")), ("val", photographs("val"))]
    # Everything is looked for before anything is written.
    found = {line: line.path() for _, lines in splits for line in lines}
    for name, lines in splits:
        samples = (_sample(line, found[line]) for line in lines)
        write_shards(samples, folder / name, name=name, source=_source(lines), overwrite=True)
    return [folder / name for name, _ in splits]


def _sample(line: Photograph, path: Path) -> tuple[str, dict[str, bytes]]:
    from lightning_gen.data.decode import picture_size

    data = path.read_bytes()
    height, width = picture_size(data)
    # Nothing that differs between two versions of the package: it would make other shards of the same pictures.
    record = {"distribution": line.distribution, "file": line.file, "height": height, "width": width}
    return line.key, {path.suffix[1:].lower(): data, "json": json.dumps(record, sort_keys=True).encode()}


def _source(lines: Sequence[Photograph]) -> str:
    return "pictures that come with " + ", ".join(_versions({line.distribution for line in lines}))


def _versions(distributions: set[str]) -> Iterator[str]:
    for name in sorted(distributions):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield name
