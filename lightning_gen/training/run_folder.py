"""One folder per run name: checkpoints, configuration, log and pictures of a run stand together.

::

    runs/<name>/
        config.yaml      what the run was started with
        metrics.csv      everything that was logged
        checkpoints/     step=0000500.ckpt, last.ckpt -> the newest
        samples/         pictures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import is_complete, newest

__all__ = ["RunFolder"]

_PASSED_ON = ("best", "hpc", "registry:")


@dataclass(frozen=True)
class RunFolder:
    """Where a run lives.

    Args:
        runs: parent folder of all runs.
        name: name of the run, one path component.

    Raises:
        ValueError: if the name is no folder name.
        NotADirectoryError: if there is a file where the folder should be.
    """

    runs: Path
    name: str

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or Path(self.name).name != self.name:
            raise ValueError(f"name: {self.name!r} must be a plain folder name; the parent folder is set by runs:")
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(
                    f"{self.path} cannot be the run's folder: {place} is a file; change runs: or name:"
                )

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written."""
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; half-written ones do not count.

        Returns:
            File or folder, or None.
        """
        # hpc_ckpt_*: written by Lightning when a cluster's scheduler ends the job.
        found = [newest(self.checkpoints, "step=*.ckpt", "last.ckpt"), newest(self.path, "hpc_ckpt_*.ckpt")]
        return max((path for path in found if path), key=lambda path: path.stat().st_mtime_ns, default=None)

    def resolve(self, ckpt_path: str | None) -> str | None:
        """Turn ``ckpt_path`` into the checkpoint to read.

        Args:
            ckpt_path: None, ``"last"``, ``"last-or-none"``, a path, or one of Lightning's other words.

        Returns:
            Path of a complete checkpoint, one of Lightning's words, or None for none.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if it is not complete.
        """
        if ckpt_path is None or ckpt_path.startswith(_PASSED_ON) or "://" in ckpt_path:
            return ckpt_path
        if ckpt_path in ("last", "last-or-none"):
            last = self.last_checkpoint()
            if last is None and ckpt_path == "last":
                raise FileNotFoundError(
                    f"--ckpt_path last: no complete checkpoint under {self.checkpoints}; "
                    "use last-or-none to start from the beginning in that case, or check --name and --runs"
                )
            return None if last is None else str(last)
        path = Path(ckpt_path)
        if not path.exists():
            raise FileNotFoundError(f"--ckpt_path {ckpt_path}: no such file or folder")
        if not is_complete(path):
            raise ValueError(
                f"--ckpt_path {ckpt_path} is not a complete checkpoint: it was cut off while it was written, "
                "or is no Lightning checkpoint; use another one, or last for the newest complete one"
            )
        return str(path)

    def holds(self, checkpoint: str | None) -> bool:
        """Whether a run that starts from a checkpoint continues this one.

        Args:
            checkpoint: result of :meth:`resolve`.

        Returns:
            True if it lies in this folder, or is one of Lightning's words for such a one.
        """
        if checkpoint is None or "://" in checkpoint:
            return False
        return checkpoint in ("best", "hpc") or Path(checkpoint).resolve().is_relative_to(self.path.resolve())

    def refuse_to_lose(self) -> None:
        """Make sure that a new start does not mix with an older run of the same name.

        Raises:
            FileExistsError: if the folder holds complete checkpoints.
        """
        held = newest(self.checkpoints, "*.ckpt") or self.last_checkpoint()
        if held is not None:
            raise FileExistsError(
                f"{self.path} already holds checkpoints (newest: {held.name}); "
                f"continue with `--ckpt_path last`, or start a run of another name with `--name`"
            )
