from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.baselines import PatchPCA, patch_mean_reconstruction
from lightning_gen.nn.tokens import Tokens, pack, pad_to, patchify, unpatchify


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = []
    for height, width in sizes:
        coarse = torch.rand((1, 3, 3, 4), generator=generator, dtype=torch.float64) * 2 - 1
        picture = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
        smooth.append(0.8 * picture + 0.2 * (torch.rand((3, height, width), generator=generator).double() * 2 - 1))
    return smooth


def garbage_in_padding(tokens: Tokens) -> Tokens:
    return tokens.with_values(torch.where(tokens.mask[..., None], tokens.values, 1e6))


def patches(tokens: Tokens) -> Tensor:
    return tokens.values[tokens.mask]


# ------------------------------------------------------------------ mean colour


def test_every_patch_becomes_its_mean_colour() -> None:
    x = images((8, 12))[0]
    (y,) = unpatchify(patch_mean_reconstruction(patchify([x], 4)))
    expected = x.unflatten(1, (2, 4)).unflatten(3, (3, 4)).mean((2, 4))
    torch.testing.assert_close(y, expected.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_the_filling_of_edge_patches_is_left_out() -> None:
    x = torch.full((3, 5, 6), 0.5)
    (y,) = unpatchify(patch_mean_reconstruction(patchify([x], 4)))
    torch.testing.assert_close(y, x)


def test_it_changes_nothing_the_second_time_nor_by_packing() -> None:
    tokens = patchify(images((8, 12), (7, 5), (9, 16)), 4)
    once = patch_mean_reconstruction(tokens)
    torch.testing.assert_close(unpatchify(patch_mean_reconstruction(once)), unpatchify(once))
    packed = patch_mean_reconstruction(pack(garbage_in_padding(tokens)))
    torch.testing.assert_close(unpatchify(packed), unpatchify(once))


def test_no_flat_patch_is_closer() -> None:
    x = images((16, 16))[0]
    tokens = patchify([x], 4)
    best = (patches(patch_mean_reconstruction(tokens)) - patches(tokens)).square().sum()
    for channel in range(3):
        shift = torch.zeros(3, 16, dtype=torch.float64)
        shift[channel] = 0.01
        moved = patches(patch_mean_reconstruction(tokens)) + shift.flatten()
        assert (moved - patches(tokens)).square().sum() > best


def test_other_tokens_are_refused() -> None:
    tokens = patchify(images((8, 8)), 4)
    with pytest.raises(ValueError, match="7 numbers per token are not whole 4 x 4 patches"):
        patch_mean_reconstruction(tokens.with_values(tokens.values[..., :7]))


# ------------------------------------------------------------------ principal components


@pytest.fixture(scope="module")
def training() -> list[Tokens]:
    return [patchify(images((16, 20), (24, 11)), 4), patchify(images((32, 28), seed=1), 4)]


@pytest.mark.parametrize("num_components", [1, 5, 16, 48])
def test_it_is_the_truncated_singular_value_decomposition(training: list[Tokens], num_components: int) -> None:
    pca = PatchPCA(num_components).fit(garbage_in_padding(tokens) for tokens in training)
    data = torch.cat([patches(tokens) for tokens in training])
    left, values, right = torch.linalg.svd(data - data.mean(0), full_matrices=False)
    best = data.mean(0) + (left[:, :num_components] * values[:num_components]) @ right[:num_components]
    result = torch.cat([patches(pca.reconstruct(tokens)) for tokens in training])
    torch.testing.assert_close(result, best, rtol=0, atol=1e-10)
    assert pca.eigenvalues is not None
    torch.testing.assert_close(pca.eigenvalues, values**2 / (len(data) - 1), rtol=1e-8, atol=1e-12)
    lost = pca.eigenvalues[num_components:].sum() * (len(data) - 1)
    torch.testing.assert_close((result - data).square().sum(), lost, rtol=1e-8, atol=1e-9)


def test_as_many_components_as_numbers_lose_nothing(training: list[Tokens]) -> None:
    pca = PatchPCA(48).fit(training)
    new = patchify(images((13, 9), seed=5), 4)
    torch.testing.assert_close(unpatchify(pca.reconstruct(new)), unpatchify(new), rtol=0, atol=1e-12)


def test_codes_hold_the_numbers_that_were_asked_for(training: list[Tokens]) -> None:
    pca = PatchPCA(6).fit(training)
    codes = pca.encode(training[0])
    assert codes.values.shape[-1] == 6
    torch.testing.assert_close(pca.decode(codes).values, pca.reconstruct(training[0]).values)
    torch.testing.assert_close(pca.encode(pca.decode(codes)).values, codes.values)
    fitted = torch.cat([patches(pca.encode(tokens)) for tokens in training])
    assert pca.eigenvalues is not None
    torch.testing.assert_close(fitted.T.cov(), torch.diag(pca.eigenvalues[:6]), rtol=1e-8, atol=1e-10)


def test_three_components_beat_the_mean_colour_on_the_patches_they_saw() -> None:
    tokens = patchify(images((16, 32), (32, 16)), 4)
    mean = (patches(patch_mean_reconstruction(tokens)) - patches(tokens)).square().mean()
    assert (patches(PatchPCA(3).fit([tokens]).reconstruct(tokens)) - patches(tokens)).square().mean() < mean


def test_batches_and_layout_do_not_matter(training: list[Tokens]) -> None:
    reference = PatchPCA(5).fit(training)
    for other in ([pack(tokens) for tokens in training], [pad_to(tokens, 90) for tokens in reversed(training)]):
        pca = PatchPCA(5).fit(other)
        torch.testing.assert_close(pca.reconstruct(training[0]).values, reference.reconstruct(training[0]).values)


def test_single_precision_patches_are_summed_in_float64() -> None:
    # Nearly equal bright patches: float32 sums would lose the differences.
    noise = torch.randn((4000, 12), generator=torch.Generator().manual_seed(0))
    values = (0.9 + 1e-4 * noise).float()
    tokens = dataclasses.replace(patchify(torch.zeros(1, 3, 2, 8000), 2), values=values[None])
    pca = PatchPCA(12).fit([tokens])
    assert pca.eigenvalues is not None
    expected = torch.linalg.eigvalsh(values.double().T.cov()).flip(0)
    torch.testing.assert_close(pca.eigenvalues, expected, rtol=1e-4, atol=0)
    assert pca.reconstruct(tokens).values.dtype == torch.float32


def test_bad_requests_are_refused(training: list[Tokens]) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PatchPCA(0)
    with pytest.raises(ValueError, match="49 components asked of patches of 48 numbers"):
        PatchPCA(49).fit(training)
    with pytest.raises(ValueError, match="at least two training patches, got 0"):
        PatchPCA(3).fit([])
    with pytest.raises(RuntimeError, match="not fitted"):
        PatchPCA(3).reconstruct(training[0])
