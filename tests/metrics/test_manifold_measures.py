"""LPC, GSQ and effective rank against closed forms; all of them over ranks, and through checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.metrics.manifold import (
    GSQ,
    LPC,
    EffectiveRank,
    ManifoldMeasures,
    NormalisedLatents,
    continuity_weights,
    effective_rank,
    neighbour_agreement,
    perceptual_continuity,
    pooled_latents,
)
from lightning_gen.metrics.manifold.continuity import unit_directions
from lightning_gen.metrics.manifold.erank import effective_rank_error
from lightning_gen.metrics.manifold.semantics import neighbours_agree
from lightning_gen.nn.tokens import Tokens, pack, pad_to, patchify
from tests.harness.metric_jobs_manifold import measure
from tests.harness.processes import two_processes
from tests.harness.toy_tokenizer import PatchTokenizer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(count: int = 3, channels: int = 2, rows: int = 2, columns: int = 3) -> Tokens:
    one = patchify(normal(count, channels, rows, columns), 1)
    return replace(one, sizes=one.sizes * 4, patch=4)


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).flatten(1).norm(dim=1)


INDEX = torch.arange(3)

# ------------------------------------------------------------------ LPC


def test_weights_cancel_the_radii_of_a_linear_decoder() -> None:
    z = latents()
    length = z.values.flatten(1).norm(dim=1)
    assert continuity_weights().tolist() == pytest.approx([20 / 27, 4 / 27, 2 / 27, 1 / 27], abs=1e-15)
    metric = LPC(distance)
    metric.update(lambda tokens: 2.5 * tokens.values, z, INDEX)
    found = metric.compute()
    assert float(found["lpc"]) == pytest.approx(2.5 * 8 / 27 * float(length.mean()), rel=1e-12)
    for radius in (0.1, 0.5, 1, 2):
        assert float(found[f"lpc-{radius:g}"]) == pytest.approx(2.5 * radius * float(length.mean()), rel=1e-12)


def test_a_decoder_that_sees_nothing_is_perfectly_smooth() -> None:
    flat = perceptual_continuity(lambda tokens: torch.zeros(3, 3, 4, 4), latents(), distance, INDEX)
    assert torch.equal(flat, torch.zeros(3, 4, dtype=torch.float64))


def test_both_signs_of_one_direction_count_half_each() -> None:
    z, u = latents(), unit_directions(latents(), INDEX)

    def rectified(tokens: Tokens) -> Tensor:
        return (tokens.values * 10).relu()

    still, length = rectified(z), z.values.flatten(1).norm(dim=1)[:, None, None]
    sides = [distance(rectified(z.with_values(z.values + sign * 0.5 * length * u)), still) for sign in (1, -1)]
    assert not torch.allclose(*sides)
    found = perceptual_continuity(rectified, z, distance, INDEX, radii=(0.5,))
    assert torch.allclose(found[:, 0], (sides[0] + sides[1]) / 2)


def test_a_direction_belongs_to_its_image_and_has_length_1_over_the_whole_latent() -> None:
    z = latents()
    u = unit_directions(z, INDEX)
    assert torch.allclose(u.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(u[0], u[1])
    assert torch.equal(unit_directions(z, INDEX.flip(0)), u.flip(0))
    assert not torch.equal(unit_directions(z, INDEX, seed=1), u)
    many = unit_directions(patchify(torch.zeros(4000, 1, 1, 2, dtype=torch.float64), 1), torch.arange(4000))
    assert many.mean(0).abs().max() < 0.05, "no side is preferred"


def test_padding_and_packing_change_nothing() -> None:
    z = latents()

    def decode(tokens: Tokens) -> list[Tensor]:
        values = torch.where(tokens.mask[..., None], tokens.values, 0.0)
        return list(values.square().sum(1))

    expected = perceptual_continuity(decode, z, distance, INDEX)
    padded = pad_to(z, 9)
    padded = padded.with_values(torch.where(padded.mask[..., None], padded.values, 7.0))
    assert torch.allclose(perceptual_continuity(decode, padded, distance, INDEX), expected)
    assert torch.allclose(perceptual_continuity(decode, pack(z), distance, INDEX), expected)


def test_a_decoder_that_overflows_is_named_with_the_radius() -> None:
    def decode(tokens: Tokens) -> Tensor:
        return torch.where(tokens.values.abs() > 2, math.inf, tokens.values)

    with pytest.raises(ValueError, match="at radius 2 a decoded image"):
        perceptual_continuity(decode, latents().with_values(latents().values.clamp(-1, 1)), distance, INDEX, (0.1, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        perceptual_continuity(decode, latents().with_values(latents().values * math.nan), distance, INDEX)
    with pytest.raises(ValueError, match="each above 0"):
        LPC(distance, (0.1, 0))


# ------------------------------------------------------------------ GSQ


def test_a_code_per_class_agrees_with_itself_whatever_is_added_to_all() -> None:
    labels = torch.arange(5).repeat(4)
    features = torch.eye(5, dtype=torch.float64)[labels] + 0.01 * normal(20, 5)
    assert neighbour_agreement(features, labels).mean == 1
    noisy = torch.eye(5, dtype=torch.float64)[labels] + 0.6 * normal(20, 5)
    far = noisy + 1000 * torch.tensor([1.0, 2, 0, -1, 1], dtype=torch.float64)
    agrees = neighbours_agree(noisy, labels)
    assert 0 < agrees.double().mean() < 1 and torch.equal(neighbours_agree(far, labels), agrees)


def test_the_neighbour_is_never_the_image_itself() -> None:
    assert not neighbours_agree(normal(30, 4), torch.arange(30)).any()
    labels = torch.randint(0, 4, (2000,), generator=torch.Generator().manual_seed(0))
    assert neighbour_agreement(normal(2000, 8), labels).mean == pytest.approx(0.25, abs=0.04)


def test_blocks_change_nothing() -> None:
    features, labels = normal(50, 4), torch.arange(50) // 5
    assert torch.equal(neighbours_agree(features, labels, block=7), neighbours_agree(features, labels))


def test_draws_of_classes_are_random_and_only_see_their_own_images() -> None:
    labels = torch.arange(12).repeat_interleave(6)
    features = 0.7 * torch.eye(12, dtype=torch.float64)[labels] + 0.4 * normal(72, 12)
    found = neighbour_agreement(features, labels, num_classes=4, num_draws=5)
    assert len(set(found.draws)) > 1 and found.deviation > 0 and found.mean == pytest.approx(sum(found.draws) / 5)
    assert found.deviation == pytest.approx(float(torch.tensor(found.draws).double().std(correction=0)))
    assert found.mean > neighbour_agreement(features, labels).mean, "fewer classes are easier"
    assert neighbour_agreement(features, labels, 4, 5, seed=1).draws != found.draws
    assert int(found.totals.sum()) == 5 * 4 * 6
    everything = neighbour_agreement(features, labels, num_classes=12)
    assert len(everything.draws) == 1 and everything.deviation == 0


def test_one_class_says_nothing() -> None:
    with pytest.raises(ValueError, match="5 images of 1 class"):
        neighbour_agreement(normal(5, 2), torch.zeros(5, dtype=torch.int64))


def test_images_without_a_class_have_no_part() -> None:
    metric = GSQ(2)
    z = latents()
    metric.update(z, INDEX, torch.tensor([0, -1, 1]))
    assert float(metric.compute()) == 0
    with pytest.raises(ValueError, match="expected \\(B, 3\\)"):
        GSQ(3).update(z, INDEX)


# ------------------------------------------------------------------ effective rank


def test_effective_ranks_of_known_singular_values() -> None:
    rows = torch.linalg.qr(normal(20, 4))[0]
    assert effective_rank(rows) == pytest.approx(1, abs=1e-12)
    assert effective_rank(rows[:, :1] * torch.ones(4)) == pytest.approx(0.25, abs=1e-6)
    # All images alike: one direction, since the mean stays in.
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(0.25, abs=1e-6)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1]))) == pytest.approx(math.exp(entropy) / 2, abs=1e-12)
    with pytest.raises(ValueError, match="all features are 0"):
        effective_rank(torch.zeros(3, 2))


def test_the_error_of_an_effective_rank_shrinks_with_the_images() -> None:
    scales = torch.tensor([3.0, 1, 0.5, 0.2], dtype=torch.float64)
    samples = [normal(200, 4, seed=seed) * scales for seed in range(40)]
    spread = float(torch.tensor([effective_rank(one) for one in samples], dtype=torch.float64).std())
    errors = [effective_rank_error(one) for one in samples]
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.5)
    assert effective_rank_error(normal(3200, 4) * scales) < min(errors)


def test_few_images_are_told() -> None:
    metric = EffectiveRank(2)
    metric.update(latents(2), INDEX[:2])
    assert "bound the rank" in metric.measurements("toy")[0].note


def test_pooled_latents_are_means_over_tokens() -> None:
    z = latents()
    assert torch.allclose(pooled_latents(pack(pad_to(z, 9))), z.values.mean(1))


# ------------------------------------------------------------------ together


def test_two_ranks_of_unequal_shares_give_the_numbers_of_one() -> None:
    expected = measure(True)
    assert [one["protocol"]["metric"] for one in expected["numbers"]][:7] == [
        "ssc", "lpc", "lpc-0.1", "lpc-0.5", "lpc-1", "lpc-2", "gsq",
    ]  # fmt: skip
    for found in two_processes(measure, False):
        assert found["index"] == list(range(12))
        _same(found, expected)


def _same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            _same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _same(one, other)
    elif isinstance(expected, float):
        # Matrix products of other batch sizes round differently.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)
    else:
        assert found == expected


def test_states_survive_a_checkpoint_and_are_never_rounded() -> None:
    z, labels = latents(), torch.tensor([0, 1, 0])
    first, second = GSQ(2), GSQ(2)
    for one in (first, second):
        one.persistent(True)
    first.update(z, INDEX, labels)
    second.load_state_dict(first.state_dict())
    assert second.compute() == first.compute() and len(second.table().labels) == 3
    measures = ManifoldMeasures(2, LPC(distance)).to(torch.bfloat16)
    measures.count(_Identity(), z, INDEX, labels)
    assert measures.gsq.table().features.dtype == torch.float64
    assert torch.equal(measures.gsq.table().features, pooled_latents(z))
    measures.gsq.reset()
    assert len(measures.gsq.table().labels) == 0


class _Identity:
    def encode(self, images: Tensor | Tokens) -> Tokens:
        assert isinstance(images, Tokens)
        return images

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        return latents.values


def test_only_some_images_are_decoded_and_invalid_ones_count_nowhere() -> None:
    measures = ManifoldMeasures(2, LPC(distance), lpc_images=2)
    valid = torch.tensor([True, False, True])
    measures.count(_Identity(), latents(), torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), valid)
    assert measures.lpc is not None and measures.lpc.num_samples == 1
    assert measures.gsq.table().numbers.tolist() == [1, 2]
    assert [one.protocol.metric for one in measures.measurements()][-1] == "erank"


def test_statistics_must_be_those_of_the_tokenizer() -> None:
    tokenizer, other = PatchTokenizer(PatchTokenizer.colours()), PatchTokenizer(PatchTokenizer.noise())
    record = LatentRecord(
        "PatchTokenizer", "toy", weights_sha256(tokenizer), 8, 3, "float32", None, 16, False, "", 1, 0, 1,
        (0.5, 0.0, 0.0), (2.0, 1.0, 1.0),
    )  # fmt: skip
    images = torch.rand(2, 3, 16, 16)
    view = NormalisedLatents(tokenizer, record)
    plain = tokenizer.encode(images).values
    assert torch.allclose(view.encode(images).values[..., 0], (plain[..., 0] - 0.5) / 2)
    assert torch.allclose(torch.as_tensor(view.decode(view.encode(images))), tokenizer.decode(tokenizer.encode(images)))
    with pytest.raises(ValueError, match="statistics belong to another tokenizer"):
        NormalisedLatents(other, record)
