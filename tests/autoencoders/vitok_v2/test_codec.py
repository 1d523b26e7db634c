"""Float8 in training and in use, and pictures that are too large to be seen whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_gen.autoencoders.vitok_v2 import codec
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.metrics.reconstruction import psnr_per_image
from lightning_gen.training.optim import AdamW
from tests.autoencoders.vitok_v2.pictures import TINY, data, write_pictures
from tests.harness import Recorder, fit
from tests.harness.emulated_float8 import emulated_float8, needs_torchao

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


def module(**settings: Any) -> ViTokV2:
    given: dict[str, Any] = {"variant": TINY, "layer_scale": 0.5, "dino_weight": 0.0, "tile_size": 16}
    return ViTokV2(**{**given, "optimizer": AdamW(learning_rate=3e-3), **settings})


@pytest.fixture
def float8_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(codec, "require_float8", lambda device: None)
    with emulated_float8():
        yield


class Kinds(Callback):
    """What the layers of a block are while a model is trained, and when it is used."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def look(self, trainer: Trainer, model: Any) -> None:
        layer = model.network.decoder.get_submodule("blocks.0.ffn.fc1")
        self.seen.append((type(layer).__name__, type(layer.weight) is nn.Parameter))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.look(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.look(trainer, pl_module)


def train(folder: Path, float8: bool) -> tuple[list[float], Path, Kinds]:
    recorder, kinds = Recorder(), Kinds()
    keeper = ModelCheckpoint(folder, filename="kept", every_n_train_steps=2)
    validated = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(
        module(float8=float8),
        data(write_pictures(folder / "pictures")),
        folder,
        max_steps=2,
        callbacks=(recorder, keeper, kinds),
        **validated,
    )
    return recorder.losses, folder / "kept.ckpt", kinds


@needs_torchao
@pytest.mark.usefixtures("float8_everywhere")
class TestFloat8:
    def test_training_is_near_and_its_checkpoints_are_those_of_any_run(self, tmp_path: Path) -> None:
        losses, path, kinds = train(tmp_path / "float8", True)
        exact, plain, none = train(tmp_path / "plain", False)
        assert losses == pytest.approx(exact, rel=0.02) and losses != exact
        # Weights that go on learning are never rounded, not even in the validation between.
        assert set(kinds.seen) == {("Float8Linear", True)} and set(none.seen) == {("Linear", True)}
        stored, other = (torch.load(p, weights_only=True)["state_dict"] for p in (path, plain))
        assert {key: (x.shape, x.dtype) for key, x in stored.items()} == {
            key: (x.shape, x.dtype) for key, x in other.items()
        }
        ViTokV2.load_from_checkpoint(path)

    def test_weights_are_rounded_when_a_run_only_uses_them(self, tmp_path: Path) -> None:
        _, path, _ = train(tmp_path, False)
        images = data(tmp_path / "pictures")
        found = []
        for float8 in (False, True):
            model, kinds = module(float8=float8), Kinds()
            trainer = Trainer(default_root_dir=tmp_path, callbacks=[kinds], **QUIET)
            (metrics,) = trainer.validate(model, datamodule=images, ckpt_path=path, weights_only=True, verbose=False)
            found.append(metrics["val/psnr"])
            assert set(kinds.seen) == {("Linear", not float8)}
        assert found[0] == pytest.approx(found[1], abs=0.1) and found[0] != found[1]
        for verb in (trainer.test, trainer.predict):
            model = module(float8=True)
            verb(model, datamodule=images, ckpt_path=path, weights_only=True)
            weight = model.network.encoder.get_parameter("blocks.0.attn.qkv_proj.weight")
            assert type(weight) is not nn.Parameter, verb

    def test_a_trained_model_is_used_as_it_was_trained_and_a_rounded_one_is_not_trained(self, tmp_path: Path) -> None:
        images, model, kinds = data(write_pictures(tmp_path)), module(float8=True), Kinds()
        fit(model, images, tmp_path, max_steps=1)
        Trainer(default_root_dir=tmp_path, callbacks=[kinds], **QUIET).validate(model, datamodule=images, verbose=False)
        assert set(kinds.seen) == {("Float8Linear", True)}
        other = module(float8=True)
        Trainer(default_root_dir=tmp_path, **QUIET).validate(other, datamodule=images, verbose=False)
        with pytest.raises(RuntimeError, match="rounded to float8 for use: load the model again to train it"):
            fit(other, images, tmp_path, max_steps=1)

    def test_in_python_by_a_call(self, tmp_path: Path) -> None:
        model = module()
        with pytest.raises(RuntimeError, match="no weights yet"):
            model.to_float8()
        model.configure_model()
        model.save_pretrained(tmp_path)
        rounded = ViTokV2.from_pretrained(str(tmp_path))
        image = torch.rand(3, 23, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            expected = model.decode(model.encode(image))
            assert rounded.to_float8() is rounded
            found = rounded.to_float8().decode(rounded.encode(image))  # twice is once
        assert psnr_per_image(found, expected).item() > 30 and not torch.equal(found, expected)
        with pytest.raises(RuntimeError, match="rounded to float8 for use: load the model again"):
            rounded.save_pretrained(tmp_path / "again")


def test_float8_is_refused_where_the_device_cannot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"float8 needs a GPU .*, cpu has no CUDA compute capability"):
        fit(module(float8=True), data(write_pictures(tmp_path)), tmp_path)
    model = module()
    model.configure_model()
    with pytest.raises(ValueError, match="float8 needs a GPU"):
        model.to_float8()
    assert ViTokV2.needs({"float8": True}).float8 and not ViTokV2.needs({}).float8


def test_a_picture_too_large_to_be_seen_whole_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MANY_TOKENS", 20)
    picture = torch.zeros(3, 16, 24)
    model = module()
    model.configure_model()
    with pytest.warns(UserWarning, match=r"24 tokens without a window.*Set window_radius .*data\.init_args\.tokens"):
        model.encode(picture)
    windowed = module(window_radius=1)
    windowed.configure_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert windowed.encode(picture).values.shape[1] == 24
        assert model.encode(picture[:, :16, :16]).values.shape[1] == 16


def test_memory_of_use_is_the_measured_one() -> None:
    """The peak of a pass without gradients on one large picture, beside the closed form."""
    from torch.profiler import ProfilerActivity, profile

    from lightning_gen.autoencoders.vitok_v2.cost import use_bytes_per_token
    from lightning_gen.nn.tokens import patchify

    model = module(variant="w128_d1_h2-w128_d2_h2/1x16x64", window_radius=2)
    model.configure_model()
    pixels = patchify(torch.zeros(1, 3, 512, 512), 16)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        model.network(pixels)
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert use_bytes_per_token(model.variant) * 1024 == pytest.approx(peak, rel=0.15)
