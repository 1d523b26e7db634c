"""A folder of one's own pictures, for ``lightning predict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.data.batches import Example
from lightning_gen.data.dataset import Place, SampleDataset
from lightning_gen.data.decode import MAX_PIXELS, Decoder, picture_size
from lightning_gen.data.loader import BatchFactory, EvaluationLoader, StartMethod
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.picture_files import PictureFiles
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.quarantine import BadSample, Quarantine, SampleError
from lightning_gen.data.sources import Stored
from lightning_gen.data.trainer_link import rank_and_world
from lightning_gen.data.transforms import BudgetRule, token_count
from lightning_gen.training.needs import DataNeeds

__all__ = ["FolderDataModule", "FolderSource", "Unreadable"]

_SHOWN = 8
"""Files that an error names."""


class FolderSource(PictureFiles):
    """Picture files as a source of samples; the key is the path inside the folder.

    Args:
        folder: where they are.
        max_pixels: larger pictures are refused.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        SampleError: a file that ends like a picture is none.
    """

    def __init__(self, folder: str, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(folder)
        self._sizes = np.array([self._size(path, max_pixels) for path in self.paths], np.int64)

    def _size(self, path: str, max_pixels: int) -> tuple[int, int]:
        try:
            with open(self.folder / path, "rb") as file:
                return picture_size(file, max_pixels)
        except (OSError, ValueError) as error:
            raise SampleError(f"{self.folder / path}: {error}") from None

    def read(self, index: int) -> Stored:
        """Read a file.

        Args:
            index: its number.

        Returns:
            Its bytes, without a label.

        Raises:
            SampleError: it cannot be read any more.
        """
        try:
            return Stored((self.folder / self.paths[index]).read_bytes())
        except OSError as error:
            raise SampleError(f"the file cannot be read: {error.strerror or error}") from None

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Heights and widths.

        Args:
            indices: numbers of files.

        Returns:
            int64, (n, 2).
        """
        sizes: npt.NDArray[np.int64] = self._sizes[indices]
        return sizes


class Unreadable(Quarantine):
    """Files that turned out to be damaged when they were decoded: remembered, and never too many.

    Args:
        total: pictures of the folder.
    """

    def __init__(self, total: int) -> None:
        super().__init__(total, max_bad_fraction=1.0, max_bad_per_shard=total)
        self.found: dict[str, str] = {}

    def report(self, sample: BadSample) -> None:
        """Remember a file.

        Args:
            sample: what was found.
        """
        self.found.setdefault(sample.key, sample.reason)
        super().report(sample)


class _WholePictures(NativeRecipe):
    """A damaged file leaves one grey patch in its batch that does not count; nothing is decoded in its place."""

    def example(self, stored: Stored, place: Place) -> Example | None:
        if not place.replaces:
            return super().example(stored, place)
        grey = torch.full((self.patch, self.patch, 3), 128, dtype=torch.uint8)
        return Example(grey, -1, place.index, False, (self.patch, self.patch), place.key)


