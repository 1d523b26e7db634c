"""Published vision transformers as frozen encoders of patches, through transformers, from a folder or from the hub.

Shape letters: B images, H and W height and width, p patch edge, N = rows x cols patches, D width, R registers.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .patch_features import MapPatches, PatchEncoder, Three, UntrainedPatches
from .weights import MissingWeightsError, fetch_weights, find_weights, read_config

if TYPE_CHECKING:
    from lightning_gen.training.needs import WeightNeed

__all__ = [
    "DINOPatches",
    "DINOv2Patches",
    "DINOv3Patches",
    "InternViTPatches",
    "MAEPatches",
    "SigLIP2Patches",
    "patch_encoder_named",
]

_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EPS: Final = 1e-6


class _FromFolder(PatchEncoder):
    """An encoder whose weights are a folder or a hub repository in transformers' layout."""

    kinds: tuple[str, ...]
    what: str

    def __init__(self, source: str, patch: int, statistics: tuple[Three, Three], revision: str | None) -> None:
        super().__init__(patch, *statistics)
        self.source, self.revision = source, revision

    def need(self) -> WeightNeed | None:
        from lightning_gen.training.needs import WeightNeed

        folder, problem = find_weights(self.source, self.revision)
        hint = f"{problem}. Give a local folder that holds config.json and model.safetensors, or fetch it from the hub"
        return WeightNeed(self.what, self.source, folder is not None, "" if folder is not None else hint)

    def arguments(self) -> dict[str, Any]:
        return {"source": self.source, "patch": self.patch, "revision": self.revision}

    def save(self, folder: Path) -> dict[str, Any]:
        here = fetch_weights(self.source, self.revision)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted([*here.glob("*.json"), *here.glob("*.safetensors")]):
            shutil.copyfile(path, folder / path.name)
        return {"source": ".", "patch": self.patch}

    def _build(self) -> nn.Module:
        folder = fetch_weights(self.source, self.revision)
        config = read_config(folder)
        kind = str(config.get("model_type"))
        if kind not in self.kinds:
            raise MissingWeightsError(
                f"{folder / 'config.json'} describes {kind!r}, {type(self).__name__} takes {' or '.join(self.kinds)}: "
                "give another source, or the encoder that fits"
            )
        network = self._read(folder, kind)
        found = self._patch_of(network)
        if found != self.patch:
            raise MissingWeightsError(
                f"{self.source} has patches of {found} pixels, {type(self).__name__} was told {self.patch}: set its "
                f"patch to {found}"
            )
        return network

    @abstractmethod
    def _read(self, folder: Path, kind: str) -> nn.Module:
        """The network of a folder."""

    def _patch_of(self, network: Any) -> int:
        size = network.config.patch_size
        return int(size if isinstance(size, int) else size[0])

    def _pretrained(self, name: str, folder: Path, norm: str, **options: Any) -> nn.Module:
        """Load by a class of transformers and take the affine part out of its last norm."""
        import transformers

        kind: Any = getattr(transformers, name, None)
        if kind is None:
            raise ImportError(f"{self.what} needs a transformers release with {name}: pip install -U transformers")
        try:
            network, report = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # whatever transformers dislikes about the files
            reason = str(error).strip().splitlines() or [""]
            raise MissingWeightsError(
                f"the weights in {folder} do not fit its config.json ({type(error).__name__}: {reason[0][:200]}). "
                "Copy both files from one source"
            ) from None
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(("pooler.", "head.")))
        if missing:
            raise MissingWeightsError(
                f"the weights in {folder} lack {len(missing)} tensors, such as {', '.join(missing[:3])}. Copy "
                "config.json and weights from one source"
            )
        old = getattr(network, norm)
        setattr(network, norm, nn.LayerNorm(old.normalized_shape, eps=old.eps, elementwise_affine=False))
        loaded: nn.Module = network
        return loaded


