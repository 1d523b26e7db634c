"""The losses against closed forms, in float64: checks 3 to 6 of the requirement, and what surrounds them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_gen.autoencoders.pae.layers import to_sphere
from lightning_gen.autoencoders.pae.objective import (
    cascade,
    gram,
    kl_to_normal,
    low_pass,
    perturbed,
    refine_loss,
    semantic_consistency,
    structure_regularity,
    tangent_direction,
    vision_foundation_loss,
)

ANGLES = (42.5, 85.0)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles_between(first: Tensor, second: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1)
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


# ------------------------------------------------------------------ MCR (checks 3 and 4)


def test_every_token_is_turned_by_exactly_the_angle() -> None:
    z = to_sphere(normals(2, 16, 32))
    moved = perturbed(z, tangent_direction(normals(2, 16, 32, seed=1), z), ANGLES)
    for angle, there in zip(ANGLES, moved, strict=True):
        assert (angles_between(z, there) - angle).abs().max() < 1e-3
        torch.testing.assert_close(
            there.norm(dim=-1), torch.full((2, 16), math.sqrt(32.0), dtype=z.dtype), rtol=1e-5, atol=0
        )


def test_without_the_tangent_plane_angles_scatter_and_without_renorm_norms_grow() -> None:
    z = to_sphere(normals(2, 16, 32))
    noise = normals(2, 16, 32, seed=1)
    loose = perturbed(z, tangent_direction(noise, z, tangent=False), (42.5,))[0]
    assert angles_between(z, loose).std() > 2
    far = perturbed(z, tangent_direction(noise, z), ANGLES, renorm=False)
    growth = far.norm(dim=-1).mean((1, 2)) / math.sqrt(32)
    expected = [1 / math.cos(math.radians(angle)) for angle in ANGLES]
    assert growth.tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[1] == pytest.approx(11.47, abs=0.01)


def test_one_sphere_per_picture_turns_the_whole_latent() -> None:
    z = to_sphere(normals(2, 16, 8), "sample")
    direction = tangent_direction(normals(2, 16, 8, seed=1), z, axis="sample")
    moved = perturbed(z, direction, ANGLES, axis="sample")
    for angle, there in zip(ANGLES, moved, strict=True):
        assert (angles_between(z.flatten(1), there.flatten(1)) - angle).abs().max() < 1e-3
    assert angles_between(z, moved[0]).std() > 2  # single tokens turn by other angles


def test_jitter_shortens_angles() -> None:
    z = to_sphere(normals(2, 4, 8))
    moved = perturbed(z, tangent_direction(normals(2, 4, 8, seed=1), z), (40.0,), jitter=torch.tensor([1.0, 0.5]))[0]
    assert angles_between(z, moved).mean(1).tolist() == pytest.approx([40.0, 20.0], abs=1e-3)


def linear_case() -> tuple[Tensor, Tensor, Tensor, tuple[float, float]]:
    """z as one picture of 12 numbers, a linear decoder W to 27 pixels, a fixed direction, two radii."""
    z = normals(12).requires_grad_()
    return z, normals(27, 12, seed=1), normals(12, seed=2), (0.9, 11.4)


def decodings(z: Tensor, w: Tensor, delta: Tensor, alphas: tuple[float, float]) -> Tensor:
    return torch.stack([(w @ there).view(1, 3, 3, 3) for there in (z, *(z + alpha * delta for alpha in alphas))])


def test_the_stop_gradient_is_what_moves_the_encoder() -> None:
    z, w, delta, alphas = linear_case()
    images = decodings(z, w, delta, alphas)
    cascade(images).backward()
    moved = w @ delta
    expected = w.t() @ (torch.sign(alphas[0] * moved) + torch.sign((alphas[1] - alphas[0]) * moved)) / 27
    torch.testing.assert_close(z.grad, expected)
    free = ((images[1] - images[0]).abs().mean() + (images[2] - images[1]).abs().mean()).detach()
    z.grad = None
    again = decodings(z, w, delta, alphas)
    loss = (again[1] - again[0]).abs().mean() + (again[2] - again[1]).abs().mean()
    loss.backward()
    assert z.grad is not None and z.grad.abs().max() < 1e-12  # without the stop no difference depends on z
    assert cascade(images.detach()) == pytest.approx(free.item())


def test_no_gradient_reaches_the_reconstruction() -> None:
    images = [normals(1, 3, 4, 4, seed=number).requires_grad_() for number in range(3)]
    cascade(torch.stack(images)).backward()
    assert images[0].grad is not None and not images[0].grad.any()
    assert all(image.grad is not None and image.grad.any() for image in images[1:])


def test_the_cascade_is_not_two_comparisons_with_the_reconstruction() -> None:
    images = normals(3, 2, 3, 4, 4)
    x, m, far = images
    chained = (m - x).abs().mean() + (far - m).abs().mean()
    both = (m - x).abs().mean() + (far - x).abs().mean()
    assert cascade(images) == pytest.approx(chained.item())
    assert cascade(images, chained=False) == pytest.approx(both.item())
    assert abs(chained - both) > 1e-3


def test_the_perceptual_distance_sees_signed_pixels_and_a_target_in_range() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def distance(made: Tensor, target: Tensor) -> Tensor:
        seen.append((made, target))
        return (made - target).square().mean((1, 2, 3))

    images = torch.stack([torch.full((2, 3, 4, 4), value) for value in (1.5, 0.25, 0.5)])
    found = cascade(images, distance)
    assert (seen[0][0].unique().item(), seen[0][1].unique().item()) == (-0.5, 1.0)
    assert (seen[1][0].unique().item(), seen[1][1].unique().item()) == (0.0, -0.5)
    assert found.item() == pytest.approx(1.25 + 1.5**2 + 0.25 + 0.5**2)


# ------------------------------------------------------------------ SSR (check 5)


def test_structure_knows_neither_rotation_nor_width_of_the_channels() -> None:
    z = normals(2, 9, 6)
    rotation = torch.linalg.qr(normals(6, 6, seed=3))[0]
    wide = torch.cat([z @ rotation, torch.zeros(2, 9, 5, dtype=z.dtype)], dim=-1)
    for norm in ("cosine", "raw"):
        assert structure_regularity(z, z @ rotation, norm).item() < 1e-20  # type: ignore[arg-type]
        assert structure_regularity(z, wide, norm).item() < 1e-20  # type: ignore[arg-type]
    assert structure_regularity(z, normals(2, 9, 6, seed=4)).item() > 1e-3


def test_structure_knows_places() -> None:
    z, target = normals(2, 9, 6), normals(2, 9, 8, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    before = structure_regularity(z, target)
    torch.testing.assert_close(structure_regularity(z[:, order], target[:, order]), before)
    assert abs(structure_regularity(z[:, order], target) - before) > 1e-4


def test_norms_and_reductions_of_the_gram() -> None:
    z, target = to_sphere(normals(2, 9, 6)), to_sphere(normals(2, 9, 6, seed=1))
    mean = structure_regularity(z, target)
    torch.testing.assert_close(structure_regularity(z, target, "cosine", "sum"), 81 * mean)
    torch.testing.assert_close(structure_regularity(z, target, "raw"), 36 * mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(gram(z)[0, 0, 0].item(), 1.0)
    with pytest.raises(ValueError, match="both must stand on one grid"):
        structure_regularity(z, normals(2, 4, 6))


def test_targets_are_constants() -> None:
    z, target = normals(1, 4, 3).requires_grad_(), normals(1, 4, 3, seed=1).requires_grad_()
    (structure_regularity(z, target) + semantic_consistency(z, target)).backward()
    assert target.grad is None and z.grad is not None and z.grad.any()


# ------------------------------------------------------------------ SCR (check 6)


def test_semantics_are_directions() -> None:
    target = normals(2, 9, 6)
    assert semantic_consistency(3.5 * target, target).item() == pytest.approx(0, abs=1e-12)
    assert semantic_consistency(-target, target).item() == pytest.approx(4)
    with pytest.raises(ValueError, match="same channels and grid"):
        semantic_consistency(target, normals(2, 9, 5))


def test_a_permutation_changes_the_token_term_only() -> None:
    z, target = normals(2, 9, 6), normals(2, 9, 6, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    pooled = [semantic_consistency(x, target, tokens=False) for x in (z, z[:, order])]
    tokens = [semantic_consistency(x, target, pooled=False) for x in (z, z[:, order])]
    torch.testing.assert_close(pooled[0], pooled[1])
    assert abs(tokens[0] - tokens[1]) > 1e-3
    torch.testing.assert_close(semantic_consistency(z, target), pooled[0] + tokens[0])


# ------------------------------------------------------------------ stage 0 and the comparisons


def test_the_loss_of_stage_zero() -> None:
    h, restored, z, reference = (
        normals(2, 9, 8),
        normals(2, 9, 8, seed=1),
        normals(2, 9, 4, seed=2),
        normals(2, 9, 8, seed=3),
    )
    terms = refine_loss(restored, h, z, reference, 2.0, 3.0)
    assert terms["representation"].item() == pytest.approx(2 * (restored - h).square().mean().item(), rel=1e-6)
    assert terms["gram"].item() == pytest.approx(3 * (gram(z) - gram(reference)).square().mean().item())


def test_the_low_pass_keeps_constants_damps_detail_and_ends_on_the_unit_sphere() -> None:
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    stripes = torch.cos(torch.pi * torch.arange(64.0)).expand(64, 64)
    maps = torch.stack([torch.ones(64, 64), stripes])[None]
    found = low_pass(maps, 0.4, 8.0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 64, 64))
    # far from the edge the Gaussian takes the stripes away entirely: 60 % of them are left, all of the constant
    middle = found[0, :, 32, 30:34]
    torch.testing.assert_close((middle[1] / middle[0]).abs(), torch.full((4,), 0.6), rtol=1e-3, atol=0)
    untouched = low_pass(torch.stack([torch.ones(64, 64), ramp])[None], 0.0)
    torch.testing.assert_close(untouched[0, 1] / untouched[0, 0], ramp)


def test_divergence_to_the_normal() -> None:
    assert kl_to_normal(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).item() == 0
    mean, log_variance = normals(1, 1, 1), normals(1, 1, 1, seed=1)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_to_normal(mean, log_variance), wanted.sum())


def test_alignment_of_va_vae() -> None:
    h = normals(2, 9, 8).float()
    assert vision_foundation_loss(2 * h, h).item() == 0
    # at -h all cosines are -1 (margin 0.5) and the Grams are equal
    assert vision_foundation_loss(-h, h).item() == pytest.approx(1.5, rel=1e-6)
    other = normals(2, 9, 8, seed=1).float()
    cosine = torch.nn.functional.cosine_similarity(other, h, dim=-1)
    wanted = (0.5 - cosine).clamp(min=0).mean() + ((gram(other) - gram(h)).abs() - 0.25).clamp(min=0).mean()
    torch.testing.assert_close(vision_foundation_loss(other, h), wanted)
