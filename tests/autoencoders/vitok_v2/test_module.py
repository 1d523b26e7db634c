"""The LightningModule: its step, and its life under a real Trainer."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.autoencoders.vitok_v2.objective import charbonnier
from lightning_gen.backbones.vision import DINOv3Encoder
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.cli import main
from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.tokens import patchify
from lightning_gen.training.optim import AdamW
from tests.autoencoders.vitok_v2.pictures import FOLDER, TINY, data, write_pictures
from tests.harness import Recorder, TrainingChecks, fit, needs_cpu_fsdp2, two_processes


def module(**settings: Any) -> ViTokV2:
    given: dict[str, Any] = {
        "variant": TINY,
        "layer_scale": 0.5,
        "dino_weight": 0.0,
        "tile_size": 16,
        "optimizer": AdamW(learning_rate=3e-3),
    }
    return ViTokV2(**{**given, **settings})


def batch(*sizes: tuple[int, int], epoch: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) * 2 - 1 for size in sizes]
    count = len(sizes)
    return ImageBatch(
        raw=patchify(images, 4),
        label=torch.full((count,), -1),
        index=torch.arange(count),
        valid=torch.ones(count, dtype=torch.bool),
        original_size=torch.tensor(sizes),
        key=tuple(f"k{i}" for i in range(count)),
        epoch=epoch,
    )


class TestHarness(TrainingChecks):
    def module(self) -> LightningModule:
        return module()

    def data(self) -> LightningDataModule:
        return data(write_pictures(FOLDER))

    def config(self) -> dict[str, Any]:
        return {"class_path": "lightning_gen.autoencoders.vitok_v2.module.ViTokV2", "init_args": {"variant": TINY}}


class TestNoisyBottleneckAndStochasticDepth(TrainingChecks):
    """Every draw is keyed by sample, so world size and resume change nothing."""

    def module(self) -> LightningModule:
        return module(bottleneck="kl", drop_path=0.5, tiles_per_image=2, layout="padded")

    def data(self) -> LightningDataModule:
        return data(write_pictures(FOLDER))

    def config(self) -> dict[str, Any]:
        return {"class_path": "lightning_gen.autoencoders.vitok_v2.module.ViTokV2", "init_args": {"bottleneck": "kl"}}


def terms(model: ViTokV2, given: ImageBatch) -> dict[str, float]:
    logged: dict[str, float] = {}
    model.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    loss = model.training_step(given, 0)
    return {**logged, "returned": float(loss)}


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    model = module(ssim_weight=0.1, charbonnier_weight=2.0)
    model.configure_model()
    given = batch((11, 13), (24, 16), (20, 20))
    found = terms(model, given)
    assert found["returned"] == pytest.approx(2 * found["train/charbonnier"] + 0.1 * found["train/ssim"], rel=1e-6)
    assert found["train/ssim_weighted"] == pytest.approx(0.1 * found["train/ssim"])
    decoded = model.network(given.images).pixels
    assert found["train/charbonnier"] == pytest.approx(charbonnier(decoded, given.images).item(), rel=1e-5)


def test_packed_and_padded_layouts_train_alike() -> None:
    given = batch((11, 13), (24, 16), (20, 20))
    found = []
    for layout in ("packed", "padded"):
        model = module(layout=layout)
        model.configure_model()
        found.append(terms(model, given))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_tiles_depend_on_sample_and_epoch_only() -> None:
    model = module()
    model.configure_model()
    given = batch((60, 80), (60, 80), (60, 80))
    first = terms(model, given)["train/ssim"]
    torch.manual_seed(99)
    assert terms(model, given)["train/ssim"] == first
    assert terms(model, dataclasses.replace(given, epoch=1))["train/ssim"] != first
    assert terms(model, dataclasses.replace(given, index=given.index + 7))["train/ssim"] != first


def test_dino_enters_the_loss(tmp_path: Path) -> None:
    from tests.harness.tiny_dinov3 import save_transformers

    folder = save_transformers(tmp_path / "dino")
    model = module(dino_weight=50.0, dino_source=str(folder), tile_size=32)
    trainer = fit(model, data(write_pictures(FOLDER)), tmp_path, max_steps=2)
    assert trainer.global_step == 2
    assert trainer.logged_metrics["train/dino"] > 0
    assert trainer.logged_metrics["train/dino_weighted"] == pytest.approx(50 * trainer.logged_metrics["train/dino"])
    assert not [key for key in model.state_dict() if "dino" in key]
    assert len(list(model.parameters())) == len(list(model.network.parameters()))


def test_missing_dino_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="facebook/dinov3-vits16-pretrain-lvd1689m: .*HF_HUB_OFFLINE"):
        fit(module(dino_weight=500.0), data(write_pictures(FOLDER)), tmp_path)


def test_the_constructor_allocates_nothing() -> None:
    model = ViTokV2("5B-f16x64")
    assert all(p.device.type == "meta" for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 4_994_721_600
    assert len(list(model.network.blocks())) == 44
    with pytest.raises(RuntimeError, match=r"no weights yet: use ViTokV2.from_pretrained"):
        model.encode(torch.zeros(3, 16, 16))


def test_needs_are_counted_without_building() -> None:
    needs = ViTokV2.needs({"variant": "5B-f16x64", "activation_checkpointing": True})
    assert needs.trainable == 4_994_721_600 and needs.largest_block == 113_400_064
    assert needs.frozen == 21_586_944 and not needs.weights[0].found
    assert ViTokV2.needs({"variant": "5B-f16x64", "dino_weight": 0}).weights == ()
    kept = [ViTokV2.needs({"activation_checkpointing": x}).activation_bytes_per_token for x in (True, False)]
    assert kept[0] < kept[1] / 4


def test_two_pictures_of_different_shape_are_learnt_by_heart() -> None:
    """Check 17: 300 Adam steps reach 30 dB, and batching with a larger picture does not hurt the padded one."""
    generator = torch.Generator().manual_seed(0)
    small = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5, generator=generator), (11, 13), mode="bicubic")[0]
    large = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 3, generator=generator), (24, 16), mode="bicubic")[0]
    pictures = [2 * small.clamp(0, 1) - 1, 2 * large.clamp(0, 1) - 1]
    model = ViTokV2("w64_d2_h2-w64_d2_h2/1x4x48", layer_scale=0.5, dino_weight=0.0)
    model.configure_model()
    optimizer = torch.optim.Adam(model.network.parameters(), 2e-3)
    tokens = patchify(pictures, 4)
    for _ in range(300):
        optimizer.zero_grad()
        charbonnier(model.network(tokens).pixels, tokens).backward()
        optimizer.step()
    model.eval()
    from lightning_gen.metrics.reconstruction import psnr_per_image

    with torch.no_grad():
        together = model.decode(model.encode(pictures))
        alone = [model.decode(model.encode(picture))[0] for picture in pictures]
    psnr = psnr_per_image(together, pictures)
    assert psnr.min() > 30, psnr
    assert (psnr - psnr_per_image(alone, pictures)).abs().max() < 0.01


def test_validation_counts_each_picture_once(tmp_path: Path) -> None:
    model = module()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    (found,) = trainer.validate(model, datamodule=data(write_pictures(FOLDER)), verbose=False)
    from lightning_gen.metrics.reconstruction import psnr_per_image
    from lightning_gen.nn.tokens import unpatchify

    loader = data(write_pictures(FOLDER))
    loader.setup()
    total = []
    with torch.no_grad():
        for given in loader.val_dataloader():
            psnr = psnr_per_image(unpatchify(model.network(given.images).pixels), unpatchify(given.images))
            total += psnr[given.valid].tolist()
    assert found["val/psnr"] == pytest.approx(sum(total) / 5, rel=1e-5)


def test_data_of_another_patch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patches of 4 pixels, variant .* takes 8: set data.init_args.patch_size to 8"):
        fit(module(variant="w32_d1_h2-w32_d1_h2/1x8x8"), data(write_pictures(FOLDER)), tmp_path, max_steps=1)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="band_rows needs a window_radius"):
        module(band_rows=4)
    with pytest.raises(ValueError, match="set layout: padded"):
        module(mask_padding=False)
    for nonsense in ({"drop_path": 1.5}, {"ssim_weight": -1.0}, {"charbonnier_eps": 0.0}):
        with pytest.raises(ValueError):
            module(**nonsense)
    with pytest.raises(ValueError, match="unknown ViTok-v2 variant"):
        module(variant="7B-f16x64")


def trained(tmp_path: Path, **settings: Any) -> tuple[ViTokV2, Path]:
    model = module(**settings)
    keeper = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=2)
    fit(model, data(write_pictures(FOLDER)), tmp_path, max_steps=2, callbacks=(keeper,))
    return model, tmp_path / "kept.ckpt"


def test_checkpoints_load_as_weights_only(tmp_path: Path) -> None:
    model, path = trained(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["variant"] == TINY
    again = ViTokV2.load_from_checkpoint(path, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_checkpoint_of_another_variant_is_refused(tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    for other in ({"variant": "w32_d1_h2-w32_d2_h2/1x4x6"}, {"bottleneck": "tanh"}):
        with pytest.raises(ValueError, match=r"the checkpoint holds variant .* the model is"):
            fit(module(**other), data(write_pictures(FOLDER)), tmp_path, ckpt_path=path)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    halves = module(init_from=str(path), variant="w32_d1_h2-w32_d2_h2/1x4x6")
    with pytest.raises(ValueError, match="does not fit ViTokV2Network"):
        trainer.validate(halves, datamodule=data(write_pictures(FOLDER)), verbose=False)


def test_a_subclass_with_further_arguments_loads_its_checkpoint(tmp_path: Path) -> None:
    class Further(ViTokV2):
        def __init__(self, strength: float = 1.0, **settings: Any) -> None:
            super().__init__(**settings)

    _, path = trained(tmp_path)
    assert Further.load_from_checkpoint(path, weights_only=True).variant.name == TINY


def test_evaluation_of_random_weights_is_announced(tmp_path: Path) -> None:
    model = module()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.warns(UserWarning, match="validate runs on random weights"):
        Trainer(default_root_dir=tmp_path, **options).validate(model, datamodule=data(write_pictures(FOLDER)))
    fit(model, data(write_pictures(FOLDER)), tmp_path, max_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*random weights")
        Trainer(default_root_dir=tmp_path, **options).validate(model, datamodule=data(write_pictures(FOLDER)))


def test_the_window_counts_in_validation_not_in_training(tmp_path: Path) -> None:
    given = batch((24, 32))
    found = {}
    for radius in (None, 0):
        model = module(window_radius=radius)
        model.configure_model()
        model.log_dict = lambda *_, **__: None
        loss = terms(model, given)["returned"]
        model.validation_step(given, 0)
        found[radius] = (loss, float(model.val_metrics.pixels["psnr"].compute()))
    assert found[None][0] == found[0][0] and found[None][1] != found[0][1]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precision_that_would_cast_batches_is_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ValueError, match="use bf16-mixed"):
        fit(module(), data(write_pictures(FOLDER)), tmp_path, precision=precision)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (40, 16), (200, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    model = module()
    model.configure_model()
    assert model.encode(Image.open(tmp_path / "turned.jpg")).sizes.tolist() == [[40, 16]]
    with pytest.raises(TypeError, match="open files with PIL.Image.open"):
        model.encode(str(tmp_path / "turned.jpg"))


def test_a_checkpoint_alone_can_be_exported(tmp_path: Path) -> None:
    model, path = trained(tmp_path)
    assert main(["export", str(path), str(tmp_path / "exported")]) == 0
    again = ViTokV2.from_pretrained(str(tmp_path / "exported"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_new_run_may_start_from_old_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, path = trained(tmp_path)
    caplog.set_level("INFO")
    fresh = module(init_from=str(path), variant="w32_d1_h2-w32_d2_h2/1x4x6")
    fresh.configure_model()
    assert torch.equal(fresh.network.encoder.embed.weight, model.network.encoder.embed.weight)
    report = caplog.text
    assert "29 tensors loaded" in report and "missing (left at their start): none" in report
    assert "encoder.head.weight ((8, 32) for (6, 32))" in report
    model.save_pretrained(tmp_path / "folder")
    same = module(init_from=str(tmp_path / "folder"))
    same.configure_model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"no tensor of .* fits ViTokV2Network"):
        module(init_from=str(path), variant="w64_d1_h2-w64_d2_h2/1x8x6").configure_model()
    (tmp_path / "broken.ckpt").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="broken.ckpt is damaged"):
        module(init_from=str(tmp_path / "broken.ckpt")).configure_model()


def test_the_encoder_can_stay_as_it_is(tmp_path: Path) -> None:
    model = module(train_encoder=False)
    model.configure_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    fit(model, data(write_pictures(FOLDER)), tmp_path, max_steps=2)
    changed = {
        name.split(".")[0] for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"decoder"}


@pytest.mark.parametrize("settings", [{}, {"window_radius": 2, "band_rows": 4}])
def test_prediction_writes_pictures_latents_and_a_table(tmp_path: Path, settings: dict[str, Any]) -> None:
    import csv

    from PIL import Image
    from safetensors.torch import load_file

    model = module(**settings)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(default_root_dir=tmp_path, **options).predict(
        model, datamodule=data(write_pictures(FOLDER)), return_predictions=False
    )
    out = tmp_path / "predictions"
    rows = list(csv.DictReader((out / "psnr.csv").open()))
    assert len(rows) == 5 and {row["key"] for row in rows} == {f"s{i:05d}" for i in range(5)}
    for row in rows:
        with Image.open(out / f"{row['key']}.png") as image:
            assert image.size == (int(row["width"]), int(row["height"]))
        stored = load_file(out / f"{row['key']}.safetensors")
        assert stored["latent"].shape == (int(row["tokens"]), 8)
        assert stored["size"].tolist() == [int(row["height"]), int(row["width"])]


def sharded_job(folder: Path, init_from: str | None) -> tuple[list[float], int]:
    from torch.distributed.fsdp import FSDPModule

    from lightning_gen.training.strategies import FSDP2Strategy

    recorder, keeper = Recorder(), ModelCheckpoint(folder, filename="kept", every_n_train_steps=2)
    model = module(activation_checkpointing=True, init_from=init_from)
    fit(
        model,
        data(write_pictures(FOLDER)),
        folder,
        strategy=FSDP2Strategy(),
        devices=2,
        max_steps=2,
        callbacks=(recorder, keeper),
        limit_val_batches=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=2,
    )
    units = sum(isinstance(part, FSDPModule) for part in model.network.modules())
    return recorder.losses, units


@needs_cpu_fsdp2
def test_every_block_is_sharded_and_the_folder_starts_a_single_process(tmp_path: Path) -> None:
    write_pictures(FOLDER)
    (losses, units), _ = two_processes(sharded_job, tmp_path, None, limit=90.0)
    assert units == 3 + 1, "three blocks and the rest"
    single = module(init_from=str(tmp_path / "kept.ckpt"))
    single.configure_model()
    plain, path = trained(tmp_path / "one")
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(single.network.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    # and from one file to two processes
    (again, _), _ = two_processes(sharded_job, tmp_path / "two", str(path), limit=90.0)
    assert again != losses


def test_precision_bf16_trains(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(module(), data(write_pictures(FOLDER)), tmp_path, max_steps=2, callbacks=(recorder,), precision="bf16-mixed")
    exact = Recorder()
    fit(module(), data(write_pictures(FOLDER)), tmp_path, max_steps=2, callbacks=(exact,))
    assert recorder.losses == pytest.approx(exact.losses, rel=0.02)


def test_flops_of_a_step() -> None:
    """Counted by torch on the same batch: SDPA and matrix products, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = module(layout="padded", ssim_weight=0.0)
    model.configure_model()
    given = batch((32, 32), (32, 32))
    # The counter does not know the fused kernel of the CPU; written out, attention is two products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        charbonnier(model.network(given.images).pixels, given.images)
    plain = model.flops_per_step(given)
    assert plain / 3 == pytest.approx(counter.get_total_flops(), rel=0.02)
    model.dino = cast(DINOv3Encoder, SimpleNamespace(patch_size=16, num_parameters=1000))
    model.tile_size = 32
    # two forwards and one backward of 1000 parameters on 4 tokens of each tile
    assert model.flops_per_step(given) - plain == 3 * 2 * 1000 * 4 * 2


def sharded_prediction(folder: Path) -> list[torch.Tensor]:
    from lightning_gen.training.strategies import FSDP2Strategy

    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(strategy=FSDP2Strategy(), devices=2, default_root_dir=folder, **options)
    found = trainer.predict(module(window_radius=2), datamodule=data(write_pictures(FOLDER)))
    assert found is not None
    return [image for prediction in found for image in prediction.images]


@needs_cpu_fsdp2
def test_sharded_prediction_equals_a_single_process(tmp_path: Path) -> None:
    write_pictures(FOLDER)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    whole = Trainer(default_root_dir=tmp_path / "one", **options)
    expected = whole.predict(module(window_radius=2), datamodule=data(write_pictures(FOLDER)))
    images = [image for prediction in expected for image in prediction.images]
    halves = two_processes(sharded_prediction, tmp_path / "two", limit=90.0)
    for found in halves:
        for image in found:
            same = [other for other in images if other.shape == image.shape]
            assert min((image - other).abs().max().item() for other in same) < 1e-5
