"""Pictures in the shape of their batch: geometry, SDXL's values, mirror images, captions, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.decode import DecodedPicture
from lightning_gen.data.image_folder import ImageFolderDataModule
from lightning_gen.data.images import ImageDataModule, MixtureDataModule, TextImageDataModule
from lightning_gen.data.pixels import Framing, cover
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.data.writing import write_shards
from tests.data import kinds
from tests.data.samples import SIZES, encoded, picture, shards


def ramp(height: int, width: int) -> DecodedPicture:
    """Red counts the rows, green the columns: a crop says where it comes from."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    return DecodedPicture(pixels, (height, width), (0, 0, width, height))


@given(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.tuples(st.integers(1, 512), st.integers(1, 512)))
def test_cover_is_the_smallest_size_of_the_same_ratio(size: tuple[int, int], shape: tuple[int, int]) -> None:
    resized = cover(size, shape)
    assert resized[0] >= shape[0] and resized[1] >= shape[1]
    assert resized[0] == shape[0] or resized[1] == shape[1]
    scale = max(shape[0] / size[0], shape[1] / size[1])
    assert abs(resized[0] - scale * size[0]) <= 0.5 + 1e-9 and abs(resized[1] - scale * size[1]) <= 0.5 + 1e-9


def test_a_frame_is_the_crop_it_says_also_in_the_mirror() -> None:
    source = ramp(100, 130)
    framing = Framing(random_crop=True, flip_probability=0.5)
    plain = framing.frame(source, (100, 60), np.array([0.3, 0.4, 0.9], np.float32))
    assert plain.original_size == (100, 130) and plain.crop_top_left == (0, int(0.4 * 71))
    left = plain.crop_top_left[1]
    assert np.array_equal(plain.pixels.numpy(), source.pixels[:, left : left + 60])
    mirrored = framing.frame(source, (100, 60), np.array([0.3, 0.4, 0.1], np.float32))
    whole = source.pixels[:, ::-1]
    assert mirrored.crop_top_left == plain.crop_top_left
    assert np.array_equal(mirrored.pixels.numpy(), whole[:, left : left + 60])
    middle = Framing().frame(source, (100, 60), None)
    assert middle.crop_top_left == (0, 35)


def test_random_crops_reach_both_ends() -> None:
    framing, source = Framing(random_crop=True), ramp(40, 44)
    lefts = {
        framing.frame(source, (40, 40), np.array([u, u, 1.0], np.float32)).crop_top_left[1]
        for u in np.linspace(0, 0.999, 50)
    }
    assert lefts == {0, 1, 2, 3, 4}


def test_micro_conditioning_values_are_those_of_each_sample(tmp_path: Path) -> None:
    made = kinds.text_images(tmp_path)
    shapes = set[tuple[int, ...]]()
    for batch in made.train_loader(0):
        assert isinstance(batch, ImageBatch) and batch.target_size is not None and batch.crop_top_left is not None
        shapes.add(tuple(batch.images.shape[2:]))
        assert batch.images.shape == (4, 3, *batch.target_size[0].tolist())
        for row, index in enumerate(batch.index.tolist()):
            assert batch.caption[row] == f"caption {index}"
            size = SIZES[index % len(SIZES)]
            assert tuple(batch.original_size[row].tolist()) == size
            room = np.subtract(cover(size, tuple(batch.images.shape[2:])), batch.images.shape[2:])
            assert (batch.crop_top_left[row].numpy() >= 0).all() and (batch.crop_top_left[row].numpy() <= room).all()
    assert len(shapes) > 2


def test_evaluation_takes_the_middle_square_of_the_unchanged_picture(tmp_path: Path) -> None:
    made = kinds.labelled(tmp_path)
    batch = next(iter(made.evaluation_loader("val")))
    picture_2 = signed_to_uint8(batch.images[2]).permute(1, 2, 0).numpy()
    assert np.array_equal(picture_2, np.asarray(picture(2)))  # 16 x 16 already
    assert batch.label.tolist() == [0, 1, 2, 3]


