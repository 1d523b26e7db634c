"""Pictures with segment maps: COCO's panoptic annotations, ADE20K in shards, or any class that reads such pairs.

A picture and its map are brought to a square alike: scaled until the shorter side has the length of the square, the
middle is cut out. Pictures are resampled bicubically, as those of the DataModules; of a map the nearest pixel is taken.

Shape letters: H and W height and width in pixels, S edge of the square.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.finding import list_shards
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.pixels import Framing, cover
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.tarfiles import Member, split_name, walk
from lightning_gen.data.transforms import uint8_to_signed

__all__ = ["ADE20KShards", "CocoPanoptic", "SegmentedPicture", "SegmentedPictures", "square_pair"]

_PICTURE: Final = ("jpg", "jpeg", "png")
_MAP: Final = "seg.png"


class SegmentedPicture(NamedTuple):
    """A picture and which pixel belongs to what.

    Attributes:
        image: float, (3, S, S) in [-1, 1].
        segments: int64, (S, S), numbers of segments or classes; 0 = none.
    """

    image: Tensor
    segments: Tensor


class SegmentedPictures(Protocol):
    """A set of pictures with segment maps."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def read(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """One picture as a square.

        Args:
            index: its number, from 0.
            size: S in pixels.

        Returns:
            Float image (3, S, S) in [-1, 1], and int64 map (S, S) with 0 = no segment.
        """
        ...


def square_pair(content: bytes, segments: Tensor, size: int) -> SegmentedPicture:
    """A stored picture and its map as squares.

    Args:
        content: the picture's file.
        segments: whole numbers, (H, W), of the picture's height and width.
        size: S in pixels.

    Returns:
        Both.

    Raises:
        SampleError: no picture, or a map of another height or width.
    """
    picture = decode_pixels(content, decoder="pil")
    if tuple(segments.shape) != picture.original_size:
        raise SampleError(
            f"the picture has {picture.original_size[0]} x {picture.original_size[1]} pixels, its map "
            f"{' x '.join(map(str, segments.shape))}: another picture's map?"
        )
    framed = Framing().frame(picture, (size, size), None)
    whole = cover(picture.original_size, (size, size))
    places = []
    for length, scaled, first in zip(picture.original_size, whole, framed.crop_top_left, strict=True):
        middle = (torch.arange(size, dtype=torch.float64) + first + 0.5) * length / scaled
        places.append(middle.floor().long().clamp(max=length - 1))
    image = uint8_to_signed(framed.pixels.permute(2, 0, 1).contiguous())
    return SegmentedPicture(image, segments[places[0]][:, places[1]].long())


class CocoPanoptic:
    """COCO's panoptic annotations: a JSON, a folder of PNGs whose colours number the segments, a folder of pictures.

    number of a segment = R + 256 G + 65536 B; 0 = pixels that nobody has annotated

    Args:
        annotations: for instance ``panoptic_val2017.json``.
        pictures: folder with the JPEGs that it names.
        maps: folder with the PNGs; None = the annotations' path without ``.json``, as COCO's archive has it.

    Raises:
        FileNotFoundError: one of the three is missing.
        DataError: the JSON is no panoptic annotation.

    Source: arXiv:1801.00868; cocodataset.org, format of results and annotations.
    """

    def __init__(self, annotations: str, pictures: str, maps: str | None = None) -> None:
        place = Path(annotations).expanduser()
        self.pictures = Path(pictures).expanduser()
        self.maps = place.with_suffix("") if maps is None else Path(maps).expanduser()
        if not place.is_file():
            raise FileNotFoundError(f"there are no panoptic annotations {place}: COCO's are panoptic_val2017.json")
        for folder, what in ((self.pictures, "pictures"), (self.maps, "panoptic maps (PNG)")):
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder} with the {what} of {place.name}")
        try:
            content: Any = json.loads(place.read_text(encoding="utf-8"))
            names = {picture["id"]: picture["file_name"] for picture in content["images"]}
            self._entries = [
                (names[one["image_id"]], one["file_name"], frozenset(int(part["id"]) for part in one["segments_info"]))
                for one in content["annotations"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{place} is no panoptic annotation ({type(error).__name__}: {error}): it needs images and annotations "
                "with segments_info. COCO's instances_*.json and stuff_*.json are other files"
            ) from None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._entries)

    def read(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """See :meth:`SegmentedPictures.read`.

        Raises:
            SampleError: a file is missing or damaged, or the map shows segments that the annotation does not list.
        """
        picture, png, known = self._entries[index]
        content, colours = _bytes(self.pictures / picture), decode_pixels(_bytes(self.maps / png), decoder="pil").pixels
        weights = torch.tensor([1, 256, 65536])
        segments = (torch.from_numpy(colours.astype(np.int64)) * weights).sum(2)
        if strange := sorted(set(torch.unique(segments).tolist()) - known - {0}):
            raise SampleError(f"{png} shows segment {strange[0]}, which its annotation does not list: another map?")
        try:
            return square_pair(content, segments, size)
        except SampleError as error:
            raise SampleError(f"{picture}: {error}") from None


class ADE20KShards:
    """Tars whose samples are a picture and ``seg.png``, which numbers classes: 0 = background or ignored, 1 to 150.

    Args:
        shards: a tar, a folder of tars, a manifest.json, or a pattern ``ade-val-{0000..0003}.tar``.

    Raises:
        DataError: no sample with both.
    """

    def __init__(self, shards: str) -> None:
        found = list_shards(shards)
        if isinstance(found, Manifest):
            tars = [found.tar_path(number) for number in range(len(found.shards))]
        else:
            tars = [Path(tar) for tar in found.locations]
        self._samples = [sample for tar in tars for sample in _samples(tar)]
        if not self._samples:
            raise DataError(f"{shards}: no sample has a picture ({', '.join(_PICTURE)}) and {_MAP}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._samples)

    def read(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """See :meth:`SegmentedPictures.read`.

        Raises:
            SampleError: a picture or a map cannot be read; names it.
        """
        tar, picture, png = self._samples[index]
        try:
            return square_pair(_part(tar, picture), _grey(_part(tar, png)), size)
        except SampleError as error:
            raise SampleError(f"{tar}: {picture.name}: {error}") from None


def _samples(tar: Path) -> Iterator[tuple[Path, Member, Member]]:
    fields: dict[str, dict[str, Member]] = {}
    for member in walk(tar):
        if (split := split_name(member.name)) is not None:
            fields.setdefault(split[0], {})[split[1].lower()] = member
    for found in fields.values():
        picture = next((found[field] for field in _PICTURE if field in found), None)
        if picture is not None and _MAP in found:
            yield tar, picture, found[_MAP]


def _part(tar: Path, member: Member) -> bytes:
    with open(tar, "rb") as file:
        return os.pread(file.fileno(), member.size, member.offset)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror or error}") from None


def _grey(content: bytes) -> Tensor:
    """Class numbers of a map of one channel, grey or with a palette, whose numbers count and not its colours."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.mode not in ("L", "P", "I;16", "I"):
                raise SampleError(f"{_MAP} has the mode {picture.mode}: class numbers stand in one channel")
            return torch.from_numpy(np.array(picture).astype(np.int64))
    except (UnidentifiedImageError, OSError) as error:
        raise SampleError(f"{_MAP} is no picture ({error})") from None
