"""ViTok-v2's claims (arXiv:2605.05331) in the embedded world.

    python benchmarks/claims/vitok_v2.py                        # both claims, all seeds
    python benchmarks/claims/vitok_v2.py --seed 0 --arm native  # one run, and what is known so far
    python benchmarks/claims/vitok_v2.py --quick                # does everything run?

vitok_v2_native_resolution: what was trained at one token budget on mixed aspect ratios is looked at on larger and
longer pictures, next to the same auto-encoder with learned absolute positions that was trained on squares. The baseline
may treat such pictures in two ways, with its positions resized or with the picture resized to its square and back; for
each size and number the better one counts.

vitok_v2_decoder_scaling: from a small encoder and decoder, either half is made larger. The paper keeps the encoder at
four blocks; both large halves here have the same number of parameters, so that they also compare with each other.

Figures are PSNR in decibel and SSIM, on clean scenes that no arm has seen; seeds differ in weights and scenes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from absolute_positions import AbsoluteNetwork
from harness import Budget, Claim, Comparison, main
from pictures import Reconstruct, Size, quality, scenes
from torch import Tensor
from torch.nn import functional as F
from training import train

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.training.optim import AdamW, WarmupCosine

PATCH: Final = 8
SQUARE: Final = (64, 64)
MIXED: Final = ((64, 64), (56, 72), (72, 56), (48, 80), (80, 48))
"""Heights and widths of at most 64 patches, between 5:3 and 3:5."""
LOOKED_AT: Final = {"1x": (64, 64), "1.5x": (96, 96), "2x": (128, 128), "1:2": (40, 80)}
LAYER_SCALE: Final = 0.1
"""The paper's 1e-4 would leave the blocks unused in a run of a few thousand steps (configs/vitok_v2_tiny.yaml)."""
SMALL, LARGE = "w64_d2_h2", "w128_d4_h4"
HALVES: Final = {"small": (SMALL, SMALL), "large_decoder": (SMALL, LARGE), "large_encoder": (LARGE, SMALL)}
NATIVE_HALF: Final = "w96_d2_h3"
MARGIN: Final = 0.1
"""Decibel."""


def model_of(encoder: str, decoder: str, ssim_weight: float, seed: int) -> ViTokV2:
    """ViTok-v2 at ratio 12 with the paper's loss, but for the DINOv3 distance, whose network knows photographs only.

    Args:
        encoder: width, depth and heads.
        decoder: the same of the other half.
        ssim_weight: 0.1 in the paper, 0 where it looks at sizes.
        seed: of the weights.

    Returns:
        The model, without weights yet.
    """
    return ViTokV2(
        variant=f"{encoder}-{decoder}/1x{PATCH}x16",
        layer_scale=LAYER_SCALE,
        layout="padded",  # the pictures of a batch have one size: there is no padding
        ssim_weight=ssim_weight,
        dino_weight=0.0,
        tile_size=32,
        optimizer=AdamW(learning_rate=2e-3, fused=True),
        schedule=WarmupCosine(),
        seed=seed,
    )


def autoencode(model: ViTokV2) -> Reconstruct:
    """Pictures as they are, whatever their size.

    Args:
        model: trained.

    Returns:
        The function.
    """

    def reconstruct(images: Tensor) -> Tensor:
        made = model.decode(model.encode(images))
        assert isinstance(made, Tensor), "pictures of one size"
        return made

    return reconstruct


