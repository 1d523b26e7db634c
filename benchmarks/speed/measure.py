"""Ratios that a busy machine bends little: both sides take turns, every turn gives one ratio, the median counts."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

__all__ = ["Row", "compare", "paired", "peak_apart", "peak_bytes", "report", "with_standard_options"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: letter of the question.
        case: what was computed.
        ratio: how much better ours is; above 1 = ours is faster or smaller.
        spread: lower and upper quartile of the ratio over the repetitions.
        ours: median of our side, seconds or bytes.
        other: median of the other side.
        target: the ratio that is asked for, if one is.
        difference: largest difference of the two sides' results, where they must agree.
        rates: tokens or images per second of both sides, where that is the question.
    """

    part: str
    case: str
    ratio: float
    spread: tuple[float, float]
    ours: float
    other: float
    target: float | None = None
    difference: float | None = None
    rates: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None = there is none."""
        return None if self.target is None else self.ratio >= self.target


def compare(
    part: str,
    case: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    repetitions: int,
    *,
    target: float | None = None,
    difference: float | None = None,
    items: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    apart: bool = False,
) -> Row:
    """Time two functions in turns: A B A B ...

    Args:
        part: letter of the question.
        case: what is computed.
        ours: our side, called without arguments.
        other: what it is compared with.
        repetitions: pairs of calls that count; one more pair warms up.
        target: the ratio that is asked for.
        difference: stored in the row.
        items: real tokens, or images, that both sides handle per call, for the rates.
        clock: seconds. ``time.process_time`` is not disturbed by other programs, but right only where one thread
            of this process does all the work and nothing waits for a disk or another process.
        apart: every call in a forked process of its own, once to warm up and once timed, so that neither side has to
            live in the heap that the other one leaves behind.

    Returns:
        The row; its ratio is the median over the pairs of time(other) / time(ours).
    """
    pairs, seconds = [], _seconds_apart if apart else _seconds
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions + 1):
            pairs.append((seconds(ours, clock), seconds(other, clock)))
    finally:
        gc.enable()
    return paired(part, case, pairs[1:], target=target, difference=difference, items=items)


def paired(
    part: str,
    case: str,
    pairs: Sequence[tuple[float, float]],
    *,
    target: float | None = None,
    difference: float | None = None,
    items: int | None = None,
) -> Row:
    """The row of pairs that are measured already.

    Args:
        part: letter of the question.
        case: what was computed.
        pairs: seconds of our side and of the other one.
        target: the ratio that is asked for.
        difference: stored in the row.
        items: real tokens, or images, that both sides handle per call, for the rates.

    Returns:
        The row; its ratio is the median over the pairs of other / ours.
    """
    ratios = sorted(b / a for a, b in pairs)
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    rates = None if items is None else (items / mine, items / theirs)
    spread = (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])
    return Row(part, case, statistics.median(ratios), spread, mine, theirs, target, difference, rates)


def _seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def _seconds_apart(function: Callable[[], object], clock: Callable[[], float]) -> float:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def work() -> None:
        function()
        sender.send(_seconds(function, clock))

    process = fork.Process(target=work)
    process.start()
    sender.close()
    try:
        return float(receiver.recv())  # EOFError where the function failed; its traceback is on standard error
    finally:
        process.join()


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held at a time during a call, on top of what was there before.

    Args:
        function: called once under the profiler.

    Returns:
        Bytes.
    """
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    first = next(event["args"] for event in events if event["name"] == "[memory]")
    return int(max(held) - (first["Total Allocated"] - first["Bytes"]))


def peak_apart(prepare: Callable[[], Callable[[], object]], imported: Sequence[str] = ("torch",)) -> int:
    """Most bytes that a process of its own held during a call, beyond what it held before: a peak is never forgotten.

    Args:
        prepare: called in that process, gives the call; a function of a module, or a partial of one.
        imported: modules that are imported once for all such processes; those of the first call count.

    Returns:
        Bytes, mapped files that were read included; at least 1.
    """
    # Forked from a process that has imported and computed nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imported))
    with context.Pool(1) as pool:
        return pool.apply(_peak_growth, (prepare, torch.get_num_threads()))


def _peak_growth(prepare: Callable[[], Callable[[], object]], threads: int) -> int:
    torch.set_num_threads(threads)
    call = prepare()
    # Forget the peak of the preparation; Linux resets its high-water mark on request.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _kilobytes("VmRSS")
    call()
    return max(1, 1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(field: str) -> int:
    """A field of this process's status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def report(rows: Iterable[Row], out: Path, settings: dict[str, object], unit: str = "tokens") -> None:
    """Print the table and save it.

    Args:
        rows: the results.
        out: JSON file; its folder is created.
        settings: options of the run, saved beside the results.
        unit: what the rates count.
    """
    rows = list(rows)
    width = max(len(row.case) for row in rows)
    print(f"\n{'':2} {'case':{width}}  {'ratio':>6}  {'quartiles':>13}  {unit + '/s':>15}  {'differ':>7}  target")
    for row in rows:
        quartiles = f"{row.spread[0]:.2f} .. {row.spread[1]:.2f}"
        rates = f"{row.rates[0]:.0f} / {row.rates[1]:.0f}" if row.rates else ""
        differ = "" if row.difference is None else f"{row.difference:.0e}"
        verdict = "" if row.target is None else f">= {row.target:.2f} {'met' if row.met else 'MISSED'}"
        start = f"{row.part:2} {row.case:{width}}  {row.ratio:6.2f}  {quartiles:>13}"
        print(f"{start}  {rates:>15}  {differ:>7}  {verdict}")
    asked = [row for row in rows if row.target is not None]
    print(f"\n{sum(bool(row.met) for row in asked)} of {len(asked)} targets met; saved as {out}")
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    found = [{**dataclasses.asdict(row), "met": row.met} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "settings": settings, "rows": found}, indent=1), encoding="utf-8")


def with_standard_options(parser: argparse.ArgumentParser, out: str) -> argparse.ArgumentParser:
    """Add the options that every speed benchmark has.

    Args:
        parser: gets ``--threads``, ``--repetitions``, ``--quick`` and ``--out``.
        out: default of ``--out``.

    Returns:
        The same parser.
    """
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repetitions", type=int, default=9, help="timed pairs per row")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path(out), help="JSON file to write")
    return parser
