"""Published LightningDiT weights, made by the rules of the published code, go in and come back bit by bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_gen.generators.dit.lightningdit.convert import (
    compare,
    from_published,
    infer_sizes,
    infer_variant,
    load_published,
    published_state,
    read_published,
    write_published,
)
from lightning_gen.generators.dit.lightningdit.layers import sincos_positions
from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.module import LatentDiffusion, import_published
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.training.initialisation import initialise


def shapes(
    width: int, depth: int, head: int, hidden: int, grid: int, channels: int, classes: int, qk: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, typed from its list."""
    w = width
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, grid * grid, w),
        "x_embedder.proj.weight": (w, channels, 1, 1),
        "x_embedder.proj.bias": (w,),
        "t_embedder.mlp.0.weight": (w, 256),
        "t_embedder.mlp.0.bias": (w,),
        "t_embedder.mlp.2.weight": (w, w),
        "t_embedder.mlp.2.bias": (w,),
        "y_embedder.embedding_table.weight": (classes + 1, w),
        "feat_rope.freqs_cos": (grid * grid, head),
        "feat_rope.freqs_sin": (grid * grid, head),
    }
    for i in range(depth):
        block = {
            "norm1.weight": (w,),
            "norm2.weight": (w,),
            "attn.qkv.weight": (3 * w, w),
            "attn.qkv.bias": (3 * w,),
            "attn.q_norm.weight": (head,),
            "attn.k_norm.weight": (head,),
            "attn.proj.weight": (w, w),
            "attn.proj.bias": (w,),
            "mlp.w12.weight": (2 * hidden, w),
            "mlp.w12.bias": (2 * hidden,),
            "mlp.w3.weight": (w, hidden),
            "mlp.w3.bias": (w,),
            "adaLN_modulation.1.weight": (6 * w, w),
            "adaLN_modulation.1.bias": (6 * w,),
        }
        found |= {f"blocks.{i}.{name}": shape for name, shape in block.items() if qk or "_norm" not in name}
    return found | {
        "final_layer.norm_final.weight": (w,),
        "final_layer.linear.weight": (channels, w),
        "final_layer.linear.bias": (channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * w, w),
        "final_layer.adaLN_modulation.1.bias": (2 * w,),
    }


