"""Text-conditional diffusion transformer: image tokens attend to the image and to the prompt at once.

Times run from t = 0 (clean) to t = 1 (noise).

Shape letters: B images, L image tokens, T text tokens, C channels of a latent token, W width, E width of the text.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.layers import ModulationTable, TimeEmbedding, VelocityHead, modulate
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.attention import Attention, AttentionPlan, PaddedAttention
from lightning_gen.nn.blocks import ParallelBlock, SwiGLU, swiglu_hidden
from lightning_gen.nn.norms import LayerScale, RMSNorm
from lightning_gen.nn.rope import Rotary, rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["TextDiT", "TextDiTBlock", "WordEncoder"]


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


class TextDiTBlock(nn.Module):
    """A block of the DiT whose image tokens attend to the image and to the prompt in one softmax.

    u = (1 + scale) LN(x) + shift;  k, v = [k(u), k_text(y)], [v(u), v_text(y)]
    x <- x + gamma (gate_attn W_out attention(q(u), k, v) + gate_mlp SwiGLU(u))

    The prompt's states y are those of the encoder in every block: they do not change with time, and only their keys and
    values are computed here.

    Args:
        width: W.
        heads: number of heads.
        hidden: hidden width of the feed-forward part.
        text_width: E.
        layer_scale: gamma at the start.

    Source: arXiv:2605.05331 (block); attention over both kinds of tokens at once after arXiv:2403.03206. deviates: the
    prompt is not changed by the image.
    """

    def __init__(self, width: int, heads: int, hidden: int, text_width: int, layer_scale: float) -> None:
        super().__init__()
        self.table = ModulationTable(width)
        self.attn = Attention(width, heads)
        self.text_proj = nn.Linear(text_width, 2 * width, bias=False)
        self.norm_text = RMSNorm(width // heads)
        self.ffn = SwiGLU(width, hidden)
        self.layer_scale = LayerScale(width, layer_scale)

    def forward(self, x: Tensor, text: Tensor, shared: Tensor, rotary: Rotary, attend: AttentionPlan) -> Tensor:
        """One residual step.

        Args:
            x: states of the image, (B, L, W).
            text: states of the prompt, (B, T, E).
            shared: modulation of every image, (B, 4 W).
            rotary: angles of the image's tokens.
            attend: masks the L + T keys.

        Returns:
            (B, L, W).
        """
        shift, scale, gate_attn, gate_mlp = (part[:, None] for part in self.table(shared))
        u = modulate(x, shift, scale)
        q, k, v = self.attn.project(u, rotary)
        text_k, text_v = self.text_proj(text).view(*text.shape[:2], 2, self.attn.heads, -1).unbind(2)
        mixed = attend(q, torch.cat([k, self.norm_text(text_k)], 1), torch.cat([v, text_v], 1))
        branch: Tensor = self.layer_scale(gate_attn * self.attn.out_proj(mixed.flatten(2)) + gate_mlp * self.ffn(u))
        return x + branch


class TextDiT(nn.Module):
    """Diffusion transformer whose image tokens see the prompt's tokens beside their own.

    Every block is modulated by time + mean of the prompt, as the class-conditional DiT is by time + class.

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

    Source: arXiv:2605.05331 (generator), with a prompt in place of the class.
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
        self.pooled_proj = nn.Linear(pooled_width, width)
        self.time_embedding = TimeEmbedding(width)
        self.modulation = nn.Linear(width, 4 * width, bias=False)
        self.dit_blocks = nn.ModuleList(
            TextDiTBlock(width, shape.heads, shape.hidden, text_width, layer_scale) for _ in range(shape.depth)
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

    def condition(self, time: Tensor, text: Conditioning) -> Tensor:
        """One vector per image that says when and, in one, what.

        Args:
            time: t in [0, 1], float, (B,).
            text: encoded prompts, B of them.

        Returns:
            time embedding + projection of the pooled prompt, (B, W).

        Raises:
            ValueError: prompts without a pooled vector.
        """
        if text.pooled is None:
            raise ValueError("these prompts have no pooled vector, which the modulation needs")
        vector: Tensor = self.time_embedding(time) + self.pooled_proj(text.pooled.to(self.pooled_proj.weight.dtype))
        return vector

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
        count = tokens.mask.shape[0]
        if tokens.num_images != count or time.shape != (count,) or len(text.mask) != count:
            raise ValueError(
                f"{tokens.num_images} images in {count} rows, {tuple(time.shape)} times and {len(text.mask)} prompts: "
                "text-conditional generation takes one image, one time and one prompt per row"
            )
        dtype = self.in_proj.weight.dtype
        x = self.in_proj(tokens.values.to(dtype))
        rotary = rotary_2d(tokens.row, tokens.col, self.shape.width // self.shape.heads, self.rope_theta, x.dtype)
        condition = self.condition(time, text)
        shared = self.modulation(F.silu(condition))
        attend = PaddedAttention(torch.cat([tokens.mask, text.mask], 1))
        for block in self.dit_blocks:
            x = block(x, text.sequence.to(dtype), shared, rotary, attend)
        v: Tensor = self.head(x, condition, None)
        return v
