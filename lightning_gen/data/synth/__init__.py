"""Synthetic data sets whose truth is known: for tests, tutorials, and to practise `lightning data convert`."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.data.synth.kinds import KINDS as KINDS
    from lightning_gen.data.synth.kinds import Kind as Kind
    from lightning_gen.data.synth.kinds import register as register
    from lightning_gen.data.synth.layouts import LAYOUTS as LAYOUTS
    from lightning_gen.data.synth.layouts import write_synthetic as write_synthetic
    from lightning_gen.data.synth.options import SynthOptions as SynthOptions

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "KINDS": ".kinds",
        "Kind": ".kinds",
        "LAYOUTS": ".layouts",
        "SynthOptions": ".options",
        "register": ".kinds",
        "write_synthetic": ".layouts",
    },
)
