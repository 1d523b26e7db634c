"""Pictures to feature vectors: what all extractors have in common, and the one that wraps any module.

Shape letters: B images, H and W height and width, D features.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.frozen import FrozenModule, full_float32
from lightning_gen.metrics.images import Images, as_uint8_list, check_uint8

__all__ = [
    "FeatureExtractor",
    "ModuleExtractor",
    "state_fingerprint",
]


class FeatureExtractor(FrozenModule, ABC):
    """A frozen network that turns 8-bit pictures into named feature vectors.

    It is a constant of the run, see :class:`FrozenModule`: never trained, never saved, moved with whoever holds it.

    It computes in float32 (or float64) without autocast and TF32, whatever the run has chosen, and features of a
    picture do not depend on the other pictures of its batch, up to rounding.

    Args:
        network: what holds the weights, in float32 or less; frozen and cast here, so it must not be used elsewhere.
        name: goes into protocol ids, for instance ``"adm-tf1"``; no slash.
        sizes: name of a feature -> D; ``"pool"`` must be among them.
        dtype: float32 or float64.
        fingerprint: sha256 of the weights; None = ``state_fingerprint(network)``.
        note: a warning that travels with every number of this extractor.

    Raises:
        ValueError: a name with a slash, another dtype, or no ``"pool"``.
    """

    name: str
    """What the extractor is called in protocol ids."""
    fingerprint: str
    """sha256 of the weights before they are cast to ``dtype``, 64 hexadecimal digits."""
    sizes: dict[str, int]
    """Name of a feature -> its number of values D."""
    note: str
    """What must be known about every number of it, for instance that the weights are not the published ones."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        sizes: Mapping[str, int],
        dtype: torch.dtype = torch.float32,
        fingerprint: str | None = None,
        note: str = "",
    ) -> None:
        if not name or "/" in name:
            raise ValueError(f"an extractor needs a name without a slash, got {name!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"features are computed in torch.float32 or torch.float64, not in {dtype}")
        if "pool" not in sizes:
            raise ValueError(f"extractor {name}: features {sorted(sizes)} lack 'pool'")
        fingerprint = fingerprint or state_fingerprint(network)
        super().__init__(network)
        self.network.to(dtype)
        self.name = name
        self.sizes = dict(sizes)
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.note = note

    @abstractmethod
    def extract(self, images: Images) -> dict[str, Tensor]:
        """Compute the features; ``forward`` calls it with checked pictures, without gradient and in exact arithmetic.

        Args:
            images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes, on any device.

        Returns:
            Name of a feature -> float, (B, D).
        """

    @property
    def device(self) -> torch.device:
        """Where the network and the features are."""
        return _device(self.network)

    @torch.no_grad()
    def forward(self, images: Images) -> dict[str, Tensor]:
        """Features of pictures.

        Args:
            images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes, on any device.

        Returns:
            Name of a feature -> (B, D) in the extractor's dtype, on the network's device.

        Raises:
            ValueError: pictures that are not 8-bit RGB, or a feature that is not finite.
        """
        check_uint8(images)
        device = self.device
        if len(images) == 0:
            return {key: torch.zeros(0, size, dtype=self.dtype, device=device) for key, size in self.sizes.items()}
        with full_float32(device):
            features = self.extract(images)
        for key, size in self.sizes.items():
            self._check(key, features[key], (len(images), size))
        return features

    def extra_repr(self) -> str:
        """Name, features and the beginning of the fingerprint, for ``print``."""
        return f"name={self.name!r}, sizes={self.sizes}, dtype={self.dtype}, fingerprint={self.fingerprint[:12]}"

    def _check(self, key: str, feature: Tensor, shape: tuple[int, int]) -> None:
        if feature.shape != shape:
            raise ValueError(f"extractor {self.name}: {key!r} has shape {tuple(feature.shape)}, expected {shape}")
        finite = torch.isfinite(feature).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"extractor {self.name}: {key!r} is NaN or infinite for {len(bad)} of {len(finite)} pictures (index "
                f"{', '.join(map(str, bad[:5]))} of the batch). 8-bit pictures cannot cause this: check the weights "
                f"(sha256 {self.fingerprint[:12]}) and the device"
            )


