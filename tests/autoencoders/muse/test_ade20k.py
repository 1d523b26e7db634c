"""The ADE20K probe as a user runs it: `lightning test` with pictures and ``seg.png`` in shards."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.data.tarfiles import end_archive, write_member


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, count: int, first: int, classes: tuple[int, int] = (1, 2)) -> str:
    """Pictures that are dark where the first class is and bright where the second is; a border has no class."""
    generator = torch.Generator().manual_seed(first)
    with open(path, "wb") as file:
        for number in range(count):
            edge = int(torch.randint(8, 24, (), generator=generator))
            left = (np.arange(40) < edge)[None] & np.ones((32, 1), bool)
            segments = np.where(left, *classes)
            segments[:2] = 0
            write_member(
                file, f"{first + number:04}.png", png(np.where(left[..., None], 20, 230) + np.zeros((1, 1, 3)))
            )
            write_member(file, f"{first + number:04}.seg.png", png(segments))
        end_archive(file)
    return str(path)


def config(folder: Path, **segmentation: Any) -> str:
    (folder / "train").mkdir(exist_ok=True)
    sets = {
        "trained_on": shard(folder / "train" / "ade-0000.tar", 6, 0),
        "measured_on": shard(folder / "val.tar", 5, 100),
    }
    probe = {
        **{
            name: {"class_path": "lightning_gen.ADE20KShards", "init_args": {"shards": str(place)}}
            for name, place in {**sets, "trained_on": folder / "train"}.items()
        },
        "num_classes": 2,
        "size": 32,
        "batch_size": 3,
        "steps": 40,
        "learning_rate": 0.05,
        **segmentation,
    }
    shape = {
        "encoder": {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "patch": 4, "image_size": 16},
        "decoder": {
            "latent_channels": 4, "widths": [8, 16, 16], "layers": [1, 1, 1], "attention_from": 2, "head_dim": 8
        },
        "width": 16, "depth": 2, "heads": 2, "latent_channels": 6, "text_width": 12,
    }  # fmt: skip
    text = {
        "name": "probed",
        "runs": str(folder / "runs"),
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "model": {
            "class_path": "Muse",
            "init_args": {"shape": shape, "encoder_source": "random", "start": "anything", "segmentation": probe},
        },
        "data": {
            "class_path": "ShapesDataModule",
            "init_args": {"size": 32, "samples": 4, "val_samples": 4, "global_batch_size": 4, "num_workers": 0},
        },
    }
    (folder / "probe.yaml").write_text(yaml.safe_dump(text))
    return str(folder / "probe.yaml")


def test_the_probe_reads_masks_from_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--config", config(tmp_path)])
    (found,) = re.findall(r"test/miou\W+([\d.]+)", capsys.readouterr().out)
    # Brightness can be read off a random network, but for tokens that both classes share.
    assert 0.7 < float(found) <= 1


def test_a_class_beyond_the_last_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    shard(tmp_path / "val.tar", 2, 200, (1, 3))
    with pytest.raises(SystemExit):
        main(["test", "--config", path])
    assert "true classes from 1 to 3, expected 1 to 2" in capsys.readouterr().err
