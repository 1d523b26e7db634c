"""The extractors that published numbers are computed with: Inception, DINOv2, DINOv3, CLIP.

Shape letters: B images, H and W height and width, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.vision import Backend, DINOv3Encoder
from lightning_gen.metrics.extraction.dinov2 import Positions, dinov2_pixels, load_dinov2
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor, ModuleExtractor
from lightning_gen.metrics.extraction.inception_weights import load_inception
from lightning_gen.metrics.extraction.resizing import Resize, inception_input
from lightning_gen.metrics.images import Images, as_uint8_list

if TYPE_CHECKING:
    from lightning_gen.metrics.extraction.clip import CLIPModel

__all__ = [
    "CLIPImageExtractor",
    "DINOv2Extractor",
    "DINOv3Extractor",
    "FIDInceptionV3",
    "FeatureExtractor",
    "ModuleExtractor",
]

_PROVENANCE: Final[dict[bool | None, tuple[str, str]]] = {
    True: ("", ""),
    False: ("-unpublished", "weights of Inception that are not the published ones: compares with no published number"),
    None: (
        "-unverified",
        "Inception from TorchScript, of which no published sha256 is known: compares with published numbers if the "
        "file is the published one",
    ),
}
"""Whether the weights are the published ones -> the end of the extractor's name, and a note for its numbers."""

_INCEPTION_NAMES: Final[dict[Resize, str]] = {
    "tf1": "adm-tf1",
    "clean": "clean",
    "torch": "pytorch-fid",
    "antialias": "torchmetrics-antialias",
    "vitok_release": "vitok-release",
}


