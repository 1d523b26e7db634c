"""Frozen encoders whose features lie on a grid of patches: priors of tokenizers, eyes of discriminators.

An encoder is made from names and numbers and reads its weights when ``load`` is called, so that a configuration can be
built on a machine that does not have them. It is no ``nn.Module``: nothing of it reaches checkpoints, optimisers or
shards. Networks behind it are ``FrozenModule``s: eval mode, float32, no gradients of their own. Encoders with published
weights are in ``patch_encoders``.

Shape letters: B images, H and W height and width, p patch edge, N = rows x cols patches, D width, R registers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.training.classes import class_named
from lightning_gen.training.initialisation import initialise

from .frozen import FrozenModule, ordinary_construction
from .shipped import shipped_or_given
from .weights import MissingWeightsError

if TYPE_CHECKING:
    from lightning_gen.training.needs import WeightNeed

__all__ = ["FeatureMaps", "MapPatches", "PatchEncoder", "Three", "UntrainedPatches"]

_HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EPS: Final = 1e-6
Three = tuple[float, float, float]
"""A number per colour channel."""


class PatchEncoder(ABC):
    """Features of pictures on a grid, one vector per p x p pixels of its input.

    Attributes:
        patch: p, pixels of the encoder's own input per token along a side.
        mean: of its input per channel, for pixels in [0, 1].
        std: the same.
    """

    patch: int
    mean: Three
    std: Three

    def __init__(self, patch: int, mean: Three, std: Three) -> None:
        self.patch, self.mean, self.std = patch, mean, std
        self._frozen: FrozenModule | None = None

    # ------------------------------------------------------------------ weights

    def load(self) -> None:
        """Read the weights; does nothing the second time.

        Raises:
            MissingWeightsError: they are absent, damaged or those of something else.
        """
        if self._frozen is None:
            with ordinary_construction():
                self._frozen = FrozenModule(self._build())

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network with its final weights, float32 on the CPU."""

    @abstractmethod
    def need(self) -> WeightNeed | None:
        """Whether the weights can be read here, for the preflight; None = it needs no file."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, plain values."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Copy what is needed to build the encoder again.

        Args:
            folder: where to; made if it is needed.

        Returns:
            Constructor arguments, plain values; paths are relative to ``folder``.
        """

    @property
    def network(self) -> nn.Module:
        """The frozen network; it is loaded if it was not."""
        self.load()
        assert self._frozen is not None
        return self._frozen.network

    @property
    def num_parameters(self) -> int:
        """Frozen parameters, 0 while nothing is loaded."""
        return 0 if self._frozen is None else self._frozen.num_parameters

    # ------------------------------------------------------------------ use

    def prepare(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures of the house as input of the encoder.

        pixels = (resize(x) - mean) / std, x in [0, 1], bicubic without antialiasing to (rows p, cols p)

        Args:
            images: float, (B, 3, H, W), range [-1, 1].
            grid: rows and cols of the tokens that are wanted.

        Returns:
            float, (B, 3, rows p, cols p).
        """
        pixels = (images + 1) / 2
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
        mean, std = (pixels.new_tensor(three)[:, None, None] for three in (self.mean, self.std))
        return (pixels - mean) / std

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised tokens of the last layer: affine-free LayerNorm, nothing but patches.

        Args:
            pixels: what ``prepare`` gave.

        Returns:
            (B, N, D), row by row, without gradient.
        """
        self._follow(pixels)
        return self._features(pixels)

    def layers(self, pixels: Tensor) -> list[Tensor]:
        """Tokens of the patches after every block, not normalised; gradients flow through to the pixels.

        Args:
            pixels: what ``prepare`` gave.

        Returns:
            One (B, N, D) tensor per block.

        Raises:
            ValueError: this encoder shows its last layer only.
        """
        self._follow(pixels)
        return self._layers(pixels)

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """See ``features``."""

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        """See ``layers``."""
        raise ValueError(f"{type(self).__name__} shows its last layer only: choose another encoder for a discriminator")

    def _follow(self, pixels: Tensor) -> None:
        """Load if needed, and go where the pixels are."""
        network = self.network
        weight = next(network.parameters(), None)
        if weight is not None and weight.device != pixels.device:
            network.to(pixels.device)


# ---------------------------------------------------------------------- networks of the house


class FeatureMaps(Protocol):
    """A frozen convolutional encoder that shows its maps; the embedded world's own is one."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """What every stage sees.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Maps (B, C, h, w), from fine to coarse.
        """
        ...


class MapPatches(PatchEncoder):
    """Features of one stage of a convolutional encoder, a token per place of its map.

    Args:
        encoder: name of a class with ``from_pretrained`` and ``features`` (``FeatureMaps``).
        source: folder of its weights, or the name of weights that come with the package (``shapes_encoder``).
        patch: pixels per place of the stage that is read.
        stage: which map, counted as in a list.
    """

    def __init__(self, encoder: str, source: str, patch: int, stage: int = -1) -> None:
        super().__init__(patch, *_HALF)
        self.encoder, self.source, self.stage = encoder, source, stage

    def need(self) -> WeightNeed | None:
        """See :meth:`PatchEncoder.need`."""
        from lightning_gen.training.needs import WeightNeed

        try:
            self._folder()
        except MissingWeightsError as error:
            return WeightNeed(self.encoder, self.source, False, str(error))
        return WeightNeed(self.encoder, self.source, True, "")

    def save(self, folder: Path) -> dict[str, Any]:
        """See :meth:`PatchEncoder.save`."""
        network: Any = self.network
        network.save_pretrained(str(folder))
        return {**self.arguments(), "source": "."}

    def arguments(self) -> dict[str, Any]:
        """See :meth:`PatchEncoder.arguments`."""
        return {"encoder": self.encoder, "source": self.source, "patch": self.patch, "stage": self.stage}

    def _build(self) -> nn.Module:
        network: Any = class_named(self.encoder, "encoder").from_pretrained(str(self._folder()))
        if not isinstance(network, nn.Module) or not hasattr(network, "features"):
            raise MissingWeightsError(f"{self.encoder} gives no module with features(images)")
        return network

    def _folder(self) -> Path:
        folder = Path(shipped_or_given(self.source)).expanduser()
        if not folder.is_dir():
            raise MissingWeightsError(f"there is no folder {self.source}: train {self.encoder} and export it there")
        return folder

    def _features(self, pixels: Tensor) -> Tensor:
        tokens = self._maps(pixels)[self.stage].flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=_EPS)

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        return [one.flatten(2).transpose(1, 2) for one in self._maps(pixels)]

    def _maps(self, pixels: Tensor) -> Sequence[Tensor]:
        network: Any = self.network
        maps: Sequence[Tensor] = network.features(pixels)
        return maps


class UntrainedPatches(PatchEncoder):
    """Features of convolutions that nobody has trained: a prior that needs no file and knows no meaning.

    Stages of stride 2 and one of stride 1 with GELU between them, weights keyed by the seed.

    Args:
        patch: p in pixels, a power of 2.
        width: D.
        seed: of the weights.

    Raises:
        ValueError: a patch that is no power of 2, or no width.
    """

    def __init__(self, patch: int = 4, width: int = 64, seed: int = 0) -> None:
        super().__init__(patch, *_HALF)
        if patch < 1 or patch & (patch - 1) or width < 1:
            raise ValueError(f"UntrainedPatches: patch is a power of 2 and width at least 1, got {patch} and {width}")
        self.width, self.seed = width, seed

    def need(self) -> WeightNeed | None:
        """See :meth:`PatchEncoder.need`."""
        return None

    def save(self, folder: Path) -> dict[str, Any]:
        """See :meth:`PatchEncoder.save`."""
        del folder
        return self.arguments()

    def arguments(self) -> dict[str, Any]:
        """See :meth:`PatchEncoder.arguments`."""
        return {"patch": self.patch, "width": self.width, "seed": self.seed}

    def _build(self) -> nn.Module:
        halvings = self.patch.bit_length() - 1
        sizes = [3, *(max(self.width >> (halvings - number), 8) for number in range(1, halvings + 1)), self.width]
        stages = [
            _Filters(before, after, 3, 2 if number < halvings else 1, 1)
            for number, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False))
        ]
        network = nn.ModuleList(stages)
        initialise(network, self.seed)
        return network

    def _features(self, pixels: Tensor) -> Tensor:
        tokens = self._layers(pixels)[-1]
        return F.layer_norm(tokens, tokens.shape[-1:], eps=_EPS)

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        network: Any = self.network
        found, x = [], pixels
        for number, stage in enumerate(network):
            x = stage(x if number == 0 else F.gelu(x))
            found.append(x.flatten(2).transpose(1, 2))
        return found


class _Filters(nn.Conv2d):
    """A convolution that keeps the variance of what goes through, and adds no constant."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
