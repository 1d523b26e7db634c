from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.vision import DINOv3Encoder, dinov3_parameters, fit_to_patches
from tests.harness.tiny_dinov3 import DEPTH, REGISTERS, WIDTH, random_dinov3, save_timm, save_transformers

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dinov3")
    return {
        "transformers": save_transformers(root / "transformers"),
        "timm": save_timm(root / "timm"),
        "timm without biases": save_timm(root / "timm-plain", query_bias=False),
        "transformers without biases": save_transformers(root / "transformers-plain", query_bias=False),
    }


@pytest.fixture(params=["transformers", "timm"])
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> DINOv3Encoder:
    return DINOv3Encoder(str(folders[request.param]))


class Parent(nn.Module):
    """What a LightningModule is to the encoder: a module that holds it as an attribute."""

    def __init__(self, encoder: DINOv3Encoder) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.dino = encoder


# ------------------------------------------------------------------ features


def test_every_block_gives_class_token_registers_and_patches(encoder: DINOv3Encoder) -> None:
    features = encoder.features(images(2, 3, 32, 48))
    assert [tuple(tokens.shape) for tokens in features] == [(2, 1 + REGISTERS + 2 * 3, WIDTH)] * DEPTH
    assert all(tokens.dtype == torch.float32 for tokens in features)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 20), (7, 16)])
@pytest.mark.parametrize("kind", ["", " without biases"])
def test_both_back_ends_agree_on_equal_weights(folders: dict[str, Path], size: tuple[int, int], kind: str) -> None:
    ours = DINOv3Encoder(str(folders["transformers" + kind]))
    other = DINOv3Encoder(str(folders["timm" + kind]))
    assert (ours.backend, other.backend) == ("transformers", "timm")
    x = images(2, 3, *size)
    for mine, theirs in zip(ours.features(x), other.features(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), other(x), rtol=1e-5, atol=1e-5)


