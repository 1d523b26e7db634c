from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.metrics.reconstruction import (
    EIGHT_BIT_PSNR,
    PeakSignalToNoise,
    ReconstructionQuality,
    StructuralSimilarity,
    psnr_per_image,
    ssim_per_image,
)
from lightning_gen.metrics.reconstruction_variants import (
    MuseStructuralSimilarity,
    PooledPeakSignalToNoise,
    muse_ssim_per_image,
)
from lightning_gen.metrics.ssim import structural_similarity
from tests.harness.processes import two_processes

SIZES = [(3, 20, 31), (3, 12, 12), (3, 7, 40), (3, 2, 5), (3, 33, 16)]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def pair(*shape: int, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture with edges and flat areas, and a worse one inside [-1, 1]."""
    target = (images(*shape, seed=seed) > 0.3).double() * 1.2 - 0.6
    return (target + noise * images(*shape, seed=seed + 1)).clamp(-1, 1), target


def pairs(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    both = [pair(*size, seed=seed + 10 * i, noise=0.1 + 0.1 * i) for i, size in enumerate(SIZES)]
    return [y for y, _ in both], [x for _, x in both]


def direct_ssim(y: Tensor, x: Tensor) -> float:
    """The definition, window by window, in plain Python numbers."""
    edge = min(11, *y.shape[1:])
    edge -= 1 - edge % 2
    line = np.exp(-((np.arange(edge) - edge // 2) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for a, b in zip(y.numpy(), x.numpy(), strict=True):
        for top in range(a.shape[0] - edge + 1):
            for left in range(a.shape[1] - edge + 1):
                p, q = (side[top : top + edge, left : left + edge] for side in (a, b))
                mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
                var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
                both = (weight * (p - mean_p) * (q - mean_q)).sum()
                values.append(
                    (2 * mean_p * mean_q + c1) * (2 * both + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
                )
    return float(np.mean(values))


# ------------------------------------------------------------------ PSNR


@pytest.mark.parametrize("error", [0.5, 0.1, 0.02])
def test_psnr_of_a_constant_error(error: float) -> None:
    target = images(2, 3, 9, 14) * 0.4
    expected = torch.full((2,), 10 * math.log10(4 / error**2), dtype=torch.float64)
    torch.testing.assert_close(psnr_per_image(target + error, target), expected, rtol=1e-12, atol=0)


def test_psnr_of_opposite_ends_is_0() -> None:
    black = -torch.ones(1, 3, 8, 8)
    assert float(psnr_per_image(-black, black)) == 0


def test_psnr_is_that_of_the_mean_over_one_image_not_over_the_batch() -> None:
    target = torch.zeros(2, 3, 8, 8)
    prediction = target + torch.tensor([0.1, 0.4])[:, None, None, None]
    expected = 10 * torch.log10(4 / torch.tensor([0.1, 0.4], dtype=torch.float64) ** 2)
    torch.testing.assert_close(psnr_per_image(prediction, target), expected, rtol=1e-6, atol=0)
    assert float(expected.mean()) != pytest.approx(10 * math.log10(4 / ((0.01 + 0.16) / 2)), abs=1)


def test_reconstructions_are_clamped() -> None:
    target = torch.full((1, 3, 8, 8), 1.0)
    torch.testing.assert_close(psnr_per_image(target * 7, target), psnr_per_image(target, target))
    torch.testing.assert_close(ssim_per_image(target * 7, target), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("function", [psnr_per_image, ssim_per_image, muse_ssim_per_image])
def test_an_original_of_another_range_is_no_perfect_score(function: Callable[..., Tensor]) -> None:
    levels = torch.arange(3 * 64.0).view(1, 3, 8, 8)
    for target in (levels, levels - 100, torch.full_like(levels, -1.02), torch.full_like(levels, math.inf)):
        for sides in ((target, target), (list(target), list(target))):
            with pytest.raises(ValueError, match=r"an original has .*expected \[-1, 1\].*uint8_to_signed.*unit_to_sig"):
                function(*sides)
    partly = torch.where(torch.arange(8) == 0, math.nan, levels)
    with pytest.raises(ValueError, match="191, expected"):
        function(partly, partly)
    close = torch.full((1, 3, 8, 8), 1.005, dtype=torch.bfloat16)  # rounding is no other range
    assert float(function(close, close)) == pytest.approx(float(function(close / 1.1, close / 1.1)), abs=1e-9)


def test_a_perfect_image_scores_the_cap_and_no_infinity() -> None:
    x = images(2, 3, 16, 16)
    assert psnr_per_image(x, x).tolist() == [EIGHT_BIT_PSNR] * 2
    assert psnr_per_image(x, x, max_psnr=100).tolist() == [100] * 2
    assert psnr_per_image(x, x, max_psnr=math.inf).tolist() == [math.inf] * 2


def test_the_cap_is_the_level_of_rounding_to_8_bits() -> None:
    x = images(1, 3, 512, 512)
    stored = ((x + 1) * 255 / 2).round() / 255 * 2 - 1
    assert float(psnr_per_image(stored, x, max_psnr=math.inf)) == pytest.approx(EIGHT_BIT_PSNR, abs=0.01)
    assert pytest.approx(58.92, abs=0.005) == EIGHT_BIT_PSNR


def test_below_the_cap_nothing_changes() -> None:
    y, x = pair(4, 3, 16, 16)
    assert torch.equal(psnr_per_image(y, x), psnr_per_image(y, x, max_psnr=math.inf))


def test_psnr_agrees_with_scikit_image_and_torchmetrics() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    for y, x in zip(*pairs(), strict=True):
        expected = peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2)
        assert float(psnr_per_image(y[None], x[None])) == pytest.approx(expected, rel=1e-12)
        single_precision = torchmetrics_psnr(y, x, data_range=2.0)
        assert float(psnr_per_image(y[None], x[None])) == pytest.approx(float(single_precision), rel=1e-6)


def test_8_bit_values_are_compared_on_request() -> None:
    level = 2 / 255
    x = torch.tensor([-1.0, -1 + 100 * level, 1.0], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    y = x + torch.tensor([0.4, 0.4, -0.4], dtype=torch.float64).view(1, 3, 1, 1) * level
    assert float(psnr_per_image(y, x, max_psnr=math.inf, quantise=True)) == math.inf
    y = x + torch.tensor([0.6, 0.6, -0.6], dtype=torch.float64).view(1, 3, 1, 1) * level
    assert float(psnr_per_image(y, x, quantise=True)) == pytest.approx(20 * math.log10(255), rel=1e-9)
    assert float(ssim_per_image(y, x, quantise=True)) != float(ssim_per_image(y, x))
    metric = ReconstructionQuality(quantise=True)
    metric.update(y, x)
    assert float(metric.compute()["psnr"]) == pytest.approx(20 * math.log10(255), rel=1e-9)


def test_a_broken_image_is_not_hidden() -> None:
    y, x = pair(2, 3, 16, 16)
    y[1, 0, 3, 3] = math.nan
    for function in (psnr_per_image, ssim_per_image):
        assert function(y, x).isnan().tolist() == [False, True]
    for value in (math.inf, -math.inf):
        y[1, 0, 3, 3] = value
        assert psnr_per_image(y, x).isnan().tolist() == [False, True], "infinity is no white pixel"
        assert psnr_per_image(y, x, quantise=True).isnan().tolist() == [False, True]
    y[1], x[1, 0, 0, 0] = 0, math.nan
    for function in (psnr_per_image, ssim_per_image):
        assert function(y, x).isnan().tolist() == [False, True]


# ------------------------------------------------------------------ SSIM


@pytest.mark.parametrize("size", [(3, 16, 19), (3, 11, 11), (1, 13, 11), (3, 10, 24), (3, 4, 4), (2, 3, 9), (3, 1, 6)])
def test_ssim_is_its_definition(size: tuple[int, int, int]) -> None:
    y, x = pair(*size, noise=0.5)
    assert float(ssim_per_image(y[None], x[None])) == pytest.approx(direct_ssim(y, x), abs=1e-12)


def test_ssim_agrees_with_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    for size in ((3, 16, 19), (3, 40, 64), (3, 11, 30)):
        y, x = pair(*size, noise=0.5)
        expected = structural_similarity(
            y.numpy(), x.numpy(), data_range=2, channel_axis=0, gaussian_weights=True, use_sample_covariance=False
        )
        assert float(ssim_per_image(y[None], x[None])) == pytest.approx(expected, abs=1e-12)
        sample = structural_similarity(y.numpy(), x.numpy(), data_range=2, channel_axis=0, gaussian_weights=True)
        uniform = structural_similarity(y.numpy(), x.numpy(), data_range=2, channel_axis=0)
        assert abs(sample - expected) > 1e-6 and abs(uniform - expected) > 1e-3


def test_ssim_is_the_interior_of_the_map_of_torchmetrics() -> None:
    y, x = pair(2, 3, 32, 40, noise=0.5)
    result = structural_similarity_index_measure(y, x, data_range=2.0, reduction="none", return_full_image=True)
    interior = result[1][..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim_per_image(y, x), interior, rtol=0, atol=1e-12)


def test_ssim_of_8_bit_values_is_that_of_scikit_image_and_torchmetrics() -> None:
    """The SSIM of tables, which is not that of the same pixels in [-1, 1]."""
    from skimage.metrics import structural_similarity

    for seed, size in enumerate(((3, 16, 19), (3, 40, 64), (3, 11, 30))):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(60, 200, size, generator=generator, dtype=torch.uint8)
        y = (x + torch.randint(-30, 31, size, generator=generator)).to(torch.uint8)
        found = float(ssim_per_image(uint8_to_signed(y)[None], uint8_to_signed(x)[None], quantise=True, scale="unit"))
        wanted = structural_similarity(
            y.numpy(), x.numpy(), data_range=255, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert found == pytest.approx(wanted, abs=1e-9)
        sides = y[None].double(), x[None].double()
        full = structural_similarity_index_measure(*sides, data_range=255.0, return_full_image=True)[1]
        assert found == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-9)
        signed = float(ssim_per_image(uint8_to_signed(y)[None], uint8_to_signed(x)[None], quantise=True))
        assert signed < found - 0.02


def test_ssim_names_the_pixels_it_sees() -> None:
    y, x = pair(2, 3, 20, 20)
    ids = {"signed": "ssim/gaussian-11-signed", "unit": "ssim/gaussian-11"}
    for scale, name in ids.items():
        metric = StructuralSimilarity(scale=scale)  # type: ignore[arg-type]
        assert metric.protocol.id == name and metric.protocol.details["range"] == {"signed": 2, "unit": 1}[scale]
        metric.update(y, x)
        unit = structural_similarity((y + 1) / 2, (x + 1) / 2, 1.0)
        wanted = unit if scale == "unit" else structural_similarity(y, x)
        assert float(metric.compute()) == pytest.approx(float(wanted.mean()), rel=1e-12)
        quality = ReconstructionQuality(scale=scale)  # type: ignore[arg-type]
        quality.update(y, x)
        assert float(quality.compute()["ssim"]) == float(metric.compute())
    assert StructuralSimilarity().protocol.id == ids["signed"], "ViTok's loops"
    for make in (StructuralSimilarity, lambda scale: ssim_per_image(y, x, scale=scale)):
        with pytest.raises(ValueError, match="scales unit, signed, got '8-bit'"):
            make(scale="8-bit")


def test_ssim_of_flat_images_compares_their_levels() -> None:
    a, b = 0.3, -0.5
    y, x = torch.full((1, 3, 14, 14), a, dtype=torch.float64), torch.full((1, 3, 14, 14), b, dtype=torch.float64)
    expected = (2 * a * b + 4e-4) / (a**2 + b**2 + 4e-4)
    assert float(ssim_per_image(y, x)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_of_equal_images_is_1_and_it_is_symmetric(size: tuple[int, int, int]) -> None:
    y, x = pair(1, *size)
    assert float(ssim_per_image(x, x)) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(ssim_per_image(y, x), ssim_per_image(x, y), rtol=1e-12, atol=0)
    assert float(ssim_per_image(y, x)) < 0.99


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("function", [psnr_per_image, ssim_per_image])
def test_a_list_of_sizes_is_image_by_image(function: Callable[..., Tensor]) -> None:
    ys, xs = pairs()
    expected = torch.cat([function(y[None], x[None]) for y, x in zip(ys, xs, strict=True)])
    assert torch.equal(function(ys, xs), expected)
    y, x = pair(3, 3, 16, 16)
    torch.testing.assert_close(function(list(y), list(x)), function(y, x), rtol=1e-12, atol=0)
    torch.testing.assert_close(function(list(y), x), function(y, x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [psnr_per_image, ssim_per_image])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_images_are_measured_in_float64(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    y, x = (side.to(dtype) for side in pair(2, 3, 16, 16))
    assert function(y, x).dtype == torch.float64
    assert torch.equal(function(y, x), function(y.double(), x.double()))


@pytest.mark.parametrize("function", [psnr_per_image, ssim_per_image])
def test_unequal_images_are_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        function([torch.zeros(3, 8, 8)], [torch.zeros(3, 8, 9)])
    with pytest.raises(ValueError, match="1 reconstructions, 2 originals"):
        function([torch.zeros(3, 8, 8)], [torch.zeros(3, 8, 8)] * 2)
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\)"):
        function(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"float images in \[-1, 1\], got torch.uint8"):
        function(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no images"):
        function([], [])


# ------------------------------------------------------------------ metrics

METRICS = [
    (PeakSignalToNoise, psnr_per_image),
    (StructuralSimilarity, ssim_per_image),
    (MuseStructuralSimilarity, muse_ssim_per_image),
]


@pytest.fixture(params=METRICS, ids=["psnr", "ssim", "muse_ssim"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_mean_over_images_of_all_batches(kind: Any) -> None:
    make, function = kind
    ys, xs = pairs()
    metric = make()
    metric.update(ys[:2], xs[:2])
    metric.update(ys[2:], xs[2:])
    torch.testing.assert_close(metric.compute(), function(ys, xs).mean(), rtol=1e-12, atol=0)
    assert metric.num_images == 5
    metric.reset()
    metric.update(ys[:1], xs[:1])
    torch.testing.assert_close(metric.compute(), function(ys[:1], xs[:1])[0])


def test_the_size_of_batches_does_not_matter(kind: Any) -> None:
    y, x = pair(12, 3, 16, 16)
    results = []
    for size in (1, 5, 12):
        metric = kind[0]()
        for part in range(0, 12, size):
            metric.update(y[part : part + size], x[part : part + size])
        results.append(float(metric.compute()))
    assert results == pytest.approx([results[0]] * 3, rel=1e-13)


def test_filler_samples_are_not_counted(kind: Any) -> None:
    make, function = kind
    y, x = pair(4, 3, 16, 16)
    y[2] = math.nan  # whatever a filler holds
    metric = make()
    metric.update(y, x, torch.tensor([True, False, False, True]))
    metric.update(y, x, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(metric.compute(), function(y[[0, 3]], x[[0, 3]]).mean(), rtol=1e-12, atol=0)
    assert metric.num_images == 2


def test_a_mask_of_another_kind_is_refused(kind: Any) -> None:
    y, x = pair(2, 3, 16, 16)
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(2), torch.ones(2, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="valid must be a bool mask of 2 images"):
            kind[0]().update(y, x, mask)


def test_nothing_counted_is_not_a_number(kind: Any) -> None:
    y, x = pair(2, 3, 16, 16)
    metric = kind[0]()
    metric.update(y, x, torch.zeros(2, dtype=torch.bool))
    assert metric.compute().isnan()


@pytest.mark.parametrize("split", [1, 3, 4])
def test_merged_states_are_those_of_one_rank(kind: Any, split: int) -> None:
    ys, xs = pairs()
    valid = torch.tensor([True, True, True, True, False])
    whole, first, second = (kind[0]() for _ in range(3))
    whole.update(ys, xs, valid)
    first.update(ys[:split], xs[:split], valid[:split])
    second.update(ys[split:], xs[split:], valid[split:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-13, atol=0)
    assert first.num_images == 4


def _measure(rank_of: list[int], world: int) -> tuple[float, float]:
    import torch.distributed as dist

    ys, xs = pairs()
    mine = [i for i, rank in enumerate(rank_of) if rank % world == dist.get_rank() % world]
    quality = ReconstructionQuality()
    quality.update([ys[i] for i in mine], [xs[i] for i in mine])
    out = quality.compute()
    return float(out["psnr"]), float(out["ssim"])


def test_two_real_ranks_of_uneven_size_give_the_result_of_one() -> None:
    ys, xs = pairs()
    expected = (float(psnr_per_image(ys, xs).mean()), float(ssim_per_image(ys, xs).mean()))
    first, second = two_processes(_measure, [0, 1, 1, 1, 1], 2)
    assert first == second
    assert first == pytest.approx(expected, rel=1e-13)


def test_a_rank_that_has_seen_nothing_holds_sums_of_the_same_kind(kind: Any) -> None:
    y, x = pair(2, 3, 16, 16)
    seen, fresh = kind[0](), kind[0]()
    seen.update(y, x)
    for metric in (seen, fresh):
        states = {name: getattr(metric, name).dtype for name in metric._defaults}
        assert sorted(states.values(), key=str) == [torch.float64, torch.int64], states


def test_ten_thousand_images_add_up_exactly() -> None:
    y, x = pair(4, 3, 4, 4)
    metric = PeakSignalToNoise()
    for _ in range(2500):
        metric.update(y, x)
    assert float(metric.compute()) == pytest.approx(float(psnr_per_image(y, x).mean()), rel=1e-12)
    assert metric.num_images == 10_000


def test_a_half_precision_module_does_not_round_the_sums(kind: Any) -> None:
    holder = nn.ModuleDict({"metric": kind[0]()})
    y, x = pair(3, 3, 16, 16)
    holder["metric"].update(y, x)
    holder.to(torch.bfloat16).half()
    holder["metric"].update(y, x)
    torch.testing.assert_close(holder["metric"].compute(), kind[1](y, x).mean(), rtol=1e-12, atol=0)


def test_copies_and_pickles_keep_their_counts(kind: Any) -> None:
    y, x = pair(3, 3, 16, 16)
    metric = kind[0]()
    metric.update(y, x)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(twin.compute(), metric.compute()) and twin.num_images == 3
    assert kind[0]().state_dict() == {}


def test_the_value_of_one_batch_and_the_mean_of_the_epoch(kind: Any) -> None:
    make, function = kind
    y, x = pair(4, 3, 16, 16)
    metric = make()
    torch.testing.assert_close(metric(y[:1], x[:1]), function(y[:1], x[:1])[0])
    torch.testing.assert_close(metric(y[1:], x[1:]), function(y[1:], x[1:]).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(metric.compute(), function(y, x).mean(), rtol=1e-12, atol=0)


def test_a_collection_never_takes_one_quantity_for_the_other() -> None:
    y, x = pair(2, 3, 16, 16)
    collection = MetricCollection({"psnr": PeakSignalToNoise(), "ssim": StructuralSimilarity()})
    collection.update(y, x, torch.zeros(2, dtype=torch.bool))  # both sums are 0 when the collection looks for equals
    collection.update(y, x)
    result = collection.compute()
    torch.testing.assert_close(result["psnr"], psnr_per_image(y, x).mean())
    torch.testing.assert_close(result["ssim"], ssim_per_image(y, x).mean())


def test_both_together() -> None:
    ys, xs = pairs()
    valid = torch.tensor([True, False, True, True, True])
    quality = ReconstructionQuality(max_psnr=20.0)
    quality.update(ys, xs, valid)
    out = quality.compute()
    torch.testing.assert_close(out["psnr"], psnr_per_image(ys, xs, max_psnr=20.0)[valid].mean())
    torch.testing.assert_close(out["ssim"], ssim_per_image(ys, xs)[valid].mean())
    assert float(out["psnr"]) < float(psnr_per_image(ys, xs)[valid].mean())
    quality.reset()
    assert quality.psnr.num_images == quality.ssim.num_images == 0


# ------------------------------------------------------------------ other definitions, by their names


def test_originals_are_cut_off_and_reconstructions_rounded() -> None:
    level = 2 / 255
    x = torch.full((1, 3, 16, 16), -1 + 100 * level, dtype=torch.float64)
    for above in (0.0, 0.3, 0.7, 0.99):  # of the original
        stored, original = x + 0.4 * level, x + above * level
        assert float(psnr_per_image(stored, original, math.inf, quantise="truncate_originals")) == math.inf
    original = x + 0.7 * level
    assert float(psnr_per_image(x, original, quantise=True)) == pytest.approx(20 * math.log10(255), rel=1e-9)
    cut = psnr_per_image(original, x, quantise="truncate_originals")  # the sides are not alike
    assert float(cut) == pytest.approx(20 * math.log10(255), rel=1e-9)
    for metric in (PeakSignalToNoise(quantise="truncate_originals"), StructuralSimilarity("truncate_originals")):
        perfect = EIGHT_BIT_PSNR if isinstance(metric, PeakSignalToNoise) else 1.0
        assert float(metric.per_image(x, original)) == pytest.approx(perfect, abs=1e-12)


def test_stored_levels_are_never_cut_off() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    stored = uint8_to_signed(levels)
    exact = levels.double() * (2 / 255) - 1
    for quantise in (True, "truncate_originals"):
        assert float(psnr_per_image(exact, stored, math.inf, quantise)) > 200  # type: ignore[arg-type]


def test_another_rule_of_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="quantise must be False, True or 'truncate_originals', got 'floor'"):
        psnr_per_image(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), quantise="floor")  # type: ignore[arg-type]


def test_ssim_of_muse_has_the_constants_of_twice_the_range() -> None:
    y, x = pair(2, 3, 20, 24, noise=0.5)
    expected = structural_similarity_index_measure(
        (y + 1) / 2, (x + 1) / 2, data_range=2.0, reduction="none", return_full_image=True
    )[1][..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(muse_ssim_per_image(y, x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(muse_ssim_per_image(list(y), list(x)), expected, rtol=0, atol=1e-12)


def test_ssim_of_muse_is_inflated() -> None:
    """Flat pictures with faint noise, where the constants matter."""
    x = torch.full((4, 3, 32, 32), 0.2, dtype=torch.float64)
    y = x + 0.1 * images(4, 3, 32, 32, seed=3)
    correct, muse = ssim_per_image(y, x), muse_ssim_per_image(y, x)
    assert (muse > correct + 0.02).all()
    in_unit_range = ssim_per_image(y, x, scale="unit")
    assert ((correct - in_unit_range).abs() < 0.3 * (muse - in_unit_range)).all()
    assert (muse > in_unit_range + 0.02).all()


def test_pooled_psnr_is_that_of_the_mean_error() -> None:
    target = torch.zeros(2, 3, 8, 8)
    prediction = target + torch.tensor([0.1, 0.4])[:, None, None, None]
    metric = PooledPeakSignalToNoise()
    metric.update(prediction[:1], target[:1])
    metric.update(prediction[1:], target[1:])
    pooled = 10 * math.log10(4 / ((0.01 + 0.16) / 2))
    assert float(metric.compute()) == pytest.approx(pooled, rel=1e-6)
    assert float(metric.compute()) < float(psnr_per_image(prediction, target).mean()) - 1
    assert float(torchmetrics_psnr(prediction, target, data_range=2.0)) == pytest.approx(pooled, rel=1e-6)


def test_pooled_psnr_is_capped_and_merges() -> None:
    x = images(2, 3, 16, 16)
    whole, first, second = (PooledPeakSignalToNoise() for _ in range(3))
    whole.update(x, x)
    assert float(whole.compute()) == EIGHT_BIT_PSNR
    ys, xs = pairs()
    whole.reset()
    whole.update(ys, xs)
    first.update(ys[:2], xs[:2])
    second.update(ys[2:], xs[2:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-13, atol=0)
