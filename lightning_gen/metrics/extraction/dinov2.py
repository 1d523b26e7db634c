"""DINOv2 as Frechet distances are computed with: its two published layouts, its positions, its pictures.

Shape letters: B images, D width, n edge of the grid of patches.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.frozen import ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_weights, read_config
from lightning_gen.data.resampling import resample
from lightning_gen.training.safe_reading import load_plain

__all__ = ["DINOV2_SIZE", "DINOv2", "Positions", "dinov2_pixels", "load_dinov2", "resample_positions"]

Positions = Literal["torch_hub", "transformers"]

DINOV2_SIZE = 224
"""Edge of the pictures in pixels."""
_PATCH = 14
_GRID = DINOV2_SIZE // _PATCH
_HEAD = 64
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_FILE = "dinov2_vitl14_pretrain.pth"


class DINOv2(nn.Module):
    """A vision transformer of timm or transformers behind one call.

    Args:
        network: ``VisionTransformer`` of timm, or ``Dinov2Model`` of transformers, with positions for 16 x 16 patches.
        width: D.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        """The class token after the final LayerNorm.

        Args:
            pixels: float, (B, 3, 224, 224), after mean and standard deviation.

        Returns:
            (B, D).
        """
        network: Any = self.network
        if hasattr(network, "forward_features"):
            tokens: Tensor = network.forward_features(pixels)
        else:
            tokens = network(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


def load_dinov2(source: str | Path, positions: Positions = "torch_hub", revision: str | None = None) -> DINOv2:
    """Read DINOv2 for pictures of 224 x 224.

    Args:
        source: folder or hub id in transformers' layout (``facebook/dinov2-large``), or a file of torch.hub on this
            machine (``dinov2_vitl14_pretrain.pth``; ViT-S, -B and -L without registers).
        positions: see :func:`resample_positions`.
        revision: branch, tag or commit of the hub repository.

    Returns:
        The network, float32, on the CPU.

    Raises:
        MissingWeightsError: the weights are absent, damaged, or not those of DINOv2.
        ImportError: timm (for a file) or transformers (for a folder) is not installed.
    """
    path = Path(source).expanduser()
    if path.is_file() or path.suffix == ".pth":
        return _from_torch_hub(path, positions)
    return _from_transformers(str(source), positions, revision)


def resample_positions(learned: Tensor, positions: Positions) -> Tensor:
    """Bring learned positions to a grid of 16 x 16 patches.

    Bicubic without antialiasing in both cases. The published code of DINOv2 scales by (16 + 0.1) / n, an offset against
    rounding that shifts every sample a little; transformers scales by 16 / n.

    Args:
        learned: float, (1, 1 + n^2, D), the class token's first.
        positions: ``torch_hub``, which published distances use, or ``transformers``.

    Returns:
        (1, 257, D).

    Raises:
        ValueError: an unknown rule, or positions that are no square.

    Source: facebookresearch/dinov2 ``interpolate_pos_encoding`` with the offset 0.1 of its hub models.
    """
    if positions not in ("torch_hub", "transformers"):
        raise ValueError(f"unknown positions {positions!r}: choose torch_hub or transformers")
    edge = math.isqrt(learned.shape[1] - 1)
    if edge * edge != learned.shape[1] - 1:
        raise ValueError(f"{learned.shape[1] - 1} positions are no square grid")
    if edge == _GRID:
        return learned
    grid = learned[:, 1:].reshape(1, edge, edge, -1).permute(0, 3, 1, 2)
    if positions == "torch_hub":
        scale = (_GRID + 0.1) / edge
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    else:
        grid = F.interpolate(grid, size=(_GRID, _GRID), mode="bicubic", align_corners=False)
    return torch.cat([learned[:, :1], grid.flatten(2).mT], dim=1)


def dinov2_pixels(images: Sequence[Tensor]) -> Tensor:
    """Pictures as DINOv2 sees them: 224 x 224 by Pillow's bicubic filter on 8-bit values, then mean and deviation.

    Both sides are resized to 224, whatever the aspect ratio.

    Args:
        images: B uint8 tensors (3, H, W).

    Returns:
        float32, (B, 3, 224, 224), on the CPU.

    Source: layer6ai-labs/dgm-eval.
    """
    small = []
    for image in images:
        rows = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        small.append(resample(rows, (DINOV2_SIZE, DINOV2_SIZE)).permute(2, 0, 1))
    pixels = torch.stack(small).float() / 255
    return (pixels - pixels.new_tensor(_MEAN)[:, None, None]) / pixels.new_tensor(_STD)[:, None, None]


def _from_torch_hub(path: Path, positions: Positions) -> DINOv2:
    try:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn
    except ImportError:
        raise ImportError(f"{path} needs the package timm: pip install timm") from None
    if not path.exists():
        raise MissingWeightsError(f"there is no file {path}: copy {_FILE} to this machine and give its path")
    try:
        state = load_plain(path, mmap=zipfile.is_zipfile(path))
        _require_plain_vit(state)
        width = state["cls_token"].shape[-1]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        state["pos_embed"] = resample_positions(state["pos_embed"].float(), positions)
        arguments = {"embed_dim": width, "depth": depth, "num_heads": width // _HEAD, "img_size": DINOV2_SIZE}
        with ordinary_construction():
            network: Any = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, **arguments)
            network.load_state_dict(checkpoint_filter_fn(state, network))
    except Exception as error:  # whatever timm or the file has against it
        reason = (str(error).strip().splitlines() or [""])[0]
        raise MissingWeightsError(
            f"{path} is not a DINOv2 of torch.hub such as {_FILE} ({type(error).__name__}: {reason[:200]})"
        ) from None
    return DINOv2(network, width)


def _require_plain_vit(state: dict[str, Any]) -> None:
    if "cls_token" not in state or "pos_embed" not in state or "mask_token" not in state:
        raise ValueError("it lacks cls_token, pos_embed or mask_token")
    if "register_tokens" in state:
        raise ValueError("it is a network with registers, whose features are others")
    if any(".mlp.w12." in name for name in state):
        raise ValueError("ViT-g is read from a folder of transformers only")


def _from_transformers(source: str, positions: Positions, revision: str | None) -> DINOv2:
    try:
        from transformers import Dinov2Model
    except ImportError:
        raise ImportError(f"{source} needs the package transformers: pip install transformers") from None
    folder = fetch_weights(source, revision)
    kind = read_config(folder).get("model_type")
    if kind != "dinov2":
        raise MissingWeightsError(f"{folder / 'config.json'} describes {kind!r}, not 'dinov2': give another source")
    loader: Any = Dinov2Model
    try:
        with ordinary_construction():
            network, report = loader.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"it lacks {len(missing)} tensors, such as {', '.join(missing[:3])}")
        learned = network.embeddings.position_embeddings
        network.embeddings.position_embeddings = nn.Parameter(resample_positions(learned.detach(), positions))
    except Exception as error:  # whatever transformers dislikes about the files
        reason = (str(error).strip().splitlines() or [""])[0]
        raise MissingWeightsError(
            f"the weights in {folder} do not fit its config.json ({type(error).__name__}: {reason[:200]}). "
            f"Copy both files from one source"
        ) from None
    return DINOv2(network, int(network.config.hidden_size))
