"""Weights of text-to-image models on disk: out, back, as a start, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.cli import main
from lightning_gen.generators.dit.pixel_network import Stem
from lightning_gen.generators.dit.text_module import TextLatentDiffusion, TextSize
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.shapes.tokenizer import ShapesTokenizer

PROMPTS = ["a photo of a red circle", "a painting of two stars"]


def tiny(**settings: Any) -> TextLatentDiffusion:
    given = {
        "variant": "w24_d2_h2",
        "stem": Stem((8,), (1,), 2),
        "text": TextSize(16, 1, 2),
        "sampling": Sampling(steps=2, solver="euler", shift=2.0, guidance=1.5),
        "canvas": (32, 48),
        "rope_theta": 50.0,
    }
    return TextLatentDiffusion(PixelSpace(8), ShapesTokenizer(20), **{**given, **settings})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TextLatentDiffusion, Path]:
    model = tiny()
    model.configure_model()
    model.save_pretrained(tmp_path / "weights")
    return model.eval(), tmp_path / "weights"


def changed(folder: Path, **values: Any) -> Path:
    """config.json with other values; a dict changes a part of what stands there."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_folder_alone_brings_the_model_back(saved: tuple[TextLatentDiffusion, Path]) -> None:
    model, folder = saved
    again = TextLatentDiffusion.from_pretrained(folder)
    assert torch.equal(again.make(PROMPTS), model.make(PROMPTS))
    assert (again.sampling, again.canvas, again.space.patch) == (model.sampling, (32, 48), 8)
    assert isinstance(again.tokenizer, ShapesTokenizer) and again.tokenizer.length == 20
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
    given = ShapesTokenizer(18)
    assert TextLatentDiffusion.from_pretrained(folder, tokenizer=given).tokenizer is given


def test_other_uses_of_the_same_weights_are_no_other_settings(saved: tuple[TextLatentDiffusion, Path]) -> None:
    model, folder = saved
    other = tiny(canvas=(32, 32), sampling=Sampling(steps=5)).load_network(folder)
    assert torch.equal(other.state_dict()["network.stem_in.weight"], model.state_dict()["network.stem_in.weight"])


def test_training_starts_from_them(saved: tuple[TextLatentDiffusion, Path]) -> None:
    model, folder = saved
    start = tiny(init_from=str(folder), seed=9)
    start.configure_model()
    assert all(parameter.requires_grad for parameter in start.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(start.state_dict()[name], value), name
    with torch.no_grad():
        next(start.parameters()).add_(1)
    start.configure_model()  # a second time nothing is loaded over what was learned
    assert not torch.equal(next(start.parameters()), next(model.parameters()))
    with pytest.raises(ValueError, match="other settings: prediction differ"):
        tiny(init_from=str(folder), prediction="velocity").configure_model()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "LatentDiffusion"}, "holds 'LatentDiffusion', not a TextLatentDiffusion"),
        ({"usage": {"canvas": [33, 32]}}, "33 x 32 is not made of patches of 8"),
        ({"usage": {"sampling": {"speed": 3}}}, "does not describe a TextLatentDiffusion: .*speed"),
        ({"usage": {"space": None}}, r"does not say which space the weights need: give one \(space=...\)"),
        ({"usage": {"tokenizer": {"class_path": "ShapesTokenizer", "init_args": {"size": 1}}}}, "tokenizer .* cannot"),
        ({"variant": "w32_d2_h2"}, "does not fit PixelTextDiT: .*has shape"),
        ({"variant": "w24_d3_h2"}, "is missing"),
        ({"text": [16, 1, 2, 5]}, "does not describe"),
        ({"text": [16]}, r"frozen text encoder: give it \(encoder=...\)"),
    ],
)
def test_a_config_that_does_not_belong_is_named(
    saved: tuple[TextLatentDiffusion, Path], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TextLatentDiffusion.from_pretrained(changed(saved[1], **values))


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "system", 7])
def test_a_stranger_cannot_run_code(saved: tuple[TextLatentDiffusion, Path], name: Any, tmp_path: Path) -> None:
    touch = {"class_path": name, "init_args": {"command": f"touch {tmp_path / 'evil'}"}}
    with pytest.raises(ValueError, match="is no component of this or another installed package"):
        TextLatentDiffusion.from_pretrained(changed(saved[1], usage={"tokenizer": touch}))
    assert not (tmp_path / "evil").exists()


def test_files_that_are_wrong_are_named(saved: tuple[TextLatentDiffusion, Path], tmp_path: Path) -> None:
    folder = saved[1]
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if name != "stem_in.bias"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="stem_in.bias is missing"):
        TextLatentDiffusion.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(MissingWeightsError, match="damaged or cut off"):
        TextLatentDiffusion.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(MissingWeightsError, match="only pickled weights"):
        TextLatentDiffusion.from_pretrained(folder)
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        TextLatentDiffusion.from_pretrained(tmp_path / "nowhere")


def test_half_precision_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """fit, export --dtype float16, from_pretrained: the averaged weights, half the size, the same pictures."""
    monkeypatch.chdir(tmp_path)
    small = ["--model.init_args.variant", "w24_d2_h2", "--name", "half"]
    small += ["--model.init_args.stem.channels", "[8]", "--model.init_args.stem.depths", "[1]"]
    limits = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--data.init_args.samples", "128"]
    quick = ["--trainer.val_check_interval", "null", "--trainer.limit_val_batches", "0"]
    # A second process would be this test's command line over again.
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    main(["fit", "--config", "text_to_image_shapes", *small, *limits, *quick, *alone])
    for name, options in (("whole", []), ("half", ["--dtype", "float16"])):
        assert main(["export", "runs/half", name, *options]) == 0
    assert "half: ema 0.999 weights in float16" in capsys.readouterr().out
    stored = load_file("half/model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    whole, half = (TextLatentDiffusion.from_pretrained(name) for name in ("whole", "half"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    apart = (whole.make(PROMPTS) - half.make(PROMPTS)).abs()
    assert 0 < float(apart.mean()) < 2e-3
    sizes = [Path(name, "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
