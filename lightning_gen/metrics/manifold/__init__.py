"""Measures of a tokenizer's latent space, on any grid: SSC, LPC, GSQ and effective rank (arXiv:2605.07915)."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.metrics.manifold.continuity import LPC as LPC
    from lightning_gen.metrics.manifold.continuity import continuity_weights as continuity_weights
    from lightning_gen.metrics.manifold.continuity import perceptual_continuity as perceptual_continuity
    from lightning_gen.metrics.manifold.correlation import correlate as correlate
    from lightning_gen.metrics.manifold.correlation import rank_correlation as rank_correlation
    from lightning_gen.metrics.manifold.erank import EffectiveRank as EffectiveRank
    from lightning_gen.metrics.manifold.erank import effective_rank as effective_rank
    from lightning_gen.metrics.manifold.measures import ManifoldMeasures as ManifoldMeasures
    from lightning_gen.metrics.manifold.measures import NormalisedLatents as NormalisedLatents
    from lightning_gen.metrics.manifold.pooling import pooled_latents as pooled_latents
    from lightning_gen.metrics.manifold.semantics import GSQ as GSQ
    from lightning_gen.metrics.manifold.semantics import neighbour_agreement as neighbour_agreement
    from lightning_gen.metrics.manifold.spectral import normalised_mutual_information as normalised_mutual_information
    from lightning_gen.metrics.manifold.spectral import spectral_clustering as spectral_clustering
    from lightning_gen.metrics.manifold.structure import SSC as SSC
    from lightning_gen.metrics.manifold.structure import structure_score as structure_score

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "EffectiveRank": ".erank",
        "GSQ": ".semantics",
        "LPC": ".continuity",
        "ManifoldMeasures": ".measures",
        "NormalisedLatents": ".measures",
        "SSC": ".structure",
        "continuity_weights": ".continuity",
        "correlate": ".correlation",
        "effective_rank": ".erank",
        "neighbour_agreement": ".semantics",
        "normalised_mutual_information": ".spectral",
        "perceptual_continuity": ".continuity",
        "pooled_latents": ".pooling",
        "rank_correlation": ".correlation",
        "spectral_clustering": ".spectral",
        "structure_score": ".structure",
    },
)
