"""Frozen vision encoders. DINOv3 through timm or transformers, from a local folder or from the hub.

Shape letters: B images, H and W height and width, N patches, R registers, D width, L = 1 + R + N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frozen import FrozenModule, ordinary_construction
from .weights import MissingWeightsError, fetch_weights, find_weights, read_config

if TYPE_CHECKING:
    from lightning_gen.training.needs import WeightNeed

__all__ = ["Backend", "DINOv3Encoder", "Size", "dinov3_parameters", "fit_to_patches", "weight_need"]

Size = Literal["S", "S+", "B", "L", "H+", "7B"]
Backend = Literal["auto", "timm", "transformers"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class _Published(NamedTuple):
    transformers: str
    timm: str
    parameters: int


_PUBLISHED: dict[Size, _Published] = {
    "S": _Published("facebook/dinov3-vits16-pretrain-lvd1689m", "vit_small_patch16_dinov3", 21_586_944),
    "S+": _Published("facebook/dinov3-vits16plus-pretrain-lvd1689m", "vit_small_plus_patch16_dinov3", 28_683_264),
    "B": _Published("facebook/dinov3-vitb16-pretrain-lvd1689m", "vit_base_patch16_dinov3", 85_641_216),
    "L": _Published("facebook/dinov3-vitl16-pretrain-lvd1689m", "vit_large_patch16_dinov3", 303_079_424),
    "H+": _Published("facebook/dinov3-vith16plus-pretrain-lvd1689m", "vit_huge_plus_patch16_dinov3", 840_509_440),
    "7B": _Published("facebook/dinov3-vit7b16-pretrain-lvd1689m", "vit_7b_patch16_dinov3", 6_716_030_976),
}


class DINOv3Encoder(FrozenModule):
    """A frozen DINOv3 that shows the tokens of every block.

    It is a constant of the run, not a part of the model. Its network is kept outside the registry of submodules, so a
    module that holds the encoder as an ordinary attribute has no more parameters than before: nothing lands in
    checkpoints, in the optimiser, in DDP's buckets, in FSDP's shards or in an ``init_from`` report. What a parent does
    to its children still arrives where it should and nowhere else:

    - ``parent.to(device)`` and Lightning's own moves take the network along, in its own float32: the precision of the
      parent does not change it (under autocast it computes in the autocast dtype). Images from another device pull it
      to theirs.
    - ``parent.train()`` and ``requires_grad_(True)`` do not reach it; it is always in eval mode, so DINOv3's random
      shift, jitter and rescaling of positions never happen.
    - ``parent.to_empty(...)`` keeps its weights; ``copy.deepcopy(parent)`` copies them.

    Gradients flow through it to the images. To shard a very large one, apply ``fully_shard`` to ``encoder.network``.

    Args:
        source: folder with ``config.json`` and ``model.safetensors`` (as ``save_pretrained`` or timm's
            ``save_for_hf`` writes it), or a hub id; default: the published repository of ``model``.
        model: published size, read only where ``source`` is not given.
        backend: library that builds the network; ``"auto"`` takes the one whose layout the folder has, and
            ``"transformers"`` where ``source`` is not given.
        target_size: images whose longer side exceeds it are resized, in pixels.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: the weights are absent, gated, damaged or not a DINOv3 vision transformer.
        ImportError: the library of the back end is not installed.

    Source: arXiv:2508.10104; its use as a loss: arXiv:2605.05331.
    """

    def __init__(
        self,
        source: str | None = None,
        model: Size = "S",
        backend: Backend = "auto",
        target_size: int = 512,
        revision: str | None = None,
    ) -> None:
        if target_size < 1:
            raise ValueError(f"target_size must be a positive number of pixels, got {target_size}")
        place = _source(source, model, backend)
        folder = fetch_weights(place, revision)
        layout = _layout(folder, backend)
        with ordinary_construction():
            network = _load_timm(folder) if layout == "timm" else _load_transformers(folder)
        super().__init__(network)
        self.source, self.target_size = place, target_size
        self.backend: Literal["timm", "transformers"] = layout
        self.patch_size = _patch_size(network, layout)

    def features(self, images: Tensor) -> list[Tensor]:
        """Tokens after every transformer block, before any final normalisation.

        Args:
            images: float, (B, 3, H, W), range [-1, 1], any size.

        Returns:
            One (B, 1 + R + N, D) tensor per block: class token, R registers, N patches row by row.

        Raises:
            ValueError: the images are not a float batch of three channels.
        """
        pixels = self._prepare(images)
        if self.backend == "timm":
            pairs = self._call("forward_intermediates")(
                pixels, norm=False, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
            )
            return [torch.cat((prefix, patches), dim=1) for patches, prefix in pairs]
        output = self.network(pixels, output_hidden_states=True)
        states = output.hidden_states
        if states[-1] is output.last_hidden_state:
            raise ImportError(
                "this transformers release returns the normalised output as the last hidden state; the DINO distance "
                "needs the raw one: pip install -U transformers, or use backend='timm'"
            )
        return list(states[1:])

    def forward(self, images: Tensor) -> Tensor:
        """One vector per image: the class token after the final LayerNorm.

        Args:
            images: float, (B, 3, H, W), range [-1, 1], any size.

        Returns:
            (B, D).
        """
        pixels = self._prepare(images)
        if self.backend == "timm":
            tokens: Tensor = self._call("forward_features")(pixels)
        else:
            tokens = self.network(pixels).last_hidden_state
        return tokens[:, 0]

    def extra_repr(self) -> str:
        """Source and back end, for ``print``."""
        return f"source={self.source!r}, backend={self.backend!r}, frozen parameters={self.num_parameters:,}"

    def _prepare(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"need float images of shape (B, 3, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}"
            )
        weight = next(self.network.parameters())
        if weight.device != images.device:
            self.network.to(images.device)
        exact = images.to(torch.promote_types(images.dtype, torch.float32))
        return fit_to_patches(exact, self.target_size, self.patch_size).to(weight.dtype)

    def _call(self, method: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.network, method)
        return found


def fit_to_patches(images: Tensor, target_size: int, patch_size: int = 16) -> Tensor:
    """Turn pictures of the house into input of DINOv3.

    [-1, 1] -> [0, 1]; if the longer side exceeds ``target_size``, bicubic resize without antialiasing so that it
    equals ``target_size`` (the shorter side is rounded to a whole pixel, at least 1); sides that are no multiple of
    the patch are filled up at the bottom and the right with mid grey, as ``patchify`` does, so that no pixel is
    dropped; ImageNet mean and standard deviation.

    Args:
        images: float, (B, 3, H, W), range [-1, 1]; values outside are kept, so that their gradient is.
        target_size: largest longer side in pixels.
        patch_size: patch edge in pixels.

    Returns:
        float, (B, 3, H', W'), both sides multiples of ``patch_size``.

    Source: arXiv:2605.05331 (perceptual loss); deviates: the published code lets the network drop the rest of a side
    that is no multiple of the patch.
    """
    height, width = images.shape[-2:]
    pixels = (images + 1) / 2
    longer = max(height, width)
    if longer > target_size:
        height, width = (max(1, round(side * target_size / longer)) for side in (height, width))
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
    pixels = F.pad(pixels, (0, -width % patch_size, 0, -height % patch_size), value=0.5)
    mean = pixels.new_tensor(_MEAN)[:, None, None]
    return (pixels - mean) / pixels.new_tensor(_STD)[:, None, None]


def weight_need(
    source: str | None = None, model: Size = "S", backend: Backend = "auto", revision: str | None = None
) -> WeightNeed:
    """Say, without network and without building anything, whether the weights of an encoder are here.

    Args:
        source: as in ``DINOv3Encoder``.
        model: as in ``DINOv3Encoder``.
        backend: as in ``DINOv3Encoder``.
        revision: as in ``DINOv3Encoder``.

    Returns:
        A record for the preflight: found, and if not, what to do.
    """
    from lightning_gen.training.needs import WeightNeed

    place = _source(source, model, backend)
    folder, problem = find_weights(place, revision)
    if folder is not None:
        try:
            _layout(folder, backend)
        except MissingWeightsError as error:
            folder, problem = None, str(error)
    hint = (
        f"{problem}. DINOv3 comes under a licence of its own: accept it on the hub page (such as that of "
        f"{_PUBLISHED[model].transformers}), log in with `hf auth login` and let the run fetch the weights, or give a "
        f"local folder that holds config.json and model.safetensors"
    )
    what = f"DINOv3 ViT-{model}/16" if source is None else "DINOv3"
    return WeightNeed(what=what, source=place, found=folder is not None, hint="" if folder is not None else hint)


def dinov3_parameters(model: Size) -> int:
    """Number of parameters of a published DINOv3, for a memory estimate before it is built.

    Args:
        model: published size.

    Returns:
        Parameters without the mask token of pretraining.

    Source: arXiv:2508.10104, counted on the built networks.
    """
    return _PUBLISHED[model].parameters


def _source(source: str | None, model: Size, backend: Backend) -> str:
    if model not in _PUBLISHED:
        raise ValueError(f"unknown DINOv3 size {model!r}; there are {', '.join(_PUBLISHED)}")
    if backend not in ("auto", "timm", "transformers"):
        raise ValueError(f"unknown back end {backend!r}; there are auto, timm, transformers")
    if source is None:
        published = _PUBLISHED[model]
        return f"timm/{published.timm}.lvd1689m" if backend == "timm" else published.transformers
    for prefix in ("local-dir:", "hf-hub:"):
        source = source.removeprefix(prefix)
    return source


def _layout(folder: Path, backend: Backend) -> Literal["timm", "transformers"]:
    """Which library a folder was written by; it must hold a DINOv3 vision transformer, and suit the back end."""
    config = read_config(folder)
    kind, found = str(config.get("architecture", config.get("model_type"))), "transformers"
    if "architecture" in config:
        found = "timm"
    if (found == "timm" and "dinov3" not in kind) or (found == "transformers" and kind != "dinov3_vit"):
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {kind!r}, not a DINOv3 vision transformer (transformers' model_type "
            f"'dinov3_vit', or a timm architecture '..._dinov3'): give another source"
        )
    if backend not in ("auto", found):
        raise MissingWeightsError(f"{folder} is written in the layout of {found}: set backend to {found!r} or 'auto'")
    return "timm" if found == "timm" else "transformers"


def _load_timm(folder: Path) -> nn.Module:
    try:
        import timm
        from timm.models.eva import checkpoint_filter_fn
    except ImportError:
        raise ImportError("the timm back end needs the package timm: pip install timm") from None
    from safetensors.torch import load_file

    config = read_config(folder)
    try:
        arguments = {**(config.get("model_args") or {}), "num_classes": 0, "dynamic_img_size": True}
        network: nn.Module = timm.create_model(config["architecture"], pretrained=False, **arguments)
        state: dict[str, Tensor] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            state |= load_file(path)
        state = checkpoint_filter_fn(state, network)
        report = network.load_state_dict(state, strict=False)
    except Exception as error:  # whatever timm dislikes about the files
        raise _unfit(folder, error) from None
    _require_all(folder, report.missing_keys, [key for key in report.unexpected_keys if not key.startswith("head.")])
    return network


def _load_transformers(folder: Path) -> nn.Module:
    try:
        from transformers import DINOv3ViTModel

        loader: Any = DINOv3ViTModel
    except ImportError:
        raise ImportError(
            "the transformers back end needs transformers with DINOv3: pip install -U transformers"
        ) from None
    try:
        network, report = loader.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever transformers dislikes about the files
        raise _unfit(folder, error) from None
    _require_all(folder, [*report["missing_keys"]], [*report["unexpected_keys"]])
    # Eval mode already keeps DINOv3 from moving the positions at random; this holds for whoever reaches for `network`.
    for augmentation in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        setattr(network.config, augmentation, None)
    loaded: nn.Module = network
    return loaded


def _require_all(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    for problem, keys in (("lack", missing), ("hold beyond it", unexpected)):
        if keys:
            raise MissingWeightsError(
                f"the weights in {folder} do not fit its config.json: they {problem} {len(keys)} tensors, such as "
                f"{', '.join(sorted(keys)[:3])}. Copy both files from one source"
            )


def _unfit(folder: Path, error: Exception) -> MissingWeightsError:
    reason = str(error).strip().splitlines() or [""]
    return MissingWeightsError(
        f"the weights in {folder} do not fit its config.json ({type(error).__name__}: {reason[0][:200]}). "
        f"Copy both files from one source"
    )


def _patch_size(network: Any, backend: str) -> int:
    size = network.patch_embed.patch_size if backend == "timm" else network.config.patch_size
    return int(size if isinstance(size, int) else size[0])
