"""Caching latents: the right numbers, each picture once, the same bytes after any interruption."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.inspection.verifying import verify
from lightning_gen.data.latents.caching import Caching, cache_latents
from lightning_gen.data.latents.encoding import mirror_images, token_grids
from lightning_gen.data.latents.reading import PictureSize
from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.data.latents.statistics import ChannelMoments
from lightning_gen.data.manifest import verify_shards
from lightning_gen.data.quarantine import DataError, read_quarantine
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.transforms import from_picture, resize_to_budget
from lightning_gen.data.writing import write_shards
from lightning_gen.nn.tokens import join_images, pack, patchify
from tests.data.conversions import Killed, killed_in_last_steps
from tests.data.kinds import captioned, pair
from tests.data.patch_averages import PatchAverages, cached
from tests.data.samples import SIZES, encoded, picture, sample, samples, shards

TINY = "w16_d1_h1-w16_d1_h1/1x8x6"


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a data set but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def arrays(folder: Path, field: str = "npy") -> dict[str, np.ndarray]:
    """The arrays of every sample, read by NumPy out of the tars."""
    found = {}
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                key, _, name = member.name.partition(".")
                if name == field:
                    found[key] = np.load(io.BytesIO(file.extractfile(member).read()), allow_pickle=False)
    return found


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny products on several threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in ``p``, and their latents in ``whole``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shards(folder / "p", 30, 7)
    cached(folder / "p", folder / "whole", mirror=True)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> ViTokV2:
    model = ViTokV2(TINY, layer_scale=0.5, dino_weight=0.0)
    model.configure_model()
    model.save_pretrained(tmp_path / "weights")
    return ViTokV2.from_pretrained(str(tmp_path / "weights"))


def test_latents_are_those_of_the_same_pictures(tiny: ViTokV2, tmp_path: Path) -> None:
    source = shards(tmp_path / "pictures", 23, 9)
    record = cached(tmp_path / "pictures", tmp_path / "latents", tiny, mirror=True)
    found = IndexedShards(find_manifest(tmp_path / "latents"))
    assert [shard.num_samples for shard in found.manifest.shards] == [9, 9, 5]
    assert [found.key(number) for number in range(23)] == [f"s{number:05d}" for number in range(23)]
    plain, mirrored = arrays(tmp_path / "latents"), arrays(tmp_path / "latents", "mirror.npy")
    pictures = IndexedShards(source)
    for number in range(23):
        original = picture(number)
        size = resize_to_budget((original.height, original.width), 8, 16)
        image = from_picture(original.resize(size[::-1], Image.Resampling.BICUBIC))
        expected = tiny.encode([image]).values[0].numpy()
        key, fields = found.key(number), found[number]
        assert plain[key].dtype == np.float16
        np.testing.assert_allclose(plain[key], expected, atol=2e-3)
        np.testing.assert_allclose(mirrored[key], tiny.encode([image.flip(-1)]).values[0].numpy(), atol=2e-3)
        assert fields["cls"] == pictures[number]["cls"]
        assert json.loads(fields["json"]) == {
            "rows": -(-size[0] // 8),
            "cols": -(-size[1] // 8),
            "height": size[0],
            "width": size[1],
            "original_size": [original.height, original.width],
            "crop_top_left": [0, 0],
        }
    assert (record.samples, record.left_out, record.patch, record.channels, record.tokens) == (23, 0, 8, 6, 16)
    assert record.sha256 == weights_sha256(tiny) and record.source == source.fingerprint
    assert record.num_tokens == 2 * sum(len(array) for array in plain.values())
    assert record == LatentRecord.load(tmp_path / "latents")


def rounding(model: PatchAverages, image: torch.Tensor) -> float:
    """How far two sums of the same products may lie apart: their order depends on the shape of the whole product.

    Each is within gamma_n sum |w x| of the exact sum: gamma_n = n u / (1 - n u), u = 2^-24, n = 193 with the bias.

    Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5.
    """
    terms, unit = model.linear.in_features + 1, 2.0**-24
    sizes = patchify(image[None], model.patch).values.abs() @ model.linear.weight.abs().T + model.linear.bias.abs()
    return float(2 * terms * unit / (1 - terms * unit) * sizes.max())


def test_a_square_is_cut_out_where_a_resolution_is_given(tmp_path: Path) -> None:
    shapes = {"tall": (21, 16), "wide": (16, 40), "same": (16, 16)}
    write_shards(((key, {"png": encoded(picture(3, size))}) for key, size in shapes.items()), tmp_path / "p")
    model = PatchAverages()
    caching = Caching(PictureSize(resolution=16), "float32")
    record = cache_latents(find_manifest(tmp_path / "p"), tmp_path / "l", model, caching)
    corners = {"tall": (2, 0), "wide": (0, 12), "same": (0, 0)}
    found = IndexedShards(find_manifest(tmp_path / "l"))
    for number, (key, array) in enumerate(arrays(tmp_path / "l").items()):
        top, left = corners[key]
        image = from_picture(picture(3, shapes[key]))[:, top : top + 16, left : left + 16]
        expected = model.encode(image[None]).values[0].numpy()
        np.testing.assert_allclose(array, expected, rtol=0, atol=rounding(model, image))
        assert array.dtype == np.float32
        assert json.loads(found[number]["json"])["crop_top_left"] == [top, left]
    assert (record.resolution, record.tokens, record.budget) == (16, None, 4)


def test_captions_and_labels_that_have_no_field_of_their_own_stand_in_json(tmp_path: Path) -> None:
    plain = encoded(picture(0))
    described = ("inside", {"png": plain, "json": json.dumps({"label": 3, "caption": "a cat", "user": "x"}).encode()})
    write_shards([captioned(1), described], tmp_path / "p")
    cached(tmp_path / "p", tmp_path / "l")
    found = IndexedShards(find_manifest(tmp_path / "l"))
    assert found[0]["txt"] == b"caption 1" and "caption" not in json.loads(found[0]["json"])
    record = json.loads(found[1]["json"])
    assert (record["label"], record["caption"]) == (3, "a cat") and "user" not in record
    assert found.manifest.schema["npy"].startswith("latent") and "txt" in found.manifest.schema


def test_statistics_are_numpys(undisturbed: Path, tmp_path: Path) -> None:
    cached(undisturbed / "p", tmp_path)
    for folder, fields in ((tmp_path, ("npy",)), (undisturbed / "whole", ("npy", "mirror.npy"))):
        record = LatentRecord.load(folder)
        tokens = np.concatenate([array for field in fields for array in arrays(folder, field).values()])
        exact = tokens.astype(np.float64)
        np.testing.assert_allclose(record.mean, exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(record.std, exact.std(0), rtol=1e-12)
        assert record.num_tokens == len(tokens)


def test_moments_keep_their_digits_beside_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(1e6, 1e-2, (n, 3)) for n in (1, 50, 7)]
    total = ChannelMoments.total([ChannelMoments.none(3), *map(ChannelMoments.of, parts)])
    whole = np.concatenate(parts)
    np.testing.assert_allclose(total.mean, whole.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.std, whole.std(0), rtol=1e-6)
    again = ChannelMoments.from_json(json.loads(json.dumps(total.to_json())))
    assert (again.mean == total.mean).all() and (again.squares == total.squares).all()


@pytest.mark.parametrize("pictures", [0, 5, 14, 29])
def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(
    pictures: int, undisturbed: Path, tmp_path: Path
) -> None:
    halted = PatchAverages(
        stop_after=1 + 2 * pictures
    )  # one to learn the patch, then each picture and its mirror image
    with pytest.raises(InterruptedError):
        cached(undisturbed / "p", tmp_path, halted, mirror=True)
    assert not (tmp_path / "manifest.json").exists()
    model = PatchAverages()
    cached(undisturbed / "p", tmp_path, model, mirror=True)
    assert content(tmp_path) == content(undisturbed / "whole")
    assert model.seen == 1 + 2 * (30 - pictures // 7 * 7)  # what was finished is not encoded again
    assert not (tmp_path / ".convert").exists()


def test_a_call_that_was_killed_while_it_moved_files_does_the_rest(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def replace(source: Path, target: Path, move: Callable[[Path, Path], None] = os.replace) -> None:
        if Path(target).parent == tmp_path:
            moved.append(Path(target).name)
            if len(moved) == 4:
                raise InterruptedError("the power went out")
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InterruptedError):
        cached(undisturbed / "p", tmp_path, mirror=True)
    model = PatchAverages()
    cached(undisturbed / "p", tmp_path, model, mirror=True)
    assert content(tmp_path) == content(undisturbed / "whole")
    assert model.seen == 1 and moved[-1] == "manifest.json"


@pytest.mark.parametrize("replaces", [False, True])
def test_a_call_that_is_killed_at_any_of_its_last_steps_ends_complete(
    undisturbed: Path, tmp_path: Path, replaces: bool
) -> None:
    """Also where the manifest is already there and only the working folder is being removed."""
    out = tmp_path / "l"
    shards(tmp_path / "p", 9, 4)
    cached(tmp_path / "p", tmp_path / "whole")
    for step in range(100):
        shutil.rmtree(out, ignore_errors=True)
        if replaces:
            shutil.copytree(undisturbed / "whole", out)
        try:
            with killed_in_last_steps(step):
                cached(tmp_path / "p", out, overwrite=replaces)
        except Killed:
            try:
                cached(tmp_path / "p", out, overwrite=replaces)
            except FileExistsError as error:
                assert "already holds a data set" in str(error)  # noqa: PT017
            assert content(out) == content(tmp_path / "whole"), f"killed before change {step}"
            assert not verify_shards(find_manifest(out), hashes=True)
            assert not (out / ".convert").exists()
            continue
        break
    assert step > 15
    assert content(out) == content(tmp_path / "whole")


def test_the_bytes_do_not_depend_on_workers(undisturbed: Path, tmp_path: Path) -> None:
    cached(undisturbed / "p", tmp_path, mirror=True, num_workers=2)
    assert content(tmp_path) == content(undisturbed / "whole")
    assert not verify(find_manifest(tmp_path), hashes=True, samples=None)
    assert not verify_shards(find_manifest(tmp_path), hashes=True)


def test_pictures_that_cannot_be_used_are_left_out_and_listed(tmp_path: Path) -> None:
    data = [sample(number) for number in range(24)]
    for bad in (3, 10, 23):
        data[bad] = (data[bad][0], {**data[bad][1], "png": b"not a picture"})
    write_shards(data, tmp_path / "p", max_samples=6)
    with pytest.raises(DataError, match=r"2 of 24 pictures cannot be used, max_bad_fraction=0\.05"):
        cached(tmp_path / "p", tmp_path / "l", max_bad_fraction=0.05)
    record = cached(tmp_path / "p", tmp_path / "l", max_bad_fraction=0.2)
    assert (record.samples, record.left_out) == (21, 3)
    names = {f"s{number:05d}" for number in range(24)} - {"s00003", "s00010", "s00023"}
    assert arrays(tmp_path / "l").keys() == names
    listed = read_quarantine(tmp_path / "l" / "quarantine.jsonl")
    assert {key for _, key in listed} == {"s00003", "s00010", "s00023"}
    cached(tmp_path / "p", tmp_path / "undisturbed", max_bad_fraction=0.2)
    assert content(tmp_path / "l") == content(tmp_path / "undisturbed")


def test_a_shard_without_a_usable_picture_is_left_out(tmp_path: Path) -> None:
    data = [sample(number) for number in range(9)]
    data[3:6] = [(key, {**fields, "png": b"?"}) for key, fields in data[3:6]]
    write_shards(data, tmp_path / "p", max_samples=3)
    record = cached(tmp_path / "p", tmp_path / "l", max_bad_fraction=1.0)
    assert [shard.name for shard in find_manifest(tmp_path / "l").shards] == ["train-000000.tar", "train-000002.tar"]
    assert (record.samples, record.left_out) == (6, 3)


def test_a_damaged_shard_stops_the_call_which_goes_on_once_it_is_repaired(tmp_path: Path) -> None:
    shards(tmp_path / "p", 20, 7)
    tar = tmp_path / "p" / "train-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"train-000001\.tar has 2000 bytes.*start the same command again"):
        cached(tmp_path / "p", tmp_path / "l")
    tar.write_bytes(whole)
    model = PatchAverages()
    cached(tmp_path / "p", tmp_path / "l", model)
    assert model.seen == 1 + 13
    cached(tmp_path / "p", tmp_path / "undisturbed")
    assert content(tmp_path / "l") == content(tmp_path / "undisturbed")


def test_what_is_in_the_way_is_not_touched(tmp_path: Path) -> None:
    shards(tmp_path / "p", 12, 6)
    with pytest.raises(InterruptedError):
        cached(tmp_path / "p", tmp_path / "l", PatchAverages(stop_after=8))
    for different in ({"tokens": 9}, {"mirror": True}, {"dtype": "float32"}, {"autoencoder": PatchAverages(seed=1)}):
        with pytest.raises(FileExistsError, match=r"unfinished.*--fresh"):
            cached(tmp_path / "p", tmp_path / "l", **different)  # type: ignore[arg-type]
    cached(tmp_path / "p", tmp_path / "l", PatchAverages(seed=1), fresh=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        cached(tmp_path / "p", tmp_path / "l")
    (tmp_path / "l" / "quarantine.jsonl").write_text("of the old set\n")
    cached(tmp_path / "p", tmp_path / "l", overwrite=True)
    cached(tmp_path / "p", tmp_path / "new")
    assert content(tmp_path / "l") == content(tmp_path / "new")


def test_what_cannot_be_cached_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    write_shards((pair(number) for number in range(4)), tmp_path / "pairs")
    with pytest.raises(DataError, match=r"no picture field, only 0\.png, 1\.png, json: .* single pictures"):
        cached(tmp_path / "pairs", tmp_path / "l")
    shards(tmp_path / "p", 3)
    with pytest.raises(ValueError, match="either tokens or resolution"):
        PictureSize(16, 16)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        cached(tmp_path / "p", tmp_path / "l", batch_size=0)
    foreign = tmp_path / "foreign.tar"
    with tarfile.open(foreign, "w") as tar:
        tar.add(write_picture(tmp_path / "x.png"), "folder one/x.png")
    with pytest.raises(DataError, match=r"key 'folder one/x' of shard foreign\.tar.*repack"):
        cached(foreign, tmp_path / "l")


def write_picture(path: Path) -> Path:
    path.write_bytes(encoded(picture(0)))
    return path


class Broken(PatchAverages):
    """Gives what ``change`` makes of the right tokens, for anything but the probe."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.change = change

    def encode(self, images: object) -> object:
        tokens = super().encode(images)  # type: ignore[arg-type]
        return self.change(tokens) if self.seen > 1 else tokens  # type: ignore[operator]


