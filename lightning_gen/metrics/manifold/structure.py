"""SSC: do the tokens of an image fall into the image's own segments?

Shape letters: B images, H and W height and width in pixels, h and w those of the grid, L = h w tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_gen.data.latents.encoding import token_grids
from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.metrics.labelled_features import check_valid
from lightning_gen.metrics.manifold.pooling import check_latents
from lightning_gen.metrics.manifold.spectral import (
    normalised_mutual_information,
    spectral_clustering,
    token_affinity,
)
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.nn.tokens import Tokens, unpack
from lightning_gen.training.randomness import torch_generator

__all__ = ["SSC", "ClusterMap", "Void", "segments_on_grid", "structure_score"]

Void = Literal["ignore", "segment"]
"""What pixels of no segment (number 0) are: left out of the comparison, or a segment as any other."""


class ClusterMap(NamedTuple):
    """The tokens of an image, clustered, beside its segments.

    Attributes:
        clusters: int64, (h, w).
        segments: int64, (h, w), numbers of the segments at the tokens' centres.
        score: NMI of both in [0, 1]; NaN where the image has fewer than two segments, and is not clustered.
    """

    clusters: Tensor
    segments: Tensor
    score: float


def segments_on_grid(segments: Tensor, grid: tuple[int, int], size: tuple[int, int], patch: int) -> Tensor:
    """The segment in the middle of every token.

    Args:
        segments: whole numbers, (H', W'), of the same image in any resolution.
        grid: rows and columns of tokens.
        size: height and width of the image in pixels, before padding to whole patches.
        patch: pixels of a token along each side.

    Returns:
        int64, (h, w).

    Raises:
        ValueError: no map.
    """
    if segments.ndim != 2 or 0 in segments.shape or segments.is_floating_point():
        raise ValueError(f"a segment map holds whole numbers (H, W), got {segments.dtype} {tuple(segments.shape)}")
    places = []
    for cells, length, there in zip(grid, size, segments.shape, strict=True):
        middle = (torch.arange(cells, dtype=torch.float64) + 0.5) * patch * there / length
        # The last token of a padded image may have its middle outside.
        places.append(middle.floor().long().clamp(max=there - 1).to(segments.device))
    return segments[places[0]][:, places[1]].long()


def structure_score(
    tokens: Tensor,
    segments: Tensor,
    sigma: float = 0.1,
    num_clusters: int | None = None,
    restarts: int = 10,
    void: Void = "ignore",
    seed: int = 0,
    index: int = 0,
) -> ClusterMap:
    """SSC of one image: NMI between a spectral clustering of its tokens and its segments.

    Args:
        tokens: float, (h w, C), row by row.
        segments: int64, (h, w), see :func:`segments_on_grid`; 0 = no segment.
        sigma: temperature of the affinity, see :func:`token_affinity`.
        num_clusters: k; None = the number of segments that the grid shows.
        restarts: starts of k-means.
        void: what 0 means.
        seed: of the starts.
        index: number of the image, the other part of their key.

    Returns:
        Clusters and score.

    Raises:
        ValueError: numbers of tokens differ, or more clusters than tokens.

    Source: arXiv:2605.07915 eq. 7-8; sigma, k and the treatment of pixels without a segment are our choices, the paper
    does not state them.
    """
    truth = segments.flatten().to(tokens.device)
    if len(truth) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens on a grid of {tuple(segments.shape)}")
    counts = truth != 0 if void == "ignore" else torch.ones_like(truth, dtype=torch.bool)
    found = len(torch.unique(truth[counts]))
    if found < 2:
        return ClusterMap(torch.zeros_like(segments), segments, torch.nan)
    wanted = found if num_clusters is None else num_clusters
    generator = torch_generator(seed, "ssc k-means", index)
    uniform = torch.rand(restarts, wanted, generator=generator, dtype=torch.float64)
    clusters = spectral_clustering(token_affinity(tokens, sigma), wanted, uniform)
    score = normalised_mutual_information(clusters[counts], truth[counts])
    return ClusterMap(clusters.view(segments.shape).to(segments.device), segments, score)


class SSC(CountedOnce):
    """Mean over images of :func:`structure_score`; higher is better. Images with one segment are left out.

    Args:
        sigma: temperature of the affinity, > 0.
        num_clusters: k; None = the number of segments of each image.
        restarts: starts of k-means per image.
        void: what pixels without a segment are.
        seed: of the starts; an image's start depends on its number alone.

    Raises:
        ValueError: a number that is not positive, or an unknown rule.
    """

    columns = ("score",)

    def __init__(
        self,
        sigma: float = 0.1,
        num_clusters: int | None = None,
        restarts: int = 10,
        void: Void = "ignore",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sigma <= 0 or restarts < 1 or (num_clusters is not None and num_clusters < 1):
            raise ValueError(f"sigma {sigma}, restarts {restarts} and num_clusters {num_clusters} must be positive")
        if void not in ("ignore", "segment"):
            raise ValueError(f"void is 'ignore' or 'segment', got {void!r}")
        self.sigma, self.num_clusters, self.restarts, self.seed = sigma, num_clusters, restarts, seed
        self.void: Void = void

    def update(
        self, latents: Tokens, segments: Sequence[Tensor] | Tensor, index: Tensor, valid: Tensor | None = None
    ) -> None:
        """Count images.

        Args:
            latents: of B images, one token per place of every image's grid.
            segments: whole numbers, (B, H, W) or B maps (H, W) in any resolution; 0 = no segment.
            index: whole numbers, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: numbers of images differ, tokens that fill no grid, or latents that are not finite.
        """
        mask = check_valid(valid, len(index)).tolist()
        maps = self.maps(latents, segments, index)
        kept = [number for number, counts in enumerate(mask) if counts]
        scores = torch.tensor([maps[number].score for number in kept], dtype=torch.float64)
        self.count([int(index[number]) for number in kept], [0] * len(kept), scores)

    def maps(self, latents: Tokens, segments: Sequence[Tensor] | Tensor, index: Tensor) -> list[ClusterMap]:
        """What :meth:`update` scores, for pictures; nothing is counted.

        Args:
            latents: see there.
            segments: see there.
            index: see there.

        Returns:
            One map per image.
        """
        if not latents.num_images == len(segments) == len(index):
            raise ValueError(f"{latents.num_images} images, {len(segments)} segment maps and {len(index)} numbers")
        check_latents(latents)
        single = unpack(latents)
        try:
            grids = token_grids(single)
        except DataError:
            raise ValueError(
                "SSC compares a grid of tokens with a map of segments, but these latents do not have one token for "
                "every place of their image's grid: GSQ, eRank and LPC need no grid"
            ) from None
        places = zip(grids, segments, single.grid.tolist(), single.sizes.tolist(), index, strict=True)
        return [
            structure_score(
                tokens,
                segments_on_grid(one, (grid[0], grid[1]), (size[0], size[1]), single.patch),
                self.sigma,
                self.num_clusters,
                self.restarts,
                self.void,
                self.seed,
                int(number),
            )
            for tokens, one, grid, size, number in places
        ]

    def compute(self) -> Tensor:
        """The mean over the images of all ranks.

        Returns:
            float64 scalar; NaN where no image has two segments.
        """
        return self.table()[:, 2].nanmean()

    def measurements(self, tokenizer: str = "") -> list[Measurement]:
        """The mean with a bootstrap interval over images.

        Args:
            tokenizer: whose latents they are, for the protocol card.

        Returns:
            ``ssc/spectral``, over the images of all ranks.
        """
        with self.on_all_ranks():
            scores = self.table()[:, 2].cpu()
        scored = scores[~scores.isnan()]
        details: dict[str, Detail] = {
            "tokenizer": tokenizer,
            "sigma": self.sigma,
            "clusters": self.num_clusters if self.num_clusters is not None else "segments of the image",
            "restarts": self.restarts,
            "void": self.void,
            "seed": self.seed,
            "left_out": len(scores) - len(scored),
            "interval": "bootstrap over images, 95 %",
        }
        value = float(scored.mean()) if len(scored) else torch.nan
        interval = bootstrap_interval(scored) if len(scored) > 1 else None
        note = "" if len(scored) else "no image shows two segments on its grid"
        return [Measurement(value, Protocol("ssc", "spectral", len(scored), None, details), None, interval, note=note)]