class _Standard(_FromFolder):
    """A vision transformer whose output begins with tokens that are no patches."""

    options: dict[str, Any] = {}
    """What its forward pass is told beside the pixels."""

    def _skipped(self) -> int:
        """Class token and registers in front of the patches."""
        return 1

    def _features(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.network(pixels, **self._arguments(pixels)).last_hidden_state
        return tokens[:, self._skipped() :]

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        found = self.network(pixels, output_hidden_states=True, **self._arguments(pixels)).hidden_states
        return [tokens[:, self._skipped() :] for tokens in found[1:]]

    def _arguments(self, pixels: Tensor) -> dict[str, Any]:
        return self.options


class DINOv2Patches(_Standard):
    """DINOv2, with registers or without.

    Args:
        source: folder or hub id in transformers' layout.
        patch: p in pixels.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2304.07193, arXiv:2309.16588.
    """

    kinds, what = ("dinov2_with_registers", "dinov2"), "DINOv2"

    def __init__(
        self, source: str = "facebook/dinov2-with-registers-large", patch: int = 14, revision: str | None = None
    ) -> None:
        super().__init__(source, patch, _IMAGENET, revision)

    def _read(self, folder: Path, kind: str) -> nn.Module:
        name = "Dinov2WithRegistersModel" if kind == "dinov2_with_registers" else "Dinov2Model"
        return self._pretrained(name, folder, "layernorm")

    def _skipped(self) -> int:
        config: Any = self.network.config
        return 1 + int(getattr(config, "num_register_tokens", 0))


class DINOv3Patches(_Standard):
    """DINOv3 vision transformers.

    Args:
        source: folder or hub id in transformers' layout.
        patch: p in pixels.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2508.10104.
    """

    kinds, what = ("dinov3_vit",), "DINOv3"

    def __init__(
        self, source: str = "facebook/dinov3-vitl16-pretrain-lvd1689m", patch: int = 16, revision: str | None = None
    ) -> None:
        super().__init__(source, patch, _IMAGENET, revision)

    def _read(self, folder: Path, kind: str) -> nn.Module:
        return self._pretrained("DINOv3ViTModel", folder, "norm")

    def _skipped(self) -> int:
        config: Any = self.network.config
        return 1 + int(config.num_register_tokens)


class MAEPatches(_Standard):
    """The encoder of a masked auto-encoder that sees everything.

    Its mask ratio is 0, its order of patches is their order in the picture (noise = 0, 1, 2, ...), its positions are
    interpolated.

    Args:
        source: folder or hub id in transformers' layout.
        patch: p in pixels.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2111.06377; use as a prior: arXiv:2605.07915.
    """

    kinds, what = ("vit_mae",), "MAE"

    def __init__(self, source: str = "facebook/vit-mae-large", patch: int = 16, revision: str | None = None) -> None:
        super().__init__(source, patch, _IMAGENET, revision)

    def _read(self, folder: Path, kind: str) -> nn.Module:
        return self._pretrained("ViTMAEModel", folder, "layernorm", mask_ratio=0.0)

    def _arguments(self, pixels: Tensor) -> dict[str, Any]:
        count = (pixels.shape[-2] // self.patch) * (pixels.shape[-1] // self.patch)
        order = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)
        return {"noise": order, "interpolate_pos_encoding": True}


class SigLIP2Patches(_Standard):
    """The vision tower of SigLIP 2 (or SigLIP) at a fixed resolution; it has no class token.

    Args:
        source: folder or hub id in transformers' layout; of a model of pictures and texts the vision tower is read.
        patch: p in pixels.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2502.14786.
    """

    kinds, what = ("siglip", "siglip_vision_model"), "SigLIP 2"
    options = {"interpolate_pos_encoding": True}

    def __init__(
        self, source: str = "google/siglip2-so400m-patch16-256", patch: int = 16, revision: str | None = None
    ) -> None:
        super().__init__(source, patch, _HALF, revision)

    def _read(self, folder: Path, kind: str) -> nn.Module:
        return self._pretrained("SiglipVisionModel", folder, "post_layernorm")

    def _skipped(self) -> int:
        return 0


class DINOPatches(_Standard):
    """The first DINO (ViT-S/8): what feature discriminators look through.

    Args:
        source: folder or hub id in transformers' layout.
        patch: p in pixels.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2104.14294; as a discriminator: arXiv:2301.09515.
    """

    kinds, what = ("vit",), "DINO"
    options = {"interpolate_pos_encoding": True}

    def __init__(self, source: str = "facebook/dino-vits8", patch: int = 8, revision: str | None = None) -> None:
        super().__init__(source, patch, _IMAGENET, revision)

    def _read(self, folder: Path, kind: str) -> nn.Module:
        return self._pretrained("ViTModel", folder, "layernorm", add_pooling_layer=False)


class InternViTPatches(_FromFolder):
    """InternViT of 448 pixels, every 2 x 2 neighbours one token.

    h = LayerNorm without affine part( merge( 2 x 2 neighbours ) ),  merge = LayerNorm, Linear, GELU, Linear

    Args:
        source: folder or hub id, see ``backbones.intern_vit.InternViT.from_pretrained``.
        merger: safetensors file with the merge's ``0.weight``, ``0.bias``, ``1.*`` and ``3.*``; None = neighbours are
            only laid side by side, which makes tokens of 4 D numbers.
        patch: p in pixels of one merged token, twice the network's.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2504.10479; as a prior: arXiv:2605.07915; deviates: whose weights the merge has is not published, so
    they are an argument.
    """

    kinds, what = ("internvl_vision", "internvl", "intern_vit_6b", "internvl_chat"), "InternViT"

    def __init__(
        self,
        source: str = "OpenGVLab/InternViT-300M-448px-V2_5",
        merger: str | None = None,
        patch: int = 28,
        revision: str | None = None,
    ) -> None:
        super().__init__(source, patch, _IMAGENET, revision)
        self.merger = merger

    def arguments(self) -> dict[str, Any]:
        """See :meth:`PatchEncoder.arguments`."""
        return {**super().arguments(), "merger": self.merger}

    def save(self, folder: Path) -> dict[str, Any]:
        """See :meth:`PatchEncoder.save`."""
        arguments = super().save(folder)
        if self.merger is not None:
            shutil.copyfile(Path(self.merger).expanduser(), folder / "merger.safetensors")
            arguments["merger"] = "merger.safetensors"
        return arguments

    def _read(self, folder: Path, kind: str) -> nn.Module:
        from .intern_vit import InternViT

        network = InternViT.from_pretrained(str(folder))
        return _Merged(network, network.patch, _merge_layers(self.merger, 4 * network.width))

    def _patch_of(self, network: Any) -> int:
        return 2 * int(network.patch)

    def _features(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.network(pixels)
        return tokens


class _Merged(nn.Module):
    """A network of one token per patch behind the merge of 2 x 2 neighbours."""

    def __init__(self, network: nn.Module, patch: int, merge: nn.Module) -> None:
        super().__init__()
        self.inner, self.patch, self.merge = network, patch, merge

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.inner(pixels)[:, 1:]
        rows, cols = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        quads = tokens.view(len(tokens), rows // 2, 2, cols // 2, 2, -1).transpose(2, 3).flatten(1, 2).flatten(2)
        merged = self.merge(quads)
        return F.layer_norm(merged, merged.shape[-1:], eps=_EPS)


def _merge_layers(merger: str | None, width: int) -> nn.Module:
    if merger is None:
        return nn.Identity()
    from safetensors.torch import load_file

    path = Path(merger).expanduser()
    if not path.is_file():
        raise MissingWeightsError(f"there is no merger at {merger}: give its safetensors file, or null for none")
    state = load_file(path)
    try:
        hidden, out = state["1.weight"].shape[0], state["3.weight"].shape[0]
        layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
        layers.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise MissingWeightsError(
            f"{merger} is no merger of tokens of {width} numbers (0. LayerNorm, 1. Linear, 3. Linear): {reason}"
        ) from None
    return layers


_ENCODERS: Final[dict[str, type[PatchEncoder]]] = {
    kind.__name__: kind
    for kind in (
        DINOPatches,
        DINOv2Patches,
        DINOv3Patches,
        InternViTPatches,
        MAEPatches,
        MapPatches,
        SigLIP2Patches,
        UntrainedPatches,
    )
}


def patch_encoder_named(name: str, arguments: dict[str, Any], folder: Path) -> PatchEncoder:
    """Build an encoder that was saved beside a model.

    Only encoders and networks of this package are built: a folder of weights from somebody else must not choose what is
    imported.

    Args:
        name: of its class.
        arguments: what ``save`` returned.
        folder: which paths in them are relative to.

    Returns:
        The encoder, not loaded.

    Raises:
        ValueError: the class or its network is none of this package; give the encoder itself.
    """
    if name not in _ENCODERS or not str(arguments.get("encoder", "lightning_gen.")).startswith("lightning_gen."):
        raise ValueError(
            f"the model in {folder.parent} was made with the encoder {name} {arguments}, which is not of this package: "
            "build it yourself and hand it to from_pretrained(..., encoder=...)"
        )
    given = dict(arguments)
    for path in ("source", "merger"):
        if path in given:
            given[path] = str(folder / given[path])
    return _ENCODERS[name](**given)
