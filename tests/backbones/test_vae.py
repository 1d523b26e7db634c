"""Auto-encoders of diffusers: their own numbers, in the house's tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lightning_gen.backbones.vae import DiffusersVAE
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.nn.tokens import patchify, unpatchify

KL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "layers_per_block": 1,
    "sample_size": 32,
}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random auto-encoders in the layout of diffusers."""
    root = tmp_path_factory.mktemp("vae")
    torch.manual_seed(1)
    diffusers.AutoencoderKL(**KL, scaling_factor=0.5, shift_factor=0.25).save_pretrained(root / "kl")
    diffusers.AutoencoderKL(
        **KL, scaling_factor=0.5, latents_mean=(0.1, 0.2, 0.3), latents_std=(1.0, 2.0, 4.0)
    ).save_pretrained(root / "statistics")
    flux = diffusers.AutoencoderKLFlux2(**KL, batch_norm_eps=1e-2)
    flux.bn.running_mean.normal_()
    flux.bn.running_var.uniform_(0.5, 2.0)
    flux.save_pretrained(root / "flux2")
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    ).save_pretrained(root / "tiny")
    return root


def images(*size: int) -> Tensor:
    return torch.rand(2, 3, *size) * 2 - 1


def by_pipeline(name: str, vae: Any, pictures: Tensor) -> Tensor:
    """What a pipeline of diffusers makes of pictures before its generator sees them, (B, c, h, w)."""
    if name == "tiny":
        return vae.encode(pictures).latents * vae.config.scaling_factor
    latent = vae.encode(pictures).latent_dist.mode()
    if name == "kl":  # StableDiffusion3Img2ImgPipeline
        return (latent - vae.config.shift_factor) * vae.config.scaling_factor
    if name == "statistics":  # StableDiffusionXLImg2ImgPipeline
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        return (latent - mean) * vae.config.scaling_factor / std
    # Flux2Pipeline
    latent = diffusers.Flux2Pipeline._patchify_latents(latent)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return (latent - vae.bn.running_mean.view(1, -1, 1, 1)) / std


