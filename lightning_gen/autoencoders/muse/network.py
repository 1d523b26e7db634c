"""MUSE's network: InternViT, Synergistic Blocks with separate roads for three gradients, a latent, DC-AE's decoder.

Shape letters: B images, H and W height and width in pixels, h and w rows and columns of merged tokens, L = h w, D width
of the stream, V width of the encoder, A heads, d head width, C latent channels, E width of the text embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.muse.decoder import DCAEDecoder, DCAEShape
from lightning_gen.backbones.intern_vit import InternViT, InternViTShape
from lightning_gen.nn.norms import RMSNorm
from lightning_gen.nn.rope import Rotary, rotary_2d, rotate

__all__ = [
    "BlockOutput",
    "Layers",
    "MuseNetwork",
    "MuseOutput",
    "MuseShape",
    "Positions",
    "Routing",
    "SynergisticBlock",
    "dead_parameters",
    "rotary_1d",
    "scale_gradient",
    "space_to_depth",
]

Routing = Literal["strict", "official", "joint"]
Layers = Literal["all", "last"]
Positions = Literal["1d", "2d"]

_THETA = 10000.0
_LOG_TEMPERATURE = 2.6592


@dataclasses.dataclass(frozen=True)
class MuseShape:
    """Sizes of MUSE; the defaults are MUSE-1B (486.5 million parameters).

    Attributes:
        encoder: sizes of the InternViT.
        decoder: sizes of the DC-AE decoder.
        width: D.
        depth: Synergistic Blocks.
        heads: A.
        latent_channels: C.
        text_width: E.
        positions: rotary embedding on the raster index (``1d``, the paper's code) or on row and column (``2d``).
    """

    encoder: InternViTShape = InternViTShape()
    decoder: DCAEShape = DCAEShape()
    width: int = 512
    depth: int = 6
    heads: int = 8
    latent_channels: int = 32
    text_width: int = 768
    positions: Positions = "1d"

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.latent_channels, self.text_width) < 1:
            raise ValueError(f"sizes of MUSE must be positive, got {self}")
        multiple = 4 if self.positions == "2d" else 2
        if self.width % self.heads or self.width // self.heads % multiple:
            raise ValueError(
                f"MUSE: width {self.width} over {self.heads} heads must give a head width that is a multiple of "
                f"{multiple} (positions {self.positions})"
            )

    @property
    def patch(self) -> int:
        """Pixels of a latent token along a side: two patches of the encoder."""
        return 2 * self.encoder.patch


class BlockOutput(NamedTuple):
    """What a Synergistic Block gives.

    Attributes:
        hidden: the stream, (B, L, D).
        attention: A^l, (B, A, L, L), rows sum to 1.
        semantic: V_itc, (B, L, D).
    """

    hidden: Tensor
    attention: Tensor
    semantic: Tensor


class MuseOutput(NamedTuple):
    """What a pass through MUSE gives.

    Attributes:
        images: reconstructions, (B, 3, H, W), not clamped.
        latents: z, (B, L, C).
        hidden: the last block's stream, (B, L, D).
        attentions: A^l of the supervised blocks.
        semantic: F_sem of the last block, (B, L, D).
        embeddings: unit vectors for the contrast with text, (B, E), one per supervised block.
        temperature: exp of the learned log temperature, (1,).
    """

    images: Tensor
    latents: Tensor
    hidden: Tensor
    attentions: list[Tensor]
    semantic: Tensor
    embeddings: list[Tensor]
    temperature: Tensor


class SynergisticBlock(nn.Module):
    """Attention whose map, values and exported semantics learn from different losses.

        n = RMSNorm_1(s);  A = softmax(q k^T / sqrt(d)),  q = R RMSNorm(W_Q n),  k = R RMSNorm(W_K n)
        s' = s + W_O (sg(A) W_V n);  out = s' + SwiGLU(RMSNorm_2(s'));  V_itc = W_itc s

    ``strict`` also stops the gradient at the entrance of W_Q and W_K and of W_itc, so that the map's loss reaches
    nothing else; ``official`` does not; ``joint`` stops nowhere. The numbers are the same in all three.

    Args:
        width: D.
        heads: A.
        routing: where gradients stop.

    Source: arXiv:2605.05646 (Synergistic Block) and its code; R is the rotary embedding.
    """

    def __init__(self, width: int, heads: int, routing: Routing = "strict") -> None:
        super().__init__()
        if routing not in ("strict", "official", "joint"):
            raise ValueError(f"routing is strict, official or joint, got {routing!r}")
        self.heads, self.routing = heads, routing
        hidden = int(2 * 4 * width / 3)
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.query, self.key, self.value = (_linear(width, width) for _ in range(3))
        self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out, self.semantic = _linear(width, width), _linear(width, width)
        self.gate, self.up, self.down = _linear(width, hidden), _linear(width, hidden), _linear(hidden, width)

    def forward(self, s: Tensor, rotary: Rotary, halves: bool) -> BlockOutput:
        """One block.

        Args:
            s: (B, L, D).
            rotary: angles of the tokens.
            halves: pairs are (i, i + d/2), otherwise neighbours.

        Returns:
            Stream, attention map and exported semantics.
        """
        n = self.norm1(s)
        attention = self._attention(n.detach() if self.routing == "strict" else n, rotary, halves)
        shielded = attention if self.routing == "joint" else attention.detach()
        mixed = shielded.to(s.dtype) @ self._split(self.value(n)).to(s.dtype)
        hidden = s + self.out(mixed.transpose(1, 2).flatten(2))
        n = self.norm2(hidden)
        hidden = hidden + self.down(F.silu(self.gate(n)) * self.up(n))
        semantic = self.semantic(s.detach() if self.routing == "strict" else s)
        return BlockOutput(hidden, attention, semantic)

    def _attention(self, n: Tensor, rotary: Rotary, halves: bool) -> Tensor:
        q, k = self.query_norm(self._heads(self.query(n))), self.key_norm(self._heads(self.key(n)))
        q, k = (_turn(x, rotary, halves).transpose(1, 2) for x in (q, k))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)

    def _split(self, x: Tensor) -> Tensor:
        return self._heads(x).transpose(1, 2)


class MuseNetwork(nn.Module):
    """Encoder, adapter, Synergistic Blocks, latent, decoder, and the head that meets the text.

    z = W (scale_gradient(H_last)) + b;  image = resize(decoder(z));  e = unit(head(mean over tokens of V_itc))

    Args:
        shape: sizes.
        routing: where gradients stop.
        topo_layers: blocks whose maps are given out for supervision.
        itc_layers: blocks whose semantics are given out for supervision.

    Source: arXiv:2605.05646 and its code.
    """

    def __init__(
        self,
        shape: MuseShape = MuseShape(),  # noqa: B008 (frozen)
        routing: Routing = "strict",
        topo_layers: Layers = "all",
        itc_layers: Layers = "last",
    ) -> None:
        super().__init__()
        self.shape, self.routing = shape, routing
        self.topo_layers, self.itc_layers = topo_layers, itc_layers
        self.encoder = InternViT(shape.encoder)
        merged = 4 * shape.encoder.width
        self.adapter = nn.Sequential(RMSNorm(merged), _linear(merged, shape.width), nn.GELU())
        self.synergy = nn.ModuleList(SynergisticBlock(shape.width, shape.heads, routing) for _ in range(shape.depth))
        self.to_latent = _linear(shape.width, shape.latent_channels, bias=True)
        inputs = shape.decoder.latent_channels
        self.decoder_adapter = (
            nn.Identity() if inputs == shape.latent_channels else nn.Conv2d(shape.latent_channels, inputs, 1)
        )
        self.decoder = DCAEDecoder(shape.decoder)
        self.head = nn.Sequential(_linear(shape.width, shape.width), nn.GELU(), _linear(shape.width, shape.text_width))
        self.temperature = _LogTemperature()
        for name in dead_parameters(shape.depth, routing, topo_layers, itc_layers):
            self.get_parameter(name).requires_grad_(False)

    def blocks(self) -> Iterator[nn.Module]:
        """Units of checkpointing, compilation and sharding."""
        yield from self.encoder.blocks()
        yield from self.synergy
        yield from self.decoder.blocks()

    def forward(self, pixels: Tensor, gradient_scale: float = 1.0, train_encoder: bool = True) -> MuseOutput:
        """Encode, decode and embed, as in training.

        Args:
            pixels: (B, 3, H, W), ImageNet mean 0 and deviation 1; sides are multiples of the encoder's patch.
            gradient_scale: gamma, factor on the gradient that reconstruction sends into the blocks.
            train_encoder: False = the encoder runs without a graph.

        Returns:
            Everything that a loss may want.
        """
        grid, outputs = self._stream(pixels, train_encoder)
        hidden = outputs[-1].hidden
        latents = self.to_latent(scale_gradient(hidden, gradient_scale))
        images = self._picture(latents, grid, (pixels.shape[2], pixels.shape[3]))
        supervised = outputs if self.topo_layers == "all" else outputs[-1:]
        contrasted = outputs if self.itc_layers == "all" else outputs[-1:]
        return MuseOutput(
            images,
            latents,
            hidden,
            [output.attention for output in supervised],
            outputs[-1].semantic,
            [self._embedding(output.semantic) for output in contrasted],
            self.temperature(),
        )

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents.

        Args:
            pixels: as in ``forward``.

        Returns:
            z, (B, L, C), float32.
        """
        _, outputs = self._stream(pixels, True)
        latents: Tensor = self.to_latent(outputs[-1].hidden)
        return latents.float()

    def decode(self, latents: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Pictures of latents.

        Args:
            latents: (B, L, C).
            grid: rows and columns h, w.
            size: height and width of the pictures in pixels.

        Returns:
            (B, 3, H, W), not clamped.
        """
        return self._picture(latents, grid, size)

    def understand(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What probes look at.

        Args:
            pixels: as in ``forward``.

        Returns:
            F_sem (B, L, D), the unit embedding (B, E), and the last stream as a map (B, D, h, w).
        """
        grid, outputs = self._stream(pixels, True)
        last = outputs[-1]
        return last.semantic, self._embedding(last.semantic), _map(last.hidden, grid)

    def embed(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """What is contrasted with text in training, without decoding anything.

        Args:
            pixels: as in ``forward``.

        Returns:
            Embeddings and temperature of ``forward``.
        """
        _, outputs = self._stream(pixels, True)
        contrasted = outputs if self.itc_layers == "all" else outputs[-1:]
        return [self._embedding(output.semantic) for output in contrasted], self.temperature()

    def _stream(self, pixels: Tensor, train_encoder: bool) -> tuple[tuple[int, int], list[BlockOutput]]:
        patch = self.shape.encoder.patch
        with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
            tokens = self.encoder(pixels)[:, 1:]
        merged, grid = space_to_depth(tokens, (pixels.shape[2] // patch, pixels.shape[3] // patch))
        x = self.adapter(merged)
        rotary, halves = self._angles(grid, x)
        outputs: list[BlockOutput] = []
        for block in self.synergy:
            outputs.append(block(x, rotary, halves))
            x = outputs[-1].hidden
        return grid, outputs

    def _angles(self, grid: tuple[int, int], x: Tensor) -> tuple[Rotary, bool]:
        width = self.shape.width // self.shape.heads
        place = torch.arange(grid[0] * grid[1], device=x.device)[None]
        if self.shape.positions == "1d":
            return rotary_1d(place, width, _THETA, x.dtype), True
        return rotary_2d(place // grid[1], place % grid[1], width, _THETA, x.dtype), False

    def _picture(self, latents: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        images = self.decoder(self.decoder_adapter(_map(latents, grid)))
        return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)

    def _embedding(self, semantic: Tensor) -> Tensor:
        return F.normalize(self.head(semantic.mean(1)).float(), dim=-1)


class _LogTemperature(nn.Module):
    """Learned log temperature of the contrast; one number, kept as (1,) because sharding takes no scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log, _LOG_TEMPERATURE)

    def forward(self) -> Tensor:
        return self.log.exp()


class _Linear(nn.Linear):
    """Weights from a truncated normal distribution of deviation 0.02, bias 0."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return _Linear(inputs, outputs, bias)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by a factor.

    Args:
        x: any.
        factor: gamma.

    Returns:
        x.

    Source: arXiv:2605.05646 (the "spectral filter" before the latent).
    """
    if factor == 1.0:
        return x
    return cast(Tensor, _ScaleGradient.apply(x, factor))


def space_to_depth(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Four neighbours become the channels of one token, in the order (0,0), (0,1), (1,0), (1,1).

    Args:
        tokens: (B, rows * cols, V), row by row.
        grid: rows and columns; the last one of an odd side is left out.

    Returns:
        (B, h w, 4 V), and (h, w).

    Raises:
        ValueError: the tokens do not fill the grid, or it is thinner than two tokens.

    Source: code of arXiv:2605.05646; deviates: that crops both sides where one is odd, which works on squares only and
    then gives the same.
    """
    rows, cols = grid
    if tokens.shape[1] != rows * cols or min(grid) < 2:
        raise ValueError(f"{tokens.shape[1]} tokens cannot be merged two by two on a grid of {rows} x {cols}")
    h, w = rows // 2, cols // 2
    cells = tokens.view(len(tokens), rows, cols, -1)[:, : 2 * h, : 2 * w].reshape(len(tokens), h, 2, w, 2, -1)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(len(tokens), h * w, -1), (h, w)


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h w, D) as (B, D, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def rotary_1d(place: Tensor, head_dim: int, theta: float = _THETA, dtype: torch.dtype | None = None) -> Rotary:
    """Angles of the plain rotary embedding on one index: pair i turns by place * theta^(-2i/d).

    Args:
        place: int, (B, L).
        head_dim: d, even.
        theta: base of the frequencies.
        dtype: what the cosines are rounded to; angles are computed in float32 or, for float64, in float64.

    Returns:
        Cosines and sines, (B, L, 1, d/2).

    Source: arXiv:2104.09864 eq. 15.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=place.device, dtype=exact) / head_dim)
    angle = (place[..., None] * frequency).unsqueeze(2)
    return Rotary(angle.cos().to(dtype or exact), angle.sin().to(dtype or exact))


def _turn(x: Tensor, rotary: Rotary, halves: bool) -> Tensor:
    """Turn (B, L, A, d); with halves, pair i is (x_i, x_{i + d/2}), as in the published weights."""
    if not halves:
        return rotate(x.contiguous(), rotary)
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary.cos.to(x.dtype), rotary.sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def dead_parameters(depth: int, routing: Routing, topo_layers: Layers, itc_layers: Layers) -> list[str]:
    """Parameters that no loss reaches, whatever its weight.

    Queries and keys of a block learn from its map alone unless ``routing`` is joint; exported semantics learn from the
    contrast alone. So those of every block that is not supervised stay at their initial values.

    Args:
        depth: number of blocks.
        routing: where gradients stop.
        topo_layers: blocks whose maps are supervised.
        itc_layers: blocks whose semantics are supervised.

    Returns:
        Names in ``MuseNetwork``.
    """
    names: list[str] = []
    for number in range(depth - 1):
        if routing != "joint" and topo_layers == "last":
            names += [f"synergy.{number}.{part}.weight" for part in ("query", "key", "query_norm", "key_norm")]
        if itc_layers == "last":
            names.append(f"synergy.{number}.semantic.weight")
    return names
