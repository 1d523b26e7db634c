"""`lightning import`: published files of three models become folders of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_gen.autoencoders.muse import convert as muse
from lightning_gen.autoencoders.muse.decoder import DCAEShape
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.pae.convert import to_published
from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.cli import main
from tests.autoencoders.muse.tiny import DECODER, module
from tests.autoencoders.pae import test_convert as pae
from tests.generators.dit import test_lightningdit_convert as lightningdit

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        assert main(["import", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["import", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in message
        return message

    return call


def test_lightningdit(run: Run) -> None:
    torch.save({"ema": lightningdit.published(channels=12)}, "xl.pt")
    assert "weights: 41 tensors taken; missing: nothing; dead: nothing" in run("xl.pt", "weights")
    config = json.loads(Path("weights/config.json").read_text())
    assert config["variant"] == "lightningdit_w24_d2_h2_g4_qknorm" and config["channels"] == 12
    lightningdit.module(Path("weights")).configure_model()


def test_pae_with_its_prior(run: Run, refused: Run) -> None:
    state = pae.published({**pae.TINY, "W": 64})
    torch.save({"model": {**state, "encoder.norm.weight": torch.zeros(1), "scale": torch.zeros(1)}}, "pae.pt")
    said = run("pae.pt", "weights", "--prior", "UntrainedPatches", "--prior-heads", "2")
    assert "missing: none; of the frozen prior, not read: 1; dead: 1 (scale)" in said
    model = PAE.from_pretrained("weights")
    back = to_published(model.network.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    torch.save({"model": pae.published()}, "other.pt")
    message = refused("other.pt", "weights", "--prior", "UntrainedPatches", "--prior-heads", "2")
    assert "UntrainedPatches gives 64 numbers per token, the networks were built for 16" in message
    assert "NoPatches" in refused("pae.pt", "weights", "--prior", "NoPatches")


def test_muse_names_what_no_loss_reached(run: Run, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muse, "DCAEShape", lambda **sizes: DCAEShape(**sizes) if sizes else DECODER)
    model = module()
    model.configure_model()
    state = muse.to_published(model.network.state_dict())
    torch.save(state, "pytorch_model.bin")
    said = run("pytorch_model.bin", "weights")
    assert "10 dead (never trained): synergy.0.query.weight" in said and "0 missing: none" in said
    again = Muse.from_pretrained("weights")
    assert again.settings.routing == "official" and again.settings.stage == 3
    assert all(torch.equal(x, model.network.state_dict()[name]) for name, x in again.network.state_dict().items())
    assert "no published MUSE but a folder that this package wrote" in refused("weights", "twice")
    del state["to_latent.bias"]
    torch.save(state, "pytorch_model.bin")
    assert "to_latent.bias is missing" in refused("pytorch_model.bin", "weights")


def test_files_of_something_else_are_refused(refused: Run) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, "other.pt")
    assert "none of them named as in MUSE, PAE or LightningDiT, for instance conv.weight" in refused("other.pt", "out")
    Path("cut.safetensors").write_bytes(b"nothing")
    assert "cut.safetensors is damaged" in refused("cut.safetensors", "out")
    assert "no folder" in refused("./nothing", "out", "--kind", "muse")
