"""Reading checkpoints that may come from strangers: nothing in them runs code.

A checkpoint file is read with ``weights_only=True``. torch's distributed checkpoints keep their table of contents, and
every value that is not a tensor, as pickles, and read them with the full unpickler. Here both are read first by
unpicklers that know a short list of harmless classes.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_plain", "require_harmless"]

_HARMLESS = {
    "torch": None,  # dtypes and torch.Size, see _Contents
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}


class _Contents(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _HARMLESS.get(module, set())
        if known is None:
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype) or found is torch.Size:
                return found
        elif name in known:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


def load_plain(path: Path, map_location: Any = "cpu", mmap: bool = True) -> dict[str, Any]:
    """Read a checkpoint file that holds tensors and plain values.

    Args:
        path: the file.
        map_location: as in ``torch.load``.
        mmap: leave tensors on the disk until they are used.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or names classes; such files may run code and are not read.
    """
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values; such a file may run code and is not read"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return content


def require_harmless(folder: Path) -> None:
    """Refuse a folder of shards that could run code when it is read.

    Args:
        folder: holds ``.metadata`` and ``*.distcp`` files.

    Raises:
        ValueError: the table of contents or a value names something that is no tensor or plain value, or is damaged.
    """
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    try:
        with (folder / ".metadata").open("rb") as file:
            contents = _Contents(file).load()
        for index, place in contents.storage_data.items():
            if isinstance(contents.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
                torch.load(io.BytesIO(_part(folder, place)), weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{folder} is damaged or no folder of shards to be trusted: {reason}") from None


def _part(folder: Path, place: Any) -> bytes:
    path = folder / str(place.relative_path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise pickle.UnpicklingError(f"its parts lie outside of it ({place.relative_path})")
    with path.open("rb") as file:
        file.seek(int(place.offset))
        return file.read(int(place.length))
