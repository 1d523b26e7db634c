"""Pretrained networks that other papers' weights fill: vision encoders, text-to-image models, adapter banks."""

from lightning_gen._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DINOv3Encoder": ".vision",
        "MissingWeightsError": ".weights",
        "weight_need": ".vision",
    },
)
