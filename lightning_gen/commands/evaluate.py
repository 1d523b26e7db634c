"""`lightning evaluate` and its sub-verbs. Arguments and printing; the work is in metrics/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from . import (
    evaluate_config,
    evaluate_egip,
    evaluate_features,
    evaluate_files,
    evaluate_geneval,
    evaluate_manifold,
    evaluate_preference,
    evaluate_questions,
    evaluate_rfid,
    evaluate_weights,
)
from .errors import deliberate, fail

__all__ = ["main"]

_MODULES = (
    evaluate_features,
    evaluate_rfid,
    evaluate_geneval,
    evaluate_questions,
    evaluate_egip,
    evaluate_preference,
    evaluate_manifold,
    evaluate_files,
    evaluate_weights,
)
_DESCRIPTION = """\
Measure pictures that any code produced: a folder, an npz of ADM's layout, or tars.

  lightning evaluate gfid --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --weights inception.pth
  lightning evaluate statistics --images data/val --weights inception.pth --out stats.safetensors
  lightning evaluate rfid --originals data/val --reconstructions out/ --weights inception.pth
  lightning evaluate geneval --samples out/ --detector m2f weights/mask2former --colors weights/clip
  lightning evaluate egip --cases data/gen-arena --samples out/ --judge weights/Qwen3-VL-8B
  lightning evaluate preference --samples out/ --prompts prompts.jsonl --scorer pickscore weights/pickscore
  lightning evaluate manifold --tokenizers sd=DiffusersVAE:weights/vae --data data/val --out runs/manifold
  lightning evaluate npz --samples out/ --out samples.npz
  lightning evaluate verify-weights weights/pt_inception-2015-12-05-6726825d.pth
  lightning evaluate --config evaluate_tiny

Every number is printed with its protocol id: two numbers may be compared only if their protocols are equal. Weights are
read from files of this machine.
"""


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``evaluate``.

    Returns:
        0 after success, 1 if `verify-weights` found a fault, 130 after Ctrl-C.
    """
    parser, verbs = _parsers()
    options = parser.parse_args(argv)
    if options.config is not None:
        if options.verb is not None:
            parser.error("--config lists the verbs itself: give one or the other")
        return _guarded("--config", lambda: evaluate_config.run(options.config, verbs, _guarded))
    if options.verb is None:
        parser.error("give a verb or --config; `lightning evaluate --help` lists the verbs")
    return _guarded(options.verb, lambda: int(options.run(options)))


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        "lightning evaluate", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="a YAML file or recipe that lists evaluations")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for module in _MODULES:
        module.configure(verbs)
    return parser, dict(verbs.choices)


def _guarded(verb: str, work: Callable[[], int]) -> int:
    """Do the work; where the input is at fault, end with one message."""
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        about_input = deliberate(error)
        if about_input is not None:
            fail(f"evaluate {verb}", str(about_input))
        if isinstance(error, OSError) and error.strerror:
            # A file that is missing or forbidden, a full disk: never a defect of the program.
            fail(f"evaluate {verb}", f"{error.filename or 'disk'}: {error.strerror}")
        raise
