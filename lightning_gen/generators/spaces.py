"""Where a generator works: in pixels, in the latents of an auto-encoder, or in latents that were cached.

Shape letters: B images, L tokens, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.tokens import Tokens, patchify, unpack, unpatchify
from lightning_gen.training.classes import class_named

if TYPE_CHECKING:
    from lightning_gen.data.latents.record import LatentRecord

__all__ = ["AutoencoderSpace", "LatentSpace", "PixelSpace"]


class LatentSpace(ABC):
    """Turns the images of a batch into what the generator makes, and back. It has no weights that are trained.

    Attributes:
        patch: edge in pixels of what a token stands for.
        channels: C, numbers per token, of mean about 0 and variance about 1.
    """

    patch: int
    channels: int

    def encode(self, batch: ImageBatch) -> Tokens:
        """Clean states of a batch.

        Args:
            batch: pictures (B, 3, H, W) in [-1, 1] or tokens of patches, or cached latents.

        Returns:
            Unpacked tokens, values float32, (B, L, C).
        """
        return self.encode_images(batch.images)

    @abstractmethod
    def encode_images(self, images: Tensor | Tokens) -> Tokens:
        """Clean states of pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1], tokens of patches, or latents, which stay as they are.

        Returns:
            Unpacked tokens, values float32, (B, L, C).
        """

    @abstractmethod
    def decode(self, latents: Tokens) -> list[Tensor]:
        """Pictures of clean states.

        Args:
            latents: values (B, L, C).

        Returns:
            B pictures (3, H, W) in [-1, 1].
        """

    def to(self, device: torch.device | str) -> None:
        """Move whatever it holds.

        Args:
            device: where to.
        """
        del device


class PixelSpace(LatentSpace):
    """No auto-encoder: a token is a patch of pixels.

    Args:
        patch: edge of a patch in pixels.
    """

    def __init__(self, patch: int = 8) -> None:
        if patch < 1:
            raise ValueError(f"a patch has at least one pixel, got {patch}")
        self.patch, self.channels = patch, 3 * patch * patch

    def encode_images(self, images: Tensor | Tokens) -> Tokens:
        """See :meth:`LatentSpace.encode_images`.

        Raises:
            ValueError: patches of another size.
        """
        tokens = images if isinstance(images, Tokens) else patchify(images, self.patch)
        if tokens.patch != self.patch or tokens.values.shape[-1] != self.channels:
            raise ValueError(
                f"the data comes in patches of {tokens.patch} pixels and {tokens.values.shape[-1]} numbers, the "
                f"generator takes {self.patch} and {self.channels}: set data.init_args.patch_size to {self.patch}"
            )
        return tokens

    def decode(self, latents: Tokens) -> list[Tensor]:
        """See :meth:`LatentSpace.decode`."""
        return [image.clamp(-1, 1) for image in unpatchify(latents)]


class AutoencoderSpace(LatentSpace):
    """Latents of an auto-encoder, normalised by the statistics that were stored with it.

    Batches may hold pictures, which are encoded here, or latents that ``LatentDataModule`` has read and normalised.

    Args:
        autoencoder: name of its class, with ``from_pretrained`` (``ViTokV2``, ``DiffusersVAE``, ``package.Class``).
        weights: folder, hub id or published name.
        statistics: latents.json that `lightning data cache-latents` wrote beside latents of these weights.

    Raises:
        DataError: there are no statistics, or they belong to other weights.
        ValueError: no such class.
    """

    def __init__(self, autoencoder: str, weights: str, statistics: str) -> None:
        from lightning_gen.data.latents.record import LatentRecord, weights_sha256
        from lightning_gen.data.quarantine import DataError

        self.record: LatentRecord = LatentRecord.load(statistics)
        self.record.require_spread()
        network: Any = class_named(autoencoder, "autoencoder").from_pretrained(weights)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{autoencoder}.from_pretrained gives no torch module")
        found = weights_sha256(network)
        if found != self.record.sha256:
            raise DataError(
                f"{statistics} belongs to the weights {self.record.sha256} of {self.record.autoencoder}, {weights} has "
                f"{found}: cache the latents again, or name the weights that made them"
            )
        self.network = network.requires_grad_(False).eval()
        self.patch, self.channels = self.record.patch, self.record.channels

    @torch.no_grad()
    def encode_images(self, images: Tensor | Tokens) -> Tokens:
        """See :meth:`LatentSpace.encode_images`."""
        if isinstance(images, Tokens) and images.values.shape[-1] == self.channels != 3 * images.patch**2:
            return images
        latents: Tokens = unpack(self.network.encode(images))  # type: ignore[operator]
        return latents.with_values(self.record.normalised(latents.values.float()))

    @torch.no_grad()
    def decode(self, latents: Tokens) -> list[Tensor]:
        """See :meth:`LatentSpace.decode`."""
        restored = latents.with_values(self.record.restored(latents.values))
        return list(self.network.decode(restored))  # type: ignore[operator]

    def to(self, device: torch.device | str) -> None:
        """Move the auto-encoder.

        Args:
            device: where to.
        """
        self.network.to(device)
