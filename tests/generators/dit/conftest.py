"""A small transformer whose blocks do something, and small batches of latents of mixed sizes."""

from collections.abc import Callable

import pytest
import torch

from lightning_gen.generators.dit.network import DiT
from lightning_gen.nn.tokens import Tokens, patchify

CHANNELS, CLASSES = 6, 5
SIZES = [(12, 20), (8, 8), (16, 7), (4, 12)]


def make_lively(network: DiT, seed: int = 0) -> DiT:
    """Move every parameter that starts at 0, 1 or 1e-4 to where a mistake in its use would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.copy_(0.5 + 0.1 * noise)
            elif "table" in name:
                parameter.copy_(0.4 * noise)
            elif "norm_" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.1 * noise)
    return network


@pytest.fixture
def network() -> DiT:
    return make_lively(DiT("w32_d3_h2", CHANNELS, CLASSES)).double()


@pytest.fixture
def batch() -> Callable[..., Tokens]:
    def make(length: int | None = None, garbage: float = 0.0, dtype: torch.dtype = torch.float64) -> Tokens:
        tokens = patchify([torch.zeros(1, *size) for size in SIZES], 4, length)
        # Token j of image i holds the same numbers whatever the padding.
        rows = [
            torch.randn(64, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
            for i in range(len(SIZES))
        ]
        values = torch.stack(rows)[:, : tokens.mask.shape[1]]
        return tokens.with_values(torch.where(tokens.mask[..., None], values, garbage).to(dtype))

    return make


TIME = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
LABEL = torch.tensor([0, 3, 5, 1])
