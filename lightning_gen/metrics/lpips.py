"""LPIPS: distance of two pictures in the features of an ImageNet classifier, weighted as people judge them.

``net="alex"`` is what evaluations report, ``net="vgg"`` what training losses use.

Shape letters: B images, C channels of a feature map, H and W height and width.
"""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import FrozenModule, full_float32
from lightning_gen.metrics.protocol import Protocol, file_sha256
from lightning_gen.metrics.reconstruction import PerImageMean
from lightning_gen.metrics.reconstruction_pairs import Images, Quantise, check_target_range, comparable
from lightning_gen.training.safe_reading import load_plain

__all__ = ["LPIPS", "LearnedPerceptualSimilarity", "LPIPSNet"]

LPIPSNet = Literal["alex", "vgg", "squeeze"]

_SHIFT: Final = (-0.030, -0.088, -0.188)
_SCALE: Final = (0.458, 0.448, 0.450)
_EPSILON: Final = 1e-10


class _Trunk(NamedTuple):
    model: str  # of torchvision
    taps: tuple[int, ...]  # layers of `features` after which is looked
    channels: tuple[int, ...]
    smallest: int  # shortest side in pixels
    published: tuple[str, ...]  # beginnings of sha256 of torchvision's files


_TRUNKS: Final[dict[LPIPSNet, _Trunk]] = {
    "alex": _Trunk("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31, ("7be5be79", "4df8aa71")),
    "vgg": _Trunk("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16, ("397923af",)),
    "squeeze": _Trunk(
        "squeezenet1_1",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        ("b8a52dc0", "f364aa15"),
    ),
}


class LPIPS(FrozenModule):
    """LPIPS version 0.1, differentiable, frozen, in float32.

    d(y, x) = sum over layers l of mean over positions of sum over channels c of
              w_lc (u_lc(y) - u_lc(x))^2,   u_l = f_l / (|f_l| + 1e-10)
    with f_l the layers of the trunk on (image - shift) / scale

    Args:
        trunk: path of torchvision's ImageNet weights of the net: ``alexnet-owt-7be5be79.pth``, ``vgg16-397923af.pth``
            or ``squeezenet1_1-b8a52dc0.pth``, or the same tensors as safetensors. Nothing is downloaded.
        net: which trunk.
        heads: path of the linear weights w in the format of ``weights/v0.1/alex.pth`` of the package lpips; default:
            the copy that ships with torchmetrics.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown net, or a file of another network.
        ImportError: torchvision is not installed.

    Source: arXiv:1801.03924 eq. 1; repository richzhang/PerceptualSimilarity.
    """

    def __init__(self, trunk: str, net: LPIPSNet = "alex", heads: str | None = None) -> None:
        if net not in _TRUNKS:
            raise ValueError(f"unknown net {net!r}; there are {', '.join(_TRUNKS)}")
        path = Path(trunk).expanduser()
        with _heads_file(heads, net) as place:
            super().__init__(_Distance(_load_trunk(path, net), _load_heads(place, net), _TRUNKS[net].taps))
            self.heads_sha256 = file_sha256(place)
        self.net = net
        self._is_range_known = False
        self.trunk_sha256 = file_sha256(path)

    @property
    def is_published(self) -> bool:
        """Whether the trunk is a file that torchvision publishes, by its sha256."""
        return self.trunk_sha256.startswith(_TRUNKS[self.net].published)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distances of pairs.

        Args:
            prediction: y, float, (B, 3, H, W), range [-1, 1]; not clamped, so that gradients stay.
            target: x, the same shape, range [-1, 1]. In training, where prediction asks for a gradient, only the first
                call checks this: it would make every step wait for the GPU.

        Returns:
            float32, (B,), >= 0 with the published heads; 0 = equal; NaN where an image holds NaN.

        Raises:
            ValueError: shapes differ, not three channels, a target outside [-1, 1], or pictures smaller than the trunk
                can see.
        """
        self._check(prediction, target)
        with full_float32(self.device):
            sides = (side.to(self.device, torch.float32) for side in (prediction, target))
            distances: Tensor = self.network(*sides)
        return distances

    def extra_repr(self) -> str:
        """Net and beginning of the trunk's sha256, for ``print``."""
        return f"net={self.net!r}, trunk sha256={self.trunk_sha256[:8]}"

    def _check(self, prediction: Tensor, target: Tensor) -> None:
        floats = prediction.is_floating_point() and target.is_floating_point()
        if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3 or not floats:
            raise ValueError(
                f"need two float batches (B, 3, H, W) of one shape in [-1, 1], got {prediction.dtype} "
                f"{tuple(prediction.shape)} and {target.dtype} {tuple(target.shape)}"
            )
        smallest = _TRUNKS[self.net].smallest
        if min(prediction.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS with {self.net} needs images of at least {smallest} x {smallest} pixels, got "
                f"{tuple(prediction.shape[-2:])}"
            )
        is_training = torch.is_grad_enabled() and prediction.requires_grad
        if not (is_training and self._is_range_known):
            check_target_range(target)
            self._is_range_known = True


class LearnedPerceptualSimilarity(PerImageMean):
    """Mean over images of LPIPS; images in [-1, 1], reconstructions clamped.

    Args:
        lpips: the distance; ``net="alex"`` for numbers that compare with published ones.
        quantise: compare 8-bit values; see ``psnr_per_image``.
    """

    quantity = "lpips"
    higher_is_better = False

    def __init__(self, lpips: LPIPS, quantise: Quantise = False) -> None:
        super().__init__()
        self.lpips = lpips
        self.quantise = quantise

    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """LPIPS of every image.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float64, (B,).
        """
        pairs = comparable(prediction, target, self.quantise)
        return torch.cat([self.lpips(y, x).detach().double() for y, x in pairs])

    @property
    def protocol(self) -> Protocol:
        """Net and weights behind the number."""
        return Protocol(
            "lpips",
            self.lpips.net,
            details={
                "version": "0.1",
                "trunk": self.lpips.trunk_sha256,
                "heads": self.lpips.heads_sha256,
                "trunk_is_published": self.lpips.is_published,
                "quantise": self.quantise,
            },
        )


class _Distance(nn.Module):
    """The network: trunk, heads, and the sum over the layers at ``taps``."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: nn.Sequential, heads: list[Tensor], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)
        self.taps = taps
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        total = prediction.new_zeros(len(prediction))
        layers = zip(self._layers(prediction), self._layers(target), strict=True)
        for head, (y, x) in zip(self.heads, layers, strict=True):
            total = total + ((_unit(y) - _unit(x)).square() * head).sum(1).mean((1, 2))
        return total

    def _layers(self, images: Tensor) -> Iterator[Tensor]:
        features = (images - self.shift) / self.scale
        for number, layer in enumerate(self.trunk):
            features = layer(features)
            if number in self.taps:
                yield features


def _unit(features: Tensor) -> Tensor:
    # Where all channels are 0 the root has no slope and its gradient is NaN; the ReLU before it, whose output is 0
    # there, lets none of it pass.
    return features / (features.square().sum(1, keepdim=True).sqrt() + _EPSILON)


def _load_trunk(path: Path, net: LPIPSNet) -> nn.Sequential:
    try:
        import torchvision
    except ImportError:
        raise ImportError("the trunks of LPIPS need the package torchvision: pip install torchvision") from None

    state = {
        name.removeprefix("features."): tensor for name, tensor in _read(path).items() if name.startswith("features.")
    }
    # On the meta device: the classifiers that are thrown away have a hundred million weights.
    with torch.device("meta"):
        trunk: nn.Sequential = getattr(torchvision.models, _TRUNKS[net].model)(weights=None).features
    try:
        trunk.load_state_dict(state, assign=True)
    except RuntimeError:
        raise ValueError(
            f"{path} holds other weights than torchvision's {_TRUNKS[net].model}, the trunk of net={net!r}"
        ) from None
    return trunk[: _TRUNKS[net].taps[-1] + 1]


@contextlib.contextmanager
def _heads_file(heads: str | None, net: LPIPSNet) -> Iterator[Path]:
    if heads is not None:
        yield Path(heads).expanduser()
        return
    bundled = importlib.resources.files("torchmetrics") / f"functional/image/lpips_models/{net}.pth"
    with importlib.resources.as_file(bundled) as place:
        yield place


def _load_heads(path: Path, net: LPIPSNet) -> list[Tensor]:
    channels = _TRUNKS[net].channels
    state = _read(path)
    names = [f"lin{number}.model.1.weight" for number in range(len(channels))]
    shapes = [tuple(state[name].shape) if name in state else None for name in names]
    if shapes != [(1, width, 1, 1) for width in channels]:
        raise ValueError(
            f"{path} does not hold the linear weights of LPIPS for net={net!r} ({names[0]} and so on, each "
            f"(1, channels, 1, 1))"
        )
    return [state[name][0] for name in names]


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return load_plain(path, mmap=False)  # files of old releases cannot be mapped
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return load_file(path)
