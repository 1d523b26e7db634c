"""The npz that the ADM evaluator reads: layout, equal bytes, and no half-written file."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.metrics.adm_npz import AdmNpzWriter, write_adm_npz
from lightning_gen.metrics.image_sets import open_images


def images(count: int, height: int = 6, width: int = 9) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def write(path: Path, pictures: torch.Tensor) -> Path:
    with AdmNpzWriter(path, len(pictures), (pictures.shape[2], pictures.shape[3])) as writer:
        for picture in pictures:
            writer.add(picture)
    return path


def test_numpy_reads_what_was_written(tmp_path: Path) -> None:
    pictures = images(5)
    with np.load(write(tmp_path / "a.npz", pictures), allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], pictures.permute(0, 2, 3, 1).numpy())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED


def test_equal_pictures_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.npz", images(3)) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_folder_to_npz_and_back(tmp_path: Path) -> None:
    pictures = images(4)
    (tmp_path / "set").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(tmp_path / f"set/{number}.png")
    seen: list[tuple[str, int, int]] = []
    shape = write_adm_npz(open_images(tmp_path / "set"), tmp_path / "deep/out.npz", lambda *done: seen.append(done))
    assert shape == (4, 6, 9, 3)
    assert seen[-1] == ("pictures", 4, 4)
    back = open_images(tmp_path / "deep/out.npz")
    assert torch.equal(torch.stack(back.select(range(4))), pictures)


def test_the_first_picture_of_another_size_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, size in (("a.png", (8, 8)), ("b.png", (8, 8)), ("c.png", (8, 9)), ("d.png", (7, 7))):
        Image.new("RGB", size).save(tmp_path / "set" / name)
    with pytest.raises(ValueError, match=r"c\.png has 9 x 8 pixels, the first one 8 x 8"):
        write_adm_npz(open_images(tmp_path / "set"), tmp_path / "out" / "a.npz")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="1 pictures came, 2 were announced"), AdmNpzWriter(path, 2, (4, 4)) as writer:
        writer.add(torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 4), "expected uint8"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), r"\[1, 4, 4\]"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), "4 x 5 pixels"),
    ],
)
def test_other_pictures_are_refused(tmp_path: Path, image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message), AdmNpzWriter(tmp_path / "a.npz", 1, (4, 4)) as writer:
        writer.add(image)


def test_one_picture_too_many_and_bad_arguments(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one more than the 1"), AdmNpzWriter(tmp_path / "a.npz", 1, (4, 4)) as writer:
        writer.add(picture)
        writer.add(picture)
    with pytest.raises(ValueError, match="end in .npz"):
        AdmNpzWriter(tmp_path / "a.zip", 1, (4, 4))
    with pytest.raises(ValueError, match="are none"):
        AdmNpzWriter(tmp_path / "a.npz", 0, (4, 4))
    with pytest.raises(RuntimeError, match="open the writer"):
        AdmNpzWriter(tmp_path / "a.npz", 1, (4, 4)).add(picture)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    picture = torch.zeros(3, 128, 128, dtype=torch.uint8)  # 49 kB

    def peak(count: int) -> int:
        tracemalloc.start()
        with AdmNpzWriter(tmp_path / f"{count}.npz", count, (128, 128)) as writer:
            for _ in range(count):
                writer.add(picture)
        for _ in open_images(tmp_path / f"{count}.npz").batches(4):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(200) < peak(20) + 1_000_000, "180 more pictures are 8.8 MB"