class FIDInceptionV3(FeatureExtractor):
    """The Inception network of gFID, sFID, IS, KID, precision and recall, and rFID.

    Features: ``pool`` (B, 2048); ``logits`` (B, 1008), without bias; ``spatial`` (B, 2023) for sFID, which a
    TorchScript file does not give.

    Its name says how pictures were resized: ``adm-tf1`` (what published gFID means), ``clean``, ``pytorch-fid``,
    ``torchmetrics-antialias``, ``vitok-release``. With other weights than the published ones it ends in
    ``-unpublished``, with a TorchScript file, whose published sha256 is not known, in ``-unverified``; either comes
    with a note on every number.

    Args:
        weights: file on this machine, see ``inception_weights.PUBLISHED_FILES``; nothing is fetched.
        resize: how pictures come to 299 x 299, see ``resizing.inception_input``.
        dtype: float32 or float64; a TorchScript file knows float32 only.
        expected_sha256: see ``inception_weights.load_inception``.

    Raises:
        MissingWeightsError: no such file, another sha256, or a file that does not hold this network.
        ValueError: an unknown ``resize`` or dtype.
    """

    def __init__(
        self,
        weights: str | Path,
        resize: Resize = "tf1",
        dtype: torch.dtype = torch.float32,
        expected_sha256: str | None = None,
    ) -> None:
        if resize not in _INCEPTION_NAMES:
            raise ValueError(f"unknown resize {resize!r}: choose one of {', '.join(_INCEPTION_NAMES)}")
        loaded = load_inception(weights, expected_sha256)
        if loaded.layout == "torchscript" and dtype != torch.float32:
            raise ValueError(f"{weights} is TorchScript and computes in float32; {dtype} needs one of the .pth files")
        ending, note = _PROVENANCE[loaded.published]
        name = _INCEPTION_NAMES[resize] + ending
        super().__init__(loaded.network, name, loaded.sizes, dtype, loaded.fingerprint, note)
        self.resize: Resize = resize

    def extract(self, images: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureExtractor.extract`."""
        features: dict[str, Tensor] = self.network(inception_input(images, self.resize, self.dtype, self.device))
        return features


class DINOv3Extractor(FeatureExtractor):
    """The class token of DINOv3 ViT-B/16 after the final norm, as ViTok-v2's rFDD and gFDD use it.

    Pictures come to 512 x 512 by bicubic interpolation with antialiasing, in floating point and without clamping.

    Args:
        source: folder or hub id, see ``DINOv3Encoder``; default: the published ViT-B/16.
        dtype: float32 or float64.
        backend: library that builds the network.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: the weights are absent, gated, damaged or not a DINOv3 vision transformer.

    Source: arXiv:2605.05331 and its released code.
    """

    _EDGE = 512

    def __init__(
        self,
        source: str | None = None,
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
        revision: str | None = None,
    ) -> None:
        encoder = DINOv3Encoder(source, "B", backend, self._EDGE, revision)
        network: Any = encoder.network
        width = int(network.embed_dim if encoder.backend == "timm" else network.config.hidden_size)
        size = {384: "s16", 768: "b16", 1024: "l16", 1280: "h16", 4096: "7b16"}.get(width, f"{width}d")
        super().__init__(network, f"dinov3-{size}", {"pool": width}, dtype)
        self.__dict__["encoder"] = encoder

    encoder: DINOv3Encoder
    """Holds the same network; not a registered submodule."""

    def extract(self, images: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureExtractor.extract`."""
        groups = [images] if isinstance(images, Tensor) else [image[None] for image in images]
        pixels = [
            F.interpolate(
                group.to(self.device, self.dtype) / 127.5 - 1,
                size=(self._EDGE, self._EDGE),
                mode="bicubic",
                align_corners=False,
                antialias=True,
            )
            for group in groups
        ]
        return {"pool": self.encoder(torch.cat(pixels))}


class DINOv2Extractor(FeatureExtractor):
    """The class token of DINOv2 ViT-L/14 after the final norm: the features of FDD (FD-DINOv2).

    Pictures come to 224 x 224 by Pillow's bicubic filter on 8-bit values, then ImageNet's mean and standard deviation.
    Both published layouts give the same features up to rounding, because the learned positions are resampled here. How
    is part of the name: ``dinov2-l14`` as in the published code, ``dinov2-l14-transformers`` as transformers does it.

    Args:
        source: folder or hub id in transformers' layout, or the file of torch.hub on this machine, which timm runs.
        dtype: float32 or float64.
        positions: whose rule brings the 37 x 37 learned positions to 16 x 16.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: the weights are absent, damaged, or not DINOv2.
        ImportError: the library of the layout is not installed.

    Source: arXiv:2306.04675, layer6ai-labs/dgm-eval; arXiv:2304.07193.
    """

    def __init__(
        self,
        source: str | Path = "facebook/dinov2-large",
        dtype: torch.dtype = torch.float32,
        positions: Positions = "torch_hub",
        revision: str | None = None,
    ) -> None:
        network = load_dinov2(source, positions, revision)
        size = {384: "s14", 768: "b14", 1024: "l14", 1536: "g14"}.get(network.width, f"{network.width}d")
        name = f"dinov2-{size}" if positions == "torch_hub" else f"dinov2-{size}-transformers"
        super().__init__(network, name, {"pool": network.width}, dtype)

    def extract(self, images: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureExtractor.extract`."""
        return {"pool": self.network(dinov2_pixels(as_uint8_list(images)).to(self.device, self.dtype))}


class CLIPImageExtractor(FeatureExtractor):
    """Unit vectors of CLIP's image tower: the features of CMMD, with ViT-L/14 at 336 pixels.

    Of pictures that are not square the middle is seen. The features are float32 always. Its name tells the tower, from
    depth, width, patch and edge of its configuration: ``clip-l14-336``, ``clip-b16-224``.

    Args:
        source: see ``load_clip``; default: the published ViT-L/14-336.
        model: name of the architecture in open_clip, for weights that come without a configuration.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: the weights are absent, damaged, or not CLIP.

    Source: arXiv:2401.09603; arXiv:2103.00020.
    """

    def __init__(
        self,
        source: str = "openai/clip-vit-large-patch14-336",
        model: str | None = None,
        revision: str | None = None,
    ) -> None:
        from lightning_gen.metrics.extraction.clip import load_clip

        clip = load_clip(source, model, revision)
        with torch.no_grad():
            width = clip.embed_images([torch.zeros(3, 32, 32, dtype=torch.uint8)]).shape[1]
        tower = clip.architecture.removeprefix("vit-")
        name = tower if tower.startswith("clip-") else f"clip-{tower}"
        super().__init__(clip.network, name, {"pool": width}, fingerprint=clip.fingerprint)
        self.__dict__["clip"] = clip

    clip: CLIPModel
    """Holds the same network; not a registered submodule."""

    def extract(self, images: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureExtractor.extract`."""
        return {"pool": self.clip.embed_images(as_uint8_list(images))}
