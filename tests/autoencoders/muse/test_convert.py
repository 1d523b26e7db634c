"""Published weights: names and shapes typed in from the checkpoint, in and out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_gen.autoencoders.muse.convert import (
    Settings,
    from_published,
    infer_shape,
    read_model,
    report_on,
    revive_shape,
    to_published,
)
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.muse.network import MuseNetwork, MuseShape
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.training.weights import require_fit
from tests.autoencoders.muse.tiny import DECODER, module

OWN: dict[str, tuple[int, ...]] = {
    "adapter_mlp.0.weight": (4096,),
    "adapter_mlp.1.weight": (512, 4096),
    "to_latent.weight": (32, 512),
    "to_latent.bias": (32,),
    "semantic_projector.0.weight": (512, 512),
    "semantic_projector.2.weight": (768, 512),
    "logit_scale": (),
    "dino_mean": (1, 3, 1, 1),
    "dino_std": (1, 3, 1, 1),
}
BLOCK: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("q_topo", "k_topo", "v_sem", "v_itc", "proj"), (512, 512)),
    **dict.fromkeys(("q_norm", "k_norm"), (64,)),
    **dict.fromkeys(("norm1", "norm2"), (512,)),
    "mlp.w1": (1365, 512),
    "mlp.w2": (1365, 512),
    "mlp.w3": (512, 1365),
}
OWN |= {f"muse_blocks.{i}.{name}.weight": shape for i in range(6) for name, shape in BLOCK.items()}
ENCODER: dict[str, tuple[int, ...]] = {
    "embeddings.class_embedding": (1, 1, 1024),
    "embeddings.position_embedding": (1, 1025, 1024),
    "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "embeddings.patch_embedding.bias": (1024,),
}
LAYER: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("ls1", "ls2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"), (1024,)),
    "attn.qkv.weight": (3072, 1024),
    "attn.qkv.bias": (3072,),
    "attn.proj.weight": (1024, 1024),
    "attn.proj.bias": (1024,),
    "mlp.fc1.weight": (4096, 1024),
    "mlp.fc1.bias": (4096,),
    "mlp.fc2.weight": (1024, 4096),
    "mlp.fc2.bias": (1024,),
}
ENCODER |= {f"encoder.layers.{i}.{name}": shape for i in range(24) for name, shape in LAYER.items()}


def published_on_meta() -> dict[str, Tensor]:
    """All of MUSE-1B; the decoder's names are those of diffusers."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in OWN.items()}
        state |= {f"encoder.{name}": torch.empty(shape) for name, shape in ENCODER.items()}
        decoder = MuseNetwork().decoder.model.state_dict()
    return state | {f"decoder.{name}": tensor for name, tensor in decoder.items()}


def test_published_names_and_shapes_are_those_of_the_network() -> None:
    state = published_on_meta()
    with torch.device("meta"):
        network = MuseNetwork()
    ours = from_published(state)
    require_fit(network, ours, "MUSE-1B")
    assert len(OWN) == 9 + 6 * 12 and sum(t.numel() for t in ours.values()) == 486_459_556
    back = to_published(network.state_dict())
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in state.items()}
    assert infer_shape(ours) == MuseShape()


def test_weights_come_back_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in OWN.items()}
    state |= {
        f"encoder.{name}": torch.randn([min(side, 12) for side in shape], generator=generator)
        for name, shape in ENCODER.items()
    }
    state["dino_mean"], state["dino_std"] = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(
        2, 1, 3, 1, 1
    )
    state["decoder.conv_in.weight"] = torch.randn(3, 3, generator=generator)
    state["decoder_adapter.weight"] = torch.randn(3, 3, generator=generator)
    back = to_published(from_published(state))
    assert set(back) == set(state)
    assert not [name for name in state if not torch.equal(back[name], state[name])]
    with pytest.raises(ValueError, match=r"'muse_blocks.0.other.weight' is not part of a published MUSE"):
        from_published({"muse_blocks.0.other.weight": torch.zeros(1)})


def test_the_report_names_dead_missing_and_unwanted_tensors() -> None:
    state = published_on_meta()
    state["dino_teacher.norm.weight"] = state["logit_scale"]
    del state["to_latent.bias"]
    report = report_on(state, Settings(routing="official", topo_layers="last"))
    assert len(report.dead) == 5 * 5 and "synergy.4.query.weight" in report.dead
    assert not any(".5." in name for name in report.dead)
    assert report.missing == ("to_latent.bias",)
    assert set(report.ignored) == {"dino_mean", "dino_std", "dino_teacher.norm.weight"}
    assert "25 dead (never trained): synergy.0.query.weight" in str(report)
    assert report_on(state, Settings()).dead == tuple(f"synergy.{i}.semantic.weight" for i in range(5))


def test_a_published_file_is_read_without_running_its_code(tmp_path: Path) -> None:
    model = module()
    model.configure_model()
    (tmp_path / "ema_model").mkdir()
    torch.save(to_published(model.network.state_dict()), tmp_path / "ema_model" / "pytorch_model.bin")
    settings, state, report = read_model(str(tmp_path))
    assert settings.routing == "official" and settings.stage == 3 and report is not None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())
    with pytest.raises(MissingWeightsError, match="no folder"):
        read_model(str(tmp_path / "nothing"))


def test_a_run_starts_from_a_published_file_and_says_what_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_gen.autoencoders.muse import convert

    monkeypatch.setattr(convert, "DCAEShape", lambda: DECODER)
    model = module()
    model.configure_model()
    file = tmp_path / "pytorch_model.bin"
    torch.save(to_published(model.network.state_dict()), file)
    again = module(init_from=str(file), seed=7)
    again.configure_model()
    assert all(torch.equal(x, again.network.state_dict()[name]) for name, x in model.network.state_dict().items())
    assert "10 dead (never trained): synergy.0.query.weight" in caplog.text and str(file) in caplog.text


def test_a_folder_gives_the_same_model(tmp_path: Path) -> None:
    model = module()
    model.configure_model()
    model.save_pretrained(tmp_path / "saved")
    again = Muse.from_pretrained(str(tmp_path / "saved"))
    images = torch.rand(2, 3, 20, 33) * 2 - 1
    with torch.no_grad():
        latents, same = model.eval().encode(images), again.encode(images)
        assert torch.equal(latents.values, same.values) and latents.values.shape == (2, 3 * 5, 6)
        assert torch.equal(model.decode(latents), again.decode(same))  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    again.save_pretrained(tmp_path / "twice")
    files = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "twice")]
    assert files[0] == files[1] and files[0]["stage"] == 3
    (tmp_path / "saved" / "config.json").write_text('{"model": "Other"}')
    with pytest.raises(ValueError, match="describes 'Other', not a Muse"):
        Muse.from_pretrained(str(tmp_path / "saved"))


def test_sizes_survive_json() -> None:
    import dataclasses

    shape = module().settings.shape
    assert revive_shape(json.loads(json.dumps(dataclasses.asdict(shape)))) == shape
    with pytest.raises(ValueError, match="not the sizes of a MUSE"):
        revive_shape({"breadth": 3})