def test_numbers_that_cannot_be_stored_are_an_error(tmp_path: Path) -> None:
    shards(tmp_path / "p", 3)
    large = Broken(lambda tokens: tokens.with_values(tokens.values * 1e6))
    with pytest.raises(DataError, match=r"no float16 number: use --dtype float32"):
        cached(tmp_path / "p", tmp_path / "a", large)
    assert cached(tmp_path / "p", tmp_path / "b", large, dtype="float32").samples == 3
    with pytest.raises(DataError, match="not finite"):
        cached(tmp_path / "p", tmp_path / "c", Broken(lambda tokens: tokens.with_values(tokens.values * torch.nan)))


def test_tokens_in_any_order_are_laid_row_by_row_and_holes_are_refused() -> None:
    images = [from_picture(picture(number)) for number in range(4)]
    tokens = patchify(images, 8)
    expected = [patchify([image], 8).values[0] for image in images]
    order = torch.randperm(tokens.values.shape[1], generator=torch.Generator().manual_seed(1))
    shuffled = type(tokens)(
        *(getattr(tokens, name)[:, order] for name in ("values", "mask", "row", "col", "image")), tokens.sizes, 8
    )
    for laid in (tokens, pack(tokens), shuffled, pack(shuffled), join_images([tokens])):
        assert all(torch.equal(a, b) for a, b in zip(token_grids(laid), expected, strict=True))
    doubled = type(tokens)(tokens.values, tokens.mask, tokens.row, tokens.col * 0, tokens.image, tokens.sizes, 8)
    with pytest.raises(DataError, match="do not fill the"):
        token_grids(doubled)


