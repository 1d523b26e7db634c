"""From a training checkpoint to safetensors: the right weights, in the layout of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_gen.cli import main
from lightning_gen.training.averages import read_weights
from tests.harness import needs_cpu_fsdp2

FIT = ["fit", "--config", "toy.yaml"]


def trained(model="my_idea.ToyModel", decays=(), **trainer):
    """A finished run; gives its newest checkpoint."""
    config = yaml.safe_load(Path("toy.yaml").read_text())
    if decays:
        trainer["callbacks"] = [{"class_path": "EMA", "init_args": {"decays": list(decays)}}]
    config["trainer"].update(trainer)
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    main([*FIT, "--model", model])
    return Path("runs/toy/checkpoints/last.ckpt")


def exported(*args):
    assert main(["export", *map(str, args)]) == 0
    return load_file(Path(args[1]) / "model.safetensors")


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key])


def test_raw_weights(workshop, capsys):
    checkpoint = trained()
    assert_equal(exported(checkpoint, "out"), read_weights(checkpoint))
    assert "raw weights" in capsys.readouterr().out


def test_run_folder_means_its_newest_checkpoint(workshop):
    checkpoint = trained()
    assert_equal(exported("runs/toy", "out"), read_weights(checkpoint))


def test_average_is_chosen_if_there_is_one(workshop, capsys):
    checkpoint = trained(decays=[0.5])
    average = read_weights(checkpoint, 0.5)
    assert not torch.equal(average["net.weight"], read_weights(checkpoint)["net.weight"])
    assert_equal(exported(checkpoint, "out"), average)
    assert "ema 0.5 weights" in capsys.readouterr().out
    assert_equal(exported(checkpoint, "ema", "--weights", "ema"), average)
    assert_equal(exported(checkpoint, "raw", "--weights", "raw"), read_weights(checkpoint))


def test_several_averages_must_be_named(workshop, refused):
    checkpoint = trained(decays=[0.5, 0.9])
    assert "decays 0.5, 0.9; say which" in refused("export", str(checkpoint), "out")
    assert "expected raw, ema or a decay" in refused("export", str(checkpoint), "out", "--weights", "0.7")
    assert "expected raw, ema or a decay" in refused("export", str(checkpoint), "out", "--weights", "all")
    assert_equal(exported(checkpoint, "out", "--weights", "0.9"), read_weights(checkpoint, 0.9))


def test_no_average(workshop, refused):
    assert "holds no averages" in refused("export", str(trained()), "out", "--weights", "ema")


@needs_cpu_fsdp2
def test_folder_of_shards(workshop):
    sizes = {"data_parallel_size": 1, "tensor_parallel_size": 1}
    checkpoint = trained("my_idea.Sharded", [0.5], strategy={"class_path": "FSDP2Strategy", "init_args": sizes})
    assert checkpoint.is_dir()
    assert_equal(exported(checkpoint, "out"), read_weights(checkpoint, 0.5))
    assert_equal(exported(checkpoint, "raw", "--weights", "raw"), read_weights(checkpoint))


def test_model_with_a_layout_of_its_own(workshop):
    checkpoint = trained("my_idea.Published")
    assert main(["export", str(checkpoint), "out"]) == 0
    total = float(read_weights(checkpoint)["net.weight"].sum())
    assert float(Path("out/published.txt").read_text()) == total


def test_checkpoint_that_does_not_name_its_model(workshop, refused):
    checkpoint = trained()
    stripped = torch.load(checkpoint, weights_only=True)
    del stripped["hyper_parameters"]
    torch.save(stripped, "runs/toy/checkpoints/step=0000005.ckpt")
    assert_equal(exported("runs/toy/checkpoints/step=0000005.ckpt", "out"), read_weights(checkpoint))
    torch.save(stripped, "elsewhere.ckpt")
    assert "name its configuration with --config" in refused("export", "elsewhere.ckpt", "out2")
    assert_equal(exported("elsewhere.ckpt", "out2", "--config", "toy.yaml"), read_weights(checkpoint))


def test_checkpoint_of_another_model(workshop, refused):
    checkpoint = trained()
    text = Path("toy.yaml").read_text().replace("dim: 4", "dim: 5")
    Path("five.yaml").write_text(text)
    message = refused("export", str(checkpoint), "out", "--config", "five.yaml")
    assert "does not fit ToyModel" in message
    assert "net.weight" in message


def test_bad_checkpoints(workshop, refused):
    assert "no checkpoint at" in refused("export", "nowhere.ckpt", "out")
    Path("text.ckpt").write_text("hello")
    assert "no complete checkpoint" in refused("export", "text.ckpt", "out")
    Path("runs/toy/checkpoints").mkdir(parents=True)
    assert "holds no complete checkpoint" in refused("export", "runs/toy", "out")


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_weights_of_a_stranger_cannot_run_code(workshop, refused, verb):
    checkpoint = trained()
    state = torch.load(checkpoint, weights_only=True)

    class Evil:
        def __reduce__(self):
            return (Path("evil").touch, ())

    state["evil"] = Evil()
    torch.save(state, "evil.ckpt")
    assert "may run code and is not read" in refused(verb, "--config", "toy.yaml", "--ckpt_path", "evil.ckpt")
    assert "may run code and is not read" in refused("export", "evil.ckpt", "out")
    assert not Path("evil").exists()


def test_numbers_can_be_written_in_half(workshop, refused):
    checkpoint = trained()
    assert_equal(exported(checkpoint, "half", "--dtype", "float16"), {
        key: value.half() for key, value in read_weights(checkpoint).items()
    })  # fmt: skip
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["net.weight"].view(-1)[0] = 7e4
    torch.save(state, "large.ckpt")
    assert "net.weight holds numbers that float16 cannot" in refused(
        "export", "large.ckpt", "out", "--dtype", "float16"
    )
    assert float(exported("large.ckpt", "out", "--dtype", "bfloat16")["net.weight"].view(-1)[0]) > 6e4


def test_a_card_lies_beside_the_weights(workshop, capsys):
    checkpoint = trained(decays=[0.5])
    pictures = Path("runs/toy/routing")
    pictures.mkdir()
    (pictures / "step_00000002.png").write_bytes(b"picture")
    exported("runs/toy", "out")
    card = Path("out/README.md").read_text()
    for part in ("# out\n", "`my_idea.ToyModel`, 5 parameters", "decay 0.5", "| optimiser steps | 4 |", "| val | "):
        assert part in card
    assert "learning_rate: 0.05" in card and Path("out/card/routing.png").read_bytes() == b"picture"
    Path("out/README.md").write_text("mine")
    capsys.readouterr()
    assert_equal(exported(checkpoint, "out", "--weights", "raw"), read_weights(checkpoint))
    assert Path("out/README.md").read_text() == "mine"
    assert "was written or changed by somebody and stays as it is" in capsys.readouterr().err
