"""The Protocols that rooms meet through, and the small records that travel between them.

Everything here needs torch only. A Protocol is satisfied by shape, not by inheritance: a class from another package
fits when it has the methods. Images are float RGB in [-1, 1] except where a Protocol says [0, 1].
Time runs from t = 0 (clean) to t = 1 (noise); x_t = (1 - t) x_0 + t eps; velocity v = eps - x_0.

Shape letters: B images, L tokens, D width, C latent channels, H and W height and width, N detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    import torch

    from .nn.tokens import Tokens

__all__ = [
    "Autoencoder",
    "Conditioning",
    "CountsFlops",
    "Detections",
    "Detector",
    "HasBlocks",
    "Pictures",
    "Reward",
    "ShowsPictures",
    "TextToImage",
    "VisionEncoder",
]


class Pictures(NamedTuple):
    """One row of a picture grid.

    Attributes:
        caption: what the row shows, for instance ``"reconstruction"``.
        images: float, each (3, H, W) in [-1, 1]; sizes may differ.
        notes: what stands under every picture, lines apart by "\\n"; empty = nothing.
    """

    caption: str
    images: list[Tensor]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """An encoded prompt, ready for a text-to-image model.

    Attributes:
        sequence: float, (B, L, D), one embedding per text token.
        mask: bool, (B, L), True = a real token.
        pooled: float, (B, D'), one vector per prompt, or None where the model has none.
        extra: what a particular model adds, by name (guidance embedding, size conditioning); first axis B.
    """

    sequence: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Conditioning:
        """Copy every tensor to a device.

        Args:
            device: where to.
            non_blocking: overlap the copy with computation where the memory is pinned.

        Returns:
            The conditioning on that device.
        """
        return Conditioning(
            self.sequence.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
            None if self.pooled is None else self.pooled.to(device, non_blocking=non_blocking),
            {name: value.to(device, non_blocking=non_blocking) for name, value in self.extra.items()},
        )

    def pin_memory(self) -> Conditioning:
        """Copy every tensor to page-locked memory.

        Returns:
            The conditioning in pinned host memory.
        """
        return Conditioning(
            self.sequence.pin_memory(),
            self.mask.pin_memory(),
            None if self.pooled is None else self.pooled.pin_memory(),
            {name: value.pin_memory() for name, value in self.extra.items()},
        )


@dataclasses.dataclass(frozen=True)
class Detections:
    """Objects that a detector found in one image.

    Attributes:
        boxes: float, (N, 4), pixels x0, y0, x1, y1.
        scores: float, (N,), confidence in [0, 1].
        classes: class name of each detection, N of them.
        masks: bool, (N, H, W), or None where the detector draws no masks.
    """

    boxes: Tensor
    scores: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None = None


class HasBlocks(Protocol):
    """A network that says which of its submodules are its blocks.

    Checkpointing, compilation and sharding are applied to each block from outside.
    """

    def blocks(self) -> Iterable[nn.Module]:
        """The repeated blocks in the order of the forward pass.

        Returns:
            Submodules of the network; each is called once per forward pass.
        """
        ...


class Autoencoder(Protocol):
    """Images to latent tokens and back."""

    def encode(self, images: Tensor | Tokens) -> Tokens:
        """Compress images.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], or patchified tokens.

        Returns:
            Latents with C channels per token, with the mask, coordinates and sizes that ``decode`` needs.
        """
        ...

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Reconstruct images.

        Args:
            latents: what ``encode`` gave, or samples of a generator with the same layout.

        Returns:
            (B, 3, H, W) in [-1, 1], or a list of (3, H, W) when sizes differ.
        """
        ...


class TextToImage(Protocol):
    """A flow model that turns noise into the latents of an image that fits a prompt.

    Attributes:
        network: predicts the velocity; what is trained, or what adapters are put into.
    """

    network: nn.Module

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one picture's latents, without the batch."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts.

        Args:
            prompts: B texts; the empty text is the unconditional prompt.

        Returns:
            Their conditioning.
        """
        ...

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = eps - x_0.

        Args:
            x_t: latents at time t, float, (B, ...).
            t: time, float, (B,), 0 = clean, 1 = noise.
            conditioning: encoded prompts, B of them.

        Returns:
            Velocity, shape of ``x_t``.
        """
        ...

    def latents_to_images(self, latents: Tensor) -> Tensor:
        """Decode clean latents.

        Args:
            latents: float, (B, ...), t = 0.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        ...

    def images_to_latents(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Clean latents, (B, ...).
        """
        ...

    def times(self, steps: int) -> Tensor:
        """The sampling grid that the model was made for.

        Args:
            steps: number of solver steps, >= 1.

        Returns:
            (steps + 1,) times falling from 1 (noise), or from the noisiest time the model knows, to 0 (clean).
        """
        ...

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        """The state at the first time of that grid.

        Args:
            noise: float, (B, ...), of variance 1.
            steps: number of solver steps.

        Returns:
            (B, ...); the noise itself where the grid begins at 1.
        """
        ...


class Reward(Protocol):
    """A score of images against prompts; higher is better."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: B records of what a prompt asks for (counts, colours, positions).

        Returns:
            float, (B,); NaN where the reward does not apply to the prompt.
        """
        ...


class Detector(Protocol):
    """Finds objects of named classes."""

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        """Detect objects.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            classes: names to look for.

        Returns:
            One record per image.
        """
        ...


class VisionEncoder(Protocol):
    """A frozen backbone that turns images into features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Extract features.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D) pooled, or (B, L, D) per token.
        """
        ...


@runtime_checkable
class ShowsPictures(Protocol):
    """A module that can show what it does with a batch; the sample grid calls it."""

    def pictures(self, batch: Any) -> list[Pictures]:
        """Make the rows of a grid.

        Args:
            batch: a validation batch on the module's device.

        Returns:
            One entry per row, for instance originals and reconstructions.
        """
        ...


@runtime_checkable
class CountsFlops(Protocol):
    """A module that knows the cost of its training step; the throughput callback calls it."""

    def flops_per_step(self, batch: Any) -> float:
        """Floating-point operations of the matrix products of one forward and backward pass on this rank.

        Args:
            batch: a training batch.

        Returns:
            Operations (a multiply-add counts as two), without recomputation.
        """
        ...
