"""`lightning demo`: pack photographs, train the tiny auto-encoder on them, and show what it does.

The training is the very command `lightning fit --config vitok_v2_tiny`. A demo that was stopped goes on where it was,
one that is finished goes straight to its report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import deliberate, fail
from .photographs import pack_photographs

if TYPE_CHECKING:
    from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
    from lightning_gen.data.modules import ShardDataModule
    from lightning_gen.training.run_folder import RunFolder

    from .reconstruction_report import Report

__all__ = ["main", "trained_steps", "write_report"]

_RECIPE = "vitok_v2_tiny"


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``demo``; those that it does not know go to `lightning fit`. Behind ``shapes`` stand those
            of the demo of the embedded world.

    Returns:
        0 after success; 1 if the trained model does not beat the mean colour of every patch by 4 dB; the exit code of
        `lightning fit` if that failed; 130 after Ctrl-C.
    """
    if argv[:1] == ["shapes"]:
        from .demo_shapes import main as shapes

        return shapes(argv[1:])
    parser = argparse.ArgumentParser(
        "lightning demo",
        description="Pack the photographs that come with scikit-image and scikit-learn, train the tiny auto-encoder on "
        "them (at most 8 minutes on two cores) and report on held-out ones. Called again, it goes on where it stopped.",
        epilog="Further options are passed on to `lightning fit`, for instance --trainer.max_steps 200 --name short. "
        "Another demo needs no training: `lightning demo shapes --help`.",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew; an older run is kept under another name")
    parser.add_argument("--pack", action="store_true", help="only write the shards, train nothing")
    options, rest = parser.parse_known_args(argv)
    try:
        print(f"photographs packed into {' and '.join(map(str, pack_photographs()))}")
        return 0 if options.pack else _train_and_report(rest, options.fresh)
    except Exception as error:
        about_input = deliberate(error)
        if about_input is None:
            raise
        fail("demo", str(about_input))


def _train_and_report(fit_options: list[str], fresh: bool) -> int:
    # Heavy imports, needed from here on.
    from lightning_gen.training.metrics_file import set_aside
    from lightning_gen.training.run_folder import RunFolder

    from .trainer import read_config

    arguments = ["fit", "--config", _RECIPE, *fit_options]
    config = read_config(arguments)
    folder = RunFolder(Path(config["runs"]), config["name"])
    kept = set_aside(folder.path) if fresh else None
    if kept is not None:
        print(f"the older run is now {kept}")
    if trained_steps(folder) < config["trainer"]["max_steps"]:
        code = _fit(arguments)
        if code:
            return code
    else:
        print(f"{folder.path} is trained already; `lightning demo --fresh` starts anew")
    report = write_report(config, folder)
    return 0 if report.passed else 1


def trained_steps(folder: RunFolder) -> int:
    """How far a run has come.

    Args:
        folder: of the run.

    Returns:
        Optimiser steps in its newest complete checkpoint, 0 if there is none.
    """
    import torch

    last = folder.last_checkpoint()
    return 0 if last is None else int(torch.load(last, weights_only=True, mmap=True)["global_step"])


def _fit(arguments: list[str]) -> int:
    """Train in a process of its own, with its progress bar on this terminal."""
    arguments = [*arguments, "--ckpt_path", "last-or-none"]
    print(f"$ lightning {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "lightning_gen", *arguments]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The terminal has told the training too; it may be writing a checkpoint.
            process.wait()
            code = 130
    if code:
        print("training did not end; `lightning demo` goes on from its last checkpoint", file=sys.stderr)
    else:
        print(f"training took {time.monotonic() - start:.0f} s")
    return code


def write_report(config: Mapping[str, Any], folder: RunFolder) -> Report:
    """Compare the trained model with its start and with both references; print it and write it into the run folder.

    Args:
        config: the run's configuration as plain dicts.
        folder: the run's folder; gets ``demo.json`` and ``demo.png``.

    Returns:
        What was measured.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    from rich.console import Console

    from lightning_gen.autoencoders.vitok_v2.module import ViTokV2

    from .comparison_picture import draw_comparison
    from .reconstruction_report import as_json, as_table, measure

    last = folder.last_checkpoint()
    if last is None:
        raise FileNotFoundError(f"training left no checkpoint under {folder.checkpoints}: is trainer.max_steps 0?")
    trained = ViTokV2.load_from_checkpoint(last, map_location="cpu").eval()
    report = measure(lambda tokens: _data(config, tokens), _untrained(config), trained, trained_steps(folder))
    table, picture = folder.path / "demo.json", folder.path / "demo.png"
    table.write_text(json.dumps(as_json(report), indent=2) + "\n", encoding="utf-8")
    title = f"Held-out photographs, original and reconstruction after {report.steps} steps"
    draw_comparison(report.measured, title).save(picture)
    console = Console()
    console.print(as_table(report))
    for budget in report.budgets:
        over, pca = report.lead(budget, "mean colour"), report.lead(budget, "patch PCA")
        verdicts = f"{over:+.2f} dB to the mean colour (wanted: +4), {pca:+.2f} dB to patch PCA (goal: 0)"
        console.print(f"{budget} tokens: {verdicts}", soft_wrap=True)
    console.print(f"figures {table}\npicture {picture}", soft_wrap=True)
    return report


def _untrained(config: Mapping[str, Any]) -> ViTokV2:
    """The weights of step 0: initial weights are a function of the seed and of nothing else."""
    model: ViTokV2 = _build(config["model"], leave_out=("optimizer", "schedule"))
    model.configure_model()
    return model.eval()


def _data(config: Mapping[str, Any], val_tokens: int) -> ShardDataModule:
    data: ShardDataModule = _build(config["data"], val_tokens=val_tokens, val_batch_size=1)
    return data


def _build(section: Mapping[str, Any], leave_out: tuple[str, ...] = (), **changed: Any) -> Any:
    module, _, name = str(section["class_path"]).rpartition(".")
    given = {key: value for key, value in section["init_args"].items() if key not in leave_out}
    return getattr(importlib.import_module(module), name)(**{**given, **changed})
