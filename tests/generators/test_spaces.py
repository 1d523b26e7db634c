"""Where a generator works: pixels and latents with statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.data.quarantine import DataError
from lightning_gen.generators.spaces import AutoencoderSpace, PixelSpace
from lightning_gen.nn.tokens import patchify
from tests.autoencoders.vitok_v2.pictures import TINY


def record(model: ViTokV2, **changes: object) -> LatentRecord:
    channels = model.variant.channels
    plain = LatentRecord(
        autoencoder="ViTokV2",
        name="tiny",
        sha256=weights_sha256(model),
        patch=model.variant.patch,
        channels=channels,
        dtype="float32",
        tokens=64,
        resolution=None,
        mirrored=False,
        source="none",
        samples=1,
        num_tokens=10,
        mean=tuple(np.linspace(-1, 1, channels).tolist()),
        std=tuple(np.linspace(0.5, 2, channels).tolist()),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ViTokV2, Path]:
    model = ViTokV2(variant=TINY, layer_scale=0.5, dino_weight=0.0)
    model.configure_model()
    model.save_pretrained(tmp_path / "tokenizer")
    return ViTokV2.from_pretrained(str(tmp_path / "tokenizer")), tmp_path


def test_pixels_go_through_unchanged_at_any_size() -> None:
    space = PixelSpace(4)
    images = torch.rand(2, 3, 12, 8) * 2 - 1
    tokens = space.encode_images(images)
    assert tokens.values.shape == (2, 6, 48) == (2, 6, space.channels)
    torch.testing.assert_close(torch.stack(space.decode(tokens)), images)
    assert float(space.decode(tokens.with_values(tokens.values * 9))[0].abs().max()) == 1
    with pytest.raises(ValueError, match="at least one pixel"):
        PixelSpace(0)


def test_latents_are_normalised_by_the_stored_statistics_and_restored(saved: tuple[ViTokV2, Path]) -> None:
    model, folder = saved
    record(model).write(folder)
    space = AutoencoderSpace("ViTokV2", str(folder / "tokenizer"), str(folder / "latents.json"))
    images = torch.rand(2, 3, 12, 8) * 2 - 1
    latents = space.encode_images(images)
    plain = model.encode(patchify(images, model.variant.patch))
    mean, std = (torch.tensor(part) for part in (record(model).mean, record(model).std))
    found = latents.values[latents.mask] * std + mean
    torch.testing.assert_close(found, plain.values[plain.mask].float(), atol=1e-5, rtol=1e-5)
    made = torch.stack(space.decode(latents))
    torch.testing.assert_close(made, torch.stack(list(model.decode(plain))), atol=1e-4, rtol=1e-4)
    assert space.encode_images(latents) is latents, "cached latents are normalised already"


def test_statistics_that_are_missing_or_of_other_weights_are_refused(saved: tuple[ViTokV2, Path]) -> None:
    model, folder = saved
    with pytest.raises(DataError, match="latents.json"):
        AutoencoderSpace("ViTokV2", str(folder / "tokenizer"), str(folder / "latents.json"))
    record(model, sha256="0" * 64).write(folder)
    with pytest.raises(DataError, match="cache the latents again"):
        AutoencoderSpace("ViTokV2", str(folder / "tokenizer"), str(folder / "latents.json"))
    with pytest.raises(ValueError, match="autoencoder Nothing: no such class"):
        AutoencoderSpace("Nothing", str(folder / "tokenizer"), str(folder / "latents.json"))
