"""What detectors out of transformers have in common: loading, and being a constant of the run.

Shape letters: B images, H and W height and width of the pictures.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import FrozenModule, full_float32, ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, fetch_weights, read_config
from lightning_gen.metrics.detection.detector_images import (
    PROCESSOR_FILE,
    PROCESSOR_FILE_OF_BOTH,
    ImagePreparation,
    PreparedImages,
)
from lightning_gen.metrics.protocol import file_sha256

__all__ = [
    "FrozenDetector",
    "load_network",
    "measuring",
    "swin_name",
    "weights_sha256",
]

_SWIN: Final[dict[tuple[int, tuple[int, ...]], str]] = {
    (96, (2, 2, 6, 2)): "t",
    (96, (2, 2, 18, 2)): "s",
    (128, (2, 2, 18, 2)): "b",
    (192, (2, 2, 18, 2)): "l",
}

# Constants that older releases of transformers stored among the weights; the network computes them itself.
_DERIVED: Final = (
    "relative_position_index",
    "relative_coords_table",
    "position_ids",
    "num_batches_tracked",
    "empty_weight",
)


class FrozenDetector(FrozenModule):
    """A detection network that is a constant of the run, see :class:`FrozenModule`.

    It computes without gradients, without autocast and without TF32, on the device of the images.

    Args:
        source: local folder, or hub id.
        revision: branch, tag or commit of the hub repository.
        architecture: ``model_type`` that the folder's ``config.json`` must have.
        network_class: name of the class in transformers.

    Raises:
        MissingWeightsError: the weights are absent, damaged, or of another architecture.
        ImportError: a package that the network needs is not installed.
    """

    name: str
    """How protocol ids call the detector."""
    fingerprint: str
    """sha256 of the weights."""

    def __init__(self, source: str, revision: str | None, architecture: str, network_class: str) -> None:
        # Asked for first: once config.json is in the hub's cache, nobody would fetch what else is missing.
        if not (Path(source).expanduser() / PROCESSOR_FILE_OF_BOTH).is_file():
            fetch_files(source, [PROCESSOR_FILE], revision=revision)
        folder = fetch_weights(source, revision)
        found = read_config(folder).get("model_type")
        if found != architecture:
            raise MissingWeightsError(
                f"{folder / 'config.json'} describes {found!r}, expected {architecture!r}: give another source"
            )
        super().__init__(load_network(folder, network_class))
        self.source = source
        self.folder = folder
        self.prepare = ImagePreparation.read(folder)
        self.fingerprint = weights_sha256(folder)

    @property
    def config(self) -> Any:
        """The library's configuration of the network."""
        return self.network.config

    def extra_repr(self) -> str:
        """Name and source, for ``print``."""
        return f"name={self.name!r}, source={self.source!r}"

    def _size_of(self, images: Tensor) -> tuple[int, int]:
        """H and W of a batch that is what it should be."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"need float images of shape (B, 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not (images.amin() >= -1e-3 and images.amax() <= 1 + 1e-3):
            low, high = float(images.amin()), float(images.amax())
            raise ValueError(
                f"need images in [0, 1], got values from {low:g} to {high:g}: convert them with "
                f"lightning_gen.data.transforms.signed_to_unit or uint8_to_unit"
            )
        return images.shape[-2], images.shape[-1]

    def _take(self, images: Tensor) -> PreparedImages:
        """Prepare a batch, with the network on its device."""
        if self.device != images.device:
            self.network.to(images.device)
        return self.prepare(images)


def load_network(folder: Path, network_class: str) -> nn.Module:
    """Build a network of transformers in float32 from safetensors, frozen and in eval mode.

    Args:
        folder: with ``config.json`` and complete safetensors files.
        network_class: name of the class in transformers.

    Returns:
        The network, on the CPU.

    Raises:
        MissingWeightsError: the weights do not fit the configuration.
        ImportError: a package that the network needs is not installed.
    """
    try:
        loader = getattr(importlib.import_module("transformers"), network_class)
    except (ImportError, AttributeError) as error:
        raise _not_installed(network_class, error) from None
    try:
        with ordinary_construction():
            network, report = loader.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except ImportError as error:
        raise _not_installed(network_class, error) from None
    except Exception as error:  # whatever transformers dislikes about the files
        raise MissingWeightsError(
            f"the weights in {folder} do not fit its config.json ({type(error).__name__}: {_first_line(error)}). "
            f"Copy both files from one source"
        ) from None
    surplus = [key for key in report["unexpected_keys"] if not key.endswith(_DERIVED)]
    wrong_shape = [str(entry[0]) for entry in report.get("mismatched_keys", ())]
    for problem, keys in (("lack", report["missing_keys"]), ("hold beyond it", surplus), ("misshape", wrong_shape)):
        if keys:
            raise MissingWeightsError(
                f"the weights in {folder} do not fit its config.json: they {problem} {len(keys)} tensors, such as "
                f"{', '.join(sorted(keys)[:3])}. Copy both files from one source"
            )
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def weights_sha256(folder: Path) -> str:
    """A fingerprint of one network's safetensors files.

    Args:
        folder: the weights folder.

    Returns:
        sha256 of ``model.safetensors``; of the list of the shards' sha256 where there are several.
    """
    digests = [file_sha256(path) for path in sorted(folder.glob("model*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def swin_name(width: int, depths: Sequence[int]) -> str:
    """The letter of a published Swin, or its numbers.

    Args:
        width: channels of the first stage.
        depths: blocks per stage.

    Returns:
        ``"t"``, ``"s"``, ``"b"``, ``"l"``, or for instance ``"8-1.1.1.1"``.
    """
    return _SWIN.get((width, tuple(depths)), f"{width}-{'.'.join(map(str, depths))}")


@contextlib.contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Compute without gradients and in true float32, whatever the training around it has chosen.

    A score near a threshold must not depend on autocast, TF32 or the default dtype of the run.

    Args:
        device: where the computation takes place.

    Yields:
        Nothing; the settings are put back afterwards.
    """
    with torch.no_grad(), full_float32(device):
        yield


def _not_installed(network_class: str, error: Exception) -> ImportError:
    return ImportError(
        f"{network_class} needs transformers and scipy ({_first_line(error)}): pip install -U transformers scipy"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
