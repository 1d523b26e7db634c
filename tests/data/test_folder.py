"""A folder of one's own pictures: damaged files, large files, and what such a folder is not for."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.cli import main
from lightning_gen.data.folder import FolderDataModule
from lightning_gen.data.image_folder import ImageFolderDataModule
from lightning_gen.data.quarantine import SampleError
from lightning_gen.training.machine import GIB, Machine
from lightning_gen.training.preflight import check
from tests.data.samples import encoded, picture

TINY = "w32_d1_h2-w32_d1_h2/1x8x8"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures; the second and the fourth have a good header and nothing behind it."""
    folder = tmp_path / "mine"
    (folder / "trip").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "c.png", "trip/d.png", "trip/e.png"]):
        data = encoded(picture(number))
        (folder / name).write_bytes(data[:400] if name in ("b.png", "trip/d.png") else data)
    return folder


def keys(module: FolderDataModule, rank: int = 0, world: int = 1) -> list[str]:
    batches = list(module.predict_loader(rank, world))
    return [key for batch in batches for key, valid in zip(batch.key, batch.valid.tolist(), strict=True) if valid]


@pytest.mark.parametrize(("workers", "size"), [(0, 1), (0, 3), (1, 2)])
def test_damaged_files_are_left_out_and_named_at_the_end(folder: Path, workers: int, size: int) -> None:
    module = FolderDataModule(str(folder), patch_size=8, batch_size=size, num_workers=workers)
    assert keys(module) == ["a.png", "c.png", "trip/e.png"]
    with pytest.raises(
        SampleError, match=r"2 of 5 pictures in .*mine could not be decoded .* the others are done"
    ) as e:
        module.teardown()
    assert "b.png: the picture cannot be decoded" in str(e.value) and "trip/d.png: " in str(e.value)
    module.teardown()  # said once


def test_a_link_that_leads_nowhere_is_named_and_a_folder_is_no_picture(folder: Path) -> None:
    for name in ("b.png", "trip/d.png"):
        (folder / name).unlink()
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inside.png").write_bytes(encoded(picture(5)))
    os.mkfifo(folder / "pipe.png")  # to open it would wait for ever
    assert keys(FolderDataModule(str(folder), patch_size=8)) == [
        "a.png",
        "c.png",
        "folder.png/inside.png",
        "trip/e.png",
    ]
    (folder / "trip" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "linked.png").symlink_to("a.png")
    with pytest.raises(SampleError, match=r"trip/gone\.png: .*No such file"):
        keys(FolderDataModule(str(folder), patch_size=8))


def test_a_training_folder_counts_a_link_that_leads_nowhere_as_a_bad_sample(folder: Path) -> None:
    (folder / "trip" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "trip" / "folder.png").mkdir()
    for name in ("b.png", "trip/d.png"):
        (folder / name).unlink()
    options = {"resolution": 16, "global_batch_size": 2, "bucket_step": 8, "max_bad_fraction": 0.5}
    made = ImageFolderDataModule(str(folder), str(folder), **options)
    used = {key for k in range(4) for batch in made.train_loader(k) for key in batch.key}
    assert used <= {"a.png", "c.png", "trip/e.png"}
    assert made.counters()["bad"] == 1
    seen = [
        (k, ok) for batch in made.evaluation_loader() for k, ok in zip(batch.key, batch.valid.tolist(), strict=True)
    ]
    assert sorted(key for key, ok in seen if ok) == ["a.png", "c.png", "trip/e.png"]


def test_nothing_is_said_of_a_folder_in_order(folder: Path) -> None:
    for name in ("b.png", "trip/d.png"):
        (folder / name).unlink()
    module = FolderDataModule(str(folder), patch_size=8)
    assert keys(module) == ["a.png", "c.png", "trip/e.png"]
    module.teardown()


