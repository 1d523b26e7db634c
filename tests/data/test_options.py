"""Arguments of the DataModules that could be lost on the way to the one who needs them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageFile

from lightning_gen.data.folder import FolderDataModule
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.writing import write_shards
from tests.data.samples import encoded, picture, shards


def jpegs(folder: Path, count: int = 6) -> Path:
    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(count):
            yield f"s{number}", {"jpg": encoded(picture(number), "JPEG", quality=90)}

    write_shards(samples(), folder, name="train", max_samples=count)
    return folder


def module(train: Path | str, **options: Any) -> ShardDataModule:
    return ShardDataModule(train=str(train), patch_size=8, tokens=64, global_batch_size=2, **options)


@pytest.mark.parametrize("decoder", ["auto", "pil", "simplejpeg"])
def test_the_decoder_is_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: Any) -> None:
    """PIL reads every header; only as the decoder does it read the pixels."""
    pytest.importorskip("simplejpeg")
    loaded: list[Any] = []  # kept, so that no two have one id
    load = ImageFile.ImageFile.load

    def counted(self: ImageFile.ImageFile) -> Any:
        loaded.append(self)
        return load(self)

    data, mine = jpegs(tmp_path / "set"), tmp_path / "mine"
    mine.mkdir()
    (mine / "a.jpg").write_bytes(encoded(picture(0), "JPEG"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    assert len(list(module(data, decoder=decoder).train_loader())) == 3
    assert len(set(map(id, loaded))) == (6 if decoder == "pil" else 0)
    assert len(list(FolderDataModule(str(mine), decoder=decoder).predict_loader())) == 1
    assert len(set(map(id, loaded))) == (7 if decoder == "pil" else 0)


@pytest.mark.parametrize("seconds", [0.25, 120.0])
def test_a_read_may_take_the_time_that_was_set(tmp_path: Path, seconds: float) -> None:
    shards(tmp_path, 9, 9)
    loader = module(tmp_path, read_timeout=seconds).train_loader()
    assert loader.factory._schedule.dataset.source.shards.timeout == seconds


@pytest.mark.parametrize(("asked", "gpu", "pinned"), [(None, True, True), (None, False, False), (True, False, True)])
def test_batches_are_pinned_where_asked_or_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool | None, gpu: bool, pinned: bool
) -> None:
    shards(tmp_path, 9, 9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    loader = module(tmp_path, pin_memory=asked).train_loader()
    assert loader.factory._loader is not None and loader.factory._loader.pin_memory == pinned
    off = module(tmp_path, pin_memory=False).train_loader()
    assert off.factory._loader is not None and not off.factory._loader.pin_memory


def foreign(folder: Path) -> Path:
    """Tars as others pack them, without an index."""
    folder.mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"set-{number:04d}.tar", "w") as tar:
            for sample in range(4):
                data = encoded(picture(4 * number + sample))
                info = tarfile.TarInfo(f"n{number}{sample}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def test_indices_of_foreign_tars_go_where_they_are_told_to(tmp_path: Path) -> None:
    folder, index = foreign(tmp_path / "set"), tmp_path / "index"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    made = module(f"{folder}/set-{{0000..0001}}.tar|8", index_folder=str(index))
    made.prepare_data()
    assert len(list(made.train_loader())) == 4
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, "nothing is written beside the tars"
    written = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.is_file()}
    assert written
    again = module(f"{folder}/set-{{0000..0001}}.tar|8", index_folder=str(index))
    again.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.is_file()} == written, "found again"
