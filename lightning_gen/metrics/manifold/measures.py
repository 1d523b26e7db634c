"""All four measures of one tokenizer, counted together.

Shape letters: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.interfaces import Autoencoder
from lightning_gen.metrics.labelled_features import check_valid
from lightning_gen.metrics.manifold.continuity import LPC
from lightning_gen.metrics.manifold.erank import EffectiveRank
from lightning_gen.metrics.manifold.semantics import GSQ
from lightning_gen.metrics.manifold.structure import SSC
from lightning_gen.metrics.protocol import Measurement
from lightning_gen.nn.tokens import Tokens, unpack

__all__ = ["ManifoldMeasures", "NormalisedLatents"]


class NormalisedLatents:
    """A tokenizer as a generator sees it: every channel has mean 0 and standard deviation 1 over a data set.

    Args:
        tokenizer: with its weights.
        record: latents.json that ``lightning data cache-latents`` wrote beside latents of these weights.

    Raises:
        ValueError: the statistics belong to other weights.
        DataError: a channel is constant.
    """

    def __init__(self, tokenizer: nn.Module, record: LatentRecord) -> None:
        found = weights_sha256(tokenizer)
        if found != record.sha256:
            raise ValueError(
                f"the latent statistics belong to another tokenizer: to the weights {record.sha256} of "
                f"{record.autoencoder} ({record.name}), these are {found} of {type(tokenizer).__name__}. Give the "
                "latents.json of these weights"
            )
        record.require_spread()
        self.tokenizer, self.record = tokenizer, record
        # Looked up once: a module of torch gives no types for them.
        self._encode: Callable[[Tensor | Tokens], Tokens] = tokenizer.encode  # type: ignore[assignment]
        self._decode: Callable[[Tokens], Tensor | list[Tensor]] = tokenizer.decode  # type: ignore[assignment]

    def encode(self, images: Tensor | Tokens) -> Tokens:
        """Normalised latents of images.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], or tokens of patches.

        Returns:
            Unpacked latents.
        """
        latents = unpack(self._encode(images))
        return latents.with_values(self.record.normalised(latents.values.float()))

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Images of normalised latents.

        Args:
            latents: in the scale of :meth:`encode`.

        Returns:
            (B, 3, H, W) in [-1, 1], or a list of (3, H, W).
        """
        return self._decode(latents.with_values(self.record.restored(latents.values)))


class ManifoldMeasures(nn.Module):
    """GSQ, eRank and, if it is given, LPC over images; SSC over images with segments.

    In a LightningModule it is an ordinary attribute: ``count`` in ``test_step``, ``measurements`` at the end.

    Args:
        channels: of the latents.
        lpc: None = it is left out.
        ssc: None = SSC with its defaults.
        num_classes: of a draw of GSQ.
        num_draws: of GSQ.
        seed: of GSQ's draws.
        lpc_images: only images whose number is below this are decoded for LPC; None = all.
    """

    def __init__(
        self,
        channels: int,
        lpc: LPC | None = None,
        ssc: SSC | None = None,
        num_classes: int = 100,
        num_draws: int = 5,
        seed: int = 0,
        lpc_images: int | None = None,
    ) -> None:
        super().__init__()
        self.gsq, self.erank = GSQ(channels, num_classes, num_draws, seed), EffectiveRank(channels)
        self.ssc = SSC(seed=seed) if ssc is None else ssc
        self.lpc, self.lpc_images = lpc, lpc_images

    @torch.no_grad()
    def count(
        self,
        tokenizer: Autoencoder,
        images: Tensor | Tokens,
        index: Tensor,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tokens:
        """Encode a batch and count it in all measures but SSC.

        Args:
            tokenizer: whose latents are measured.
            images: float, (B, 3, H, W) in [-1, 1], or tokens of patches.
            index: int64, (B,), the number of every image in its set.
            labels: int64, (B,), classes, -1 = none.
            valid: bool, (B,), False = an image that only fills the batch.

        Returns:
            The latents.

        Raises:
            ValueError: latents that are not finite or of other channels.
        """
        latents = tokenizer.encode(images)
        self.gsq.update(latents, index, labels, valid)
        self.erank.update(latents, index, valid)
        if self.lpc is not None:
            mask = check_valid(valid, len(index)).to(index.device)
            mask = mask if self.lpc_images is None else mask & (index < self.lpc_images)
            if mask.any():
                self.lpc.update(tokenizer.decode, latents, index, mask)
        return latents

    @torch.no_grad()
    def count_segments(
        self,
        tokenizer: Autoencoder,
        images: Tensor | Tokens,
        segments: Sequence[Tensor] | Tensor,
        index: Tensor,
        valid: Tensor | None = None,
    ) -> Tokens:
        """Encode a batch and count it in SSC.

        Args:
            tokenizer: whose latents are measured.
            images: float, (B, 3, H, W) in [-1, 1], or tokens of patches.
            segments: whole numbers, B maps (H, W); 0 = no segment.
            index: int64, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Returns:
            The latents.

        Raises:
            ValueError: see :meth:`SSC.update`.
        """
        latents = tokenizer.encode(images)
        self.ssc.update(latents, segments, index, valid)
        return latents

    def measurements(self, tokenizer: str = "") -> list[Measurement]:
        """All that was counted on all ranks; every rank must call it.

        Args:
            tokenizer: its name, for the protocol cards.

        Returns:
            ``ssc``, ``lpc`` with its radii, ``gsq``, ``erank``; those of which nothing was counted are left out, and so
            is GSQ where no image has a class.

        Raises:
            ValueError: all images are of one class.
        """
        return list(self._measured(tokenizer))

    def _measured(self, tokenizer: str) -> Iterator[Measurement]:
        with self.ssc.on_all_ranks():
            segmented = self.ssc.num_samples
        if segmented:
            yield from self.ssc.measurements(tokenizer)
        if self.lpc is not None:
            with self.lpc.on_all_ranks():
                decoded = self.lpc.num_samples
            if decoded:
                yield from self.lpc.measurements(tokenizer)
        with self.gsq.on_all_ranks():
            table = self.gsq.table()
        if len(table.with_class().labels):
            yield from self.gsq.measurements(tokenizer)
        if len(table.labels):
            yield from self.erank.measurements(tokenizer)
