"""Folders that are no complete pipeline, and options that do not fit one: what is wrong, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from lightning_gen.backbones.text_to_image import DiffusersTextToImage
from lightning_gen.backbones.weights import MissingWeightsError
from tests.harness.tiny_pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    write_tiny_pipeline(root / "sd15", "sd15")
    return write_tiny_pipeline(root / "sd3", "sd3")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "sd3")
    return tmp_path / "sd3"


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def pickled(folder: Path, weights: str, name: str) -> None:
    (folder / weights).unlink()
    torch.save({}, folder / name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"no model_index.json: give the folder of a whole"),
    "an index that is no JSON": (
        lambda f: (f / "model_index.json").write_text("{"), r"model_index.json is not a readable JSON object"
    ),
    "an unknown family": (
        lambda f: edited(f / "model_index.json", _class_name="KolorsPipeline"),
        r"describes a 'KolorsPipeline'; what can be read is StableDiffusion3Pipeline, FluxPipeline",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"no folder scheduler, which a StableDiffusion3Pipe"),
    "an empty scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), r"scheduler holds no scheduler_config.json"
    ),
    "an unknown scheduler": (
        lambda f: edited(f / "scheduler" / "scheduler_config.json", _class_name="Own"), r"'Own', which is no scheduler"
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), r"no folder tokenizer_2"),
    "an empty tokenizer": (
        lambda f: (f / "tokenizer_3" / "tokenizer.json").unlink(), r"tokenizer_3 holds no tokenizer \(tokenizer.json"
    ),
    "no T5": (lambda f: shutil.rmtree(f / "text_encoder_3"), r"no folder text_encoder_3"),
    "a pickled network": (
        lambda f: pickled(f / "transformer", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        r"only pickled weights \(diffusion_pytorch_model.bin\), which are not read: save them as",
    ),
    "a pickled encoder": (
        lambda f: pickled(f / "text_encoder", "model.safetensors", "pytorch_model.bin"),
        r"text_encoder holds only pickled weights \(pytorch_model.bin\)",
    ),
    "a pickled auto-encoder": (
        lambda f: pickled(f / "vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        r"vae holds only pickled weights",
    ),
    "a network that is cut off": (
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64),
        r"diffusion_pytorch_model.safetensors is damaged or cut off",
    ),
    "a network of another size": (
        lambda f: edited(f / "transformer" / "config.json", num_layers=3), r"do not fit its config.json"
    ),
    "an unknown network": (
        lambda f: edited(f / "transformer" / "config.json", _class_name="Pipe"), r"'Pipe', which is no network"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_folder_is_explained(damage: str, folder: Path) -> None:
    break_it, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(MissingWeightsError, match=message):
        DiffusersTextToImage(str(folder))


def test_sources_that_are_not_here(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no folder /nowhere/at/all"):
        DiffusersTextToImage("/nowhere/at/all")
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE forbids fetching"):
        DiffusersTextToImage("nobody/nothing")
    with pytest.raises(MissingWeightsError, match=r"transformer holds no model_index.json"):
        DiffusersTextToImage(str(whole / "transformer"))


def test_encoders_that_do_not_fit_are_named_when_they_are_read(folder: Path) -> None:
    edited(folder / "text_encoder_3" / "config.json", d_model=24)
    model = DiffusersTextToImage(str(folder))
    with pytest.raises(MissingWeightsError, match=r"text encoders of .*sd3 cannot be read"):
        model.encode_prompts(["a cat"])


@pytest.mark.parametrize("canvas", [(18, 16), (16, 15), (0, 16), (-4, 16)])
def test_an_odd_canvas_is_refused_with_one_that_fits(canvas: tuple[int, int], whole: Path) -> None:
    with pytest.raises(ValueError, match=r"canvas of .* pixels: both sides must be multiples of 4 .* such as \d+ x 16"):
        DiffusersTextToImage(str(whole), canvas=canvas)


def test_parts_of_different_models_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    diffusers.AutoencoderKL(latent_channels=3).save_pretrained(folder / "vae")
    with pytest.raises(ValueError, match=r"auto-encoder of .* has 3 channels and its network 4"):
        DiffusersTextToImage(str(folder))


def scheduled(folder: Path, scheduler: Any) -> str:
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    return str(folder)


def test_schedulers_of_other_kinds_are_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the scheduler DDIMScheduler; flow pipelines are sampled with FlowMatch"):
        DiffusersTextToImage(scheduled(folder, diffusers.DDIMScheduler()))
    karras = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    with pytest.raises(ValueError, match=r"sets use_karras_sigmas, which is not supported"):
        DiffusersTextToImage(scheduled(folder, karras))
    sd15 = tmp_path / "sd15"
    shutil.copytree(whole.parent / "sd15", sd15)
    with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler of .* predicts None"):
        DiffusersTextToImage(scheduled(sd15, diffusers.FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(ValueError, match=r"sets clip_sample, which is not made for latents"):
        DiffusersTextToImage(scheduled(sd15, diffusers.DDIMScheduler(clip_sample=True)))
    model = DiffusersTextToImage(scheduled(sd15, diffusers.HeunDiscreteScheduler()))
    with pytest.raises(ValueError, match=r"HeunDiscreteScheduler walks \d+ times in 4 steps"):
        model.times(4)
    edited(sd15 / "unet" / "config.json", time_cond_proj_dim=8)
    with pytest.raises((ValueError, MissingWeightsError), match=r"latent consistency model|do not fit"):
        DiffusersTextToImage(str(sd15))


def test_sharded_weights_are_whole_weights(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    expected = DiffusersTextToImage(str(folder)).network.state_dict()
    model = diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer")
    (folder / "transformer" / name).unlink()
    model.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert not (folder / "transformer" / name).exists()
    found = DiffusersTextToImage(str(folder)).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    next((folder / "transformer").glob("diffusion_pytorch_model-00002*")).unlink()
    with pytest.raises(MissingWeightsError, match=r"transformer holds no diffusion_pytorch_model-00002"):
        DiffusersTextToImage(str(folder))
