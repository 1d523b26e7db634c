"""`lightning evaluate npz`: pictures as the file that the evaluator of ADM reads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .evaluate_alpha import add_alpha, transparency
from .evaluate_options import images_of, new_file, positive
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_NPZ_EPILOG = """\
examples:
  lightning evaluate npz --samples samples/ --out samples.npz
  lightning evaluate npz --samples 'shards/gen-{0000..0009}.tar' --count 50000 --out samples.npz

The file is what evaluator.py of openai/guided-diffusion takes: arr_0, uint8, (N, H, W, 3). Memory does not grow with N,
and equal pictures give equal bytes.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    npz = verbs.add_parser(
        "npz",
        help="write pictures as the npz that the ADM evaluator reads",
        description="Write pictures of one size as the npz that the TensorFlow evaluator of ADM reads.",
        epilog=_NPZ_EPILOG,
        formatter_class=Examples,
    )
    npz.add_argument("--samples", required=True, metavar="WHERE", help="folder of pictures, tar, pattern of tars, npz")
    npz.add_argument("--out", required=True, type=new_file, metavar="FILE", help="the npz to write")
    npz.add_argument("--count", type=positive, metavar="N", help="the first N pictures; fewer are an error (all)")
    add_alpha(npz)
    npz.set_defaults(run=_write_npz)


def _write_npz(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.adm_npz import write_adm_npz

    from .data_packing import progress_bars

    images = images_of(options.samples, options.count).with_alpha(options.alpha)
    with progress_bars() as watch:
        shape = write_adm_npz(images, options.out, watch)
    for warning in transparency({"pictures": images}, options.alpha):
        print(f"warning: {warning}")
    print(f"{options.out}: arr_0 uint8 {shape}, from {options.samples} ({images.rule})")
    return 0