def test_a_sample_without_a_caption_is_replaced_and_counted(tmp_path: Path) -> None:
    samples = [kinds.captioned(number) for number in range(12)]
    samples[5][1].pop("txt")
    write_shards(samples, tmp_path)
    made = TextImageDataModule(str(tmp_path), resolution=16, global_batch_size=4, max_bad_fraction=0.5)
    captions = [caption for batch in made.train_loader(0) for caption in batch.caption]
    assert "" not in captions and "caption 5" not in captions and len(captions) == 12
    assert made.counters()["bad"] == 1
    made.teardown()
    strict = TextImageDataModule(str(tmp_path), resolution=16, global_batch_size=4, max_bad_fraction=0.0)
    with pytest.raises(DataError, match="no caption"):
        list(strict.train_loader(0))


def test_a_folder_of_classes(tmp_path: Path) -> None:
    made = kinds.image_folder(tmp_path)
    for batch in made.train_loader(0):
        for key, label, caption in zip(batch.key, batch.label.tolist(), batch.caption, strict=True):
            number = int(Path(key).stem)
            assert label == "abc".index(key[len("class_")])
            assert caption == (f"caption {number}" if number % 2 else "")
    first = made._set("train").fingerprint
    (tmp_path / "class_a" / "extra.png").write_bytes(encoded(picture(1)))
    again = ImageFolderDataModule(str(tmp_path), resolution=16, global_batch_size=4)
    assert again._set("train").fingerprint != first


def test_a_folder_of_other_classes_is_refused(tmp_path: Path) -> None:
    kinds.image_folder(tmp_path / "a")
    (tmp_path / "b" / "dog").mkdir(parents=True)
    (tmp_path / "b" / "dog" / "x.png").write_bytes(encoded(picture(0)))
    made = ImageFolderDataModule(str(tmp_path / "a"), str(tmp_path / "b"), resolution=16, global_batch_size=4)
    with pytest.raises(DataError, match="class folders dog, which training does not have"):
        made.evaluation_loader("val")
    three = ImageFolderDataModule(str(tmp_path / "a"), resolution=16, global_batch_size=4, num_classes=7)
    with pytest.raises(DataError, match="has 3 class folders"):
        three.train_loader()


def test_a_damaged_file_of_a_folder_is_replaced_by_one_of_its_bucket(tmp_path: Path) -> None:
    made = kinds.image_folder(tmp_path, max_bad_fraction=0.5)
    (tmp_path / "class_a" / "001.png").write_bytes(b"not a picture")
    keys = [key for batch in made.train_loader(0) for key in batch.key]
    assert "class_a/001.png" not in keys
    assert made.counters()["bad"] == 1


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.resolution"):
        ImageDataModule(resolution=0, global_batch_size=4)
    with pytest.raises(ValueError, match="flip_probability"):
        ImageDataModule(
            str(shards(tmp_path).folder), resolution=8, global_batch_size=4, flip_probability=2
        ).train_loader()
    with pytest.raises(ValueError, match="a list of"):
        MixtureDataModule("a", resolution=8, global_batch_size=4)
    with pytest.raises(ValueError, match=r"data\.num_workers must be at least 0"):
        ImageDataModule(resolution=8, global_batch_size=4, num_workers=-1)


def test_dct_scaling_and_the_other_resampler_reach_the_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 160, 3), dtype=np.uint8)
    samples = [(f"j{n}", {"jpg": encoded(Image.fromarray(noise[n]), "JPEG", quality=95)}) for n in range(8)]
    write_shards(samples, tmp_path)

    def images(split: str, **options: Any) -> torch.Tensor:
        made = ImageDataModule(
            str(tmp_path), str(tmp_path), resolution=16, global_batch_size=8, random_crop=False, flip_probability=0.0,
            **options,
        )  # fmt: skip
        loader = made.train_loader(0) if split == "train" else made.evaluation_loader()
        batch = next(iter(loader))
        assert set(map(tuple, batch.original_size.tolist())) == {(128, 160)}
        return batch.images[batch.index.argsort()]

    plain = images("train")
    scaled, fast = images("train", dct_scaling=True), images("train", resampler="torch")
    assert 0 < (scaled - plain).abs().mean() < 0.1
    assert 0 < (fast - plain).abs().max() < 0.05
    assert torch.equal(images("val", dct_scaling=True), plain)
