"""Pictures with segment maps from COCO's files and from shards, cut alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.tarfiles import end_archive, write_member
from lightning_gen.metrics.segmented_pictures import ADE20KShards, CocoPanoptic, square_pair


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels.astype(np.uint8))
    (picture if mode is None else picture.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


def halves() -> tuple[np.ndarray, np.ndarray]:
    """A picture of 24 x 40 pixels, black on the left, white on the right, and segments that say so."""
    left = np.arange(40) < 22
    picture = np.where(left[None, :, None], 0, 255) * np.ones((24, 1, 3))
    return picture, np.where(left, 70_000, 3)[None] * np.ones((24, 1), int)


@pytest.mark.parametrize("size", [24, 12, 48])
def test_a_picture_and_its_map_are_cut_alike(size: int) -> None:
    picture, segments = halves()
    image, cut = square_pair(encoded(picture), torch.from_numpy(segments), size)
    assert image.shape == (3, size, size) and cut.shape == (size, size)
    assert torch.equal(cut == 3, image[0] > 0)
    # 8 of the 40 columns are cut off on the left
    assert int((cut[0] == 70_000).sum()) == 14 * size // 24
    with pytest.raises(SampleError, match="24 x 40 pixels, its map 40 x 24"):
        square_pair(encoded(picture), torch.from_numpy(segments.T), size)


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """One picture in COCO's form; the annotation as it was written."""
    picture, segments = halves()
    segments[:3] = 0
    for folder in ("pictures", "panoptic"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(encoded(picture, "JPEG"))
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], 2)
    (tmp_path / "panoptic/1.png").write_bytes(encoded(colours))
    content = {
        "images": [{"id": 9, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 9, "file_name": "1.png", "segments_info": [{"id": 3}, {"id": 70_000}]}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return content


def test_colours_of_the_map_are_numbers_of_segments(coco: dict[str, Any], tmp_path: Path) -> None:
    found = CocoPanoptic(str(tmp_path / "panoptic.json"), str(tmp_path / "pictures"))
    assert len(found) == 1
    image, segments = found.read(0, 24)
    assert image.shape == (3, 24, 24) and segments.dtype == torch.int64
    assert segments.unique().tolist() == [0, 3, 70_000] and (segments[:3] == 0).all() and (segments[3:] > 0).all()


def test_missing_and_foreign_files_are_named(coco: dict[str, Any], tmp_path: Path) -> None:
    place, pictures = tmp_path / "panoptic.json", str(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match="no panoptic annotations"):
        CocoPanoptic(str(tmp_path / "instances.json"), pictures)
    with pytest.raises(FileNotFoundError, match="panoptic maps"):
        CocoPanoptic(str(place), pictures, str(tmp_path / "maps"))
    coco["annotations"][0]["segments_info"].pop()
    place.write_text(json.dumps(coco))
    with pytest.raises(SampleError, match="segment 70000, which its annotation does not list"):
        CocoPanoptic(str(place), pictures).read(0, 24)
    del coco["annotations"][0]["segments_info"]
    place.write_text(json.dumps(coco))
    with pytest.raises(DataError, match="no panoptic annotation"):
        CocoPanoptic(str(place), pictures)


def test_shards_hold_classes_as_numbers_grey_or_with_a_palette(tmp_path: Path) -> None:
    picture, _ = halves()
    classes = np.where(np.arange(40) < 22, 150, 0)[None] * np.ones((24, 1), int)
    palette = Image.fromarray(classes.astype(np.uint8), "L")
    palette.putpalette([7] * 768)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    with open(tmp_path / "ade.tar", "wb") as file:
        for key, content in (("a", encoded(classes)), ("b", buffer.getvalue()), ("d", encoded(picture))):
            write_member(file, f"{key}.jpg", encoded(picture, "JPEG"))
            write_member(file, f"{key}.seg.png", content)
        write_member(file, "c.jpg", encoded(picture, "JPEG"))
        end_archive(file)
    found = ADE20KShards(str(tmp_path / "ade.tar"))
    assert len(found) == 3
    (_, grey), (_, indexed) = found.read(0, 24), found.read(1, 24)
    assert torch.equal(grey, indexed) and grey.unique().tolist() == [0, 150]
    with pytest.raises(SampleError, match="mode RGB"):
        found.read(2, 24)
    with open(tmp_path / "none.tar", "wb") as file:
        write_member(file, "c.jpg", encoded(picture, "JPEG"))
        end_archive(file)
    with pytest.raises(DataError, match=r"seg\.png"):
        ADE20KShards(str(tmp_path / "none.tar"))
