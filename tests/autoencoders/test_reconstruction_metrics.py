"""Distances between originals and reconstructions, as an auto-encoder logs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_gen.autoencoders.reconstruction_metrics import ReconstructionMetrics
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.frechet import Moments, frechet_distance
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.metrics.reconstruction import ssim_per_image
from lightning_gen.nn.tokens import unpatchify
from tests.autoencoders.vitok_v2.pictures import FOLDER, TINY, data, write_pictures
from tests.harness import two_processes


class Colours(nn.Module):
    """Mean and spread of the three colours: six features."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def model() -> ViTokV2:
    extractors = [ModuleExtractor(Colours(), "colours"), ModuleExtractor(Colours(), "dino-like", size=8)]
    return ViTokV2(variant=TINY, layer_scale=0.5, dino_weight=0.0, tile_size=16, extractors=extractors)


def evaluated(folder: Path, **options: Any) -> dict[str, float]:
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(**{**settings, **options}, default_root_dir=folder)
    found = trainer.validate(model(), data(write_pictures(FOLDER)), verbose=False)[0]
    return {name: float(value) for name, value in found.items()}


def on_a_rank(folder: str) -> dict[str, float]:
    return evaluated(Path(folder), devices=2, strategy="ddp", use_distributed_sampler=False)


def by_hand(extractor: ModuleExtractor) -> tuple[int, float]:
    """The distance over all pictures, each once, from the definitions."""
    network = model()
    network.configure_model()
    sides = Moments(6), Moments(6)
    source = data(write_pictures(FOLDER))
    source.setup("validate")
    count = 0
    for batch in source.val_dataloader():
        pixels = network.arrange(batch.images)
        with torch.no_grad():
            pair = unpatchify(network.network(pixels).pixels), unpatchify(pixels)
        for side, images in zip(sides, pair, strict=True):
            side.add(extractor([signed_to_uint8(image) for image in images])["pool"], batch.valid)
        count += int(batch.valid.sum())
    return count, frechet_distance(sides[0].gaussian(), sides[1].gaussian())


def test_distances_are_logged_under_their_protocol_and_equal_the_definition(tmp_path: Path) -> None:
    found = evaluated(tmp_path)
    count, distance = by_hand(ModuleExtractor(Colours(), "colours"))
    assert found[f"val/rfid@{count}/colours"] == pytest.approx(distance, rel=1e-5)  # the logger keeps float32
    assert found[f"val/rfdd@{count}/dino-like"] > 0 and {"val/psnr", "val/ssim"} <= set(found)


def test_two_ranks_log_what_one_does(tmp_path: Path) -> None:
    alone = evaluated(tmp_path)
    for found in two_processes(on_a_rank, str(tmp_path)):
        assert found == pytest.approx(alone, rel=1e-5)


def test_the_sanity_check_is_not_counted_and_no_epoch_sees_another(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="")
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=4,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    network = model()
    trainer.fit(network, data(write_pictures(FOLDER)))
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = [name for name in lines[0].split(",") if "rfid" in name]
    count, _ = by_hand(ModuleExtractor(Colours(), "colours"))
    assert names == [f"val/rfid@{count}/colours"]
    column = lines[0].split(",").index(names[0])
    assert len({line.split(",")[column] for line in lines[1:]} - {""}) == 2


def test_ssim_is_vitoks_and_broken_reconstructions_have_no_distance() -> None:
    metrics = ReconstructionMetrics("val/", [ModuleExtractor(Colours(), "colours")])
    target = [2 * torch.rand(3, 20, 24) - 1 for _ in range(4)]
    made = [image * 0.8 for image in target]
    index, valid = torch.arange(4), torch.tensor([True, True, True, False])
    filler = [*made[:3], made[3] * torch.nan]
    metrics.update(filler, target, valid, index)  # what only fills the batch may be anything
    assert metrics.distances[0].compute().keys() == {"rfid@3/colours"}
    wanted = ssim_per_image(made[:3], target[:3], scale="signed").mean()
    assert float(metrics.pixels.compute()["val/ssim"]) == pytest.approx(float(wanted), rel=1e-12)
    assert abs(float(ssim_per_image(made[:3], target[:3], scale="unit").mean() - wanted)) > 1e-3
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(filler, target, None, index)
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        metrics.update(made, [255 * image for image in target], None, index)


def test_extractors_leave_no_trace_in_a_checkpoint() -> None:
    network = model()
    network.configure_model()
    assert all(key.startswith("network.") for key in network.state_dict())


def test_lpips_is_logged_where_its_trunk_is_given(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet.pth")
    lpips = LPIPS(str(tmp_path / "squeezenet.pth"), "squeeze")
    metrics = ReconstructionMetrics("val/", lpips=lpips)
    prediction, target = torch.rand(2, 2, 3, 32, 40) * 2 - 1
    metrics.update(list(prediction), list(target), torch.tensor([True, False]), torch.arange(2))
    found = metrics.pixels.compute()
    assert set(found) == {"val/psnr", "val/ssim", "val/lpips"}
    assert float(found["val/lpips"]) == pytest.approx(float(lpips(prediction[:1], target[:1])), rel=1e-5)
    assert not metrics.state_dict()
