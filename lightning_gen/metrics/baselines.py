"""Honest references for an auto-encoder of patches: what the same number of numbers per patch buys without learning.

Shape letters: B rows, L tokens, D numbers per patch (C * p * p), K components.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_gen.nn.tokens import Tokens, pixel_validity

__all__ = ["PatchPCA", "patch_mean_reconstruction"]


def patch_mean_reconstruction(tokens: Tokens) -> Tokens:
    """Paint every patch in its mean colour: C numbers per patch, nothing learned.

    The filling of patches at the edge of an image is left out of the mean.

    Args:
        tokens: patch vectors (C-P-P), values (B, L, C * p * p), packed or unpacked.

    Returns:
        Tokens of the same layout whose patches are flat.

    Raises:
        ValueError: the values are not whole patches.
    """
    area = tokens.patch**2
    if tokens.values.shape[-1] % area:
        raise ValueError(
            f"{tokens.values.shape[-1]} numbers per token are not whole {tokens.patch} x {tokens.patch} patches"
        )
    colours = tokens.values.reshape(*tokens.values.shape[:-1], -1, area)
    inside = pixel_validity(tokens)[:, :, None, :]
    mean = torch.where(inside, colours, 0).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
    return tokens.with_values(mean.expand_as(colours).flatten(-2).contiguous())


class PatchPCA:
    """The best linear code of a patch: its mean and K principal components.

    code = (x - mean) V,  reconstruction = mean + code V^T,  V = the K leading eigenvectors of the patches' covariance

    No linear auto-encoder with K numbers per patch has a smaller squared error on the patches it was fitted on
    (Eckart and Young). Sums, covariance and eigenvectors are float64.

    Args:
        num_components: numbers per patch K, at least 1.

    Raises:
        ValueError: ``num_components`` is smaller than 1.
    """

    def __init__(self, num_components: int) -> None:
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components
        self.mean: Tensor | None = None
        self.components: Tensor | None = None
        self.eigenvalues: Tensor | None = None

    def fit(self, batches: Iterable[Tokens]) -> PatchPCA:
        """Fit mean and components on the real patches of some batches, read once.

        Args:
            batches: patch vectors, values (B, L, D); padding tokens are left out.

        Returns:
            This object, with ``mean`` (D,), ``components`` (D, K) and ``eigenvalues`` (D,) in falling order.

        Raises:
            ValueError: there are fewer than two patches, or K exceeds D.
        """
        count = 0
        for tokens in batches:
            patches = tokens.values[tokens.mask].detach().double()
            if count == 0:
                total = patches.new_zeros(patches.shape[1])
                products = patches.new_zeros(patches.shape[1], patches.shape[1])
            count += len(patches)
            total += patches.sum(0)
            products.addmm_(patches.T, patches)
        if count < 2:
            raise ValueError(f"PatchPCA needs at least two training patches, got {count}")
        if self.num_components > len(total):
            raise ValueError(f"{self.num_components} components asked of patches of {len(total)} numbers")
        self.mean = total / count
        covariance = (products - count * self.mean.outer(self.mean)) / (count - 1)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        self.eigenvalues = eigenvalues.flip(0).clamp(min=0)
        self.components = vectors.flip(1)[:, : self.num_components].contiguous()
        return self

    def encode(self, tokens: Tokens) -> Tokens:
        """Code patches.

        Args:
            tokens: patch vectors, values (B, L, D).

        Returns:
            Tokens with K numbers each, in the dtype of the patches.

        Raises:
            RuntimeError: ``fit`` has not been called.
        """
        mean, components = self._fitted(tokens)
        code = (tokens.values.double() - mean) @ components
        return tokens.with_values(code.to(tokens.values.dtype))

    def decode(self, codes: Tokens) -> Tokens:
        """Turn codes back into patches.

        Args:
            codes: what ``encode`` gave, values (B, L, K).

        Returns:
            Patch vectors, values (B, L, D).

        Raises:
            RuntimeError: ``fit`` has not been called.
        """
        mean, components = self._fitted(codes)
        patches = mean + codes.values.double() @ components.T
        return codes.with_values(patches.to(codes.values.dtype))

    def reconstruct(self, tokens: Tokens) -> Tokens:
        """Code and decode patches.

        Args:
            tokens: patch vectors, values (B, L, D).

        Returns:
            Tokens of the same layout; values are not clamped.

        Raises:
            RuntimeError: ``fit`` has not been called.
        """
        return self.decode(self.encode(tokens))

    def _fitted(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.components is None:
            raise RuntimeError("PatchPCA is not fitted: call fit with training patches first")
        return self.mean.to(tokens.values.device), self.components.to(tokens.values.device)
