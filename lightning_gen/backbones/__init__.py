"""Pretrained networks that other papers' weights fill: vision and auto-encoders, text-to-image models, adapters."""

from lightning_gen._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DINOv3Encoder": ".vision",
        "DiffusersVAE": ".vae",
        "MissingWeightsError": ".weights",
        "weight_need": ".vision",
    },
)