def test_mirrored_pictures_are_filled_up_at_the_right_again() -> None:
    images = [from_picture(picture(number, SIZES[3])) for number in range(2)]  # 9 x 50: no multiples of 8
    again = mirror_images(patchify(images, 8, 16))
    assert torch.equal(again.values, patchify([image.flip(-1) for image in images], 8, 16).values)
    assert torch.equal(mirror_images(torch.stack(images)), torch.stack(images).flip(-1))


def test_the_hash_is_one_of_names_shapes_types_and_values() -> None:
    one = weights_sha256(PatchAverages())
    assert one == weights_sha256(PatchAverages(stop_after=1)) and len(one) == 64
    assert one != weights_sha256(PatchAverages(seed=1))
    assert one != weights_sha256(PatchAverages().double())
    renamed = torch.nn.Module()
    renamed.other = PatchAverages().linear
    assert one != weights_sha256(renamed)
    with pytest.raises(ValueError, match="no weights"):
        weights_sha256(PatchAverages().to("meta"))
    with pytest.raises(ValueError, match="no weights"):
        weights_sha256(torch.nn.Identity())


def test_a_folder_that_was_moved_away_is_read_like_any_other(tmp_path: Path) -> None:
    write_shards(samples(5), tmp_path / "p")
    cached(tmp_path / "p", tmp_path / "l")
    shutil.move(tmp_path / "l", tmp_path / "elsewhere")
    assert LatentRecord.load(tmp_path / "elsewhere" / "latents.json").samples == 5
