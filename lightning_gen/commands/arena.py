"""`lightning arena` and its sub-verbs. Arguments and printing; the work is in alignment/arena_po/."""

from __future__ import annotations

import argparse
import sys

from . import arena_calibrate, arena_fit, arena_gaps, arena_show
from .errors import deliberate, fail

__all__ = ["main"]

_DESCRIPTION = """\
How good are the models behind a set of preference pairs, and how much better is each winner? Works on any table with
(model_a, model_b, outcome); pictures are not touched: of Pick-a-Pic the download pickapic_v2_no_images suffices.

  lightning arena fit raw/pickapic_v2 --split train --out arena.json
  lightning arena show arena.json --out pictures
  lightning arena gaps raw/pickapic_v2 --arena arena.json --out gaps.parquet   # for data.gaps of a preference module
  lightning arena calibrate raw/pickapic_v2 --split validation --arena arena.json
"""


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``arena``.

    Returns:
        0 after success, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        "lightning arena", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in (arena_fit, arena_show, arena_gaps, arena_calibrate):
        module.configure(verbs)
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        about_input = deliberate(error)
        if about_input is not None:
            fail(f"arena {options.verb}", str(about_input))
        if isinstance(error, OSError) and error.strerror:
            # A file that is missing or forbidden, a full disk: never a defect of the program.
            fail(f"arena {options.verb}", f"{error.filename or 'disk'}: {error.strerror}")
        raise
