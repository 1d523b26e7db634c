"""The console scripts `lightning` and `lightning-gen`, and `python -m lightning_gen`.

This file only finds the verb: nothing heavy is imported before it is known which one is wanted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Final

from lightning_gen import __version__

__all__ = ["OWN_VERBS", "TRAINER_VERBS", "main"]

TRAINER_VERBS: Final = {
    "fit": "train a model (and validate it on the way)",
    "validate": "measure a model on the validation set",
    "test": "measure a model on the test set",
    "predict": "run a model and write what it predicts",
}
"""Verbs of Lightning's Trainer, with their help."""

OWN_VERBS: Final = {
    "demo": "train the tiny autoencoder on photographs and show it; `demo shapes`: pictures for prompts, no training",
    "data": "convert, index, verify, count, repack and make up data sets in tar shards",
    "arena": "how good the models behind preference pairs are, and the gap of every pair",
    "evaluate": "FID, GenEval, EGIP, preference scores of pictures that any code produced, with protocol cards",
    "recipes": "list, show or copy the configurations that ship with the package",
    "export": "turn a checkpoint (file or sharded folder) into safetensors",
    "import": "turn published weights (MUSE, PAE, LightningDiT) into a folder of this package, with a report",
    "doctor": "versions, devices, who owns the name `lightning`; with --config: can this run start here?",
}
"""Verbs of this package, with their help."""

_HELP = """usage: lightning [-h] [--version] VERB ...

Image generation with PyTorch Lightning.

{verbs}
`lightning VERB --help` shows the options of a verb.
A configuration is a file or the name of a shipped recipe:

  lightning fit --config vitok_v2_tiny
  lightning fit --config my.yaml --model.init_args.seed 1 --print_config
  lightning fit --config my.yaml --ckpt_path last

The same program answers to `lightning-gen` and `python -m lightning_gen`.
"""


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: arguments, by default those of the process; ``main(["fit", "--config", "vitok_v2_tiny"])`` from Python.

    Returns:
        0 after success.

    Raises:
        SystemExit: with code 2 after one message on standard error, when the input is at fault.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_HELP.format(verbs=_verb_list()))
        return 0
    if argv[0] == "--version":
        print(f"lightning-gen {__version__}")
        return 0
    verb = argv[0]
    if verb in OWN_VERBS:
        return int(importlib.import_module(f".commands.{verb}", __package__).main(argv[1:]))
    # Lightning also accepts options of the main parser (--config with a key per verb) before the verb.
    if verb in TRAINER_VERBS or (verb.startswith("-") and any(word in TRAINER_VERBS for word in argv)):
        importlib.import_module(".commands.trainer", __package__).run(argv)
        return 0
    close = difflib.get_close_matches(verb, [*TRAINER_VERBS, *OWN_VERBS], n=1)
    hint = f"did you mean `lightning {close[0]}`? " if close else ""
    sys.stderr.write(f"lightning: error: unknown verb {verb!r}; {hint}`lightning --help` lists them\n")
    raise SystemExit(2)


def _verb_list() -> str:
    lines = []
    for title, verbs in (("Verbs of the Trainer:", TRAINER_VERBS), ("More verbs:", OWN_VERBS)):
        lines += [title, *(f"  {verb:<10}{text}" for verb, text in verbs.items()), ""]
    return "\n".join(lines)
