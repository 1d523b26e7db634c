"""Picture files below a folder, numbered in the order of their paths."""

from __future__ import annotations

from pathlib import Path

from lightning_gen.data.writing import list_pictures

__all__ = ["PictureFiles"]


class PictureFiles:
    """What every source of picture files has; the key of a file is its path inside the folder.

    Args:
        folder: where they are.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.paths = [path.relative_to(self.folder).as_posix() for path in list_pictures(folder)]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def name(self, index: int) -> tuple[str, str]:
        """Folder and path inside it.

        Args:
            index: number of the file.

        Returns:
            Both.
        """
        return self.folder.name, self.paths[index]

    def damage(self, index: int) -> int:
        """A file never takes others with it.

        Args:
            index: number of the file.

        Returns:
            1.
        """
        del index
        return 1
