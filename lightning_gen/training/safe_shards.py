"""Looking through a folder of shards before torch unpickles it.

torch's distributed checkpoints keep their table of contents, and every value that is not a tensor, as pickles, and read
them with the full unpickler. Here both are read first by unpicklers that know a short list of harmless classes, so that
a folder from a stranger cannot run code.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

__all__ = ["require_harmless"]

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