def rope(grid: int, head: int) -> tuple[Tensor, Tensor]:
    """Tables of the published rotary module: row then column, every frequency twice."""
    half = head // 2
    frequency = 1.0 / (10000 ** (torch.arange(0, half, 2)[: half // 2].float() / half))
    angle = (torch.arange(grid).float()[:, None] * frequency).repeat_interleave(2, dim=1)
    whole = torch.cat([angle[:, None].expand(-1, grid, -1), angle[None].expand(grid, -1, -1)], -1).flatten(0, 1)
    return whole.cos(), whole.sin()


def published(qk: bool = True, channels: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(s, generator=generator) for k, s in shapes(24, 2, 12, 64, 4, channels, 5, qk).items()}
    state["feat_rope.freqs_cos"], state["feat_rope.freqs_sin"] = rope(4, 12)
    return state


def tiny(qk: bool = True) -> LightningDiT:
    network = LightningDiT("lightningdit_w24_d2_h2_g4" + ("_qknorm" if qk else ""), 6, 5)
    initialise(network, 1)
    return network


def test_names_and_shapes_of_the_published_xl() -> None:
    with torch.device("meta"):
        network = LightningDiT("lightningdit_xl_1_qknorm", 32, 1000)
    expected = shapes(1152, 28, 72, 3072, 16, 32, 1000, True)
    assert len(expected) == 407
    found = {name: tuple(tensor.shape) for name, tensor in published_state(network).items()}
    assert found == expected
    state = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    assert infer_variant(state) == "lightningdit_xl_1_qknorm"


@pytest.mark.parametrize("qk", [True, False])
def test_round_trip_is_bit_equal(qk: bool) -> None:
    state, network = published(qk), tiny(qk)
    assert infer_variant(state) == "lightningdit_w24_d2_h2_g4" + ("_qknorm" if qk else "")
    report = load_published(network, {f"module.{key}": tensor for key, tensor in state.items()})
    assert report.missing == report.dead == () and len(report.taken) == len(state) - 2
    assert report.derived == ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
    back = published_state(network)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        if key in report.derived:
            torch.testing.assert_close(back[key], tensor, atol=1e-6, rtol=0)
        else:
            assert torch.equal(back[key], tensor), key
    assert not network.positions.table.requires_grad


def test_every_tensor_comes_to_its_own_place() -> None:
    state, network = published(), tiny()
    load_published(network, state)
    own, block = network.state_dict(), "dit_blocks.1."
    for ours, theirs in (
        ("time_embedding.fc1.weight", "t_embedder.mlp.0.weight"),
        ("time_embedding.fc2.bias", "t_embedder.mlp.2.bias"),
        (f"{block}norm1.weight", "blocks.1.norm1.weight"),
        (f"{block}norm2.weight", "blocks.1.norm2.weight"),
        (f"{block}attn.norm_q.weight", "blocks.1.attn.q_norm.weight"),
        (f"{block}attn.norm_k.weight", "blocks.1.attn.k_norm.weight"),
        (f"{block}attn.out_proj.bias", "blocks.1.attn.proj.bias"),
        (f"{block}ffn.w3.bias", "blocks.1.mlp.w3.bias"),
        ("head.out_proj.bias", "final_layer.linear.bias"),
    ):
        assert torch.equal(own[ours], state[theirs]), ours


def test_positions_are_what_the_published_code_computes() -> None:
    """With NumPy in double precision, the width first, as its helper does."""
    import numpy as np

    omega = 1.0 / 10000 ** (np.arange(6, dtype=np.float64) / 6.0)
    across, down = np.meshgrid(np.arange(4, dtype=np.float32), np.arange(4, dtype=np.float32))
    halves = [np.einsum("m,d->md", place.reshape(-1), omega) for place in (across, down)]
    table = np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], axis=1)
    torch.testing.assert_close(sincos_positions(4, 24), torch.from_numpy(table).float(), atol=1e-7, rtol=0)


def test_missing_and_dead_tensors_are_named() -> None:
    state = published()
    del state["blocks.1.mlp.w3.bias"]
    state["w_extra"] = torch.zeros(1)
    report = compare(tiny(), state)
    assert report.missing == ("blocks.1.mlp.w3.bias",) and report.dead == ("w_extra",)
    with pytest.raises(
        ValueError, match=r"lack 1 tensors \(blocks\.1\.mlp\.w3\.bias\), and it has no place for 1 .*w_ex"
    ):
        load_published(tiny(), state)
    with pytest.raises(ValueError, match="'w_extra' is not part"):
        from_published(state)


def test_other_weights_are_refused() -> None:
    state = published()
    with pytest.raises(ValueError, match="lack nothing, and it has no place for 4 tensors"):
        load_published(tiny(qk=False), state)
    with pytest.raises(ValueError, match=r"final_layer\.linear\.bias has the shape \(7,\)"):
        load_published(tiny(), state | {"final_layer.linear.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match=r"freqs_cos is not the table of 4 x 4 tokens at theta 10000"):
        load_published(tiny(), state | {"feat_rope.freqs_cos": rope(4, 12)[0] + 0.01})
    with pytest.raises(ValueError, match="a patch of 2 latent tokens"):
        load_published(tiny(), state | {"x_embedder.proj.weight": torch.zeros(24, 6, 2, 2)})
    with pytest.raises(ValueError, match="'pos_embed' is missing"):
        infer_variant({})


def test_files(tmp_path: Path) -> None:
    state = published()
    averaged = {key: tensor + 1 for key, tensor in state.items()}
    torch.save({"model": state, "ema": averaged, "opt": {"step": 3}}, tmp_path / "0100000.pt")
    assert torch.equal(read_published(tmp_path / "0100000.pt")["pos_embed"], averaged["pos_embed"])
    torch.save(state, tmp_path / "bare.pt")
    save_file(state, tmp_path / "bare.safetensors")
    for name in ("bare.pt", "bare.safetensors"):
        assert read_published(tmp_path / name).keys() == state.keys()
    torch.save({"opt": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        read_published(tmp_path / "empty.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        read_published(tmp_path / "cut.safetensors")


def module(init_from: Path, variant: str = "lightningdit_w24_d2_h2_g4_qknorm", classes: int = 5) -> LatentDiffusion:
    """A generator of 4 x 4 patches of 2 pixels, which are 12 numbers."""
    return LatentDiffusion(PixelSpace(2), variant, classes, init_from=str(init_from))


def test_a_generator_starts_from_a_published_file_or_from_what_it_became(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published(channels=12)
    torch.save({"ema": state, "model": {key: tensor + 1 for key, tensor in state.items()}}, tmp_path / "0100000.pt")
    assert infer_sizes(state) == (12, 5)
    direct = module(tmp_path / "0100000.pt")
    direct.configure_model()
    assert "41 tensors taken; missing: nothing; dead: nothing; computed instead of read: 2 tensors" in caplog.text
    report = import_published(tmp_path / "0100000.pt", tmp_path / "ours")
    assert len(report.taken) == len(state) - 2 and report.missing == report.dead == ()
    again = module(tmp_path / "ours")
    again.configure_model()
    write_published(again.network, tmp_path / "back.safetensors")  # type: ignore[arg-type]
    back = read_published(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    for name, tensor in direct.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    assert all(torch.equal(back[key], state[key]) for key in report.taken)


def test_a_generator_refuses_weights_that_are_not_its_own(tmp_path: Path) -> None:
    torch.save(published(channels=12), tmp_path / "xl.pt")
    import_published(tmp_path / "xl.pt", tmp_path / "ours")
    for source, variant, classes, message in (
        ("xl.pt", "w24_d2_h2", 5, r"can only hold a published LightningDiT: set model\.variant to lightningdit_"),
        ("xl.pt", "lightningdit_w24_d3_h2_g4_qknorm", 5, r"they lack 14 tensors \(blocks\.2"),
        ("xl.pt", "lightningdit_w24_d2_h2_g4_qknorm", 7, r"embedding_table\.weight has the shape \(6, 24\)"),
        ("ours", "lightningdit_w24_d2_h2_g4_qknorm", 7, "belong to other settings: num_classes differ"),
    ):
        with pytest.raises(ValueError, match=message):
            module(tmp_path / source, variant, classes).configure_model()
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        module(tmp_path / "none.pt").configure_model()
    with pytest.raises(ValueError, match=r"'final_layer\.linear\.bias' is missing"):
        infer_sizes({})
