"""SSC: clusterings and labellings whose agreement is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.manifold import SSC, normalised_mutual_information, spectral_clustering, structure_score
from lightning_gen.metrics.manifold.spectral import k_means, token_affinity
from lightning_gen.metrics.manifold.structure import segments_on_grid
from lightning_gen.nn.tokens import Tokens, join_images, pack, patchify


def draws(count: int, restarts: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(restarts, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regions(rows: int = 6, columns: int = 8) -> Tensor:
    """Four regions of unequal size, numbered 1, 2, 7 and 900000."""
    segments = torch.ones(rows, columns, dtype=torch.int64)
    segments[:2, 3:] = 2
    segments[4:, :5] = 7
    segments[2:, 6:] = 900_000
    return segments


def prototypes(segments: Tensor, noise: float = 0.05) -> Tensor:
    """A token per cell: the orthogonal vector of its region, and noise."""
    place = torch.unique(segments, return_inverse=True)[1].flatten()
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.eye(6)[place] + noise * torch.randn(len(place), 6, generator=generator)


def as_latents(tokens: Tensor, rows: int, columns: int, patch: int = 8) -> Tokens:
    """Latents of one image."""
    image = tokens.view(rows, columns, -1).permute(2, 0, 1)
    one = patchify([image], 1)
    return Tokens(one.values, one.mask, one.row, one.col, one.image, one.sizes * patch, patch)


# ------------------------------------------------------------------ labellings


def test_information_of_equal_and_of_independent_labellings() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    assert normalised_mutual_information(a, torch.tensor([5, 5, 9, 9, 1, 1, 1, 1])) == 1
    halves, stripes = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert normalised_mutual_information(halves, stripes) == pytest.approx(0, abs=1e-12)
    one = torch.zeros(4, dtype=torch.int64)
    assert normalised_mutual_information(one, halves) == 0 and normalised_mutual_information(one, one) == 1
    with pytest.raises(ValueError, match="do not compare"):
        normalised_mutual_information(halves, stripes[:3])


@pytest.mark.parametrize("seed", range(5))
def test_information_is_that_of_scikit_learn_with_the_geometric_mean(seed: int) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 3, (50,), generator=generator), torch.randint(0, 9, (50,), generator=generator)
    b[:30] = a[:30]
    expected = normalized_mutual_info_score(a.numpy(), b.numpy(), average_method="geometric")
    assert normalised_mutual_information(a, b) == pytest.approx(expected, abs=1e-12)
    other = normalized_mutual_info_score(a.numpy(), b.numpy(), average_method="arithmetic")
    assert abs(expected - other) > 1e-4


# ------------------------------------------------------------------ clusters


def inertia(points: Tensor, labels: Tensor) -> float:
    return sum(float((points[labels == k] - points[labels == k].mean(0)).square().sum()) for k in labels.unique())


def test_k_means_is_as_good_as_that_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    points = torch.randn(120, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine = inertia(points, k_means(points, 5, draws(5)))
    assert mine <= 1.01 * KMeans(5, n_init=10, random_state=0).fit(points.numpy()).inertia_
    worst = max(inertia(points, k_means(points, 5, draws(5, 1, seed))) for seed in range(20))
    assert mine < worst, "the best of the restarts is taken"


def test_k_means_of_fewer_places_than_clusters_ends() -> None:
    points = torch.tensor([[0.0], [0], [0], [1]], dtype=torch.float64)
    labels = k_means(points, 3, draws(3))
    assert labels[3] not in labels[:3] and inertia(points, labels) == 0
    with pytest.raises(ValueError, match="5 clusters of 4 points"):
        k_means(points, 5, draws(5))


def test_small_groups_are_found_beside_a_large_one_that_falls_apart() -> None:
    # Eigenvalues of the affinity itself: 21 and 17 of the large group, 4 of the small ones. Only the normalised
    # Laplacian puts the small groups before the halves of the large one.
    affinity = torch.zeros(50, 50, dtype=torch.float64)
    affinity[:40, :40] = 0.1
    for first, last in ((0, 20), (20, 40), (40, 45), (45, 50)):
        affinity[first:last, first:last] = 1
    affinity.fill_diagonal_(0)
    truth = torch.tensor([0] * 40 + [1] * 5 + [2] * 5)
    assert normalised_mutual_information(spectral_clustering(affinity, 3, draws(3)), truth) == pytest.approx(1)


def test_tokens_of_little_affinity_stay_with_their_group() -> None:
    # Rows of the eigenvectors are as long as the root of a token's degree: without scaling, weak tokens of both groups
    # would meet at the origin.
    strength = torch.tensor([1.0, 1, 1, 1, 0.01, 0.01, 0.01, 0.01], dtype=torch.float64).repeat(2)
    truth = torch.tensor([0] * 8 + [1] * 8)
    affinity = strength[:, None] * strength * (truth[:, None] == truth)
    affinity.fill_diagonal_(0)
    assert normalised_mutual_information(spectral_clustering(affinity, 2, draws(2)), truth) == pytest.approx(1)


def test_the_affinity_is_that_of_the_formula_up_to_a_factor() -> None:
    tokens = torch.tensor([[2.0, 0], [0, 5], [1, 1]], dtype=torch.float64)
    found = token_affinity(tokens, 0.5) * math.exp(1 / 0.5)
    half = math.exp(math.sqrt(0.5) / 0.5)
    assert torch.allclose(found, torch.tensor([[0, 1, half], [1, 0, half], [half, half, 0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="sigma is too small"):
        spectral_clustering(token_affinity(tokens, 1e-5), 2, draws(2))


# ------------------------------------------------------------------ score


def test_prototypes_in_regions_score_1_and_less_when_they_are_moved() -> None:
    segments = regions()
    tokens = prototypes(segments)
    assert structure_score(tokens, segments).score == pytest.approx(1)
    assert structure_score(-7 * tokens, segments).score == pytest.approx(1), "lengths do not matter"
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    assert structure_score(tokens[order], segments).score < 0.5


def test_pixels_of_no_segment_are_left_out_or_are_a_segment() -> None:
    segments = regions()
    tokens = prototypes(segments)
    holes = segments.clone()
    holes[:, 0] = 0
    assert structure_score(tokens, holes).score == pytest.approx(1)
    assert structure_score(tokens, holes, void="segment").score < 0.99
    assert len(structure_score(tokens, holes, void="segment").clusters.unique()) == 5
    assert len(structure_score(tokens, holes, num_clusters=2).clusters.unique()) == 2


def test_the_segment_of_a_token_is_that_in_its_middle() -> None:
    segments = torch.arange(16).view(4, 4)
    assert segments_on_grid(segments, (2, 2), (4, 4), 2).tolist() == [[5, 7], [13, 15]]
    # half the resolution of the image
    assert segments_on_grid(segments, (2, 2), (8, 8), 4).tolist() == [[5, 7], [13, 15]]
    # an image of 5 x 4 pixels under patches of 2: the middle of the last row lies below it
    tall = torch.arange(20).view(5, 4)
    assert segments_on_grid(tall, (3, 2), (5, 4), 2).tolist() == [[5, 7], [13, 15], [17, 19]]
    with pytest.raises(ValueError, match="whole numbers"):
        segments_on_grid(segments.float(), (2, 2), (4, 4), 2)


def test_the_metric_is_the_mean_over_images_with_two_segments_on_any_grid() -> None:
    wide, tall = regions(), regions(4, 3)
    tall[:2, :2] = 5
    plain = torch.ones(5, 5, dtype=torch.int64)
    maps = [one.repeat_interleave(8, 0).repeat_interleave(8, 1) for one in (wide, plain, tall)]
    shuffled = prototypes(tall)[torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    each = [(prototypes(wide), 6, 8), (torch.randn(25, 6), 5, 5), (shuffled, 4, 3)]
    latents = join_images([as_latents(*one) for one in each])
    expected = [structure_score(each[n][0], grid, index=n).score for n, grid in ((0, wide), (2, tall))]
    assert expected[1] < 0.9
    metric = SSC()
    metric.update(latents, maps, torch.arange(3))
    assert float(metric.compute()) == pytest.approx(sum(expected) / 2, abs=1e-12)
    packed = SSC()
    packed.update(pack(latents), maps, torch.arange(3), torch.tensor([True, True, False]))
    assert float(packed.compute()) == pytest.approx(expected[0], abs=1e-12)
    [found] = metric.measurements("toy")
    assert found.protocol.id == "ssc/spectral" and found.protocol.count == 2
    assert found.interval is not None and found.protocol.details["left_out"] == 1
    nothing = SSC()
    nothing.update(as_latents(torch.randn(25, 6), 5, 5), [plain], torch.tensor([0]))
    assert math.isnan(nothing.compute()) and "no image shows two segments" in nothing.measurements()[0].note


def test_what_cannot_be_scored_is_refused() -> None:
    latents = as_latents(prototypes(regions()), 6, 8)
    with pytest.raises(ValueError, match="NaN or infinite"):
        SSC().update(latents.with_values(latents.values * math.inf), [regions()], torch.tensor([0]))
    with pytest.raises(ValueError, match="1 images, 2 segment maps"):
        SSC().update(latents, [regions(), regions()], torch.tensor([0]))
    with pytest.raises(ValueError, match="one token for every place"):
        SSC().update(replace(latents, row=latents.row * 0), [regions()], torch.tensor([0]))
    with pytest.raises(ValueError, match="void"):
        SSC(void="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        SSC(sigma=0)
    with pytest.raises(ValueError, match="cannot make 49 clusters"):
        structure_score(prototypes(regions()), regions(), num_clusters=49)
