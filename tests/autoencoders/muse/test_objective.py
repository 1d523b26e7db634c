"""The losses, against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoders.muse.objective import (
    contrastive_loss,
    reconstruction_loss,
    resize_attention,
    structure_loss,
)
from tests.harness import two_processes


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def resizing(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """R, (N_target, N_source), from the resize of every unit picture."""
    units = torch.eye(source[0] * source[1], dtype=torch.float64).view(-1, 1, *source)
    return F.interpolate(units, size=target, mode="bilinear", align_corners=False).flatten(1).T


def rows_to_one(x: Tensor) -> Tensor:
    return x / (x.sum(-1, keepdim=True) + 1e-6)


def test_psi_is_the_identity_on_equal_grids_and_the_released_one_a_transpose() -> None:
    """Check 5, first and last part."""
    attention = random(2, 6, 6).softmax(-1)
    assert torch.allclose(resize_attention(attention, (2, 3), (2, 3)), attention, atol=1e-5)
    official = resize_attention(attention, (2, 3), (2, 3), "official_transposed")
    assert torch.allclose(official, rows_to_one(attention.transpose(1, 2)))
    assert not torch.allclose(official, attention, atol=1e-2)


def test_psi_is_bilinear_in_the_grid() -> None:
    """Check 5: Psi(a b^T) is the row-normalised (R a)(R b)^T, on grids that are not square."""
    source, target = (4, 3), (2, 5)
    matrix = resizing(source, target)
    a, b = random(2, 12), random(2, 12, seed=1)
    outer = a[:, :, None] * b[:, None]
    expected = rows_to_one((a @ matrix.T)[:, :, None] * (b @ matrix.T)[:, None])
    assert torch.allclose(resize_attention(outer, source, target), expected)
    general = random(3, 12, 12)
    assert torch.allclose(resize_attention(general, source, target), rows_to_one(matrix @ general @ matrix.T))
    found = resize_attention(general, source, target)
    assert torch.allclose(found.sum(-1), torch.ones(3, 10, dtype=torch.float64), atol=1e-5)
    constant = resize_attention(torch.full((1, 12, 12), 1 / 12, dtype=torch.float64), source, target)
    assert torch.allclose(constant, torch.full_like(constant, 0.1), atol=1e-6)


def test_a_map_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid of 2 x 2 has shape \(B, 4, 4\), got \(1, 6, 6\)"):
        resize_attention(random(1, 6, 6), (2, 2), (2, 3))
    with pytest.raises(ValueError, match="does not lie on the student's grid"):
        structure_loss(random(1, 6, 6), [random(1, 2, 4, 4)])


def test_structure_has_its_floor_where_student_and_teacher_agree() -> None:
    """Check 4."""
    scores = random(2, 3, 5, 5).mul(3).requires_grad_()
    student = scores.softmax(-1)
    loss = structure_loss(student.mean(1).detach(), [student], "mean")
    (gradient,) = torch.autograd.grad(loss, scores)
    assert abs(loss.item()) < 1e-6 and gradient.abs().max() < 1e-6
    uniform = torch.full((2, 3, 5, 5), 0.2, dtype=torch.float64)
    for heads in ("mean", "per_head"):
        assert abs(structure_loss(uniform[:, 0], [uniform, uniform], heads).item()) < 1e-6  # type: ignore[arg-type]


def test_structure_of_a_teacher_that_is_certain() -> None:
    """Check 4: L = - mean log A_S at the target."""
    student, target = (
        random(2, 3, 5, 5).softmax(-1),
        torch.randint(5, (2, 5), generator=torch.Generator().manual_seed(0)),
    )
    teacher = F.one_hot(target, 5).double()
    mean = student.mean(1).gather(-1, target[..., None])
    assert structure_loss(teacher, [student], "mean").item() == pytest.approx(-(mean + 1e-8).log().mean().item())
    each = student.gather(-1, target[:, None, :, None].expand(2, 3, 5, 1))
    assert structure_loss(teacher, [student]).item() == pytest.approx(-(each + 1e-8).log().mean().item())


def test_structure_averages_layers_and_heads_and_mean_heads_are_never_above() -> None:
    teacher, layers = random(2, 5, 5).softmax(-1), [random(2, 3, 5, 5, seed=s).mul(9).softmax(-1) for s in (1, 2)]
    single = [structure_loss(teacher, [layer[:, head : head + 1]]) for layer in layers for head in range(3)]
    assert structure_loss(teacher, layers).item() == pytest.approx(torch.stack(single).mean().item())
    assert structure_loss(teacher, layers, "mean") < structure_loss(teacher, layers) - 1e-3


def test_contrast_of_orthonormal_pairs() -> None:
    """Check 9."""
    pairs = torch.eye(5, dtype=torch.float64)
    for s in (1.0, 14.29):
        expected = -math.log(math.exp(s) / (math.exp(s) + 4))
        assert contrastive_loss(pairs, pairs, torch.tensor([s])).item() == pytest.approx(expected)
    assert contrastive_loss(pairs, pairs[[1, 0, 2, 3, 4]], torch.tensor([5.0])) > contrastive_loss(
        pairs, pairs, torch.tensor([5.0])
    )
    image, text = (F.normalize(random(4, 6, seed=s), dim=-1) for s in (0, 1))
    forwards, back = (contrastive_loss(*x, torch.tensor([3.0])) for x in ((image, text), (text, image)))
    assert forwards.item() == pytest.approx(back.item())
    with pytest.raises(ValueError, match="set the model's text_width"):
        contrastive_loss(image, text[:, :5], torch.tensor([1.0]))


def contrast_job(gather: bool) -> tuple[float, Tensor]:
    rank = torch.distributed.get_rank()
    image, text = (F.normalize(random(4, 6, seed=s), dim=-1)[2 * rank : 2 * rank + 2] for s in (0, 1))
    image.requires_grad_()
    loss = contrastive_loss(image, text, torch.tensor([3.0], dtype=torch.float64), gather)
    loss.backward()
    assert image.grad is not None
    return loss.item(), image.grad


def test_two_ranks_contrast_as_one() -> None:
    image, text = (F.normalize(random(4, 6, seed=s), dim=-1) for s in (0, 1))
    image.requires_grad_()
    whole = contrastive_loss(image, text, torch.tensor([3.0], dtype=torch.float64))
    whole.backward()
    (first, first_gradient), (second, second_gradient) = two_processes(contrast_job, True)
    assert (first + second) / 2 == pytest.approx(whole.item())
    assert image.grad is not None
    # Each rank holds the sum over ranks; DDP then averages.
    assert torch.allclose(torch.cat([first_gradient, second_gradient]) / 2, image.grad)
    (local, _), _ = two_processes(contrast_job, False)
    half = contrastive_loss(image[:2], text[:2], torch.tensor([3.0], dtype=torch.float64))
    assert local == pytest.approx(half.item()) and local != pytest.approx(first)


def test_reconstruction_is_measured_on_clamped_pictures_in_0_to_1() -> None:
    prediction, target = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])
    assert reconstruction_loss(prediction, target).item() == pytest.approx((0 + 0.25 + 0.0625) / 3)