def test_features_are_the_raw_outputs_of_the_blocks(encoder: DINOv3Encoder) -> None:
    x = images(2, 3, 32, 32)
    reference = random_dinov3()
    with torch.no_grad():
        output = reference(((x + 1) / 2 - MEAN) / STD, output_hidden_states=True)
    assert len(output.hidden_states) == DEPTH + 1
    for mine, theirs in zip(encoder.features(x), output.hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    # The final LayerNorm belongs to the pooled vector only.
    torch.testing.assert_close(reference.norm(encoder.features(x)[-1])[:, 0], encoder(x), rtol=1e-5, atol=1e-5)
    assert (encoder.features(x)[-1][:, 0] - encoder(x)).abs().max() > 0.1


def test_patches_are_ordered_row_by_row(encoder: DINOv3Encoder) -> None:
    x = images(1, 3, 32, 48)
    x[:, :, :16, 16:32] += 0.1  # patch (0, 1) of a 2 x 3 grid
    changed = (encoder.features(x)[0] - encoder.features(images(1, 3, 32, 48))[0]).abs().sum(-1)[0]
    assert int(changed.argmax()) == 1 + REGISTERS + 1


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_other_input_is_refused(encoder: DINOv3Encoder, bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"float images of shape \(B, 3, H, W\)"):
        encoder.features(bad)


# ------------------------------------------------------------------ frozen, and no part of its parent


def test_gradient_flows_to_the_images_and_to_nothing_else(encoder: DINOv3Encoder) -> None:
    x = images(1, 3, 32, 32).requires_grad_()
    sum(tokens.square().sum() for tokens in encoder.features(x)).backward()
    assert x.grad is not None and (x.grad != 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.network.parameters())


def test_a_training_parent_leaves_it_in_eval(encoder: DINOv3Encoder) -> None:
    parent = Parent(encoder)
    before = encoder.features(images(1, 3, 32, 32))
    parent.train().requires_grad_(True)
    assert parent.layer.training
    assert not encoder.training and not any(module.training for module in encoder.network.modules())
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    for first, second in zip(before, encoder.features(images(1, 3, 32, 32)), strict=True):
        assert torch.equal(first, second)


def test_positions_stay_put_even_if_the_network_is_put_in_train_mode(folders: dict[str, Path]) -> None:
    encoder = DINOv3Encoder(str(folders["transformers"]))
    before = encoder.features(images(1, 3, 32, 32))[-1]
    encoder.network.train()
    assert torch.equal(encoder.features(images(1, 3, 32, 32))[-1], before)


def test_the_parent_has_no_more_weights_than_before(encoder: DINOv3Encoder) -> None:
    parent = Parent(encoder)
    assert list(parent.state_dict()) == ["layer.weight", "layer.bias"]
    assert [name for name, _ in parent.named_parameters()] == ["layer.weight", "layer.bias"]
    assert list(parent.buffers()) == []
    assert [name for name, _ in parent.named_modules()] == ["", "layer", "dino"]
    parent.load_state_dict(parent.state_dict(), strict=True)
    assert encoder.num_parameters > 20_000
    assert f"{encoder.num_parameters:,}" in repr(parent)


@pytest.mark.parametrize(
    "act",
    [
        lambda parent: parent.to(torch.bfloat16),
        lambda parent: parent.double(),
        lambda parent: parent.to_empty(device="cpu"),
        lambda parent: parent.to("meta"),
        lambda parent: parent.share_memory(),
    ],
    ids=["bfloat16", "double", "to_empty", "meta", "share_memory"],
)
def test_what_a_parent_does_to_its_tensors_does_not_change_the_weights(
    encoder: DINOv3Encoder, act: Callable[[nn.Module], object]
) -> None:
    before = [tokens.clone() for tokens in encoder.features(images(1, 3, 32, 32))]
    act(Parent(encoder))
    for first, second in zip(before, encoder.features(images(1, 3, 32, 32)), strict=True):
        assert torch.equal(first, second)


class Spy(nn.Module):
    """A stand-in network that tells where it was sent."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        self.sent: list[str] = []

    def to(self, device: Any) -> Spy:  # type: ignore[override]
        self.sent.append(str(device))
        return self


def test_a_move_of_the_parent_moves_the_network(encoder: DINOv3Encoder) -> None:
    spy = Spy("cpu")
    encoder.__dict__["network"] = spy
    Parent(encoder).to(torch.device("cpu"))
    assert spy.sent == ["cpu"]


def test_images_pull_the_network_to_their_device(encoder: DINOv3Encoder) -> None:
    spy = Spy("meta")
    encoder.__dict__["network"] = spy
    with pytest.raises((AttributeError, TypeError)):  # the stand-in cannot run
        encoder.features(images(1, 3, 32, 32))
    assert spy.sent == ["cpu"]


def test_a_deep_copy_of_the_parent_is_complete_and_independent(encoder: DINOv3Encoder) -> None:
    parent = Parent(encoder)
    before = encoder.features(images(1, 3, 32, 32))  # forward hooks are in place when it is copied
    twin = copy.deepcopy(parent)
    with torch.no_grad():
        next(encoder.network.parameters()).zero_()
    for first, second in zip(before, twin.dino.features(images(1, 3, 32, 32)), strict=True):
        assert torch.equal(first, second)
    assert not twin.train().dino.training


def test_it_travels_to_spawned_processes(encoder: DINOv3Encoder) -> None:
    twin: Parent = pickle.loads(pickle.dumps(Parent(encoder)))
    assert torch.equal(twin.dino.features(images(1, 3, 32, 32))[-1], encoder.features(images(1, 3, 32, 32))[-1])


@pytest.mark.parametrize("backend", ["transformers", "timm"])
def test_it_is_built_the_same_inside_any_construction_context(folders: dict[str, Path], backend: str) -> None:
    usual = DINOv3Encoder(str(folders[backend])).features(images(1, 3, 32, 32))[-1]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            built = DINOv3Encoder(str(folders[backend]))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(built.features(images(1, 3, 32, 32))[-1], usual)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_computes_in_its_own_precision(encoder: DINOv3Encoder) -> None:
    exact = encoder.features(images(1, 3, 32, 32))[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder.features(images(1, 3, 32, 32))[-1].float()
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05


# ------------------------------------------------------------------ preprocessing


def test_colours_are_shifted_to_0_1_and_standardised() -> None:
    for value in (-1.0, 0.0, 1.0):
        out = fit_to_patches(torch.full((1, 3, 16, 16), value), 512)
        torch.testing.assert_close(out, (((value + 1) / 2 - MEAN) / STD).expand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("size", "target", "resized"),
    [((64, 48), 64, (64, 48)), ((65, 48), 64, (64, 47)), ((128, 64), 64, (64, 32)), ((30, 300), 100, (10, 100)),
     ((1, 4000), 64, (1, 64)), ((63, 64), 32, (32, 32))],
)  # fmt: skip
def test_the_longer_side_is_brought_to_the_target(size: tuple[int, int], target: int, resized: tuple[int, int]) -> None:
    x = images(1, 3, *size)
    out = fit_to_patches(x, target) * STD + MEAN
    expected = (x + 1) / 2
    if resized != size:
        expected = F.interpolate(expected, size=resized, mode="bicubic", align_corners=False, antialias=False)
    assert out.shape[-2:] == tuple(-(-side // 16) * 16 for side in resized)
    torch.testing.assert_close(out[..., : resized[0], : resized[1]], expected, rtol=0, atol=2e-6)
    filling = torch.ones_like(out, dtype=torch.bool)
    filling[..., : resized[0], : resized[1]] = False
    torch.testing.assert_close(out[filling], torch.full_like(out[filling], 0.5), rtol=0, atol=1e-6)


def test_no_pixel_is_dropped_where_a_side_is_no_multiple_of_the_patch(encoder: DINOv3Encoder) -> None:
    x = images(1, 3, 20, 37).requires_grad_()
    encoder.features(x)[-1].square().sum().backward()
    assert x.grad is not None and (x.grad != 0).all()


def test_the_encoder_resizes_to_its_target(folders: dict[str, Path]) -> None:
    encoder = DINOv3Encoder(str(folders["transformers"]), target_size=32)
    assert encoder.features(images(1, 3, 64, 128))[0].shape[1] == 1 + REGISTERS + 2
    with pytest.raises(ValueError, match="target_size"):
        DINOv3Encoder(str(folders["transformers"]), target_size=0)


# ------------------------------------------------------------------ published sizes


@pytest.mark.parametrize("size", ["S", "S+", "B", "L", "H+", "7B"])
def test_parameter_counts_of_the_published_sizes(size: Any) -> None:
    import timm

    name = {"S": "small", "S+": "small_plus", "B": "base", "L": "large", "H+": "huge_plus", "7B": "7b"}[size]
    with torch.device("meta"):
        network = timm.create_model(f"vit_{name}_patch16_dinov3", num_classes=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == dinov3_parameters(size)
