"""Diffusion transformer on the tokens of an image: one latent token is one token of the transformer.

Times run from t = 0 (clean) to t = 1 (noise); the network predicts the velocity eps - x_0.

Shape letters: B rows, L tokens, C channels of a latent token, W width, I images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.layers import DiTBlock, TimeEmbedding, VelocityHead
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.nn.attention import plan_attention
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["ClassConditional", "DiT", "activation_dtype", "check_labels"]


class ClassConditional(nn.Module):
    """What the class-conditional transformers share: the null class, and one vector per image that says when and what.

    Attributes:
        num_classes: number of classes without the null class.
        time_embedding: of times.
        class_embedding: of classes, the null class last.
        dit_blocks: the transformer.
    """

    num_classes: int
    time_embedding: nn.Module
    class_embedding: nn.Module
    dit_blocks: nn.ModuleList

    @property
    def null_class(self) -> int:
        """Index of the class that means "no class"."""
        return self.num_classes

    def blocks(self) -> Iterable[nn.Module]:
        """The units that checkpointing, compilation and sharding wrap.

        Returns:
            The transformer blocks in order.
        """
        return self.dit_blocks

    def condition(self, time: Tensor, label: Tensor) -> Tensor:
        """One vector per image that says when and what.

        Args:
            time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).
            label: class in [0, num_classes], int64, (I,).

        Returns:
            (I, W).

        Raises:
            ValueError: a class outside the range (checked where this costs no wait for a device: on the CPU).
        """
        if label.device.type == "cpu":
            check_labels(label, self.num_classes)
        vector: Tensor = self.time_embedding(time) + self.class_embedding(label)
        return vector

    def conditions(self, tokens: Tokens, time: Tensor, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """The condition of every image, and which image a token belongs to.

        Args:
            tokens: packed or unpacked.
            time: (I,).
            label: (I,).

        Returns:
            (I, W), and int64 (B, L); None = row b is image b.

        Raises:
            ValueError: not one time and one class per image, or a class outside the range.
        """
        count = (tokens.num_images,)
        if time.shape != count or label.shape != count:
            raise ValueError(
                f"{count[0]} images need as many times and labels, got shapes {tuple(time.shape)}, {tuple(label.shape)}"
            )
        # The house's rule for unpacked tokens, as in plan_attention: as many rows as images.
        image = None if tokens.mask.shape[0] == tokens.num_images else tokens.image.clamp(min=0)
        return self.condition(time, label), image


class DiT(ClassConditional):
    """Class-conditional diffusion transformer at native resolution.

    Padding is never attended to, tokens of different images never meet, and positions are integer patch coordinates.
    The null class that guidance needs is the index ``num_classes``.

    Args:
        variant: size by name: ``L``, ``G``, ``w1152_d28_h16``, ... (``variants.dit_shape``).
        channels: C, channels of a latent token.
        num_classes: number of classes without the null class.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.
        swa_radius: window radius in patches of every second block (the 2nd, 4th, ...); None = all see the whole image.
        steps: what the time embedding gets (``TimeEmbedding``).

    Raises:
        ValueError: unknown variant or steps.

    Source: arXiv:2605.05331 (generator), published DiT.
    """

    def __init__(
        self,
        variant: str,
        channels: int,
        num_classes: int,
        *,
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
        swa_radius: int | None = None,
        steps: Literal["house", "vitok_release"] = "house",
    ) -> None:
        super().__init__()
        shape = dit_shape(variant)
        self.shape, self.channels, self.num_classes = shape, channels, num_classes
        self.rope_theta, self.swa_radius = rope_theta, swa_radius
        width = shape.width
        self.in_proj = nn.Linear(channels, width, bias=False)
        self.time_embedding = TimeEmbedding(width, steps)
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.modulation = nn.Linear(width, 4 * width, bias=False)
        self.dit_blocks = nn.ModuleList(
            DiTBlock(width, shape.heads, shape.hidden, layer_scale) for _ in range(shape.depth)
        )
        self.head = VelocityHead(width, channels)

    def forward(self, tokens: Tokens, time: Tensor, label: Tensor) -> Tensor:
        """Predict the velocity of noised latents.

        Args:
            tokens: x_t, packed or unpacked, values (B, L, C).
            time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).
            label: class in [0, num_classes], int64, (I,); num_classes = null class.

        Returns:
            v = eps - x_0, (B, L, C); what stands at padding means nothing.

        Raises:
            ValueError: not one time and one class per image, or a class outside the range.
        """
        condition, image = self.conditions(tokens, time, label)
        x = self.in_proj(tokens.values.to(self.in_proj.weight.dtype))
        shared = self.modulation(F.silu(condition))
        rotary = rotary_2d(
            tokens.row, tokens.col, self.shape.width // self.shape.heads, self.rope_theta, activation_dtype(x)
        )
        whole = plan_attention(tokens, None, rotary.cos.dtype)
        window = whole if self.swa_radius is None else plan_attention(tokens, self.swa_radius, rotary.cos.dtype)
        for index, block in enumerate(self.dit_blocks):
            x = block(x, shared, image, rotary, window if index % 2 else whole)
        v: Tensor = self.head(x, condition, image)
        return v


def check_labels(label: Tensor, num_classes: int) -> None:
    """Refuse classes that the network does not have.

    Args:
        label: int64, (I,).
        num_classes: number of classes without the null class.

    Raises:
        ValueError: a label outside [0, num_classes].
    """
    wrong = ((label < 0) | (label > num_classes)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"class {int(label[wrong[0]])} of image {wrong[0]} is out of range: the network knows 0 to "
            f"{num_classes - 1}, and {num_classes} for no class"
        )


def activation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which attention will run: autocast's where it is on.

    Args:
        x: states, any shape.

    Returns:
        A floating dtype.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