class FolderDataModule(pl.LightningDataModule):
    """Every picture of a folder once, at its own size, for prediction and validation.

    Nothing is cropped, mirrored or replaced. A file that is no picture is an error before anything begins; one that
    turns out to be damaged while it is decoded is left out, and named by an error at the end, when all others are done.
    Batches are padded to their own longest picture.

    Args:
        pictures: the folder; folders inside it too.
        patch_size: patch edge p in pixels.
        tokens: resize larger pictures to this token budget; None = keep every size.
        batch_size: pictures per batch and rank.
        budget_rule: how a picture is made to fit.
        num_workers: decoding processes per rank; 0 = in the main process.
        start_method: how they are started; None = torch's default.
        decoder: which JPEG decoder.
        max_pixels: larger pictures are refused.
        worker_timeout: seconds to wait for a batch.

    Raises:
        ValueError: a number below what makes sense.
    """

    def __init__(
        self,
        pictures: str,
        patch_size: int = 16,
        tokens: int | None = None,
        batch_size: int = 1,
        budget_rule: BudgetRule = "isotropic",
        num_workers: int = 0,
        start_method: StartMethod | None = None,
        decoder: Decoder = "auto",
        max_pixels: int = MAX_PIXELS,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        self.pictures, self.patch_size, self.tokens, self.batch_size = pictures, patch_size, tokens, batch_size
        self.budget_rule, self.num_workers, self.start_method = budget_rule, num_workers, start_method
        self.decoder, self.max_pixels, self.worker_timeout = decoder, max_pixels, worker_timeout
        self._factory: BatchFactory | None = None
        self._unreadable: Unreadable | None = None
        for name, least in (("patch_size", 1), ("tokens", 1), ("batch_size", 1), ("num_workers", 0), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> DataNeeds:
        """What the data will ask of the machine, for the preflight.

        Args:
            init_args: the constructor's arguments as they stand in the configuration.

        Returns:
            Tokens and pictures of the largest batch of one rank, and what is missing on the disk.
        """
        folder, size = str(init_args.get("pictures")), int(init_args.get("batch_size") or 1)
        budget, patch = int(init_args.get("tokens") or 0), int(init_args.get("patch_size") or 16)
        try:
            source = FolderSource(folder, int(init_args.get("max_pixels") or MAX_PIXELS))
        except (FileNotFoundError, SampleError) as error:
            return DataNeeds(budget * size, size, (f"data.pictures: {error}",))
        sizes = source.sizes(np.arange(len(source))).tolist()
        counts = [token_count((height, width), patch) for height, width in sizes]
        longest = max(range(len(source)), key=counts.__getitem__)
        tokens = min(counts[longest], budget or counts[longest]) * size
        largest = "{} ({} x {} pixels, {} tokens)".format(source.paths[longest], *sizes[longest][::-1], counts[longest])
        return DataNeeds(tokens, size, use_tokens=tokens, largest=largest)

    def setup(self, stage: str | None = None) -> None:
        """Refuse to train.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: for ``fit``.
        """
        if stage == "fit":
            raise ValueError(
                "FolderDataModule shows every picture once and has nothing to train on: pack the folder into shards "
                "(lightning_gen.data.write_image_folder) and use ShardDataModule"
            )

    def predict_loader(self, rank: int = 0, world: int = 1) -> EvaluationLoader:
        """Batches without a trainer.

        Args:
            rank: this rank.
            world: number of ranks.

        Returns:
            The loader; ``valid`` is False for pictures that only fill the last batch.

        Raises:
            FileNotFoundError: no such folder, or no picture in it.
            SampleError: a file is not a picture; the message names it.
        """
        source = FolderSource(self.pictures, self.max_pixels)
        recipe = _WholePictures(
            self.patch_size, rule=self.budget_rule, decoder=self.decoder, max_pixels=self.max_pixels
        )
        dataset = SampleDataset(source, recipe, seed=0)
        self._close()
        self._unreadable = Unreadable(len(source))
        self._factory = BatchFactory(
            dataset,
            rank,
            world,
            self._unreadable,
            pad_to="rank",
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
            start_method=self.start_method,
            pin_memory=torch.cuda.is_available(),
        )
        plan = EvaluationPlan(len(source), self.batch_size * world, self.tokens or self.max_pixels)
        return EvaluationLoader(plan, self._factory)

    def predict_dataloader(self) -> EvaluationLoader:
        """The pictures of this rank.

        Returns:
            The loader.
        """
        return self.predict_loader(*rank_and_world(self.trainer))

    def val_dataloader(self) -> EvaluationLoader:
        """The same pictures, for ``lightning validate``.

        Returns:
            The loader.
        """
        return self.predict_dataloader()

    def test_dataloader(self) -> EvaluationLoader:
        """The same pictures, for ``lightning test``.

        Returns:
            The loader.
        """
        return self.predict_dataloader()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers, and name the files that were left out.

        Args:
            stage: not used.

        Raises:
            SampleError: some files of this or another rank could not be decoded.
        """
        del stage
        self._close()
        unreadable, self._unreadable = self._unreadable, None
        if unreadable is None:
            return
        found = _of_all_ranks(unreadable.found)
        if found:
            listed = "; ".join(f"{key}: {reason}" for key, reason in sorted(found.items())[:_SHOWN])
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise SampleError(
                f"{len(found)} of {unreadable.total} pictures in {self.pictures} could not be decoded and were left "
                f"out, the others are done. {listed}{more}"
            )

    def _close(self) -> None:
        if self._factory is not None:
            self._factory.close()
            self._factory = None


def _of_all_ranks(found: dict[str, str]) -> dict[str, str]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found
    parts: list[dict[str, str]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, found)
    return {key: reason for part in parts for key, reason in part.items()}
