"""What never changes from run to run, on disk: the reference's errors, and the clean latents of the pairs.

The error of the reference depends on the pair, the time and the noise alone. Draws are keyed by (seed, number, pair),
so with a number in 0..K-1 in place of the pass there are K of them, and each is computed once: the run that meets it
first writes it, every later one (another loss, another strength, another rate) reads it.

Shape letters: N pairs of the data set, K draws, B pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["CacheSettings", "PairCache"]

_KEY, _ERRORS, _LATENTS = "cache.json", "errors.npy", "latents.npy"


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """Where the cache is, and what it holds.

    Attributes:
        folder: of one data set, one reference and one seed; made if it does not exist.
        draws: K, different times and noises of a pair; pass p uses number p modulo K. At least the passes of a run, or
            pairs meet the same noise again.
        latents: keep clean latents too, of one draw from their posterior for all passes: 2 x 4 bytes per latent number
            and pair, for Stable Diffusion 1.5 at 512 pixels 131 kB a pair.

    Raises:
        ValueError: no draw.
    """

    folder: str
    draws: int = 4
    latents: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"cache.draws is at least 1, got {self.draws}")


class PairCache:
    """Errors and latents by pair, in files that all processes of a machine map into memory.

    Args:
        settings: where it is, and what it holds.
        pairs: N.
        latent_shape: of one picture.
        key: what the numbers depend on, plain JSON values.
        left_out: numbers of pairs that never come.
        create: whether this process makes the files where there are none; the others must wait for it.

    Raises:
        ValueError: the folder's numbers depend on something else; names what differs.
    """

    def __init__(
        self,
        settings: CacheSettings,
        pairs: int,
        latent_shape: Sequence[int],
        key: Mapping[str, Any],
        left_out: Sequence[int] | npt.NDArray[np.int64] = (),
        create: bool = True,
    ) -> None:
        self.settings, self.folder = settings, Path(settings.folder).expanduser()
        shapes: dict[str, tuple[int, ...]] = {_ERRORS: (pairs, settings.draws, 2)}
        if settings.latents:
            shapes[_LATENTS] = (pairs, 2, *latent_shape)
        whole = {**key, "pairs": pairs, "draws": settings.draws, "latents": settings.latents}
        if create:
            self._create(whole, shapes)
        self._require(whole)
        self._errors = np.load(self.folder / _ERRORS, mmap_mode="r+")
        self._latents = np.load(self.folder / _LATENTS, mmap_mode="r+") if settings.latents else None
        self._left_out = np.asarray(left_out, np.int64)

    @property
    def complete(self) -> bool:
        """Whether every error is known that will be asked for."""
        missing = np.isnan(self._errors).any((1, 2))
        missing[self._left_out] = False
        return not bool(missing.any())

    def number(self, epoch: int) -> int:
        """The draw of a pass.

        Args:
            epoch: number of the pass.

        Returns:
            In 0..K-1.
        """
        return epoch % self.settings.draws

    def errors(self, index: Tensor, draw: int) -> Tensor | None:
        """The reference's errors.

        Args:
            index: numbers of the pairs, int64, (B,), on the CPU.
            draw: number of the draw.

        Returns:
            float32, (B, 2), of winner and loser; None = not all of them are known.
        """
        return _known(self._errors[index.numpy(), draw])

    def write_errors(self, index: Tensor, draw: int, errors: Tensor) -> None:
        """Keep the reference's errors.

        Args:
            index: numbers of the pairs, (B,).
            draw: number of the draw.
            errors: (B, 2).
        """
        self._errors[index.cpu().numpy(), draw] = errors.detach().float().cpu().numpy()

    def latents(self, index: Tensor) -> Tensor | None:
        """Clean latents.

        Args:
            index: numbers of the pairs, int64, (B,), on the CPU.

        Returns:
            float32, (B, 2, ...); None = not all of them are known, or none are kept.
        """
        return None if self._latents is None else _known(self._latents[index.numpy()])

    def write_latents(self, index: Tensor, latents: Tensor) -> None:
        """Keep clean latents.

        Args:
            index: numbers of the pairs, (B,).
            latents: (B, 2, ...).
        """
        if self._latents is not None:
            self._latents[index.cpu().numpy()] = latents.detach().float().cpu().numpy()

    def _create(self, key: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        path = self.folder / _KEY
        if path.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, shape in shapes.items():
            made = np.lib.format.open_memmap(self.folder / name, "w+", np.float32, shape)
            made[:] = np.nan
            made.flush()
        # Last, so that a folder with a key is whole.
        path.write_text(json.dumps(key, indent=1, sort_keys=True), encoding="utf-8")

    def _require(self, key: Mapping[str, Any]) -> None:
        path = self.folder / _KEY
        if not path.exists():
            raise ValueError(f"{self.folder} holds no {_KEY}: the processes of a run must see one folder")
        kept = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(key))
        if wrong := sorted(name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name)):
            first = wrong[0]
            raise ValueError(
                f"the cache in {self.folder} belongs to another run: {', '.join(wrong)} differ ({first} is "
                f"{kept.get(first)!r} there and {wanted.get(first)!r} here). Give cache.folder another name"
            )


def _known(rows: npt.NDArray[np.float32]) -> Tensor | None:
    return None if np.isnan(rows).any() else torch.from_numpy(np.array(rows))
