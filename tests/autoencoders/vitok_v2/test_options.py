"""Arguments of the module that a run could lose on the way without anybody noticing, and the hook for its loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_gen.autoencoders.vitok_v2 import module as room
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.autoencoders.vitok_v2.network import Reconstruction
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.tokens import Tokens, patchify, pixel_validity
from lightning_gen.training.optim import AdamW, WarmupCosine
from tests.autoencoders.vitok_v2.pictures import TINY, data, write_pictures
from tests.harness import fit
from tests.harness.tiny_dinov3 import save_timm, save_transformers


def module(kind: type[ViTokV2] = ViTokV2, **settings: Any) -> ViTokV2:
    given: dict[str, Any] = {"variant": TINY, "layer_scale": 0.5, "dino_weight": 0.0, "tile_size": 16}
    return kind(**{**given, **settings})


def batch(*sizes: tuple[int, int]) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) * 2 - 1 for size in sizes]
    return ImageBatch(
        raw=patchify(images, 4),
        label=torch.full((len(sizes),), -1),
        index=torch.arange(len(sizes)),
        valid=torch.ones(len(sizes), dtype=torch.bool),
        original_size=torch.tensor(sizes),
        key=tuple(map(str, range(len(sizes)))),
        epoch=0,
    )


def logged(model: ViTokV2, given: ImageBatch) -> dict[str, float]:
    found: dict[str, float] = {}
    model.log = lambda name, value, **_: found.__setitem__(name, float(value))  # type: ignore[method-assign]
    return {"returned": float(model.training_step(given, 0)), **found}


# ------------------------------------------------------------------ loss


class Flat(ViTokV2):
    """Also wants flat latents, and has no use for SSIM."""

    def loss_terms(self, reconstruction: Reconstruction, pixels: Tokens, batch: ImageBatch) -> dict[str, Tensor]:
        terms = super().loss_terms(reconstruction, pixels, batch)
        del terms["ssim"]
        return {**terms, "flatness": reconstruction.latents.values[pixels.mask].square().mean()}


def test_a_subclass_changes_the_terms_of_the_loss() -> None:
    given = batch((11, 13), (24, 16))
    model = module(Flat, charbonnier_weight=2.0)
    model.configure_model()
    found = logged(model, given)
    assert set(found) == {
        "returned",
        "train/loss",
        *(f"train/{name}{end}" for name in ("charbonnier", "flatness") for end in ("", "_weighted")),
    }
    expected = 2 * found["train/charbonnier"] + found["train/flatness"]
    assert found["returned"] == found["train/loss"] == pytest.approx(expected, rel=1e-6)
    model.loss_weights["flatness"] = 0.25
    again = logged(model, given)
    assert again["train/flatness_weighted"] == pytest.approx(0.25 * found["train/flatness"], rel=1e-6)
    assert again["returned"] == pytest.approx(expected - 0.75 * found["train/flatness"], rel=1e-6)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_grey_filling_is_left_out_with_the_pixel_mask(layout: Literal["packed", "padded"]) -> None:
    """Patches at the edge of 11 x 13 pixels are filled up; only the masked loss does not care with what."""
    given = batch((11, 13))
    filling = ~pixel_validity(given.images).bool().repeat(1, 1, 3)
    other = dataclasses.replace(given, raw=given.images.with_values(given.images.values.masked_fill(filling, 0.7)))
    for mask in (False, True):
        model = module(pixel_mask=mask, ssim_weight=0.0, layout=layout)
        model.configure_model()
        model.network.forward = decode_to_grey  # type: ignore[method-assign]
        first, second = (logged(model, one)["returned"] for one in (given, other))
        assert (first == pytest.approx(second, rel=1e-6)) == mask


def decode_to_grey(pixels: Tokens, *args: Any) -> Reconstruction:
    grey = pixels.with_values(torch.zeros_like(pixels.values))
    return Reconstruction(grey, grey, torch.zeros_like(pixels.values[..., 0]))


def test_tiles_go_through_dino_in_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = str(save_transformers(tmp_path / "dino"))
    sizes: list[int] = []
    features = room.DINOv3Encoder.features

    def counted(self: Any, images: Tensor) -> list[Tensor]:
        sizes.append(len(images))
        return features(self, images)

    monkeypatch.setattr(room.DINOv3Encoder, "features", counted)
    losses = []
    for chunk in (None, 2):
        sizes.clear()
        model = module(dino_weight=50.0, dino_source=folder, dino_chunk=chunk, tile_size=32)
        trainer = fit(model, data(write_pictures(tmp_path / "pictures")), tmp_path, max_steps=1)
        losses.append(float(trainer.logged_metrics["train/dino"]))
        assert max(sizes) == (4 if chunk is None else 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="dino_chunk is a number of tiles, at least 1"):
        module(dino_chunk=0)


def test_the_library_that_builds_dino_is_the_one_asked_for(tmp_path: Path) -> None:
    folders = {"timm": save_timm(tmp_path / "timm"), "transformers": save_transformers(tmp_path / "transformers")}
    pictures = write_pictures(tmp_path / "pictures")
    for backend, folder in folders.items():
        model = module(dino_weight=50.0, dino_source=str(folder), dino_backend=backend, tile_size=32)
        fit(model, data(pictures), tmp_path, max_steps=1)
        assert model.dino is not None and model.dino.backend == backend
        other = next(name for name in folders if name != backend)
        wrong = module(dino_weight=50.0, dino_source=str(folder), dino_backend=other, tile_size=32)
        with pytest.raises(MissingWeightsError, match=f"written in the layout of {backend}"):
            fit(wrong, data(pictures), tmp_path, max_steps=1)
        needs = ViTokV2.needs({"dino_source": str(folder), "dino_backend": other})
        assert not needs.weights[0].found


# ------------------------------------------------------------------ schedule


class Rates(Callback):
    """Learning rates that the steps of a run were taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_the_schedule_decides_the_learning_rates(tmp_path: Path) -> None:
    schedule = WarmupCosine(warmup_fraction=0.5, final_learning_rate=1e-4, start_learning_rate=2e-3)
    rates = Rates()
    model = module(optimizer=AdamW(learning_rate=4e-3), schedule=schedule)
    fit(model, data(write_pictures(tmp_path)), tmp_path, max_steps=4, callbacks=(rates,))
    # up from 2e-3 to 4e-3 in two steps, then half a cosine to 1e-4
    assert rates.seen == pytest.approx([3e-3, 4e-3, (4e-3 + 1e-4) / 2, 1e-4])
