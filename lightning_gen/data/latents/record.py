"""latents.json: which auto-encoder made cached latents, of what, and how its numbers are distributed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from lightning_gen.data.index import replace_file
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.remote.openers import UrlOpener
from lightning_gen.data.remote.retrying import MissingError, RemoteOptions
from lightning_gen.data.remote.urls import is_remote, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["RECORD", "LatentRecord", "StoredKind", "weights_sha256"]

RECORD = "latents.json"
_KIND, _VERSION = "lg-latents", 1
_LARGEST = 1 << 24
StoredKind = Literal["float16", "float32"]
Numbers = TypeVar("Numbers", "Tensor", npt.NDArray[np.float32])


@dataclasses.dataclass(frozen=True)
class LatentRecord:
    """What must be known to use cached latents.

    The statistics are those of the numbers as they are stored, mirror images included. They belong to the auto-encoder
    as much as its weights do: a generator that is trained on normalised latents needs them to decode.

    Attributes:
        autoencoder: name of its class.
        name: where its weights came from: a published name, a hub id, or the name of a folder.
        sha256: hash of its weights, see :func:`weights_sha256`.
        patch: pixels that a token stands for along each side.
        channels: numbers c per token.
        dtype: of the stored numbers.
        tokens: token budget that pictures were scaled down to, None = ``resolution`` says what was done.
        resolution: edge of the square that was cut out of every picture, None = ``tokens`` says what was done.
        mirrored: whether the latents of the mirror images are there too.
        source: fingerprint of the pictures' data set.
        samples: number of pictures.
        left_out: pictures of the data set that could not be used.
        num_tokens: tokens that the statistics are over.
        mean: mean of each channel.
        std: standard deviation of each channel.
    """

    autoencoder: str
    name: str
    sha256: str
    patch: int
    channels: int
    dtype: StoredKind
    tokens: int | None
    resolution: int | None
    mirrored: bool
    source: str
    samples: int = 0
    left_out: int = 0
    num_tokens: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def budget(self) -> int:
        """Most tokens that a picture has."""
        return self.tokens if self.tokens is not None else (-(-(self.resolution or 0) // self.patch)) ** 2

    @property
    def statistics_sha256(self) -> str:
        """Hash of the statistics."""
        key = [self.num_tokens, list(self.mean), list(self.std)]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def normalised(self, latents: Numbers) -> Numbers:
        """(z - mean) / std, channel by channel.

        Args:
            latents: (..., c).

        Returns:
            The same kind of numbers with mean 0 and standard deviation 1 over the data set.

        Raises:
            DataError: a channel always has the same value.
        """
        self.require_spread()
        return (latents - _like(self.mean, latents)) / _like(self.std, latents)

    def require_spread(self) -> None:
        """Refuse statistics that cannot normalise.

        Raises:
            DataError: a channel always has the same value.
        """
        constant = [channel for channel, value in enumerate(self.std) if value <= 0]
        if constant:
            raise DataError(f"channel {constant[0]} of the latents is constant (std 0): they cannot be normalised")

    def restored(self, latents: Numbers) -> Numbers:
        """z std + mean, the inverse of :meth:`normalised`: what a decoder wants of a generator's samples.

        Args:
            latents: (..., c), normalised.

        Returns:
            Latents as the auto-encoder knows them.
        """
        return latents * _like(self.std, latents) + _like(self.mean, latents)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write latents.json in one step.

        Args:
            folder: where to; it exists.

        Returns:
            Where it was written.
        """
        data = {"kind": _KIND, "version": _VERSION, **dataclasses.asdict(self)}
        text = json.dumps({**data, "statistics_sha256": self.statistics_sha256}, indent=1, sort_keys=True) + "\n"
        replace_file(Path(folder) / RECORD, text.encode())
        return Path(folder) / RECORD

    @classmethod
    def load(cls, where: str | os.PathLike[str], options: RemoteOptions | None = None) -> LatentRecord:
        """Read a latents.json.

        Args:
            where: the file or its URL, or the local folder that holds it.
            options: limits of the network.

        Returns:
            The record.

        Raises:
            DataError: there is none, or it is damaged.
        """
        place = os.fspath(where)
        if not is_remote(place) and Path(place).is_dir():
            place = str(Path(place) / RECORD)
        name = shown(place)
        try:
            data: Any = json.loads(_content(place, options))
        except (FileNotFoundError, MissingError):
            raise DataError(
                f"there is no {name}: `lightning data cache-latents` writes it beside the manifest of cached latents"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{name} cannot be read ({error}): copy it again from its source") from None
        if not isinstance(data, dict) or data.get("kind") != _KIND or data.get("version") != _VERSION:
            raise DataError(f"{name} is not an {_KIND} record of version {_VERSION}: cache the latents again")
        try:
            values = {field.name: data[field.name] for field in dataclasses.fields(cls)}
            record = cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
            whole = len(record.mean) == len(record.std) == record.channels
        except (KeyError, TypeError) as error:
            raise DataError(f"{name} lacks something ({error}): cache the latents again") from None
        if not whole or record.statistics_sha256 != data.get("statistics_sha256"):
            raise DataError(f"the statistics in {name} were changed by hand: cache the latents again")
        return record


def _content(where: str, options: RemoteOptions | None) -> bytes:
    if is_remote(where):
        return UrlOpener(options).read_all(where, _LARGEST)
    return Path(where).read_bytes()


def _like(values: tuple[float, ...], latents: Numbers) -> Numbers:
    if isinstance(latents, np.ndarray):
        return np.asarray(values, latents.dtype)
    import torch

    return torch.tensor(values, dtype=latents.dtype, device=latents.device)


def weights_sha256(autoencoder: nn.Module) -> str:
    """A hash that two auto-encoders share if their weights have equal names, shapes, types and values.

    It does not matter from which files they were read.

    Args:
        autoencoder: with its weights loaded.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: it has no weights, or they are on the meta device.
    """
    import torch

    state = autoencoder.state_dict()
    if not state or any(value.is_meta for value in state.values()):
        raise ValueError(f"{type(autoencoder).__name__} has no weights yet: load them first")
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
