"""Encoded prompts on disk, one safetensors file each, so that text encoders need not stay in memory."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from torch import Tensor

from .family import Encoded

__all__ = ["PromptCache"]


class PromptCache:
    """Encoded prompts by (fingerprint of the encoders, prompt).

    Several processes may read and write one folder: a file appears whole or not at all, and equal prompts give equal
    files.

    Args:
        folder: of all caches; made when something is written.
        fingerprint: what encodes: files of the encoders, lengths, precision. Another one is another cache.
    """

    def __init__(self, folder: str, fingerprint: str) -> None:
        self.folder = Path(folder).expanduser() / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]

    def path(self, prompt: str) -> Path:
        """Where a prompt is.

        Args:
            prompt: any text.

        Returns:
            The file, which may not exist yet.
        """
        name = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return self.path(prompt).is_file()

    def read(self, prompt: str) -> Encoded | None:
        """What a prompt was encoded to.

        Args:
            prompt: any text.

        Returns:
            One row, on the CPU, in the dtype that it was written in; None if it was never written.

        Raises:
            ValueError: the file is damaged; names it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(prompt)
        try:
            found: dict[str, Tensor] = load_file(path)
            return Encoded(found["sequence"], found.get("pooled"))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, LookupError):
            raise ValueError(f"{path} of the prompt cache is damaged: delete it, it will be encoded again") from None

    def write(self, prompt: str, encoded: Encoded) -> None:
        """Keep what a prompt was encoded to.

        Args:
            prompt: any text.
            encoded: one row.
        """
        from safetensors.torch import save_file

        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"sequence": encoded.sequence} | ({} if encoded.pooled is None else {"pooled": encoded.pooled})
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}.part")
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, unfinished)
        os.replace(unfinished, path)
