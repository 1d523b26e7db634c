"""Text-conditional diffusion transformer: the tokens of an image and of a prompt in one sequence.

Times run from t = 0 (clean) to t = 1 (noise).

Shape letters: B images, L image tokens, T text tokens, C channels of a latent token, W width, E width of the text.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.layers import DiTBlock, TimeEmbedding, VelocityHead
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.attention import PaddedAttention
from lightning_gen.nn.blocks import ParallelBlock, swiglu_hidden
from lightning_gen.nn.norms import RMSNorm
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["TextDiT", "WordEncoder"]


class WordEncoder(nn.Module):
    """A small text encoder that is trained along: words to vectors that know their neighbours.

    Row 0 of the table belongs to a mark that begins every prompt, so that the empty prompt is a sequence too.

    Args:
        vocabulary_size: number of different words, padding (number 0) included.
        width: E.
        depth: number of blocks.
        heads: number of heads; E / heads is a multiple of 4.
        layer_scale: gamma of every block at the start.
    """

    def __init__(self, vocabulary_size: int, width: int, depth: int, heads: int, layer_scale: float) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.words = nn.Embedding(vocabulary_size, width)
        self.text_blocks = nn.ModuleList(
            ParallelBlock(width, heads, swiglu_hidden(width, 2.67), layer_scale) for _ in range(depth)
        )
        self.norm = RMSNorm(width)

    def forward(self, words: Tensor, mask: Tensor) -> Conditioning:
        """Encode.

        Args:
            words: numbers of words, int64, (B, T), 0 = padding.
            mask: bool, (B, T), True = a word.

        Returns:
            Sequence (B, 1 + T, E), its mask, and the mean over the real ones, (B, E).
        """
        begin = torch.zeros_like(words[:, :1])
        words, mask = torch.cat([begin, words], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        x: Tensor = self.words(words)
        place = torch.arange(words.shape[1], device=words.device).expand(words.shape)
        rotary = rotary_2d(torch.zeros_like(place), place, self.width // self.heads, dtype=x.dtype)
        attend = PaddedAttention(mask)
        for block in self.text_blocks:
            x = block(x, rotary, attend)
        x = self.norm(x)
        weight = mask[..., None].to(x.dtype)
        return Conditioning(x, mask, (x * weight).sum(1) / weight.sum(1))


class TextDiT(nn.Module):
    """Diffusion transformer whose blocks see the prompt's tokens beside the image's.

    [x, y] <- blocks([in(x_t), text(y)]);  every block is modulated by time + mean of the text, as the class-conditional
    DiT is by time + class

    Text stands in a line of its own above the image: its tokens have row -1 and their number as the column.

    Args:
        variant: size by name, see ``variants.dit_shape``.
        channels: C.
        text_width: E, of ``Conditioning.sequence``.
        pooled_width: of ``Conditioning.pooled``.
        text_encoder: trained along and kept inside, so that averages, checkpoints and sharding hold it; None = prompts
            arrive encoded.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.

    Raises:
        ValueError: an unknown variant.

    Source: arXiv:2605.05331 (blocks); joint attention after arXiv:2403.03206, with one set of weights for both kinds
    of tokens.
    """

    def __init__(
        self,
        variant: str,
        channels: int,
        text_width: int,
        pooled_width: int,
        text_encoder: WordEncoder | None = None,
        *,
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__()
        shape = dit_shape(variant)
        self.shape, self.channels, self.rope_theta = shape, channels, rope_theta
        width = shape.width
        self.text_encoder = text_encoder
        self.in_proj = nn.Linear(channels, width)
        self.text_proj = nn.Linear(text_width, width)
        self.pooled_proj = nn.Linear(pooled_width, width)
        self.time_embedding = TimeEmbedding(width)
        self.modulation = nn.Linear(width, 4 * width, bias=False)
        self.dit_blocks = nn.ModuleList(
            DiTBlock(width, shape.heads, shape.hidden, layer_scale) for _ in range(shape.depth)
        )
        self.head = VelocityHead(width, channels)

    def blocks(self) -> Iterable[nn.Module]:
        """The units that checkpointing, compilation and sharding wrap.

        Returns:
            The transformer blocks in order.
        """
        return self.dit_blocks

    def encode_words(self, words: Tensor, mask: Tensor) -> Conditioning:
        """Encode prompts by the encoder inside.

        Args:
            words: int64, (B, T).
            mask: bool, (B, T).

        Returns:
            Their conditioning.

        Raises:
            RuntimeError: there is none.
        """
        if self.text_encoder is None:
            raise RuntimeError("this network has no text encoder of its own: give it encoded prompts")
        encoded: Conditioning = self.text_encoder(words, mask)
        return encoded

    def forward(self, tokens: Tokens, time: Tensor, text: Conditioning) -> Tensor:
        """Predict at noised latents.

        Args:
            tokens: x_t, one image per row, values (B, L, C).
            time: t in [0, 1], float, (B,).
            text: encoded prompts, B of them.

        Returns:
            (B, L, C); what stands at padding means nothing.

        Raises:
            ValueError: packed tokens, not one time and one prompt per image, or prompts without a pooled vector.
        """
        count, length = tokens.mask.shape
        if tokens.num_images != count or time.shape != (count,) or len(text.mask) != count:
            raise ValueError(
                f"{tokens.num_images} images in {count} rows, {tuple(time.shape)} times and {len(text.mask)} prompts: "
                "text-conditional generation takes one image, one time and one prompt per row"
            )
        if text.pooled is None:
            raise ValueError("these prompts have no pooled vector, which the modulation needs")
        dtype = self.in_proj.weight.dtype
        states = torch.cat([self.in_proj(tokens.values.to(dtype)), self.text_proj(text.sequence.to(dtype))], 1)
        mask = torch.cat([tokens.mask, text.mask], 1)
        place = torch.arange(text.mask.shape[1], device=mask.device).expand(text.mask.shape)
        rotary = rotary_2d(
            torch.cat([tokens.row, torch.full_like(place, -1)], 1),
            torch.cat([tokens.col, place], 1),
            self.shape.width // self.shape.heads,
            self.rope_theta,
            states.dtype,
        )
        condition = self.time_embedding(time) + self.pooled_proj(text.pooled.to(dtype))
        shared = self.modulation(F.silu(condition))
        attend = PaddedAttention(mask)
        for block in self.dit_blocks:
            states = block(states, shared, None, rotary, attend)
        v: Tensor = self.head(states[:, :length], condition, None)
        return v