@pytest.mark.parametrize(("name", "patch"), [("kl", 2), ("statistics", 2), ("flux2", 4), ("tiny", 4)])
def test_latents_are_those_of_the_pipelines_and_decode_undoes_them(name: str, patch: int, folders: Path) -> None:
    ours = DiffusersVAE.from_pretrained(str(folders / name))
    theirs = type(ours.vae).from_pretrained(folders / name).eval()
    assert ours.patch == patch
    pictures = images(16, 24)
    with torch.no_grad():
        found, expected = ours.encode(pictures), by_pipeline(name, theirs, pictures)
        torch.testing.assert_close(found.values, expected.flatten(2).mT, atol=1e-5, rtol=1e-5)
        raw = theirs.encode(pictures)
        raw = raw.latents if name == "tiny" else raw.latent_dist.mode()
        again = theirs.decode(raw).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(found), again, atol=1e-4, rtol=1e-4)
    assert found.values.dtype == torch.float32 and found.patch == patch
    assert found.sizes.tolist() == [[16, 24]] * 2 and found.grid.tolist() == [[16 // patch, 24 // patch]] * 2
    assert found.mask.all() and found.row[0, :: 24 // patch].tolist() == list(range(16 // patch))


def test_pictures_of_many_sizes_are_encoded_as_if_alone(folders: Path) -> None:
    ours = DiffusersVAE(str(folders / "flux2"))
    pictures = [torch.rand(3, *size) * 2 - 1 for size in ((16, 24), (9, 21), (16, 24), (24, 16))]
    with torch.no_grad():
        together = ours.encode(patchify(pictures, 8))
        assert together.sizes.tolist() == [[16, 24], [9, 21], [16, 24], [24, 16]]
        restored = ours.decode(together)
        assert isinstance(restored, list)
        for number, picture in enumerate(pictures):
            alone = ours.encode(picture[None])
            there = together.mask[number]
            torch.testing.assert_close(together.values[number][there], alone.values[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(together.col[number][there], alone.col[0])
            torch.testing.assert_close(restored[number], ours.decode(alone)[0], atol=1e-4, rtol=1e-4)
            assert restored[number].shape == picture.shape
        keyed = DiffusersVAE(str(folders / "kl"))
        index = torch.tensor([5, 6, 7, 8])
        together = keyed.encode(patchify(pictures, 8), index)
        for number, picture in enumerate(pictures):
            alone = keyed.encode(picture[None], index[number : number + 1])
            there = together.mask[number]
            torch.testing.assert_close(together.values[number][there], alone.values[0], atol=1e-5, rtol=1e-5)
        filled = torch.zeros(1, 3, 12, 24)  # a side that is no multiple of the patch is filled with grey
        filled[..., :9, :21] = pictures[1]
        torch.testing.assert_close(
            ours.encode(filled).values[0], ours.encode(pictures[1][None]).values[0], atol=1e-6, rtol=0
        )


def test_a_draw_from_the_posterior_is_keyed_by_the_sample(folders: Path) -> None:
    ours, other = (DiffusersVAE(str(folders / "kl"), seed=seed) for seed in (0, 1))
    pictures = images(16, 16)
    index = torch.tensor([7, 3])
    with torch.no_grad():
        drawn = ours.encode(pictures, index).values
        assert torch.equal(ours.encode(pictures, index).values, drawn)
        swapped = ours.encode(pictures.flip(0), index.flip(0)).values.flip(0)
        torch.testing.assert_close(swapped, drawn, atol=1e-5, rtol=1e-5)
        mode = ours.encode(pictures).values
        assert not torch.allclose(other.encode(pictures, index).values, drawn, atol=1e-3)
        assert not torch.allclose(ours.encode(pictures, index, epoch=1).values, drawn, atol=1e-3)
        many = images(16, 16)[:1].expand(200, -1, -1, -1)
        posterior = ours.vae.encode(many[:1]).latent_dist
        spread = (ours.encode(many, torch.arange(200)).values / ours.scale.flatten()).std(0)
        torch.testing.assert_close(spread, posterior.std[0].flatten(1).T, atol=0, rtol=0.3)
    assert not torch.allclose(mode, drawn, atol=1e-3)
    tiny = DiffusersVAE(str(folders / "tiny"))
    with pytest.raises(ValueError, match="AutoencoderTiny .* has no posterior"):
        tiny.encode(pictures, index)


def test_it_is_frozen_and_its_scale_is_part_of_its_state(folders: Path) -> None:
    before = torch.get_rng_state()
    ours = DiffusersVAE(str(folders / "kl"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not ours.vae.training and not any(parameter.requires_grad for parameter in ours.parameters())
    assert ours.state_dict()["scale"].flatten().tolist() == [0.5] * 3
    assert ours.state_dict()["shift"].flatten().tolist() == [0.25] * 3
    pictures = images(8, 8).requires_grad_()
    ours.decode(ours.encode(pictures)).sum().backward()
    assert pictures.grad is not None and pictures.grad.abs().sum() > 0


def test_slicing_and_tiling_are_switched_on(folders: Path) -> None:
    plain = DiffusersVAE(str(folders / "kl"))
    sliced, tiled = DiffusersVAE(str(folders / "kl"), slicing=True), DiffusersVAE(str(folders / "kl"), tiling=True)
    assert not plain.vae.use_slicing and not plain.vae.use_tiling
    assert sliced.vae.use_slicing and tiled.vae.use_tiling
    pictures = images(48, 48)  # larger than a tile
    with torch.no_grad():
        torch.testing.assert_close(sliced.encode(pictures).values, plain.encode(pictures).values, atol=1e-5, rtol=1e-5)
        assert tiled.encode(pictures).values.shape == plain.encode(pictures).values.shape
        assert not torch.equal(tiled.encode(pictures).values, plain.encode(pictures).values)


def test_a_switch_that_an_auto_encoder_does_not_have_is_named(tmp_path: Path) -> None:
    blocks = {**{name: value for name, value in KL.items() if name != "sample_size"}, "num_vq_embeddings": 16}
    diffusers.VQModel(**blocks).save_pretrained(tmp_path)
    plain = DiffusersVAE(str(tmp_path))
    assert plain.encode(images(8, 8)).values.shape == (2, 16, 3)
    for what in ("slicing", "tiling"):
        with pytest.raises(ValueError, match=f"VQModel of .* has no {what}: leave it out"):
            DiffusersVAE(str(tmp_path), **{what: True})  # type: ignore[arg-type]


def test_latents_of_another_layout_are_refused(folders: Path) -> None:
    kl, flux = DiffusersVAE(str(folders / "kl")), DiffusersVAE(str(folders / "flux2"))
    latents = kl.encode(images(8, 8))
    with pytest.raises(ValueError, match="latents of 3 channels and 2 pixels per token are not .* which has 12 and 4"):
        flux.decode(latents)
    assert len(unpatchify(latents.with_values(latents.values.repeat(1, 1, 4)))) == 2


def spoiled(folders: Path, target: Path, change: Callable[[Path], object]) -> str:
    shutil.copytree(folders / "kl", target)
    change(target)
    return str(target)


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no diffusion_pytorch_model.safetensors"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"), "pickled weights"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"?" * 99), "damaged or cut off"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("?"), "not a readable JSON object"),
        (lambda folder: configured(folder, _class_name="UNet2DModel"), "'UNet2DModel', which is no auto-encoder"),
        (lambda folder: configured(folder, _class_name="os.system"), "'os.system', which is no auto-encoder"),
        (lambda folder: configured(folder, _class_name=None), "describes None"),
        (lambda folder: configured(folder, latent_channels=5), "do not fit its config.json"),
        (lambda folder: configured(folder, layers_per_block=2), r"tensors are missing or unknown, such as \w+"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    change: Callable[[Path], object], message: str, folders: Path, tmp_path: Path
) -> None:
    source = spoiled(folders, tmp_path / "spoiled", change)
    with pytest.raises(MissingWeightsError, match=message) as caught:
        DiffusersVAE(source)
    assert source in str(caught.value)


def test_what_is_not_there_and_what_encodes_no_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        DiffusersVAE(str(tmp_path / "nothing"))
    diffusers.AutoencoderKL(**{**KL, "in_channels": 4}).save_pretrained(tmp_path / "four")
    with pytest.raises(MissingWeightsError, match=r"does not encode pictures \(B, 3, H, W\)"):
        DiffusersVAE(str(tmp_path / "four"))