def test_a_damaged_file_costs_no_other_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded in its place, and what fills the batch is a single patch."""
    loaded: list[ImageFile.ImageFile] = []
    load = ImageFile.ImageFile.load

    def counted(self: ImageFile.ImageFile) -> Any:
        if all(self is not other for other in loaded):
            loaded.append(self)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    module = FolderDataModule(str(folder), patch_size=8, batch_size=5)
    (batch,) = list(module.predict_loader())
    sizes = [image.size for image in loaded]
    assert [sizes.count(picture(number).size) for number in (0, 2, 4)] == [1, 1, 1]
    assert batch.images.mask.sum(1)[~batch.valid].tolist() == [1, 1]


def predict(folder: Path, run: Path, *options: str) -> None:
    model = ["--model", "ViTokV2", "--model.variant", TINY, "--model.dino_weight", "0", "--model.seed", "1"]
    data = ["--data", "FolderDataModule", "--data.pictures", str(folder), "--data.patch_size", "8"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
    main(["predict", *model, *data, *trainer, "--runs", str(run), *options])


def test_prediction_keeps_what_is_done_and_fails(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        predict(folder, tmp_path / "runs")
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "lightning predict: error: 2 of 5 pictures" in err and "b.png: the picture cannot be decoded" in err
    assert "Traceback" not in err
    predictions = tmp_path / "runs" / "run" / "predictions"
    with (predictions / "psnr.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["a.png", "c.png", "trip/e.png"]
    written = sorted(path.relative_to(predictions).as_posix() for path in predictions.rglob("*.png"))
    assert written == ["a.png.png", "c.png.png", "trip/e.png.png"]
    assert "3 reconstructions" in out, "the table is printed all the same"


def test_the_table_grows_as_pictures_are_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies in the middle leaves the lines of what it had finished."""
    predict_step = ViTokV2.predict_step

    def dies(self: ViTokV2, batch: Any, batch_idx: int) -> Any:
        if batch.key == ("trip/e.png",):
            raise KeyError("the machine goes down")
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(ViTokV2, "predict_step", dies)
    with pytest.raises(KeyError, match="goes down"):
        predict(folder, tmp_path / "runs")
    with (tmp_path / "runs/run/predictions/psnr.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["a.png", "c.png"]


# ------------------------------------------------------------------ what it is not for


def test_a_folder_is_not_trained_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        data = ["--data", "FolderDataModule", "--data.pictures", str(folder)]
        main(["fit", "--config", "vitok_v2_tiny", *data, "--runs", str(tmp_path)])
    assert "fit: error: FolderDataModule shows every picture once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value"), [("patch_size", 0), ("tokens", 0), ("batch_size", 0), ("num_workers", -1), ("max_pixels", 0)]
)
def test_numbers_without_sense_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.{setting} must be at least {value + 1}, got {value}"):
        FolderDataModule("x", **{setting: value})


# ------------------------------------------------------------------ a picture that is too large


def needed(machine: Machine, pictures: Path, **model: Any) -> list[str]:
    config = {
        "trainer": {"accelerator": "cpu", "devices": 1},
        "model": {
            "class_path": "lightning_gen.autoencoders.vitok_v2.module.ViTokV2",
            "init_args": {"variant": "350M-f16x64", **model},
        },
        "data": {
            "class_path": "lightning_gen.data.folder.FolderDataModule",
            "init_args": {
                "pictures": str(pictures),
                "patch_size": 16,
                **({"tokens": 1024} if "tokens" in model else {}),
            },
        },
    }
    config["model"]["init_args"].pop("tokens", None)  # type: ignore[attr-defined]
    return [f"{short.subject}: {short.needed}; {short.remedy}" for short in check(config, machine, training=False)]


def test_a_picture_beyond_the_memory_is_refused_with_the_way_out(tmp_path: Path) -> None:
    Image.new("L", (8000, 4000)).save(tmp_path / "panorama.png")
    Image.new("L", (80, 40)).save(tmp_path / "small.png")
    machine = Machine("cpu", (), 8 * GIB, 500 * GIB)
    (found,) = needed(machine, tmp_path)
    # 125,000 tokens of 56,064 bytes: 3 x 1024 states and 4 x 2736 of the feed-forward part, in float32
    assert found.startswith("memory: 8.2 GiB per process (weights 1.3 GiB, activations 6.5 GiB, process 400 MiB)")
    assert "panorama.png (8000 x 4000 pixels, 125000 tokens) is too large; set data.init_args.tokens" in found
    assert "window_radius and band_rows" in found
    assert needed(machine, tmp_path, tokens=1024) == []
    assert needed(machine, tmp_path, window_radius=8, band_rows=16) == []
    assert needed(Machine("cpu", (), 9 * GIB, 500 * GIB), tmp_path) == []
