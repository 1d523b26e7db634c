"""The DataModules as a user meets them: labels, folders, the preflight, the command line's types."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.folder import FolderDataModule
from lightning_gen.data.imagenet import ImageNetDataModule
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.quarantine import DataError, SampleError, ShardError
from lightning_gen.data.writing import write_shards
from lightning_gen.nn.tokens import unpatchify
from lightning_gen.training.curriculum import BudgetStage
from tests.data.samples import encoded, picture, sample, samples, shards
from tests.data.test_loader import rows, tokens_of


def test_labels_come_from_cls_cls_txt_or_json(tmp_path: Path) -> None:
    image = encoded(picture(0))
    fields = [
        {"png": image, "cls": b"3\n"},
        {"png": image, "cls.txt": b"4"},
        {"png": image, "json": json.dumps({"label": 5}).encode()},
        {"png": image, "cls": b"6", "json": json.dumps({"label": 1}).encode()},
    ]
    write_shards([(f"k{n}", one) for n, one in enumerate(fields)], tmp_path)
    module = ImageNetDataModule(str(tmp_path), str(tmp_path), tokens=16, global_batch_size=4, patch_size=8)
    assert module.num_classes == 1000
    batch = next(iter(module.evaluation_loader()))
    assert batch.label.tolist() == [3, 4, 5, 6]
    batch = next(iter(module.train_loader()))
    assert sorted(batch.label.tolist()) == [3, 4, 5, 6]


def test_class_sorted_shards_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def labelled(sort: bool) -> list[tuple[str, dict[str, bytes]]]:
        image = encoded(picture(0, (8, 8)))
        return [(f"k{n:04d}", {"png": image, "cls": str(n // 100 if sort else n % 20).encode()}) for n in range(2000)]

    for sort in (False, True):
        write_shards(labelled(sort), tmp_path / str(sort), max_samples=100)
        module = ImageNetDataModule(str(tmp_path / str(sort)), tokens=1, global_batch_size=8, num_classes=20)
        with caplog.at_level(logging.WARNING):
            module.prepare_data()
        # The first 1000 samples of the sorted set hold 10 of 20 classes: entropy log 10 of log 20.
        assert "packed class by class" not in caplog.text
    write_shards(labelled(True)[:100], tmp_path / "one", max_samples=5)
    module = ImageNetDataModule(str(tmp_path / "one"), tokens=1, global_batch_size=8, num_classes=20)
    with caplog.at_level(logging.WARNING):
        module.prepare_data()
    assert "label entropy of 0.00" in caplog.text


def test_foreign_shards_train_without_a_manifest(tmp_path: Path) -> None:
    from tests.data.test_shards import foreign

    foreign(tmp_path / "set")
    where = str(tmp_path / "set" / "set-train-{0000..0002}.tar|12")
    module = ImageNetDataModule(where, where, tokens=16, global_batch_size=4, patch_size=8)
    module.prepare_data()
    module.setup("fit")
    labels = sorted(label for batch in module.evaluation_loader() for label in batch.label[batch.valid].tolist())
    assert labels == list(range(12))
    assert len(list(module.train_loader())) == 3


def test_a_folder_of_pictures_is_predicted_once_at_its_own_size(tmp_path: Path) -> None:
    for n, name in enumerate(["b.png", "a/holiday photo.jpg", "a/x.webp", "c.bmp", "d.gif"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        kinds = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
        (tmp_path / name).write_bytes(encoded(picture(n), kinds[Path(name).suffix]))
    (tmp_path / "readme.md").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    names = ["a/holiday photo.jpg", "a/x.webp", "b.png", "c.bmp", "d.gif"]
    module = FolderDataModule(str(tmp_path), patch_size=8, batch_size=2)
    batches = list(module.predict_loader())
    assert [k for b in batches for k, ok in zip(b.key, b.valid.tolist(), strict=True) if ok] == names
    for batch in batches:
        for size, image in zip(batch.original_size.tolist(), unpatchify(tokens_of(batch)), strict=True):
            assert list(image.shape[1:]) == size
        assert tokens_of(batch).mask.shape[1] == int(tokens_of(batch).mask.sum(1).max())
    found = []
    for rank in range(2):
        for batch in FolderDataModule(str(tmp_path), 8, batch_size=1).predict_loader(rank, 2):
            found += [row for row, ok in zip(rows([batch]), batch.valid.tolist(), strict=True) if ok]
    assert sorted(key for key, _ in found) == names
    small = FolderDataModule(str(tmp_path), patch_size=8, tokens=4)
    assert all(int(tokens_of(batch).mask.sum()) <= 4 for batch in small.predict_loader())


def test_a_folder_with_a_broken_file_or_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        FolderDataModule(str(tmp_path / "nothing")).predict_loader()
    with pytest.raises(FileNotFoundError, match="there is no picture in"):
        FolderDataModule(str(tmp_path)).predict_loader()
    (tmp_path / "good.png").write_bytes(encoded(picture(0)))
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(SampleError, match=r"text.jpg: these 5 bytes are not a picture"):
        FolderDataModule(str(tmp_path)).predict_loader()


def test_the_preflight_learns_what_is_needed_and_missing(tmp_path: Path) -> None:
    shards(tmp_path / "set", 9, 3)
    stages = [{"tokens": 256, "global_batch_size": 6144, "until_step": 9}, BudgetStage(1024, 1536)]
    needs = ShardDataModule.needs({"train": str(tmp_path / "set"), "val": str(tmp_path / "no"), "stages": stages})
    assert (needs.tokens_per_global_batch, needs.global_batch_size) == (256 * 6144, 6144)
    assert len(needs.missing) == 1
    assert needs.missing[0].startswith("data.val: ")
    assert ImageNetDataModule.needs({"tokens": 16, "global_batch_size": 4}).tokens_per_global_batch == 64
    (tmp_path / "set" / "p.png").write_bytes(encoded(picture(0)))
    folder = FolderDataModule.needs({"pictures": str(tmp_path / "set"), "patch_size": 8, "batch_size": 3})
    assert (folder.tokens_per_global_batch, folder.missing) == (15 * 3, ())
    assert "there is no folder" in FolderDataModule.needs({"pictures": "/nowhere"}).missing[0]


def test_contradictory_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        ShardDataModule("x", stages=[BudgetStage(1, 1)], tokens=1)
    with pytest.raises(ValueError, match="or tokens and global_batch_size"):
        ShardDataModule("x", tokens=1)
    with pytest.raises(DataError, match="data.train is not set"):
        ShardDataModule(tokens=1, global_batch_size=1).train_loader()
    with pytest.raises(ShardError, match="no tar"):
        ShardDataModule(str(tmp_path), tokens=1, global_batch_size=1).train_loader()


def test_sha256_is_verified_before_training_when_asked_for(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 9, 9)
    data = bytearray(manifest.tar_path(0).read_bytes())
    data[3000] ^= 1
    manifest.tar_path(0).write_bytes(data)
    ShardDataModule(str(tmp_path), tokens=1, global_batch_size=1).prepare_data()
    with pytest.raises(ShardError, match="sha256 differs"):
        ShardDataModule(str(tmp_path), tokens=1, global_batch_size=1, verify="sha256").prepare_data()


def test_the_command_line_understands_every_argument(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    shards(tmp_path, 9, 9)
    parser = ArgumentParser()
    parser.add_subclass_arguments(ShardDataModule, "data")
    stages = "[{tokens: 64, global_batch_size: 8, until_step: 5}, {tokens: 256, global_batch_size: 2}]"
    config = parser.parse_args(
        [
            "--data=ImageNetDataModule",
            f"--data.train={tmp_path}",
            f"--data.stages={stages}",
            "--data.budget_rule=vitok_release",
            "--data.pad_to=longest",
            "--data.start_method=spawn",
        ]
    )
    module = parser.instantiate(config).data
    assert isinstance(module, ImageNetDataModule)
    assert module.curriculum == (BudgetStage(64, 8, 5), BudgetStage(256, 2))
    assert (module.budget_rule, module.pad_to, module.start_method) == ("vitok_release", "longest", "spawn")
    assert parser.dump(config) == parser.dump(parser.parse_string(parser.dump(config)))
    with pytest.raises(SystemExit):
        parser.parse_args(["--data=ShardDataModule", "--data.budget_rule=other"])


def test_tiny_data_sets_can_make_long_plans(tmp_path: Path) -> None:
    write_shards(samples(5), tmp_path)
    module = ShardDataModule(str(tmp_path), tokens=9, global_batch_size=4, patch_size=8, passes=3)
    batches = list(module.train_loader())
    assert [batch.epoch for batch in batches] == [0, 1, 2]
    assert {k for batch in batches for k in batch.key} <= {sample(n)[0] for n in range(5)}


def test_the_package_loads_without_heavy_imports() -> None:
    code = (
        "import sys, lightning_gen.data, lightning_gen.training.curriculum, lightning_gen.data.writing\n"
        "print([m for m in ('torch', 'lightning', 'PIL', 'webdataset', 'timm', 'simplejpeg') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, r"data\.patch_size must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers must be at least 0"),
        ({"passes": 0}, r"data\.passes must be at least 1"),
        ({"worker_timeout": 0.0}, r"data\.worker_timeout is a number of seconds above 0"),
        ({"val_tokens": 0}, r"data\.val_tokens must be at least 1"),
        ({"cache_bytes": 0}, r"data\.cache_bytes must be at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardDataModule("nowhere", tokens=9, global_batch_size=4, **options)
