"""From a stored latent to a batch: the recipe of cached latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.latents.fields import StoredLatent, read_array
from lightning_gen.data.latents.record import LatentRecord
from lightning_gen.data.quarantine import SampleError
from lightning_gen.nn.tokens import Tokens
from lightning_gen.training.randomness import uniform

__all__ = ["LatentExample", "LatentRecipe"]


class LatentExample(NamedTuple):
    """One latent on its way into a batch.

    Attributes:
        values: float32, (n, c), tokens row by row.
        stored: what its sample says.
        place: where it stands.
    """

    values: Tensor
    stored: StoredLatent
    place: Place


@dataclasses.dataclass(frozen=True)
class LatentRecipe:
    """Read the array of a picture or of its mirror image, normalise it, pad it.

    Attributes:
        record: of the latents that are read.
        statistics: record whose mean and standard deviation normalise; None = latents stay as they are.
        training: a replacement is as good as the sample that was asked for.
        mirror_probability: chance of the mirror image's latent, in [0, 1].
    """

    record: LatentRecord
    statistics: LatentRecord | None
    training: bool
    mirror_probability: float = 0.0

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Random numbers that decide which samples are mirrored.

        Args:
            seed: the run's seed.
            epoch: number of the pass.
            index: global sample indices.

        Returns:
            (n, 1), None where nothing is mirrored.
        """
        if not self.mirror_probability:
            return None
        return uniform(seed, "mirror", epoch, torch.as_tensor(index, dtype=torch.int64), (1,)).numpy()

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> None:
        """Not a matter here: every row has the budget's length.

        Args:
            sizes: not used.
            draws: not used.
            tokens: not used.
        """
        del sizes, draws, tokens

    def example(self, stored: StoredLatent, place: Place) -> LatentExample:
        """Read a latent.

        Args:
            stored: the sample.
            place: where it stands.

        Returns:
            The example.

        Raises:
            SampleError: it cannot be used.
        """
        tokens = stored.grid[0] * stored.grid[1]
        if tokens > place.request.tokens:
            raise SampleError(f"the picture has {tokens} tokens, latents.json allows {self.record.budget}")
        data = stored.plain
        if place.draws is not None and place.draws[0] < self.mirror_probability:
            if stored.mirrored is None:
                raise SampleError("the sample has no latent of its mirror image (mirror.npy)")
            data = stored.mirrored
        values = read_array(data, (tokens, self.record.channels)).astype(np.float32)
        if self.statistics is not None:
            values = self.statistics.normalised(values)
        return LatentExample(torch.from_numpy(values), stored, place)

    def collate(self, examples: Sequence[LatentExample], request: Request) -> ImageBatch:
        """Pad to the budget.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            A batch of unpacked latents.
        """

        def integers(name: str) -> Tensor:
            return torch.tensor([getattr(one.stored, name) for one in examples], dtype=torch.int64)

        return ImageBatch(
            raw=self._tokens(examples, request.tokens),
            label=integers("label"),
            index=torch.tensor([one.place.index for one in examples], dtype=torch.int64),
            valid=torch.tensor([one.place.valid for one in examples], dtype=torch.bool),
            original_size=integers("original_size"),
            key=tuple(one.place.key for one in examples),
            epoch=request.epoch,
            caption=tuple(one.stored.caption for one in examples),
            crop_top_left=integers("crop_top_left"),
            target_size=integers("size"),
        )

    def _tokens(self, examples: Sequence[LatentExample], length: int) -> Tokens:
        grids = torch.tensor([one.stored.grid for one in examples], dtype=torch.int64)
        place = torch.arange(length).expand(len(examples), -1)
        mask = place < grids.prod(1)[:, None]
        values = torch.zeros(len(examples), length, self.record.channels)
        for row, one in zip(values, examples, strict=True):
            row[: len(one.values)] = one.values
        return Tokens(
            values=values,
            mask=mask,
            row=torch.where(mask, place // grids[:, 1:], 0),
            col=torch.where(mask, place % grids[:, 1:], 0),
            image=torch.where(mask, torch.arange(len(examples))[:, None], -1),
            sizes=torch.tensor([one.stored.size for one in examples], dtype=torch.int64),
            patch=self.record.patch,
        )
