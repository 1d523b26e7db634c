"""Runs claims: arm by arm and seed by seed, each finished one a JSON file, so that a stopped run goes on where it was.

    runs/claims/<claim>/<arm>-seed<n>.json     setting and numbers of a finished run
    runs/claims/<claim>/<arm>-seed<n>/         its checkpoints
    runs/claims/<claim>/result.json, plot.png  what is known so far
    benchmarks/results/claim_<claim>.*         the same, once all seeds are there, with a row in benchmarks/RESULTS.md

A paper's file ends with ``sys.exit(main([...]))``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from analysis import Numbers, Verdict, analyse
from claim import Budget, Claim, Comparison, Correlation
from report import as_json, draw, row, with_row, write

from lightning_gen.backbones.weights import MissingWeightsError

__all__ = ["Budget", "Claim", "Comparison", "Correlation", "finish", "finished", "main", "planned_seeds", "run_claim"]

_BENCHMARKS = Path(__file__).resolve().parents[1]


def planned_seeds(claim: Claim, quick: bool) -> list[int]:
    """Seeds that must be there before there is a verdict.

    Args:
        claim: the claim.
        quick: two are enough to run everything once.

    Returns:
        The seeds.
    """
    return list(claim.seeds[:2] if quick else claim.seeds)


def run_claim(claim: Claim, folder: Path, seeds: Sequence[int], arms: Sequence[str], quick: bool) -> None:
    """Train and measure what is not finished yet.

    Args:
        claim: the claim.
        folder: the claim's own.
        seeds: which ones.
        arms: which ones.
        quick: the quick budget, and everything anew.

    Raises:
        ValueError: the folder holds runs of another setting, or a number of a run is not finite.
    """
    budget = claim.quick if quick else claim.budget
    for seed in seeds:
        for arm in arms:
            work = folder / f"{arm}-seed{seed}"
            done = _done(folder, arm, seed)
            if quick:
                shutil.rmtree(work, ignore_errors=True)
                done.unlink(missing_ok=True)
            if done.exists():
                _require(claim.setting(arm, budget), _read(done)["setting"], done)
                print(f"{claim.name}: {arm}, seed {seed} is finished already", flush=True)
                continue
            _run(claim, arm, seed, budget, work, done)


def _done(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}-seed{seed}.json"


def _run(claim: Claim, arm: str, seed: int, budget: Budget, work: Path, done: Path) -> None:
    setting = claim.setting(arm, budget)
    begun = work / "setting.json"
    if begun.exists():
        _require(setting, _read(begun), begun)
        print(f"{claim.name}: {arm}, seed {seed} goes on", flush=True)
    else:
        write(begun, json.dumps(setting, indent=1))
    start = time.monotonic()
    found = {name: float(value) for name, value in claim.run(arm, seed, budget, work).items()}
    if bad := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ValueError(f"{claim.name}: {', '.join(bad)} of {arm}, seed {seed} is not finite: did training diverge?")
    seconds = time.monotonic() - start
    content = {"setting": setting, "seed": seed, "numbers": found, "last_session_seconds": seconds}
    write(done, json.dumps({**content, "threads": torch.get_num_threads()}, indent=1))
    print(f"{claim.name}: {arm}, seed {seed} took {seconds:.0f} s", flush=True)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _require(wanted: dict[str, Any], found: object, path: Path) -> None:
    if found != wanted:
        raise ValueError(
            f"{path} belongs to another setting of this claim: move {path.parent} away to start anew\n"
            f"  there: {found}\n  now:   {wanted}"
        )


def finished(claim: Claim, folder: Path, seeds: Sequence[int], quick: bool) -> Numbers:
    """Numbers of the finished runs.

    Args:
        claim: the claim.
        folder: the claim's own.
        seeds: those that were planned.
        quick: which budget they must have had.

    Returns:
        arm -> seed -> name -> number.

    Raises:
        ValueError: a run of another setting.
    """
    numbers: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in claim.arms}
    for arm in claim.arms:
        wanted = claim.setting(arm, claim.quick if quick else claim.budget)
        for seed in seeds:
            path = _done(folder, arm, seed)
            if path.exists():
                content = _read(path)
                _require(wanted, content["setting"], path)
                numbers[arm][seed] = content["numbers"]
    return numbers


def finish(claim: Claim, folder: Path, out: Path, quick: bool) -> Verdict:
    """Compare what is finished, tell it, and write it down.

    The row and the files under ``out`` are written once all seeds are there, so that a part of the runs never takes the
    place of all of them, and never for quick ones.

    Args:
        claim: the claim.
        folder: the claim's own; gets ``result.json`` and ``plot.png``.
        out: folder with ``RESULTS.md`` and ``results/``.
        quick: whether the budget was the quick one.

    Returns:
        The verdict.
    """
    seeds = planned_seeds(claim, quick)
    numbers = finished(claim, folder, seeds, quick)
    verdict = analyse(claim, numbers, seeds)
    print(f"\n{claim.name}: {claim.sentence} ({claim.source})")
    for finding in verdict.findings:
        print(f"  {finding.told}")
    print(f"  {'quick budget, which tells nothing: ' if quick else ''}{verdict.sentence}", flush=True)
    if not verdict.seeds:
        return verdict
    result = json.dumps(as_json(claim, numbers, verdict, seeds, quick), indent=1) + "\n"
    write(folder / "result.json", result)
    draw(claim, numbers, verdict, folder / "plot.png")
    if quick or len(verdict.seeds) < len(seeds):
        print(f"  see {folder}; RESULTS.md {'is not touched by --quick' if quick else 'waits for the other seeds'}")
        return verdict
    write(out / "results" / f"claim_{claim.name}.json", result)
    draw(claim, numbers, verdict, out / "results" / f"claim_{claim.name}.png")
    table = out / "RESULTS.md"
    text = table.read_text(encoding="utf-8") if table.exists() else "# Results\n"
    write(table, with_row(text, claim.name, row(claim, verdict)))
    print(f"  written to {table}")
    return verdict


def main(claims: Sequence[Claim], arguments: Sequence[str] | None = None) -> int:
    """The command line of a paper's file.

    Args:
        claims: of that paper.
        arguments: after the name of the script; None = those of the process.

    Returns:
        0; a claim that does not hold is a result, not an error. 2 after a message, when the input is at fault; 130
        after Ctrl-C.
    """
    names = [claim.name for claim in claims]
    every_arm = list(dict.fromkeys(arm for claim in claims for arm in claim.arms))
    parser = argparse.ArgumentParser(description="Test the claims of a paper: " + ", ".join(names))
    parser.add_argument("--claim", action="append", choices=names, help="only these; default: all")
    parser.add_argument("--seed", action="append", type=int, help="only these; default: all that are planned")
    parser.add_argument("--arm", action="append", choices=every_arm, help="only these, and the claims that have them")
    parser.add_argument("--quick", action="store_true", help="tiny budget: shows that everything runs; tells nothing")
    parser.add_argument("--threads", type=int, default=1, help="of torch; small networks gain little from a second")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=_BENCHMARKS, help="folder with RESULTS.md and results/")
    options = parser.parse_args(arguments)
    chosen = [claim for claim in claims if options.claim is None or claim.name in options.claim]
    for seed in options.seed or ():
        for claim in chosen:
            if seed not in planned_seeds(claim, options.quick):
                parser.error(f"--seed {seed}: {claim.name} has seeds {planned_seeds(claim, options.quick)}")
    torch.set_num_threads(options.threads)
    try:
        for claim in chosen:
            arms = [arm for arm in claim.arms if options.arm is None or arm in options.arm]
            folder = options.runs / (f"{claim.name}_quick" if options.quick else claim.name)
            if arms:
                run_claim(claim, folder, options.seed or planned_seeds(claim, options.quick), arms, options.quick)
                finish(claim, folder, options.out, options.quick)
    except (KeyboardInterrupt, SystemExit):  # the Trainer turns Ctrl-C into the latter
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, ModuleNotFoundError, MissingWeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