def at_trained_size(model: ViTokV2) -> Reconstruct:
    """Pictures resized to the square that the model was trained on, and its output resized back.

    Args:
        model: trained.

    Returns:
        The function.
    """
    inside = autoencode(model)

    def resized(images: Tensor, size: Size) -> Tensor:
        return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)

    def reconstruct(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return resized(inside(resized(images, SQUARE)), (height, width))

    return reconstruct


def native_resolution(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, float]:
    """Train one arm of the first claim and look at it at every size.

    Args:
        arm: ``native`` or ``absolute``.
        seed: of weights and scenes.
        budget: steps, batch, pictures.
        folder: of the checkpoints.

    Returns:
        ``psnr@1x``, ``ssim@1x``, ...; of the baseline also what each treatment gives.
    """
    model = model_of(NATIVE_HALF, NATIVE_HALF, 0.1, seed)
    if arm == "absolute":
        grid = SQUARE[0] // PATCH, SQUARE[1] // PATCH
        with torch.device("meta"):
            model.network = AbsoluteNetwork(model.variant, grid, LAYER_SCALE)
    seconds = train(model, scenes(MIXED if arm == "native" else [SQUARE], budget, seed), budget.steps, folder)
    model.eval()
    numbers = {"train_seconds": seconds, "parameters": float(sum(x.numel() for x in model.network.parameters()))}
    for name, size in LOOKED_AT.items():
        psnr, ssim = quality(autoencode(model), size, budget, seed)
        if arm == "absolute" and size != SQUARE:
            numbers[f"psnr@{name} positions resized"] = psnr
            numbers[f"psnr@{name} picture resized"], other = quality(at_trained_size(model), size, budget, seed)
            psnr, ssim = max(psnr, numbers[f"psnr@{name} picture resized"]), max(ssim, other)
        numbers[f"psnr@{name}"], numbers[f"ssim@{name}"] = psnr, ssim
    return numbers


def decoder_scaling(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, float]:
    """Train one arm of the second claim.

    Args:
        arm: ``small``, ``large_decoder`` or ``large_encoder``.
        seed: of weights and scenes.
        budget: steps, batch, pictures.
        folder: of the checkpoints.

    Returns:
        ``psnr``, ``ssim``, ``parameters``.
    """
    # The paper looks at sizes with the pixel loss alone.
    model = model_of(*HALVES[arm], 0.0, seed)
    seconds = train(model, scenes([SQUARE], budget, seed), budget.steps, folder)
    psnr, ssim = quality(autoencode(model.eval()), SQUARE, budget, seed)
    parameters = float(sum(x.numel() for x in model.network.parameters()))
    return {"psnr": psnr, "ssim": ssim, "train_seconds": seconds, "parameters": parameters}


CLAIMS: Final = (
    Claim(
        name="vitok_v2_native_resolution",
        sentence="Trained at one token budget on mixed aspect ratios, the auto-encoder works at other resolutions and "
        "aspect ratios, where one of fixed size with learned positions does not",
        source="arXiv:2605.05331, native resolution",
        arms={
            "native": f"ViTok-v2 {NATIVE_HALF}-{NATIVE_HALF}/1x{PATCH}x16, rotary, trained on {MIXED}",
            "absolute": f"the same with learned absolute positions, trained on {SQUARE}",
        },
        baseline="absolute",
        seeds=(0, 1, 2, 3, 4),
        budget=Budget(steps=3000, batch=16, measured_on=256),
        equal="equal steps, scenes and parameters (the baseline has its table of positions on top), at most 64 patches "
        "per picture",
        quick=Budget(steps=4, batch=4, measured_on=8),
        comparisons=(
            Comparison("psnr@1x", "native", "absolute"),
            *(Comparison(f"psnr@{size}", "native", "absolute", "higher", MARGIN) for size in ("1.5x", "2x", "1:2")),
            *(Comparison(f"ssim@{size}", "native", "absolute") for size in LOOKED_AT),
        ),
        run=native_resolution,
    ),
    Claim(
        name="vitok_v2_decoder_scaling",
        sentence="A larger decoder reconstructs better, a larger encoder does not",
        source="arXiv:2605.05331, decoder scaling and encoder depth",
        arms={arm: f"ViTok-v2 {'-'.join(halves)}/1x{PATCH}x16, pixel loss" for arm, halves in HALVES.items()},
        baseline="small",
        seeds=(0, 1, 2, 3, 4),
        budget=Budget(steps=2500, batch=16, measured_on=256),
        equal="equal steps, scenes and learning rate; not equal parameters or operations, but both large arms have the "
        "same of either",
        quick=Budget(steps=4, batch=4, measured_on=8),
        comparisons=(
            Comparison("psnr", "large_decoder", "small", "higher", MARGIN),
            Comparison("psnr", "large_encoder", "small", "not higher", MARGIN),
            Comparison("psnr", "large_decoder", "large_encoder"),
            Comparison("ssim", "large_decoder", "small"),
            Comparison("ssim", "large_encoder", "small"),
            Comparison("ssim", "large_decoder", "large_encoder"),
        ),
        run=decoder_scaling,
    ),
)


if __name__ == "__main__":
    sys.exit(main(CLAIMS))
