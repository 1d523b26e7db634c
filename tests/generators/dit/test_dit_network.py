"""The transformer: padding, packing, conditions, positions, starts. t = 0 is clean, t = 1 is noise."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.generators.dit.layers import ModulationTable, bounded, modulate, sinusoid
from lightning_gen.generators.dit.network import DiT
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpack
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.strategies import prepare

from .conftest import CHANNELS, CLASSES, LABEL, TIME, make_lively

F64 = torch.float64
Batch = Callable[..., Tokens]


def _real(network: DiT, tokens: Tokens, time: Tensor = TIME, label: Tensor = LABEL) -> Tensor:
    """Predictions of the real tokens, image after image, (tokens, C)."""
    out = unpack(tokens.with_values(network(tokens, time, label)))
    return out.values[out.mask]


def _alone(tokens: Tokens, i: int) -> Tokens:
    """Image i of a batch in a batch of its own, without padding."""
    height, width = tokens.sizes[i].tolist()
    single = patchify([torch.zeros(1, height, width)], tokens.patch)
    return single.with_values(tokens.values[i : i + 1, : single.mask.shape[1]])


def test_padding_and_what_stands_in_it_change_nothing(network: DiT, batch: Batch) -> None:
    expected = _real(network, batch())
    for length in (30, 60):
        tokens = batch(length, garbage=37.0)
        scattered = torch.where(tokens.mask, tokens.row, 9)
        torch.testing.assert_close(_real(network, dataclasses.replace(tokens, row=scattered)), expected)


def test_images_of_a_batch_do_not_meet(network: DiT, batch: Batch) -> None:
    together = network(batch(), TIME, LABEL)
    for i in range(4):
        alone = _alone(batch(), i)
        out = network(alone, TIME[i : i + 1], LABEL[i : i + 1])
        torch.testing.assert_close(out[0], together[i, : out.shape[1]])


@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("length", [None, 16, 25])
def test_packed_equals_padded(batch: Batch, length: int | None, radius: int | None) -> None:
    network = make_lively(DiT("w32_d3_h2", CHANNELS, CLASSES, swa_radius=radius)).double()
    packed = pack(batch(), length)
    assert packed.mask.shape[0] < 4
    torch.testing.assert_close(_real(network, packed), _real(network, batch()))


def test_gradients_of_packed_and_padded_are_equal(network: DiT, batch: Batch) -> None:
    grads = []
    for tokens in (batch(40, garbage=3.0), pack(batch())):
        network.zero_grad()
        _real(network, tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(network.parameters()))
    for padded, packed in zip(*grads, strict=True):
        torch.testing.assert_close(padded, packed)


def test_time_and_label_steer_their_own_image_only(network: DiT, batch: Batch) -> None:
    for tokens in (batch(), pack(batch())):
        base = unpack(tokens.with_values(network(tokens, TIME, LABEL))).values
        for time, label in ((TIME + torch.tensor([0, 0.02, 0, 0]), LABEL), (TIME, torch.tensor([0, 4, 5, 1]))):
            moved = unpack(tokens.with_values(network(tokens, time, label))).values - base
            assert float(moved[1].detach().abs().max()) > 1e-3
            torch.testing.assert_close(moved[[0, 2, 3]], torch.zeros_like(moved[[0, 2, 3]]), atol=1e-12, rtol=0)


def test_shifted_coordinates_change_nothing_exchanged_ones_do(network: DiT, batch: Batch) -> None:
    tokens = batch()
    expected = _real(network, tokens)
    shifted = dataclasses.replace(tokens, row=tokens.row + 5, col=tokens.col + 11)
    torch.testing.assert_close(_real(network, shifted), expected, atol=1e-9, rtol=0)
    exchanged = dataclasses.replace(tokens, row=tokens.col, col=tokens.row)
    assert float((_real(network, exchanged) - expected).detach().abs().max()) > 1e-3


def test_permuted_tokens_give_permuted_predictions(network: DiT, batch: Batch) -> None:
    tokens = batch()
    order = torch.randperm(tokens.mask.shape[1], generator=torch.Generator().manual_seed(0))
    parts = {name: getattr(tokens, name)[:, order] for name in ("values", "mask", "row", "col", "image")}
    out = network(dataclasses.replace(tokens, **parts), TIME, LABEL)
    torch.testing.assert_close(out[parts["mask"]], network(tokens, TIME, LABEL)[:, order][parts["mask"]])


def test_forward_equals_the_equations_written_out(batch: Batch) -> None:
    """One block on one image, by hand from section 2.8 of the notes, with nothing of the package but its weights."""
    network = make_lively(DiT("w32_d1_h2", CHANNELS, CLASSES)).double()
    tokens = _alone(batch(), 0)
    p = dict(network.named_parameters())
    t, label = torch.tensor([0.37], dtype=F64), torch.tensor([2])

    frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=F64)
    wave = torch.cat([(370 * frequency).cos(), (370 * frequency).sin()])
    hidden = F.silu(p["time_embedding.fc1.weight"] @ wave + p["time_embedding.fc1.bias"])
    vec = p["time_embedding.fc2.weight"] @ hidden + p["time_embedding.fc2.bias"] + p["class_embedding.weight"][2]
    rows = (p["modulation.weight"] @ F.silu(vec)).view(4, 32) + p["dit_blocks.0.table.weight"][0]
    shift, scale, gate_attn, gate_mlp = rows[0], 3 * rows[1].tanh(), 3 * rows[2].tanh(), 3 * rows[3].tanh()

    x = tokens.values[0] @ p["in_proj.weight"].T
    u = (1 + scale) * _norm(x) + shift
    q, k, v = (u @ w.T for w in p["dit_blocks.0.attn.qkv_proj.weight"].chunk(3))
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        turned = [
            _turn(_rms(y[:, part]) * p[f"dit_blocks.0.attn.norm_{name}.weight"], tokens.row[0], tokens.col[0])
            for y, name in ((q, "q"), (k, "k"))
        ]
        heads.append((turned[0] @ turned[1].T / 4).softmax(-1) @ v[:, part])
    attn = torch.cat(heads, 1) @ p["dit_blocks.0.attn.out_proj.weight"].T
    value, gate = (u @ p["dit_blocks.0.ffn.fc1.weight"].T).chunk(2, 1)
    ffn = (F.silu(gate) * value) @ p["dit_blocks.0.ffn.fc2.weight"].T
    x = x + p["dit_blocks.0.layer_scale.gamma"] * (gate_attn * attn + gate_mlp * ffn)
    head_shift, head_scale = (p["head.modulation.weight"] @ F.silu(vec)).chunk(2)
    u = (1 + 3 * head_scale.tanh()) * _norm(x) + head_shift
    expected = u @ p["head.out_proj.weight"].T + p["head.out_proj.bias"]
    torch.testing.assert_close(network(tokens, t, label)[0], expected)


def _norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _turn(x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    frequency = torch.tensor([10000 ** (-2 * i / 8) for i in range(4)], dtype=F64)
    turn = torch.exp(1j * torch.cat([row[:, None] * frequency, col[:, None] * frequency], 1))
    return torch.view_as_real(torch.view_as_complex(x.reshape(len(x), 8, 2).contiguous()) * turn).reshape(len(x), 16)


def test_release_steps_feed_the_step_index(batch: Batch) -> None:
    house, release = (
        make_lively(DiT("w32_d1_h2", CHANNELS, CLASSES, steps=s)).double() for s in ("house", "vitok_release")
    )
    time = torch.full((4,), 0.999 * 0.5, dtype=F64)  # step 499
    torch.testing.assert_close(release(batch(), time, LABEL), house(batch(), torch.full_like(time, 0.499), LABEL))


def test_sinusoid_values() -> None:
    out = sinusoid(torch.tensor([0.0, 3.0], dtype=F64), 8)
    assert out[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    f = [1, 0.1, 0.01, 0.001]
    expected = [math.cos(3 * x) for x in f] + [math.sin(3 * x) for x in f]
    torch.testing.assert_close(out[1], torch.tensor(expected, dtype=F64))
    assert sinusoid(torch.tensor([3.0]).bfloat16()).dtype == torch.float32


def test_modulation_bounds_scale_and_gates_but_not_the_shift() -> None:
    table = ModulationTable(4)
    shift, *rest = table(torch.full((2, 16), 50.0))
    assert float(shift.detach().min()) == 50.0
    assert all(float(part.detach().max()) == 3.0 for part in rest)
    torch.testing.assert_close(bounded(torch.tensor(0.1)), torch.tensor(3 * math.tanh(0.1)))
    x = torch.randn(1, 3, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(modulate(x, torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)), _norm(x))


def test_start_is_almost_the_head_on_the_input_projection(batch: Batch) -> None:
    with torch.device("meta"):
        network = DiT("w32_d3_h2", CHANNELS, CLASSES)
    prepare(network, device_mesh=None, seed=1)
    for block in network.dit_blocks:
        assert bool((block.table.weight == 0).all()) and bool((block.layer_scale.gamma == 1e-4).all())
    tokens = batch(dtype=torch.float32)
    time = TIME.float()
    out = network(tokens, time, LABEL)
    without = network.head(network.in_proj(tokens.values), network.condition(time, LABEL), None)
    difference = float((out - without)[tokens.mask].detach().abs().max())
    assert 1e-6 < difference < 5e-3


def test_meta_device_and_real_construction_start_alike() -> None:
    with torch.device("meta"):
        meta = DiT("w32_d2_h2", CHANNELS, CLASSES)
    prepare(meta, device_mesh=None, seed=7)
    real = DiT("w32_d2_h2", CHANNELS, CLASSES)
    initialise(real, 7)
    assert meta.state_dict().keys() == real.state_dict().keys()
    for name, value in real.state_dict().items():
        assert torch.equal(meta.state_dict()[name], value), name
    for module in real.modules():
        if list(module.parameters(recurse=False)):
            assert not list(module.children()) and hasattr(module, "reset_parameters"), type(module)


def test_bfloat16_stays_close(network: DiT, batch: Batch) -> None:
    exact = _real(network, batch())
    spread = float(exact.detach().std())
    tokens = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = _real(network.float(), tokens, TIME.float())
    half = _real(network.bfloat16(), tokens, TIME.float())
    for out in (mixed, half):
        assert float((out.double() - exact).detach().abs().mean()) < 0.03 * spread


def test_checkpointing_gives_the_same_gradients_bit_for_bit(batch: Batch) -> None:
    grads = []
    for checkpointing in (False, True):
        network = make_lively(DiT("w32_d3_h2", CHANNELS, CLASSES))
        prepare(network, device_mesh=None, seed=0, activation_checkpointing=checkpointing)
        _real(network, batch(dtype=torch.float32), TIME.float()).square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_window_on_every_second_block_only(batch: Batch) -> None:
    """With radius 0 the windowed blocks mix nothing: one block sees all, so the reach tells which ones are windowed."""

    def reach(depth: int) -> int:
        network = make_lively(DiT(f"w32_d{depth}_h2", CHANNELS, CLASSES, swa_radius=0)).double()
        tokens = _alone(batch(), 0)
        values = tokens.values.clone().requires_grad_()
        network(tokens.with_values(values), TIME[:1], LABEL[:1])[0, 0].sum().backward()
        return int((values.grad[0].abs().sum(-1) > 1e-12).sum())

    assert reach(1) == reach(2) == 15
    network = make_lively(DiT("w32_d2_h2", CHANNELS, CLASSES, swa_radius=0)).double()
    tokens = _alone(batch(), 0)
    full = make_lively(DiT("w32_d2_h2", CHANNELS, CLASSES)).double()
    assert float((network(tokens, TIME[:1], LABEL[:1]) - full(tokens, TIME[:1], LABEL[:1])).detach().abs().max()) > 1e-3
    wide = make_lively(DiT("w32_d2_h2", CHANNELS, CLASSES, swa_radius=4)).double()
    torch.testing.assert_close(wide(tokens, TIME[:1], LABEL[:1]), full(tokens, TIME[:1], LABEL[:1]))


def test_null_class_is_one_more_row(network: DiT, batch: Batch) -> None:
    assert network.null_class == CLASSES and network.class_embedding.num_embeddings == CLASSES + 1
    network(batch(), TIME, torch.full((4,), CLASSES))
    for wrong in (-1, CLASSES + 1):
        with pytest.raises(ValueError, match=rf"class {wrong} of image 2 is out of range.*0 to 4.*5 for no class"):
            network(batch(), TIME, torch.tensor([0, 0, wrong, 0]))


def test_one_time_and_one_label_per_image(network: DiT, batch: Batch) -> None:
    for time, label in ((TIME[:1], LABEL), (TIME, LABEL[:3]), (TIME[0], LABEL)):
        with pytest.raises(ValueError, match="4 images need"):
            network(batch(), time, label)
    with pytest.raises(ValueError, match="house"):
        DiT("w32_d1_h2", 4, 3, steps="sit")  # type: ignore[arg-type]


def test_saved_and_loaded_is_the_same(network: DiT, batch: Batch) -> None:
    twin = DiT("w32_d3_h2", CHANNELS, CLASSES).double()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin(batch(), TIME, LABEL), network(batch(), TIME, LABEL))
