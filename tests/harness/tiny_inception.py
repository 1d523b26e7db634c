"""An Inception with random weights on disk, in the file layouts of the libraries that publish the real one.

The network has its real size: its shape is what is tested, and a CPU runs it on a few pictures in a second.
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_gen.metrics.extraction.inception import InceptionV3

__all__ = ["random_inception_state", "write_random_inception", "write_random_legacy", "write_random_script"]


def random_inception_state(seed: int = 0) -> dict[str, Tensor]:
    """566 tensors that keep activations near one, each from a generator of its own."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items()}
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        state[name] = _random(name, shape, generator)
    return state


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if name.endswith(("running_var", "bn.weight")):
        return 0.75 + 0.5 * torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if noise.ndim == 1:
        return 0.2 * noise
    fan_in = noise[0].numel()
    return noise * math.sqrt((1 if name == "fc.weight" else 2) / fan_in)


def write_random_inception(folder: Path, seed: int = 0) -> Path:
    """A zipped pickle with all 566 tensors, as torch-fidelity publishes it. Load with ``expected_sha256="any"``."""
    path = folder / f"random-inception-{seed}.pth"
    torch.save(random_inception_state(seed), path)
    return path


def write_random_legacy(folder: Path, seed: int = 0) -> Path:
    """The same weights as an old torch wrote them: a plain pickle without the counters of batches."""
    path = folder / f"random-inception-legacy-{seed}.pth"
    state = {name: value for name, value in random_inception_state(seed).items() if "num_batches" not in name}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


class _Layers(nn.Module):
    """Scaled input to the pooled features, under names that are not those of the state dict."""

    def __init__(self, network: InceptionV3) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Tensor:
        pool: Tensor = self.inner(x)["pool"]
        return pool


def _lines(x: Tensor) -> Tensor:
    """Columns to 299 as the graph resizes them, in a form that TorchScript compiles."""
    position = torch.arange(299, dtype=torch.float32) * (x.shape[3] / 299)
    lower = position.long()
    upper = (lower + 1).clamp(max=x.shape[3] - 1)
    return x[:, :, :, lower] + (x[:, :, :, upper] - x[:, :, :, lower]) * (position - lower)


class _Script(nn.Module):
    """What two public users of the scripted network rely on: its call and its ``layers``."""

    def __init__(self, network: InceptionV3) -> None:
        super().__init__()
        with torch.no_grad():
            self.layers = torch.jit.trace(_Layers(network), torch.zeros(1, 3, 299, 299), check_trace=False)
        self.output = copy.deepcopy(network.fc)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        pixels = _lines(_lines(img.to(torch.float16 if use_fp16 else torch.float32)).mT).mT
        pool = self.layers((pixels - 128) / 128)
        if return_features:
            return pool
        logits = torch.matmul(pool, self.output.weight.t())
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(dim=1)


def write_random_script(folder: Path, seed: int = 0) -> Path:
    """The same weights as TorchScript, with the interface of the file that clean-fid and StyleGAN read."""
    with torch.device("meta"):
        network = InceptionV3()
    network.load_state_dict(random_inception_state(seed), assign=True)
    network.eval().requires_grad_(False)
    path = folder / f"random-inception-{seed}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, the published file is not
        torch.jit.script(_Script(network).eval()).save(str(path))
    return path
