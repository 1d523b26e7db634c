"""`lightning data` and its sub-verbs. Arguments and printing; the work is in data/."""

from __future__ import annotations

import argparse
import sys

from . import data_convert, data_index, data_latents, data_repack, data_stats, data_synth, data_verify
from .errors import deliberate, fail

__all__ = ["main"]

_DESCRIPTION = """\
Data sets in tar shards: convert them from other forms, index and verify shards that are there, count what is in them,
pack them again, encode their pictures once for training on latents, and make up small ones whose truth is known.

  lightning data convert --from parquet pickapic_v2 data/shards/pickapic/train --split train --shuffle-seed 0
  lightning data index imagenet#train
  lightning data verify data/shards/pickapic/train
  lightning data stats data/shards/pickapic/train --out pictures
  lightning data repack data/shards/pickapic/train smaller --resize-short 512 --reencode jpeg95
  lightning data cache-latents imagenet#train latents --autoencoder ViTokV2 --weights 350M-f16x64 --resolution 256
  lightning data synth preference practice --as parquet
"""


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``data``.

    Returns:
        0 after success, 1 if `verify` found a fault, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        "lightning data", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in (data_convert, data_index, data_verify, data_stats, data_repack, data_latents, data_synth):
        module.configure(verbs)
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except Exception as error:
        about_input = deliberate(error)
        if about_input is not None:
            fail(f"data {options.verb}", str(about_input))
        if isinstance(error, OSError) and error.strerror:
            # A file that is missing or forbidden, a full disk: never a defect of the program.
            fail(f"data {options.verb}", f"{error.filename or 'disk'}: {error.strerror}")
        raise
