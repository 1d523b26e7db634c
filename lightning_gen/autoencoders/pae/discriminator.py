"""The discriminator: small heads on the layers of a frozen vision transformer, behind differentiable augmentation.

Shape letters: B images, N tokens, D width of the features, G groups of images that are normalised together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.training.randomness import uniform

__all__ = ["DiffAugment", "FeatureDiscriminator", "FeatureHead", "GroupedBatchNorm", "SpectralConv1d"]


class SpectralConv1d(nn.Module):
    """A circular convolution along the tokens whose matrix has largest singular value 1.

    W / sigma,  sigma = u^T W v,  u and v by one step of power iteration per training pass

    Args:
        inputs: channels.
        outputs: channels.
        kernel: odd number of tokens.

    Source: arXiv:1802.05957 algorithm 1.
    """

    u: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("u", torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights, no bias, any u."""
        nn.init.kaiming_normal_(self.weight, a=0.2)
        nn.init.zeros_(self.bias)
        nn.init.normal_(self.u)
        with torch.no_grad():
            self.u.copy_(F.normalize(self.u, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, C, N).

        Returns:
            (B, C', N).
        """
        with torch.autocast(x.device.type, enabled=False):
            sigma = self._largest_singular_value(self.weight.flatten(1))
        padded = F.pad(x, (self.kernel // 2, self.kernel // 2), mode="circular") if self.kernel > 1 else x
        return F.conv1d(padded, self.weight / sigma, self.bias)

    def _largest_singular_value(self, matrix: Tensor) -> Tensor:
        with torch.no_grad():
            v = F.normalize(matrix.t() @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return torch.dot(u, matrix @ v)


class GroupedBatchNorm(nn.Module):
    """Batch normalisation over groups of pictures; it keeps no statistics.

    Args:
        channels: C.
        group: pictures per group; 1 = every picture alone.
        eps: added to the variance.

    Source: arXiv:2301.09515 (public code, groups of 8).
    """

    def __init__(self, channels: int, group: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.group, self.eps = group, eps
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the plain normalisation."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (B, C, N).

        Returns:
            The same shape.
        """
        # Pictures that are left over make a smaller group of their own.
        parts = [
            (part - part.mean((0, 2), keepdim=True)) * torch.rsqrt(_variance(part) + self.eps)
            for part in torch.split(x.float(), self.group)
        ]
        return torch.cat(parts) * self.weight[:, None] + self.bias[:, None]


def _variance(x: Tensor) -> Tensor:
    return x.var((0, 2), keepdim=True, unbiased=False)


class FeatureHead(nn.Module):
    """Logits of one layer's tokens.

    y = Block_1(x);  y <- (y + Block_k(y)) / sqrt(2);  logit = conv_1(y),  Block = SpectralConv, norm, LeakyReLU(0.2)

    Args:
        width: D.
        kernel: k, odd.
        group: pictures that are normalised together.

    Source: arXiv:2301.09515 section 3.2 (without its condition).
    """

    def __init__(self, width: int, kernel: int, group: int) -> None:
        super().__init__()
        self.enter, self.enter_norm = SpectralConv1d(width, width, 1), GroupedBatchNorm(width, group)
        self.mix, self.mix_norm = SpectralConv1d(width, width, kernel), GroupedBatchNorm(width, group)
        self.logit = SpectralConv1d(width, 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Judge every token.

        Args:
            tokens: (B, N, D).

        Returns:
            (B, N).
        """
        y = F.leaky_relu(self.enter_norm(self.enter(tokens.transpose(1, 2))), 0.2)
        y = (y + F.leaky_relu(self.mix_norm(self.mix(y)), 0.2)) * 0.5**0.5
        judged: Tensor = self.logit(y)
        return judged.squeeze(1)


class FeatureDiscriminator(nn.Module):
    """Logits of pictures, from the layers of a frozen encoder.

    Args:
        encoder: frozen features; kept outside the registry of submodules.
        width: D of its layers that are looked at, one number or one per layer.
        layers: which blocks are looked at, counted as in a list.
        grid: tokens along a side that pictures are resized to; paper: 28 (224 px, DINO-S/8).
        kernel: of the heads.
        group: pictures that are normalised together.

    Raises:
        ValueError: numbers of widths and layers differ, or an even kernel.

    Source: arXiv:2605.07915 does not describe its discriminator; this is the one of arXiv:2510.11690 (RAE), after
    arXiv:2301.09515.
    """

    def __init__(
        self, encoder: PatchEncoder, width: list[int], layers: list[int], grid: int, kernel: int, group: int
    ) -> None:
        super().__init__()
        widths = width * len(layers) if len(width) == 1 else width
        if len(widths) != len(layers) or kernel % 2 == 0 or min(grid, group) < 1:
            raise ValueError(
                f"a discriminator needs a width per layer, an odd kernel and positive grid and group; got widths "
                f"{width} for layers {layers}, kernel {kernel}, grid {grid}, group {group}"
            )
        self.__dict__["encoder"] = encoder
        self.encoder: PatchEncoder
        self.looked_at, self.grid, self.widths = layers, grid, widths
        self.heads = nn.ModuleList(FeatureHead(one, kernel, group) for one in widths)

    def blocks(self) -> Iterator[nn.Module]:
        """The heads."""
        yield from self.heads

    def singular_vectors(self) -> list[Tensor]:
        """Where power iteration stands, of every convolution; copies."""
        return [layer.u.clone() for layer in self._convolutions()]

    def rewind(self, vectors: list[Tensor]) -> None:
        """Put power iteration back, so that the parts of a step see the same matrices.

        Args:
            vectors: what ``singular_vectors`` gave.
        """
        for layer, vector in zip(self._convolutions(), vectors, strict=True):
            layer.u.copy_(vector)

    def _convolutions(self) -> Iterator[SpectralConv1d]:
        return (module for module in self.heads.modules() if isinstance(module, SpectralConv1d))

    def forward(self, images: Tensor) -> Tensor:
        """Judge pictures; gradients flow to them.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Logits, (B, heads * N).

        Raises:
            ValueError: the encoder has fewer layers, or they have another width.
        """
        found = self.encoder.layers(self.encoder.prepare(images, (self.grid, self.grid)))
        deepest = max(number if number >= 0 else -number - 1 for number in self.looked_at)
        if deepest >= len(found):
            raise ValueError(f"{type(self.encoder).__name__} shows {len(found)} layers, layer {deepest} is looked at")
        tokens = [found[number] for number in self.looked_at]
        for one, wanted in zip(tokens, self.widths, strict=True):
            if one.shape[-1] != wanted:
                raise ValueError(
                    f"layers of {type(self.encoder).__name__} have {one.shape[-1]} features, the discriminator was "
                    f"told {wanted}: set adversary.width"
                )
        return torch.cat([head(one) for one, head in zip(tokens, self.heads, strict=True)], dim=1)


@dataclasses.dataclass(frozen=True)
class DiffAugment:
    """Differentiable augmentation, drawn by sample: colours, shifts, holes.

    brightness x + (u - 1/2) c, saturation m_c + 2 u' c' (x - m_c), contrast m + (1/2 + u) (x - m); a shift by up to
    ``translation`` of a side, filled with 0; a square hole of ``cutout`` of a side, filled with 0

    Attributes:
        color: whether colours change.
        translation: share of a side in [0, 1]; 0 = off.
        cutout: share of a side in [0, 1]; 0 = off.

    Source: arXiv:2006.10738 section 3.2 and its public code; RAE's public configuration has no holes.
    """

    color: bool = True
    translation: float = 0.125
    cutout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.translation <= 1 or not 0 <= self.cutout <= 1:
            raise ValueError(f"DiffAugment: shares lie in [0, 1], got {self.translation} and {self.cutout}")

    def __call__(self, images: Tensor, seed: int, purpose: str, epoch: int, index: Tensor) -> Tensor:
        """Augment.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            seed: the run's seed.
            purpose: what for.
            epoch: number of the pass.
            index: global sample indices, int64, (B,).

        Returns:
            The same shape, differentiable in the images.
        """
        u = uniform(seed, f"diffaug {purpose}", epoch, index, (7,)).to(images.device)
        if self.color:
            first = u[:, :3, None, None, None]
            images = images + (first[:, 0] - 0.5)
            grey = images.mean(1, keepdim=True)
            images = grey + 2 * first[:, 1] * (images - grey)
            middle = images.mean((1, 2, 3), keepdim=True)
            images = middle + (0.5 + first[:, 2]) * (images - middle)
        if self.translation > 0:
            images = _shifted(images, u[:, 3:5], self.translation)
        return _punched(images, u[:, 5:7], self.cutout) if self.cutout > 0 else images


def _shifted(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Whole-pixel shifts by up to a share of each side."""
    sides = torch.tensor(images.shape[-2:], device=u.device)
    reach = (sides * share + 0.5).long()
    by = (u * (2 * reach + 1)).long() - reach
    rows, cols = (
        torch.arange(int(side), device=u.device)[None] - by[:, axis, None] for axis, side in enumerate(sides.tolist())
    )
    inside = ((rows >= 0) & (rows < sides[0]))[:, :, None] & ((cols >= 0) & (cols < sides[1]))[:, None]
    rows, cols = rows.clamp(0, int(sides[0]) - 1), cols.clamp(0, int(sides[1]) - 1)
    number = torch.arange(len(images), device=u.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[number, rows[:, :, None], cols[:, None]]
    return moved.permute(0, 3, 1, 2) * inside[:, None]


def _punched(images: Tensor, u: Tensor, share: float) -> Tensor:
    """A square hole of a share of each side, its centre anywhere."""
    sides = images.shape[-2:]
    away = [
        (torch.arange(side, device=u.device)[None] - (u[:, axis, None] * side).floor()).abs()
        for axis, side in enumerate(sides)
    ]
    inside = [distance < max(1, round(side * share)) / 2 for distance, side in zip(away, sides, strict=True)]
    return images * ~(inside[0][:, :, None] & inside[1][:, None])[:, None]
