"""Which pipelines of diffusers can be read, by the name that their ``model_index.json`` gives."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .family import Family
from .flux import Flux, Flux2, Flux2Klein
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .stable_diffusion_3 import StableDiffusion3

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, type[Family]] = MappingProxyType(
    {
        "StableDiffusion3Pipeline": StableDiffusion3,
        "FluxPipeline": Flux,
        "Flux2Pipeline": Flux2,
        "Flux2KleinPipeline": Flux2Klein,
        "StableDiffusionXLPipeline": StableDiffusionXL,
        "StableDiffusionPipeline": StableDiffusion,
    }
)
"""Class of the pipeline -> family."""
