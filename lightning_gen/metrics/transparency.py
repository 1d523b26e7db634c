"""Pictures with an alpha channel: what becomes of it moves distances, so it is counted and can be chosen."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from lightning_gen.data.decode import to_rgb
from lightning_gen.data.orientation import orientation, turned

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Alpha", "is_transparent", "without_alpha"]

Alpha = Literal["white", "drop"]
"""What becomes of alpha.

``white``: the picture is laid over white, as data/decode.py does it in training and as people see it. ``drop``: the
stored colours of transparent pixels count, whatever they are, as in pytorch-fid, clean-fid and torch-fidelity.
"""

_WITH_ALPHA: Final = ("RGBA", "LA", "PA", "La", "RGBa")


def is_transparent(content: bytes) -> bool:
    """Whether some pixel of a picture is not opaque.

    Args:
        content: bytes of a picture that can be decoded.

    Returns:
        False for pictures without alpha, and where it is 255 everywhere, so that nothing depends on it.
    """
    picture = _opened(content)
    if picture.mode not in _WITH_ALPHA and "transparency" not in picture.info:
        return False
    if picture.mode.startswith("I"):
        return bool((np.asarray(picture) == picture.info["transparency"]).any())
    return bool((np.asarray(picture.convert("RGBA").getchannel("A")) < 255).any())


def without_alpha(content: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a picture as if it had no alpha channel.

    Args:
        content: bytes of a picture that can be decoded.

    Returns:
        uint8, (H, W, 3), upright.
    """
    picture = _opened(content)
    picture.load()
    turn = orientation(picture)
    picture.info.pop("transparency", None)
    if picture.mode in _WITH_ALPHA:
        picture = picture.convert("RGBA").convert("RGB")
    return turned(np.array(to_rgb(picture)), turn)


def _opened(content: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(content))
