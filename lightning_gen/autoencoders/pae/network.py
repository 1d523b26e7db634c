"""The networks of PAE: modulator, projectors, decoder, and the pair of stage 0 that refines the prior.

Shape letters: B images, N = rows x cols tokens, D width of the prior, d latent channels, W width of the decoder,
p patch edge of the decoder, S latents that are decoded per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.pae.layers import (
    CrossAttention,
    SelfAttention,
    SmallLinear,
    TransformerBlock,
    ZeroLinear,
    grid_convolution,
    sincos_positions,
    to_sphere,
)
from lightning_gen.autoencoders.pae.variants import PAEShape, Stack

__all__ = [
    "Decoded",
    "Deprojector",
    "DetailModulator",
    "Grid",
    "ModulatorLayer",
    "PAENetwork",
    "Perturbation",
    "PixelDecoder",
    "Projector",
    "RefineNetwork",
    "Restorer",
]

Grid = tuple[int, int]
Perturbation = Callable[[Tensor], Tensor]
"""From latents (B, N, d) to further ones, (S, B, N, d), which are decoded in the same pass."""


class ModulatorLayer(nn.Module):
    """One layer of the pixel branch: it looks at itself, then at the prior.

    P <- P + SelfAttn(LN(P));  P <- P + CrossAttn(LN(P), LN(H));  P <- P + MLP(LN(P))

    Args:
        width: D.
        heads: attention heads.

    Source: arXiv:2605.07915 eq. 1, released tokenizer.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, qkv_bias=True)
        self.norm2_q, self.norm2_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.fc1, self.fc2 = SmallLinear(width, 4 * width), SmallLinear(4 * width, width)

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        """One residual step.

        Args:
            p: pixel tokens, (B, N, D).
            h: the prior's tokens, (B, N, D).

        Returns:
            (B, N, D).
        """
        p = p + self.self_attention(self.norm1(p))
        p = p + self.cross_attention(self.norm2_q(p), self.norm2_kv(h))
        out: Tensor = p + self.fc2(F.gelu(self.fc1(self.norm3(p))))
        return out


