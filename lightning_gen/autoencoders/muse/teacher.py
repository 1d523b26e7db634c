"""Teachers of structure: frozen networks that say which token looks at which.

Shape letters: B images, H and W height and width in pixels, h and w rows and columns of the teacher's grid, M = h w,
C channels of a feature map.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.shipped import SHIPPED, shipped_folder
from lightning_gen.backbones.weights import MissingWeightsError, fetch_weights, find_weights, read_config
from lightning_gen.training.classes import class_named
from lightning_gen.training.needs import WeightNeed

__all__ = ["AffinityTeacher", "AttentionMap", "ColorAffinity", "DINOv3Attention", "StructureTeacher", "TeacherNorm"]

TeacherNorm = Literal["own", "official_double"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_ROWS = 1e-6


class AttentionMap(NamedTuple):
    """Which token looks at which.

    Attributes:
        values: (B, M, M), query by key, rows sum to 1.
        grid: rows and columns h, w with h w = M.
    """

    values: Tensor
    grid: tuple[int, int]


class StructureTeacher(Protocol):
    """Anything that gives an attention map of pictures."""

    def load(self) -> None:
        """Read the weights, if that has not happened yet; called before training."""
        ...

    def need(self) -> WeightNeed | None:
        """Whether the weights are here, for the preflight; None = nothing is needed."""
        ...

    def attention(self, images: Tensor) -> AttentionMap:
        """The map of a batch.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Map and grid, without gradient.
        """
        ...


class DINOv3Attention:
    """Attention of the last layer of a DINOv3 of transformers: mean over heads, class and register tokens dropped.

    Args:
        source: folder or hub id with ``config.json`` and ``model.safetensors`` of a DINOv3 vision transformer; paper:
            ViT-H+/16.
        teacher_norm: ``own`` feeds pictures in [0, 1] with ImageNet's mean and deviation; ``official_double`` maps the
            already normalised picture by (x + 1) / 2 and normalises it again, as the published code does.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2605.05646; arXiv:2508.10104.
    """

    def __init__(
        self,
        source: str = "facebook/dinov3-vith16plus-pretrain-lvd1689m",
        teacher_norm: TeacherNorm = "own",
        revision: str | None = None,
    ) -> None:
        if teacher_norm not in ("own", "official_double"):
            raise ValueError(f"teacher_norm is 'own' or 'official_double', got {teacher_norm!r}")
        self.source, self.teacher_norm, self.revision = source, teacher_norm, revision
        self._network: FrozenModule | None = None

    def need(self) -> WeightNeed | None:
        """Whether the weights are here."""
        folder, problem = find_weights(self.source, self.revision)
        hint = f"{problem}. DINOv3 comes under a licence of its own: accept it on the hub, or give a local folder"
        return WeightNeed("DINOv3 (teacher)", self.source, folder is not None, "" if folder is not None else hint)

    def load(self) -> None:
        """Read the weights.

        Raises:
            MissingWeightsError: they are absent, damaged or not a DINOv3 vision transformer.
        """
        if self._network is not None:
            return
        folder = fetch_weights(self.source, self.revision)
        kind = read_config(folder).get("model_type")
        if kind != "dinov3_vit":
            raise MissingWeightsError(
                f"{folder / 'config.json'} describes {kind!r}; the teacher must be a DINOv3 vision transformer in "
                "transformers' layout (model_type 'dinov3_vit')"
            )
        from transformers import AutoModel

        with ordinary_construction():
            # Fused attention never forms the map.
            network = AutoModel.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        self._network = FrozenModule(network)

    @torch.no_grad()
    def attention(self, images: Tensor) -> AttentionMap:
        """The map of a batch.

        Args:
            images: float, (B, 3, H, W) in [-1, 1]; sides are filled up to multiples of the patch with mid grey.

        Returns:
            Map and grid.
        """
        self.load()
        assert self._network is not None
        network: Any = self._network.network
        self._network.to(images.device)
        patch = int(network.config.patch_size)
        pixels = self._normalised(F.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch)))
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        last = network(pixels.float(), output_attentions=True).attentions[-1].float().mean(1)
        count = grid[0] * grid[1]
        if last.shape[-1] < count:
            raise ValueError(
                f"the teacher {self.source} has {last.shape[-1]} tokens for a grid of {grid[0]} x {grid[1]}"
            )
        values = last[:, -count:, -count:]
        return AttentionMap(values / (values.sum(-1, keepdim=True) + _ROWS), grid)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(x)[:, None, None] for x in (_MEAN, _STD))
        pixels = ((images + 1) / 2 - mean) / std
        return pixels if self.teacher_norm == "own" else ((pixels + 1) / 2 - mean) / std


class AffinityTeacher:
    """A map from any frozen encoder with feature maps: how alike the features of two places are.

    A = softmax(cos(f_i, f_j) / tau)

    Args:
        encoder: name of a class with ``from_pretrained(weights)`` and ``features(images) -> list of (B, C, h, w)``, for
            instance ``lightning_gen.shapes.encoder.ShapesEncoder``.
        weights: folder, hub id or shipped name.
        temperature: tau.

    Source: the affinity of tokens stands in for attention where an encoder has none; not in the paper.
    """

    def __init__(self, encoder: str, weights: str, temperature: float = 0.1) -> None:
        if temperature <= 0:
            raise ValueError(f"the temperature of affinities is positive, got {temperature}")
        self.encoder, self.weights, self.temperature = encoder, weights, temperature
        self._network: FrozenModule | None = None

    def need(self) -> WeightNeed | None:
        """Whether shipped weights are here; of others nothing is known before they are loaded."""
        if self.weights not in SHIPPED:
            return None
        try:
            shipped_folder(self.weights)
        except MissingWeightsError as error:
            return WeightNeed("encoder (teacher)", self.weights, False, str(error))
        return WeightNeed("encoder (teacher)", self.weights, True, "")

    def load(self) -> None:
        """Read the weights.

        Raises:
            ValueError: the class has no feature maps.
        """
        if self._network is None:
            with ordinary_construction():
                network: Any = class_named(self.encoder, "encoder").from_pretrained(self.weights)
            if not hasattr(network, "features"):
                raise ValueError(f"{self.encoder} has no features(images), which gives maps (B, C, h, w)")
            self._network = FrozenModule(network)

    @torch.no_grad()
    def attention(self, images: Tensor) -> AttentionMap:
        """The map of a batch.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Map and grid.
        """
        self.load()
        assert self._network is not None
        network: Any = self._network.network
        self._network.to(images.device)
        last: Tensor = network.features(images.float())[-1]
        tokens = F.normalize(last.flatten(2).transpose(1, 2), dim=-1)
        values = (tokens @ tokens.transpose(1, 2) / self.temperature).softmax(-1)
        return AttentionMap(values, (last.shape[2], last.shape[3]))


class ColorAffinity:
    """A map without any network: places look at places of the same colour. It needs no weights and no download.

    A = softmax(-|c_i - c_j|^2 / tau),  c_i the mean colour of a cell in [-1, 1]

    Args:
        cell: edge of a cell in pixels.
        temperature: tau.

    Source: not in the paper; for worlds of flat colours, such as the embedded one.
    """

    def __init__(self, cell: int = 8, temperature: float = 0.1) -> None:
        if cell < 1 or temperature <= 0:
            raise ValueError(f"cell is at least 1 pixel and temperature positive, got {cell} and {temperature}")
        self.cell, self.temperature = cell, temperature

    def need(self) -> WeightNeed | None:
        """Nothing."""
        return None

    def load(self) -> None:
        """Nothing to read."""

    @torch.no_grad()
    def attention(self, images: Tensor) -> AttentionMap:
        """The map of a batch.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], H and W at least one cell.

        Returns:
            Map and grid.
        """
        cells = F.avg_pool2d(images.float(), self.cell)
        tokens = cells.flatten(2).transpose(1, 2)
        values = (-torch.cdist(tokens, tokens).square() / self.temperature).softmax(-1)
        return AttentionMap(values, (cells.shape[2], cells.shape[3]))
