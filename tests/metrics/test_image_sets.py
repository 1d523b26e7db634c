"""Pictures from folders, tars and npz files: their order, their pixels, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.quarantine import DataError, SampleError, ShardError
from lightning_gen.metrics.adm_npz import NpzImages
from lightning_gen.metrics.image_sets import PictureFolder, TarPictures, open_images
from tests.data.samples import shards


def pixels(count: int, height: int = 5, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save_folder(folder: Path, images: np.ndarray, pattern: str = "{:03d}.png") -> Path:
    for number, image in enumerate(images):
        path = folder / pattern.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def save_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["folder", "npz", "compressed", "tar"])
def test_all_forms_give_the_same_pixels_in_order(tmp_path: Path, kind: str) -> None:
    images = pixels(5)
    if kind == "folder":
        where = save_folder(tmp_path / "set", images)
    elif kind == "tar":
        where = save_tar(tmp_path / "set.tar", [(f"{n}.png", png(image)) for n, image in enumerate(images)])
    else:
        where = tmp_path / "set.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(where, images)
    found = open_images(where)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert len(found) == 5
    batches = list(found.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.stack([image for batch in batches for image in batch]), expected)
    threaded = torch.stack([image for batch in found.batches(2, threads=2) for image in batch])
    assert torch.equal(threaded, expected)
    assert torch.equal(torch.stack(found.select([4, 0, 4])), expected[[4, 0, 4]])
    assert torch.equal(found.read(1), expected[1]), "backwards too"
    assert found.read(0).dtype == torch.uint8


def test_rows_of_an_uncompressed_npz_are_read_where_they_lie(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_1=np.arange(3), arr_0=pixels(4))
    found = open_images(tmp_path / "a.npz")
    assert isinstance(found, NpzImages)
    assert found._offset is not None
    assert found._stream is None
    list(found.batches(3))
    assert found._stream is None, "nothing is unpacked"


def test_the_order_of_files_is_that_of_their_paths_as_text(tmp_path: Path) -> None:
    for name in ("10.png", "9.png", "b/1.png", "a/2.PNG"):
        save_folder(tmp_path / "set", pixels(1), name)
    (tmp_path / "set/.hidden").mkdir()
    save_folder(tmp_path / "set/.hidden", pixels(1))
    assert open_images(tmp_path / "set").names == ["10.png", "9.png", "a/2.PNG", "b/1.png"]


def test_members_of_a_tar_keep_the_archives_order(tmp_path: Path) -> None:
    data = png(pixels(1)[0])
    members = [("z.png", data), ("z.json", b"{}"), ("a.png", data), ("dir/.b.png", data)]
    assert open_images(save_tar(tmp_path / "a.tar", members)).names == ["z.png", "a.png"]
    assert not (tmp_path / ".lightning_gen").exists(), "no index is left beside other people's files"


def test_shards_patterns_and_folders_of_tars(tmp_path: Path) -> None:
    manifest = shards(tmp_path / "set", 20, 9)
    by_manifest = open_images(tmp_path / "set")
    assert isinstance(by_manifest, TarPictures)
    assert len(by_manifest) == manifest.total == 20
    by_pattern = open_images(str(tmp_path / "set" / "train-{000000..000002}.tar"))
    assert by_pattern.names == by_manifest.names
    assert by_pattern.fingerprint == by_manifest.fingerprint
    for path in (tmp_path / "set").iterdir():
        if path.suffix != ".tar":
            path.unlink()
    assert open_images(tmp_path / "set").names == by_manifest.names


def test_modes_become_rgb_and_exif_turns_the_picture(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    grey = np.array([[0, 200]], np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray((grey.astype(np.uint16) << 8) + 255).save(folder / "deep.png")
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (4, 2)).save(folder / "turned.jpg", exif=exif)
    found = dict(zip(open_images(folder).names, (image for [image] in open_images(folder).batches(1)), strict=True))
    assert found["grey.png"][:, 0].tolist() == [[0, 200]] * 3
    assert found["deep.png"][:, 0].tolist() == [[0, 200]] * 3
    assert found["alpha.png"].permute(1, 2, 0).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert found["turned.jpg"].shape == (3, 4, 2)


def test_fingerprint_depends_on_names_bytes_and_order_only(tmp_path: Path) -> None:
    images = pixels(3)
    first = open_images(save_folder(tmp_path / "a", images))
    again = open_images(save_folder(tmp_path / "b", images))
    list(again.batches(2))
    assert first.fingerprint == again.fingerprint, "read or not"
    other_names = open_images(save_folder(tmp_path / "c", images, "x{:03d}.png"))
    other_order = open_images(save_folder(tmp_path / "d", images[::-1]))
    other_bytes = open_images(save_folder(tmp_path / "e", pixels(3, seed=1)))
    prints = {one.fingerprint for one in (first, other_names, other_order, other_bytes, first.first(2))}
    assert len(prints) == 5
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        save(tmp_path / f"{name}.npz", images)
    assert open_images(tmp_path / "plain.npz").fingerprint == open_images(tmp_path / "packed.npz").fingerprint


def test_a_picture_is_read_once_for_the_batch_and_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_images(save_folder(tmp_path / "a", pixels(3)))
    list(found.batches(2))
    monkeypatch.setattr(PictureFolder, "_content", lambda self, index: pytest.fail("read again"))
    assert len(found.fingerprint) == 64


def test_counts_are_exact(tmp_path: Path) -> None:
    found = open_images(save_folder(tmp_path / "set", pixels(5)))
    found.check_count(5)
    with pytest.raises(ValueError, match="has 5 pictures, expected 6: some are missing"):
        found.check_count(6)
    with pytest.raises(ValueError, match="expected 4: are there others"):
        found.check_count(4)
    assert found.first(2).names == found.names[:2]
    assert len(found) == 5
    with pytest.raises(ValueError, match="5 pictures, 6 are asked for"):
        found.first(6)
    with pytest.raises(IndexError):
        found.first(2).read(2)


def test_first_of_a_compressed_npz_has_a_stream_of_its_own(tmp_path: Path) -> None:
    images = pixels(6)
    np.savez_compressed(tmp_path / "a.npz", images)
    whole = open_images(tmp_path / "a.npz")
    whole.read(3)
    part = whole.first(3)
    for index in (0, 4, 1, 5, 2):
        source = part if index < 3 else whole
        assert torch.equal(source.read(index), torch.from_numpy(images[index]).permute(2, 0, 1))


def test_jpeg_samples_are_recognised(tmp_path: Path) -> None:
    assert not open_images(save_folder(tmp_path / "a", pixels(2))).is_lossy
    assert open_images(save_folder(tmp_path / "b", pixels(2), "{}.JPG")).is_lossy


BAD_ARRAYS = {
    "float": (np.zeros((2, 4, 4, 3), np.float32), "signed_to_uint8"),
    "int64": (np.zeros((2, 4, 4, 3), np.int64), "expected uint8"),
    "channels first": (np.zeros((2, 3, 4, 5), np.uint8), r"transpose\(0, 2, 3, 1\)"),
    "alpha": (np.zeros((2, 4, 4, 4), np.uint8), "without alpha"),
    "grey": (np.zeros((2, 4, 4), np.uint8), r"expected \(N, H, W, 3\)"),
    "columns": (np.asfortranarray(np.zeros((2, 4, 5, 3), np.uint8)), "ascontiguousarray"),
    "empty": (np.zeros((0, 4, 4, 3), np.uint8), "no picture"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_of_another_kind_are_refused_with_the_way_out(tmp_path: Path, case: str) -> None:
    array, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "a.npz")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.array([object()], dtype=object))
    with pytest.raises(DataError, match="object"):
        open_images(tmp_path / "a.npz")


def test_statistics_are_no_pictures(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(DataError, match="has no arr_0.*mu, sigma.*give it as the reference"):
        open_images(tmp_path / "a.npz")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels(20))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cut.npz is not a readable npz"):
        open_images(tmp_path / "cut.npz")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(SampleError, match=r"set: a\.png: these 13 bytes are not a picture"):
        open_images(tmp_path / "set").read(0)
    tar = save_tar(tmp_path / "a.tar", [("a.png", png(pixels(1)[0])), ("b.png", png(pixels(1, 200, 200)[0]))])
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"cut\.tar is truncated"):
        open_images(tmp_path / "cut.tar")


def test_what_is_ambiguous_or_absent_is_refused(tmp_path: Path) -> None:
    data = png(pixels(1)[0])
    with pytest.raises(DataError, match="which one counts"):
        open_images(save_tar(tmp_path / "masks.tar", [("a.png", data), ("a.mask.png", data)]))
    dotted = save_tar(tmp_path / "dots.tar", [("0.5_1.png", data), ("0.5_2.png", data)])
    assert len(open_images(dotted)) == 2, "a dot inside a name is no second picture"
    with pytest.raises(DataError, match="no picture in it"):
        open_images(save_tar(tmp_path / "text.tar", [("a.txt", b"a")]))
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_images(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_images(tmp_path / "nothing.npz")
    save_folder(tmp_path / "both", pixels(1))
    save_tar(tmp_path / "both" / "a.tar", [("a.png", data)])
    with pytest.raises(DataError, match="side by side"):
        open_images(tmp_path / "both")
    with pytest.raises(DataError, match="is one picture"):
        open_images(tmp_path / "both" / "000.png")
    with pytest.raises(DataError, match="remote"):
        open_images("https://example.org/samples.npz")
    np.save(tmp_path / "a.npy", pixels(1))
    with pytest.raises(DataError, match="numpy.savez"):
        open_images(tmp_path / "a.npy")


def test_a_batch_holds_at_least_one_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 picture"):
        next(open_images(save_folder(tmp_path / "a", pixels(1))).batches(0))


def alpha_folder(folder: Path) -> Path:
    """Opaque RGBA, a half transparent one, one of a palette, grey with alpha, 16-bit grey with a transparent level."""
    folder.mkdir()
    rgba = np.full((2, 3, 4), (10, 20, 30, 255), np.uint8)
    Image.fromarray(rgba).save(folder / "0.png")
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 128
    Image.fromarray(rgba).save(folder / "1.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(folder / "2.png", transparency=1)
    Image.fromarray(np.array([[[90, 0], [80, 255]]], np.uint8), "LA").save(folder / "3.png")
    Image.fromarray(np.full((1, 2, 3), 7, np.uint8)).save(folder / "4.png")
    return folder


def test_alpha_is_laid_over_white_or_dropped_and_counted(tmp_path: Path) -> None:
    folder = alpha_folder(tmp_path / "set")
    white, dropped = open_images(folder), open_images(folder).with_alpha("drop")
    before = white.fingerprint
    seen = {name: [one.permute(1, 2, 0).tolist() for one in some.select(range(5))]
            for name, some in (("white", white), ("drop", dropped))}  # fmt: skip
    for number in range(5):
        stored = np.asarray(Image.open(folder / f"{number}.png").convert("RGB")).tolist()
        assert seen["drop"][number] == stored, "as pytorch-fid and clean-fid read them"
    assert seen["white"][1][0][:2] == [[255, 255, 255], [132, 137, 142]]
    assert seen["white"][2] == [[[10, 20, 30], [255, 255, 255]]] and seen["white"][0] == seen["drop"][0]
    assert white.num_transparent == dropped.num_transparent == 3
    assert white.first(2).num_transparent == 1
    assert white.fingerprint == before != dropped.fingerprint, "other pixels have another name"
    opaque = save_folder(tmp_path / "opaque", pixels(2))
    assert open_images(opaque).with_alpha("drop").fingerprint == open_images(opaque).fingerprint
    with pytest.raises(ValueError, match="alpha is one of white, drop, got 'black'"):
        white.with_alpha("black")  # type: ignore[arg-type]


def test_dropping_alpha_keeps_a_picture_upright_and_16_bits_exact(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((2, 4, 4), np.uint8)).save(tmp_path / "set/0.png", exif=exif)
    deep = np.array([[200 << 8, 77 << 8]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "set/1.png", transparency=77 << 8)
    found = open_images(tmp_path / "set").with_alpha("drop")
    assert found.read(0).shape == (3, 4, 2)
    assert found.read(1)[0].tolist() == [[200, 77]]
    assert open_images(tmp_path / "set").read(1)[0].tolist() == [[200, 255]]
    assert found.num_transparent == 2