class ModuleExtractor(FeatureExtractor):
    """Any module as an extractor: a network of one's own, or a tiny one in a test.

    Args:
        network: maps float (B, 3, H, W), range [-1, 1], to (B, D); copied, so that neither freezing nor further
            training of the original matters.
        name: goes into protocol ids.
        size: pictures are resized to this edge (bicubic, antialiased; half-pixel centres); None = they keep their own
            size, and those of different sizes go through the network one by one.
        dtype: float32 or float64.
        num_features: D; None = asked of the network with one grey picture of ``size`` (or 64) pixels.

    Raises:
        ValueError: the network does not return (B, D).
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        num_features: int | None = None,
    ) -> None:
        frozen = copy.deepcopy(network)
        fingerprint = state_fingerprint(frozen)
        frozen.to(dtype).eval()
        if num_features is None:
            device = _device(frozen)
            with torch.no_grad(), full_float32(device):
                answer = frozen(torch.zeros(1, 3, size or 64, size or 64, dtype=dtype, device=device))
            if answer.ndim != 2:
                raise ValueError(f"extractor {name}: the network returned {tuple(answer.shape)}, expected (B, D)")
            num_features = answer.shape[1]
        super().__init__(frozen, name, {"pool": num_features}, dtype, fingerprint)
        self.size = size

    def extract(self, images: Images) -> dict[str, Tensor]:
        """See :meth:`FeatureExtractor.extract`."""
        if isinstance(images, Tensor):
            return {"pool": self.network(self._pixels(images))}
        singles = [self._pixels(image[None]) for image in as_uint8_list(images)]
        if len({single.shape for single in singles}) == 1:
            return {"pool": self.network(torch.cat(singles))}
        return {"pool": torch.cat([self.network(single) for single in singles])}

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device, self.dtype) / 127.5 - 1
        if self.size is None:
            return pixels
        edge = (self.size, self.size)
        return F.interpolate(pixels, size=edge, mode="bicubic", align_corners=False, antialias=True)


def state_fingerprint(network: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all parameters and buffers.

    Of a network without any, which computes what its code says, it is taken over the code and the settings of every
    module instead.

    Args:
        network: any module.

    Returns:
        64 hexadecimal digits; the same on every device.
    """
    digest = hashlib.sha256()
    if not network.state_dict():
        for name, module in network.named_modules():
            digest.update(f"{name} {_code(type(module))}\n{_settings(module)}\n".encode())
        for name, buffer in network.named_buffers():  # those that are not saved
            digest.update(f"{name} {_as_text(buffer)}\n".encode())
        return digest.hexdigest()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        content = tensor.detach().cpu().contiguous()
        # A tensor without dimensions cannot be viewed as bytes, and numpy knows no bfloat16.
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code(kind: type) -> str:
    """Name and source of a class; the name alone of torch's own, and where the source is not known, as at a prompt."""
    source = ""
    if kind.__module__.partition(".")[0] != "torch":
        with contextlib.suppress(OSError, TypeError):
            source = inspect.getsource(kind)
    return f"{kind.__module__}.{kind.__qualname__}\n{source}"


def _settings(module: nn.Module) -> str:
    """What a module was built with, as far as it keeps it; of other objects their type, never their address."""
    ours = {name: value for name, value in vars(module).items() if name != "training" and not name.startswith("_")}
    return "\n".join(f"{name}={_as_text(ours[name])}" for name in sorted(ours))


def _as_text(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {_as_text(one)}' for key, one in value.items()))}}}"
    plain = isinstance(value, (str, bytes, int, float, complex, torch.dtype, type(None)))
    return repr(value) if plain else f"{type(value).__module__}.{type(value).__qualname__}"


def _device(network: nn.Module) -> torch.device:
    """Where a network is; one without any tensor is on the CPU."""
    return next((tensor.device for tensor in _tensors(network)), torch.device("cpu"))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
