"""Pretrained networks that other papers' weights fill: vision and auto-encoders, text-to-image models, adapters."""

from lightning_gen._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AdapterBank": ".lora",
        "DINOv3Encoder": ".vision",
        "DiffusersTextToImage": ".text_to_image",
        "DiffusersVAE": ".vae",
        "LoRASettings": ".lora",
        "MissingWeightsError": ".weights",
        "read_adapter": ".lora_files",
        "weight_need": ".vision",
        "write_adapter": ".lora_files",
    },
)
