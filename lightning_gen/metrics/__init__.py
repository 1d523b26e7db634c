"""Measures of images: metrics that add up over batches and ranks, and the honest baselines they are read against."""

from lightning_gen._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "FrechetReference": ".frechet",
        "Gaussian": ".frechet",
        "Moments": ".frechet",
        "PatchPCA": ".baselines",
        "PeakSignalToNoise": ".reconstruction",
        "PerImageMean": ".reconstruction",
        "ReconstructionQuality": ".reconstruction",
        "StructuralSimilarity": ".reconstruction",
        "frechet_distance": ".frechet",
        "patch_mean_reconstruction": ".baselines",
        "psnr_per_image": ".reconstruction",
        "ssim_per_image": ".reconstruction",
    },
)