class _Positions(nn.Module):
    """Fixed positions of one grid, kept as a buffer because published files hold them; others are computed.

    Args:
        grid: tokens along a side.
        width: of a position.
        leading: rows of zeros in front, for tokens without a place.
    """

    table: Tensor

    def __init__(self, grid: int, width: int, leading: int = 0) -> None:
        super().__init__()
        self.grid, self.width, self.leading = grid, width, leading
        self.register_buffer("table", torch.empty(1, leading + grid * grid, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.table.copy_(self._computed((self.grid, self.grid)))

    def forward(self, grid: Grid) -> Tensor:
        return self.table if grid == (self.grid, self.grid) else self._computed(grid).to(self.table)

    def _computed(self, grid: Grid) -> Tensor:
        return F.pad(sincos_positions(*grid, self.width), (0, 0, self.leading, 0))


class DetailModulator(nn.Module):
    """DAM: pixels modulate the tokens of the frozen prior.

    P_0 = PatchEmbed(pixels) + positions;  P = K layers;  H_z is
    sft: LN(H (1 + gamma) + beta), (gamma, beta) = W P + b, W and b start at 0;   add: LN(H + W P + b), the same start;
    concat: LN(W [H; P] + b);   none: LN(H), no pixel branch

    Args:
        shape: sizes and fusion.

    Source: arXiv:2605.07915 eq. 1, released tokenizer (DeltaEncoder).
    """

    def __init__(self, shape: PAEShape) -> None:
        super().__init__()
        width, self.fusion = shape.prior_width, shape.fusion
        self.final_norm = nn.LayerNorm(width, 1e-5)
        self.layers = nn.ModuleList()
        if shape.fusion == "none":
            return
        self.patch_embed = nn.Conv2d(3, width, shape.prior_patch, shape.prior_patch)
        self.positions = _Positions(shape.grid, width)
        self.layers.extend(ModulatorLayer(width, shape.prior_heads) for _ in range(shape.modulator_depth))
        inputs, outputs = {"sft": (1, 2), "add": (1, 1), "concat": (2, 1)}[shape.fusion]
        kind = nn.Linear if shape.fusion == "concat" else ZeroLinear
        self.fusion_proj = kind(inputs * width, outputs * width)

    def forward(self, pixels: Tensor, h: Tensor, grid: Grid) -> Tensor:
        """Tokens with the details that the prior lacks.

        Args:
            pixels: the prior's own input, (B, 3, rows p', cols p').
            h: the prior's tokens, (B, N, D).
            grid: rows and columns.

        Returns:
            H_z, (B, N, D).
        """
        h = h.to(self.final_norm.weight.dtype)
        if self.fusion == "none":
            plain: Tensor = self.final_norm(h)
            return plain
        p = self.patch_embed(pixels.to(h.dtype)).flatten(2).transpose(1, 2) + self.positions(grid)
        for layer in self.layers:
            p = layer(p, h)
        if self.fusion == "concat":
            mixed = self.fusion_proj(torch.cat([h, p], dim=-1))
        elif self.fusion == "add":
            mixed = h + self.fusion_proj(p)
        else:
            scale, shift = self.fusion_proj(p).chunk(2, dim=-1)
            mixed = h * (1 + scale) + shift
        out: Tensor = self.final_norm(mixed)
        return out


class Projector(nn.Module):
    """From tokens of the prior to latents: attention without residual, a 3 x 3 convolution, the sphere.

    z = RMSNorm(Conv(Attention(H)))

    With ``latent: kl`` the convolution gives mean and logarithm of the variance, 2 d channels.

    Args:
        shape: sizes, projection and latent.

    Source: arXiv:2605.07915, released tokenizer.
    """

    def __init__(self, shape: PAEShape) -> None:
        super().__init__()
        self.shape = shape
        self.attention = _projection_attention(shape)
        codes = 2 * shape.channels if shape.latent == "kl" else shape.channels
        self.convolution = nn.Conv2d(shape.prior_width, codes, 3, padding=1)

    def codes(self, h: Tensor, grid: Grid) -> Tensor:
        """What the latent is made of, not normalised.

        Args:
            h: (B, N, D).
            grid: rows and columns.

        Returns:
            (B, N, d), or (B, N, 2 d) with ``latent: kl``.
        """
        return grid_convolution(self.convolution, self.attention(h), grid)

    def forward(self, h: Tensor, grid: Grid) -> Tensor:
        """Latents, for ``kl`` their means.

        Args:
            h: (B, N, D).
            grid: rows and columns.

        Returns:
            z, (B, N, d), float32.
        """
        return self.normalised(self.codes(h, grid)[..., : self.shape.channels])

    def normalised(self, codes: Tensor) -> Tensor:
        """The latent of codes.

        Args:
            codes: (B, N, d).

        Returns:
            The same shape, float32: on the sphere, or as it is.
        """
        if self.shape.latent == "sphere":
            return to_sphere(codes, self.shape.norm_axis, self.shape.zero_mean)
        return codes.to(torch.promote_types(codes.dtype, torch.float32))


class Deprojector(nn.Module):
    """From latents back to the prior's width: a 3 x 3 convolution, attention without residual.

    Args:
        shape: sizes and projection.

    Source: arXiv:2605.07915, released tokenizer.
    """

    def __init__(self, shape: PAEShape) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(shape.channels, shape.prior_width, 3, padding=1)
        self.attention = _projection_attention(shape)

    def forward(self, z: Tensor, grid: Grid) -> Tensor:
        """Tokens for the decoder.

        Args:
            z: (B, N, d).
            grid: rows and columns.

        Returns:
            (B, N, D).
        """
        wide = grid_convolution(self.convolution, z.to(self.convolution.weight.dtype), grid)
        out: Tensor = self.attention(wide)
        return out


def _projection_attention(shape: PAEShape) -> nn.Module:
    if shape.projection == "conv":
        return nn.Identity()
    return SelfAttention(shape.prior_width, shape.prior_heads, qkv_bias=False, linear=nn.Linear)


class PixelDecoder(nn.Module):
    """The decoder of a masked auto-encoder on tokens that are all there.

    x = sigma unpatchify(W_out LN(blocks([CLS; W_in y] + positions))) + mu

    Args:
        shape: sizes.

    Source: arXiv:2111.06377; arXiv:2605.07915, released tokenizer (trainable class token, norms with eps 1e-12).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: PAEShape) -> None:
        super().__init__()
        stack = Stack.parse(shape.decoder)
        self.shape = shape
        self.embed = SmallLinear(shape.prior_width, stack.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, stack.width))
        self.positions = _Positions(shape.grid, stack.width, leading=1)
        self.layers = nn.ModuleList(TransformerBlock(stack, 1e-12) for _ in range(stack.depth))
        self.norm = nn.LayerNorm(stack.width, 1e-12)
        self.head = SmallLinear(stack.width, 3 * shape.patch**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The class token starts at 0."""
        nn.init.zeros_(self.cls_token)

    def forward(self, y: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Pictures of tokens.

        Args:
            y: (B, N, D).
            grid: rows and columns.

        Returns:
            (B, 3, rows p, cols p), pixels that should lie in [0, 1], not clamped; and the weight of the last layer as
            it was used, for which gradients can be asked where the parameter itself is sharded.
        """
        x = torch.cat([self.cls_token.expand(len(y), -1, -1), self.embed(y)], dim=1)
        x = x + self.positions(grid)
        for layer in self.layers:
            x = layer(x)
        weight = self.head.weight.clone()
        return self._pixels(F.linear(self.norm(x)[:, 1:], weight, self.head.bias), grid), weight

    def _pixels(self, patches: Tensor, grid: Grid) -> Tensor:
        p = self.shape.patch
        blocks = patches.float().reshape(len(patches), *grid, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        images = blocks.reshape(len(patches), 3, grid[0] * p, grid[1] * p)
        mean, std = (images.new_tensor(three)[:, None, None] for three in (self.shape.mean, self.shape.std))
        return images * std + mean


class Decoded(NamedTuple):
    """What a training pass gives.

    Attributes:
        latents: z, (B, N, d).
        codes: what z was made of, (B, N, d) or (B, N, 2 d).
        images: decodings of z and of the S further latents, (1 + S, B, 3, H, W), pixels about [0, 1].
        aligned: z projected to the prior's width for the VF loss, (B, N, D); None = not asked for.
        last_layer: weight of the decoder's last layer as it was used.
    """

    latents: Tensor
    codes: Tensor
    images: Tensor
    aligned: Tensor | None
    last_layer: Tensor


class PAENetwork(nn.Module):
    """Modulator, projector, deprojector and decoder; the frozen prior stands outside.

    z = P(DAM(pixels, H));  x = D(Q(z))

    Args:
        shape: sizes and choices.
        alignment: also has the linear layer of the VF loss, d to D.

    Source: arXiv:2605.07915 section 3, released tokenizer.
    """

    def __init__(self, shape: PAEShape, alignment: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.modulator = DetailModulator(shape)
        self.projector = Projector(shape)
        self.deprojector = Deprojector(shape)
        self.decoder = PixelDecoder(shape)
        self.alignment = nn.Linear(shape.channels, shape.prior_width) if alignment else None

    def blocks(self) -> Iterator[nn.Module]:
        """The layers of modulator and decoder: units of checkpointing, compilation and sharding."""
        yield from self.modulator.layers
        yield from self.decoder.layers

    def encode(self, pixels: Tensor, features: Tensor, grid: Grid) -> Tensor:
        """Latents of pictures, for ``latent: kl`` their means.

        Args:
            pixels: the prior's own input.
            features: the prior's tokens, (B, N, D).
            grid: rows and columns.

        Returns:
            z, (B, N, d), float32.
        """
        z: Tensor = self.projector(self.modulator(pixels, features, grid), grid)
        return z

    def decode(self, z: Tensor, grid: Grid) -> Tensor:
        """Pictures of latents.

        Args:
            z: (B, N, d).
            grid: rows and columns.

        Returns:
            (B, 3, rows p, cols p), pixels about [0, 1], not clamped.
        """
        images: Tensor = self.decoder(self.deprojector(z, grid), grid)[0]
        return images

    def forward(
        self,
        pixels: Tensor,
        features: Tensor,
        grid: Grid,
        perturb: Perturbation | None = None,
        noise: Tensor | None = None,
    ) -> Decoded:
        """Encode, perturb and decode everything in one pass of the decoder.

        Args:
            pixels: the prior's own input.
            features: the prior's tokens, (B, N, D).
            grid: rows and columns.
            perturb: gives further latents to decode; None = none.
            noise: standard normal numbers, (B, N, d), for ``latent: kl``; None = the mean.

        Returns:
            Latents and pictures.
        """
        codes = self.projector.codes(self.modulator(pixels, features, grid), grid).float()
        z = self.projector.normalised(codes[..., : self.shape.channels])
        if self.shape.latent == "kl" and noise is not None:
            z = z + torch.exp(0.5 * codes[..., self.shape.channels :].clamp(-30, 20)) * noise
        latents = z[None] if perturb is None else torch.cat([z[None], perturb(z)])
        images, last_layer = self.decoder(self.deprojector(latents.flatten(0, 1), grid), grid)
        images = images.reshape(*latents.shape[:2], *images.shape[1:])
        aligned = None if self.alignment is None else self.alignment(z)
        return Decoded(z, codes, images, aligned, last_layer)


class Restorer(nn.Module):
    """Q^t: from refined latents back to the prior's features.

    H = W_out LN(4 blocks(W_in Z + positions))

    Args:
        shape: sizes of the latents and of the prior.
        stack: the blocks; paper: 4 of width 1024.

    Source: arXiv:2605.07915 section 3.3.
    """

    def __init__(self, shape: PAEShape, stack: Stack) -> None:
        super().__init__()
        self.embed = SmallLinear(shape.channels, stack.width)
        self.positions = _Positions(shape.grid, stack.width)
        self.layers = nn.ModuleList(TransformerBlock(stack, 1e-6) for _ in range(stack.depth))
        self.norm = nn.LayerNorm(stack.width, 1e-6)
        self.head = SmallLinear(stack.width, shape.prior_width)

    def forward(self, z: Tensor, grid: Grid) -> Tensor:
        """Features of latents.

        Args:
            z: (B, N, d).
            grid: rows and columns.

        Returns:
            (B, N, D).
        """
        x = self.embed(z.to(self.embed.weight.dtype)) + self.positions(grid)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return out


class RefineNetwork(nn.Module):
    """Stage 0: the projector P^t whose latents become the target, and the restorer Q^t that keeps them informative.

    Z_T = P^t(H);  H^ = Q^t(Z_T)

    Args:
        shape: sizes; the projector has the form of the auto-encoder's.
        stack: blocks of the restorer.

    Source: arXiv:2605.07915 section 3.3.
    """

    def __init__(self, shape: PAEShape, stack: Stack) -> None:
        super().__init__()
        self.projector = Projector(shape)
        self.restorer = Restorer(shape, stack)

    def blocks(self) -> Iterator[nn.Module]:
        """The restorer's blocks."""
        yield from self.restorer.layers

    def forward(self, h: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Refined latents, and the features restored from them.

        Args:
            h: the prior's tokens, (B, N, D).
            grid: rows and columns.

        Returns:
            Z_T, (B, N, d), and H^, (B, N, D).
        """
        z = self.projector(h.to(self.projector.convolution.weight.dtype), grid)
        return z, self.restorer(z, grid)
