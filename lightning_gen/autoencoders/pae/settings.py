"""The options of PAE's training as small records: weights of the losses, and the choices that the paper leaves open."""

from __future__ import annotations

import dataclasses

from lightning_gen.autoencoders.pae.discriminator import DiffAugment
from lightning_gen.autoencoders.pae.objective import GramNorm, Reduction
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.training.optim import AdamW, WarmupCosine

__all__ = ["Adversary", "Cascade", "LossWeights", "Semantics", "Structure"]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; 0 = off, and then nothing of it is computed.

    L = l1 L_1 + lpips LPIPS + adversarial w GAN + ssr SSR + mcr MCR + scr SCR + kl KL + vf w' VF

    Attributes:
        l1: mean absolute error of pixels in [0, 1].
        lpips: LPIPS of the reconstruction.
        adversarial: against the discriminator, times its adaptive weight w.
        ssr: structure of the refined prior.
        mcr: continuity of the decoder along radii.
        scr: semantics of the refined prior.
        kl: to the standard Gaussian, for ``latent: kl``; the paper's comparison: 1e-6.
        vf: VA-VAE's alignment, times its adaptive weight w'; the paper's comparison: 0.1.

    Raises:
        ValueError: a negative weight, or none for l1.

    Source: arXiv:2605.07915 eqs. 2 and 6.
    """

    l1: float = 1.0
    lpips: float = 1.0
    adversarial: float = 0.5
    ssr: float = 0.2
    mcr: float = 0.5
    scr: float = 1.0
    kl: float = 0.0
    vf: float = 0.0

    def __post_init__(self) -> None:
        negative = [name for name, value in dataclasses.asdict(self).items() if value < 0]
        if negative:
            raise ValueError(f"weights of the loss must be 0 (off) or more: {', '.join(negative)}")
        if self.l1 == 0:
            raise ValueError("losses.l1 must be above 0: adaptive weights are measured against the reconstruction")


@dataclasses.dataclass(frozen=True)
class Structure:
    """How SSR compares Grams.

    Attributes:
        gram_norm: ``cosine`` or ``raw`` inner products; the paper does not say.
        reduction: ``mean`` or ``sum`` over the N^2 entries; the paper does not say.
    """

    gram_norm: GramNorm = "cosine"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if self.gram_norm not in ("cosine", "raw") or self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"gram_norm is cosine or raw and reduction mean or sum, got {self.gram_norm!r} and {self.reduction!r}"
            )


@dataclasses.dataclass(frozen=True)
class Cascade:
    """How MCR moves latents and what it compares.

    Attributes:
        angles: in degrees, from near to far; paper: 42.5 and 85.
        tangent: directions lie in the tangent plane, so that the angles are exact; not stated.
        renorm: moved latents go back to the sphere; not stated.
        shared_direction: one direction for all radii, as in the paper's formula.
        chained: compare with the radius before, as in the paper's formula; False = with the reconstruction.
        detach_latent: no gradient into the encoder through moved latents; the paper's formula lets it in.
        jitter: angles are multiplied by a factor drawn from [1 - jitter, 1]; 0 = off.
        start: optimiser step from which MCR acts; not stated. Where it acts from the first, a decoder that has not
            learned to read its latents may be held at the mean picture: in the embedded world it is.

    Raises:
        ValueError: angles that do not rise in (0, 90), a jitter outside [0, 1), or a negative start.
    """

    angles: tuple[float, ...] = (42.5, 85.0)
    tangent: bool = True
    renorm: bool = True
    shared_direction: bool = True
    chained: bool = True
    detach_latent: bool = False
    jitter: float = 0.0
    start: int = 0

    def __post_init__(self) -> None:
        angles = tuple(self.angles)
        if not angles or list(angles) != sorted(set(angles)) or not 0 < angles[0] <= angles[-1] < 90:
            raise ValueError(f"the angles of MCR rise within (0, 90) degrees, got {list(angles)}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter lies in [0, 1), got {self.jitter}")
        if self.start < 0:
            raise ValueError(f"cascade.start is an optimiser step, 0 or later, got {self.start}")


@dataclasses.dataclass(frozen=True)
class Semantics:
    """Which terms SCR has.

    Attributes:
        pooled: the cosine of mean latents.
        tokens: the mean of the cosines of tokens.
    """

    pooled: bool = True
    tokens: bool = True


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminator and when it acts; the paper does not describe it, the defaults are RAE's.

    Attributes:
        encoder: frozen features that it looks through; RAE: DINO-S/8 (``DINOPatches``).
        width: numbers per token of those features, one for all layers or one per layer.
        layers: blocks that get a head.
        grid: tokens along a side that pictures are resized to.
        kernel: of the heads.
        group: pictures that are normalised together; 1 = every picture alone.
        augment: what is done to pictures first.
        discriminator_start: first optimiser step at which the discriminator learns; RAE: 6 epochs.
        generator_start: first optimiser step at which the auto-encoder hears of it; RAE: 8 epochs.
        maximum: largest adaptive weight.
        optimizer: of the discriminator.
        schedule: of its learning rate, over the steps in which it learns.

    Raises:
        ValueError: the auto-encoder would listen to a discriminator that has not learned.

    Source: arXiv:2510.11690 (RAE), public configuration.
    """

    encoder: PatchEncoder
    width: list[int] = dataclasses.field(default_factory=lambda: [384])
    layers: list[int] = dataclasses.field(default_factory=lambda: [2, 5, 8, 11])
    grid: int = 28
    kernel: int = 9
    group: int = 8
    augment: DiffAugment = DiffAugment()
    discriminator_start: int = 0
    generator_start: int = 0
    maximum: float = 1e4
    optimizer: AdamW = AdamW(learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
    schedule: WarmupCosine = WarmupCosine(warmup_fraction=0.04, final_learning_rate=2e-5, start_learning_rate=0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.discriminator_start <= self.generator_start:
            raise ValueError(
                "the auto-encoder cannot listen to a discriminator that does not learn yet: generator_start "
                f"{self.generator_start} is before discriminator_start {self.discriminator_start}"
            )
