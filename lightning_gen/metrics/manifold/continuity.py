"""LPC: how much a decoded image changes when its latent moves a little, in any direction.

Shape letters: B images, L tokens, C channels, S radii.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.metrics.labelled_features import check_valid
from lightning_gen.metrics.manifold.pooling import check_latents
from lightning_gen.metrics.protocol import Detail, Measurement
from lightning_gen.metrics.protocol import Protocol as Card
from lightning_gen.nn.tokens import Tokens, unpack
from lightning_gen.training.randomness import normal

__all__ = [
    "LPC",
    "RADII",
    "Decode",
    "PerceptualDistance",
    "continuity_weights",
    "perceptual_continuity",
    "unit_directions",
]

RADII: Final = (0.1, 0.5, 1.0, 2.0)
"""Radii of the paper, as shares of the length of the latent."""

Decode = Callable[[Tokens], Tensor | list[Tensor]]
"""``Autoencoder.decode``."""


class PerceptualDistance(Protocol):
    """A distance of pictures, for instance ``LPIPS(trunk, net="vgg")``."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compare pairs.

        Args:
            prediction: float, (B, 3, H, W) in [-1, 1].
            target: the same shape.

        Returns:
            float, (B,), >= 0.
        """
        ...


def continuity_weights(radii: Sequence[float] = RADII) -> Tensor:
    """What every radius counts.

    w_s = (1 / rho_s) / sum_r (1 / rho_r):  20/27, 4/27, 2/27, 1/27 for the paper's radii

    Args:
        radii: S numbers, > 0.

    Returns:
        float64, (S,), sum 1.

    Raises:
        ValueError: no radius, or one that is not positive.

    Source: arXiv:2605.07915 eq. 10.
    """
    if len(radii) == 0 or min(radii) <= 0:
        raise ValueError(f"radii are shares of a length, each above 0, got {tuple(radii)}")
    inverse = 1 / torch.tensor(radii, dtype=torch.float64)
    return inverse / inverse.sum()


def unit_directions(latents: Tokens, index: Tensor, seed: int = 0) -> Tensor:
    """One direction per image, uniform on the unit sphere of its whole latent.

    Args:
        latents: unpacked.
        index: int64, (B,), number of every image; its direction depends on it and on the seed alone.
        seed: of the draws.

    Returns:
        Shape and dtype of ``latents.values``; 0 in padding, length 1 over all tokens and channels of an image.
    """
    values = latents.values
    draws = normal(seed, "lpc direction", 0, index.to(values.device, torch.int64), tuple(values.shape[1:])).double()
    draws = torch.where(latents.mask[..., None], draws, 0.0)
    unit: Tensor = draws / draws.flatten(1).norm(dim=1)[:, None, None]
    return unit.to(values.dtype)


@torch.no_grad()
def perceptual_continuity(
    decode: Decode,
    latents: Tokens,
    distance: PerceptualDistance,
    index: Tensor,
    radii: Sequence[float] = RADII,
    seed: int = 0,
) -> Tensor:
    """LPC of every image at every radius.

    LPC_s = (d(D(z + e u), D(z)) + d(D(z - e u), D(z))) / 2,  e = rho_s |z|_2

    One direction serves both signs and all radii. A latent that lives on a sphere leaves it, as in the formula.

    Args:
        decode: D.
        latents: z, packed or unpacked, of B images.
        distance: d.
        index: int64, (B,), number of every image, the key of its direction.
        radii: rho_s, S of them.
        seed: of the directions.

    Returns:
        float64, (B, S).

    Raises:
        ValueError: numbers of images differ, latents that are not finite, or a distance that is not.

    Source: arXiv:2605.07915 eq. 9; one draw of u, shared by the radii, is our choice, the paper does not state it.
    """
    if latents.num_images != len(index):
        raise ValueError(f"{latents.num_images} images and {len(index)} numbers")
    continuity_weights(radii)
    check_latents(latents)
    single = unpack(latents)
    step = unit_directions(single, index, seed)
    inside = torch.where(single.mask[..., None], single.values.double(), 0.0)
    length = inside.flatten(1).norm(dim=1)[:, None, None].to(single.values.dtype)
    still = decode(single)
    columns = []
    for radius in radii:
        pair = [
            _distances(distance, decode(single.with_values(single.values + sign * radius * length * step)), still)
            for sign in (1, -1)
        ]
        columns.append((pair[0] + pair[1]) / 2)
        if not bool(torch.isfinite(columns[-1]).all()):
            raise ValueError(
                f"at radius {radius:g} a decoded image or its distance is not finite: the decoder overflows there "
                "(decode in float32), or its weights are damaged"
            )
    return torch.stack(columns, 1)


def _distances(distance: PerceptualDistance, moved: Tensor | list[Tensor], still: Tensor | list[Tensor]) -> Tensor:
    if isinstance(moved, Tensor) and isinstance(still, Tensor):
        return distance(moved, still).double()
    pairs = zip(moved, still, strict=True)
    return torch.cat([distance(one[None], other[None]).double() for one, other in pairs])


class LPC(CountedOnce):
    """Mean over images of :func:`perceptual_continuity`, at every radius and weighted over them; lower is better.

    LPC = sum_s w_s LPC_s,  w_s proportional to 1 / rho_s

    Args:
        distance: of pictures; ``LPIPS(trunk, net="vgg")`` for the paper's numbers.
        radii: shares of the length of the latent.
        seed: of the directions.

    Raises:
        ValueError: a radius that is not positive.

    Source: arXiv:2605.07915 eq. 9-10. The net of LPIPS is not stated there; VGG is that of the training losses.
    """

    higher_is_better: bool | None = False

    def __init__(self, distance: PerceptualDistance, radii: Sequence[float] = RADII, seed: int = 0) -> None:
        self.columns = tuple(f"rho {radius:g}" for radius in radii)
        super().__init__()
        self.weights = continuity_weights(radii)
        self.radii = tuple(float(radius) for radius in radii)
        self.distance, self.seed = distance, seed

    def update(self, decode: Decode, latents: Tokens, index: Tensor, valid: Tensor | None = None) -> None:
        """Count images: 1 + 2 S of them are decoded for each.

        Args:
            decode: of the auto-encoder that made the latents.
            latents: of B images.
            index: int64, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: see :func:`perceptual_continuity`.
        """
        mask = check_valid(valid, len(index)).to(index.device)
        values = perceptual_continuity(decode, latents, self.distance, index, self.radii, self.seed)
        self.count(index[mask], torch.zeros_like(index[mask]), values[mask.to(values.device)])

    def compute(self) -> dict[str, Tensor]:
        """The means over the images of all ranks.

        Returns:
            ``lpc`` and ``lpc-RHO`` for every radius, float64 scalars; NaN where nothing was counted.
        """
        means = self.table()[:, 2:].mean(0)
        named = {f"lpc-{radius:g}": mean for radius, mean in zip(self.radii, means, strict=True)}
        return {"lpc": means @ self.weights.to(means.device), **named}

    def measurements(self, tokenizer: str = "") -> list[Measurement]:
        """The means with bootstrap intervals over images.

        Args:
            tokenizer: whose decoder it is, for the protocol card.

        Returns:
            ``lpc/NET`` and ``lpc-RHO/NET``, over the images of all ranks.
        """
        with self.on_all_ranks():
            rows = self.table()[:, 2:].cpu()
        net = getattr(self.distance, "net", type(self.distance).__name__)
        details: dict[str, Detail] = {
            "tokenizer": tokenizer,
            "radii": " ".join(f"{radius:g}" for radius in self.radii),
            "seed": self.seed,
            "trunk": getattr(self.distance, "trunk_sha256", None),
            "interval": "bootstrap over images, 95 %",
        }
        published = getattr(self.distance, "is_published", True)
        note = "" if published else f"the trunk of LPIPS ({net}) is no file that torchvision publishes"
        columns = {"lpc": rows @ self.weights}
        columns |= {f"lpc-{radius:g}": rows[:, number] for number, radius in enumerate(self.radii)}
        return [
            Measurement(
                float(column.mean()),
                Card(name, f"lpips-{net}" if hasattr(self.distance, "net") else str(net), len(rows), None, details),
                None,
                bootstrap_interval(column) if len(column) > 1 else None,
                note=note,
            )
            for name, column in columns.items()
        ]
