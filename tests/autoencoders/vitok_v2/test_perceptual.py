from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoders.vitok_v2.perceptual import dino_distance
from lightning_gen.backbones.vision import DINOv3Encoder
from tests.harness.tiny_dinov3 import DEPTH, REGISTERS, WIDTH, random_dinov3, save_timm, save_transformers


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dinov3")
    return {"transformers": save_transformers(root / "transformers"), "timm": save_timm(root / "timm")}


@pytest.fixture(params=["transformers", "timm"])
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> DINOv3Encoder:
    return DINOv3Encoder(str(folders[request.param]))


class Table:
    """A backbone whose tokens are written down: image b of value v gets layer tokens ``layers[l][v]``."""

    def __init__(self, *layers: Tensor) -> None:
        self.layers = layers

    def features(self, images: Tensor) -> list[Tensor]:
        rows = images[:, 0, 0, 0].long()
        return [layer[rows] for layer in self.layers]


def numbered(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)


class Scaled:
    """The tokens of another backbone, each stretched by a positive factor of its own."""

    def __init__(self, encoder: DINOv3Encoder) -> None:
        self.encoder = encoder

    def features(self, images: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        tokens = self.encoder.features(images)
        return [x * (0.1 + 10 * torch.rand(x.shape[:2], generator=generator))[..., None] for x in tokens]


# ------------------------------------------------------------------ check 11


def test_an_image_is_at_distance_0_from_itself(encoder: DINOv3Encoder) -> None:
    x = images(2, 3, 32, 48)
    assert torch.equal(dino_distance(encoder, x, x.clone()), torch.zeros(2))


def test_it_is_symmetric_positive_and_bounded(encoder: DINOv3Encoder) -> None:
    x, y = images(4, 3, 32, 32), images(4, 3, 32, 32, seed=1)
    forth, back = dino_distance(encoder, x, y), dino_distance(encoder, y, x)
    torch.testing.assert_close(forth, back, rtol=1e-6, atol=0)
    assert (forth > 1e-4).all() and (forth < 4 / WIDTH).all()


def test_the_bound_is_reached_by_opposite_tokens() -> None:
    tokens = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    opposite = Table(torch.cat((tokens, -3 * tokens)))
    torch.testing.assert_close(dino_distance(opposite, numbered(0), numbered(1)), torch.tensor([4 / 8]))


def test_the_length_of_tokens_does_not_count(encoder: DINOv3Encoder) -> None:
    x, y = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    torch.testing.assert_close(dino_distance(Scaled(encoder), x, y), dino_distance(encoder, x, y), rtol=1e-5, atol=1e-8)


def test_the_gradient_reaches_the_prediction_only(encoder: DINOv3Encoder) -> None:
    y, x = images(2, 3, 32, 32).requires_grad_(), images(2, 3, 32, 32, seed=1).requires_grad_()
    dino_distance(encoder, y, x).sum().backward()
    assert y.grad is not None and (y.grad != 0).all()
    assert x.grad is None
    assert all(parameter.grad is None for parameter in encoder.network.parameters())


def test_the_gradient_is_that_of_the_value(folders: dict[str, Path]) -> None:
    encoder = DINOv3Encoder(str(folders["timm"]))
    encoder.network.double()
    y, x = images(1, 3, 16, 16).double(), images(1, 3, 16, 16, seed=1).double()
    direction = images(1, 3, 16, 16, seed=2).double()
    variable = y.clone().requires_grad_()
    dino_distance(encoder, variable, x).sum().backward()
    step = 1e-5
    slope = (
        (dino_distance(encoder, y + step * direction, x) - dino_distance(encoder, y - step * direction, x)) / 2 / step
    )
    assert variable.grad is not None
    torch.testing.assert_close((variable.grad * direction).sum(), slope.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("size", "resized", "padded"), [((32, 32), (32, 32), (32, 32)), ((128, 72), (64, 36), (64, 48))]
)
def test_by_hand_from_the_hidden_states(
    encoder: DINOv3Encoder, size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    """Everything written out once more with the network of the library: resize, colours, layers, norms, means."""
    encoder.target_size = 64
    reference = random_dinov3()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def states(x: Tensor) -> list[list[Tensor]]:
        pixels = (x + 1) / 2
        if resized != size:
            pixels = F.interpolate(pixels, size=resized, mode="bicubic", align_corners=False, antialias=False)
        canvas = torch.full((len(x), 3, *padded), 0.5)
        canvas[..., : resized[0], : resized[1]] = pixels
        canvas = (canvas - mean[None, :, None, None]) / std[None, :, None, None]
        with torch.no_grad():
            hidden = reference(canvas, output_hidden_states=True).hidden_states[1:]
        assert len(hidden) == DEPTH and hidden[0].shape[1] == 1 + REGISTERS + padded[0] * padded[1] // 256
        return [list(image) for image in torch.stack(hidden, 1).double()]

    y, x = images(2, 3, *size), images(2, 3, *size, seed=1)
    expected = []
    for predicted, wanted in zip(states(y), states(x), strict=True):
        layers = []
        for a, b in zip(predicted, wanted, strict=True):
            tokens = []
            for p, q in zip(a, b, strict=True):
                difference = p / max(float(p.norm()), 1e-6) - q / max(float(q.norm()), 1e-6)
                tokens.append(float((difference**2).sum()) / WIDTH)
            layers.append(sum(tokens) / len(tokens))
        expected.append(sum(layers) / DEPTH)
    torch.testing.assert_close(dino_distance(encoder, y, x), torch.tensor(expected), rtol=2e-5, atol=1e-8)


# ------------------------------------------------------------------ details of the definition


def test_layers_weigh_the_same_whatever_their_width_and_number_of_tokens() -> None:
    wide = torch.zeros(2, 7, 16)
    wide[..., 0] = 1
    narrow = torch.zeros(2, 2, 4)
    narrow[0, :, 0], narrow[1, :, 1] = 1, 1  # orthogonal: |difference|^2 = 2
    distance = dino_distance(Table(wide, narrow), numbered(0, 1), numbered(1, 1))
    torch.testing.assert_close(distance, torch.tensor([(0 + 2 / 4) / 2, 0.0]))


def test_a_token_of_length_0_is_harmless() -> None:
    table = torch.zeros(2, 3, 4)
    table[1, :, 0] = 5
    table.requires_grad_()
    distance = dino_distance(Table(table), numbered(0), numbered(1))
    distance.sum().backward()
    torch.testing.assert_close(distance.detach(), torch.tensor([1 / 4]))
    assert table.grad is not None and table.grad.isfinite().all()


def test_tokens_shorter_than_the_clamp_keep_their_ratio_to_it() -> None:
    table = torch.zeros(2, 1, 4)
    table[0, 0, 0] = 5e-7
    torch.testing.assert_close(dino_distance(Table(table), numbered(0), numbered(1)), torch.tensor([0.5**2 / 4]))


def test_half_precision_tokens_are_compared_in_float32() -> None:
    tokens = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens[1] = tokens[0] * 1.01
    rough, exact = (dino_distance(Table(x), numbered(0), numbered(1)) for x in (tokens, tokens.double()))
    assert rough.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=0)


def test_large_tokens_do_not_overflow_in_half_precision() -> None:
    tokens = torch.full((2, 3, 8), 3e4, dtype=torch.float16)  # their squares exceed float16
    assert torch.equal(dino_distance(Table(tokens), numbered(0), numbered(1)), torch.zeros(1))


# ------------------------------------------------------------------ chunks


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_chunks_change_neither_values_nor_gradients(encoder: DINOv3Encoder, chunk: int) -> None:
    y, x = images(5, 3, 32, 32), images(5, 3, 32, 32, seed=1)
    whole, parts = y.clone().requires_grad_(), y.clone().requires_grad_()
    expected, result = dino_distance(encoder, whole, x), dino_distance(encoder, parts, x, chunk)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-8)
    weight = torch.arange(1.0, 6.0)
    (expected * weight).sum().backward()
    (result * weight).sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(dino_distance(encoder, y, x, chunk), expected, rtol=1e-5, atol=1e-8)


def test_chunks_keep_the_images_instead_of_the_activations(encoder: DINOv3Encoder) -> None:
    def kept(chunk: int | None) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            dino_distance(encoder, images(4, 3, 32, 32).requires_grad_(), images(4, 3, 32, 32, seed=1), chunk)
        return total

    assert kept(1) == 2 * 4 * 3 * 32 * 32  # the images themselves, to compute again from
    assert kept(None) > 4 * kept(1)


# ------------------------------------------------------------------ refusals


def test_images_of_different_shapes_are_refused(encoder: DINOv3Encoder) -> None:
    with pytest.raises(ValueError, match=r"prediction \(1, 3, 32, 32\), target \(2, 3, 32, 32\)"):
        dino_distance(encoder, images(1, 3, 32, 32), images(2, 3, 32, 32))


def test_an_empty_chunk_is_refused(encoder: DINOv3Encoder) -> None:
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        dino_distance(encoder, images(1, 3, 32, 32), images(1, 3, 32, 32), 0)
