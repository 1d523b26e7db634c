"""Names of ViTok-v2 models: ``5B-f16x64`` as published, ``Td4-T/1x16x64`` as written in the paper's tables."""

from __future__ import annotations

import dataclasses
import re

from lightning_gen.nn.blocks import swiglu_hidden

__all__ = ["PUBLISHED", "Stack", "Variant"]

PUBLISHED = {
    "350M-f16x16": "Ld4-Ld24/1x16x16",
    "350M-f16x32": "Ld4-Ld24/1x16x32",
    "350M-f16x64": "Ld4-Ld24/1x16x64",
    "5B-f16x16": "Td4-T/1x16x16",
    "5B-f16x32": "Td4-T/1x16x32",
    "5B-f16x64": "Td4-T/1x16x64",
    "5B-f32x64": "Td4-T/1x32x64",
    "5B-f32x128": "Td4-T/1x32x128",
    "5B-f32x256": "Td4-T/1x32x256",
}
"""Published model -> architecture. Source: arXiv:2605.05331, names of the published weights."""

_MLP_FACTOR = 2.67
_FIELDS = {"w": "width", "d": "depth", "h": "heads", "m": "mlp_factor"}
_NUMBER = r"(?:[wdh]\d+|m\d+(?:\.\d+)?)"
_HELP = (
    f"known names: {', '.join(PUBLISHED)}; or ENCODER-DECODER/1xPATCHxCHANNELS, each half a preset B, L, G, T, E with "
    "overrides (Ld4, Tw2048h16) or written out (w1408_d40_h16 or w1408_d40_h16_m2.67)"
)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Shape of one half of the auto-encoder.

    Attributes:
        width: W.
        depth: number of blocks.
        heads: attention heads, W / heads must be a multiple of 4.
        mlp_factor: expansion of the feed-forward part before rounding.
    """

    width: int
    depth: int
    heads: int
    mlp_factor: float = _MLP_FACTOR

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU."""
        return swiglu_hidden(self.width, self.mlp_factor)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: 4 W^2 + 3 W M + 2 W + 2 d."""
        return 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width + 2 * (self.width // self.heads)


PRESETS = {
    "B": Stack(768, 12, 12),
    "L": Stack(1024, 24, 16),
    "G": Stack(1728, 32, 24),
    "T": Stack(3072, 40, 24),
    "E": Stack(4096, 48, 32),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Everything a name says about a model.

    Attributes:
        encoder: shape of the encoder.
        decoder: shape of the decoder.
        patch: patch edge p in pixels, the spatial stride.
        channels: numbers c per latent token.
    """

    encoder: Stack
    decoder: Stack
    patch: int
    channels: int

    @property
    def name(self) -> str:
        """Architecture string that ``parse`` reads back; the paper's own where the model is published."""
        published = (text for text in PUBLISHED.values() if Variant.parse(text) == self)
        factor = self.encoder.mlp_factor
        mlp = "" if factor == _MLP_FACTOR else f"_m{factor:.6f}"
        halves = (f"w{half.width}_d{half.depth}_h{half.heads}{mlp}" for half in (self.encoder, self.decoder))
        return next(published, f"{'-'.join(halves)}/1x{self.patch}x{self.channels}")

    @property
    def pixels(self) -> int:
        """Numbers in a patch, 3 p^2."""
        return 3 * self.patch**2

    @property
    def compression(self) -> float:
        """Compression ratio r = 3 p^2 / c."""
        return self.pixels / self.channels

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the encoder with the LayerNorm latent."""
        width = self.encoder.width
        ends = self.pixels * width + width + width * self.channels + self.channels
        return self.encoder.depth * self.encoder.block_parameters + ends

    @property
    def decoder_parameters(self) -> int:
        """Parameters of the decoder."""
        width = self.decoder.width
        ends = self.channels * width + width + width * self.pixels + self.pixels
        return self.decoder.depth * self.decoder.block_parameters + ends

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read a name.

        Args:
            name: published (``5B-f16x64``) or architecture (``Td4-T/1x16x64``, ``w32_d2_h2-w48_d3_h3/1x4x8``).

        Returns:
            The variant. Both halves use the larger of the two MLP factors.

        Raises:
            ValueError: the name is unknown, or describes a model that cannot be built.

        Source: arXiv:2605.05331, naming scheme of the published weights.
        """
        match = re.fullmatch(r"(.+)-(.+)/(\d+)x(\d+)x(\d+)", PUBLISHED.get(name, name))
        if match is None:
            raise ValueError(f"unknown ViTok-v2 variant {name!r}; {_HELP}")
        if match[3] != "1":
            raise ValueError(f"ViTok-v2 variant {name!r} has temporal stride {match[3]}: only images (1) are supported")
        encoder, decoder = (_stack(part, name) for part in match.group(1, 2))
        factor = max(encoder.mlp_factor, decoder.mlp_factor)
        encoder, decoder = (dataclasses.replace(half, mlp_factor=factor) for half in (encoder, decoder))
        patch, channels = int(match[4]), int(match[5])
        if min(patch, channels) < 1:
            raise ValueError(f"ViTok-v2 variant {name!r} needs a patch edge and channels of at least 1")
        return cls(encoder, decoder, patch, channels)


def _stack(part: str, name: str) -> Stack:
    preset = PRESETS.get(part[0])
    pattern = f"(?:{_NUMBER})*" if preset else f"{_NUMBER}(?:_{_NUMBER})*"
    if not re.fullmatch(pattern, part[1:] if preset else part):
        raise ValueError(f"cannot read {part!r} in ViTok-v2 variant {name!r}; {_HELP}")
    given = {_FIELDS[token[0]]: float(token[1:]) for token in re.findall(_NUMBER, part)}
    if preset is None and not {"width", "depth", "heads"} <= given.keys():
        raise ValueError(f"{part!r} in ViTok-v2 variant {name!r} must give w<width>_d<depth>_h<heads>; {_HELP}")
    base = preset or Stack(0, 0, 0)
    stack = Stack(
        width=int(given.get("width", base.width)),
        depth=int(given.get("depth", base.depth)),
        heads=int(given.get("heads", base.heads)),
        mlp_factor=given.get("mlp_factor", base.mlp_factor),
    )
    if min(stack.width, stack.depth, stack.heads) < 1 or stack.width % (4 * stack.heads):
        raise ValueError(
            f"{part!r} in ViTok-v2 variant {name!r}: the head width {stack.width}/{stack.heads} must be a multiple of "
            "4 and there must be at least one block"
        )
    return stack
