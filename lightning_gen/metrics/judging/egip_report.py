"""EGIP of a whole benchmark: every image judged, every answer kept in a file, nothing asked twice."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gen.data.quarantine import SampleError
from lightning_gen.metrics.egip import EGIP, CaseError
from lightning_gen.metrics.images import check_uint8
from lightning_gen.metrics.judging.egip_judging import (
    EGIP_INSTRUCTION_VERSION,
    JudgedCase,
    check_case,
    judge_image,
    judgement_key,
    score_verdicts,
)
from lightning_gen.metrics.judging.egip_rules import CaseResult, Judgement, SpecificationError, Verdicts
from lightning_gen.metrics.judging.gen_arena import GEN_ARENA_CATEGORIES, GenArenaCase
from lightning_gen.metrics.judging.judges import Judge
from lightning_gen.metrics.protocol import Measurement

__all__ = ["EGIPReport", "ResultsFile", "evaluate_egip"]


@dataclasses.dataclass(frozen=True)
class EGIPReport:
    """What became of a benchmark.

    Attributes:
        metric: holds all rows; ask it for other intervals.
        measurements: all rates at the default level.
        outcomes: result or error of every case id.
        num_asked: rows whose judge was asked now.
        num_reused: rows that were taken from the results file.
    """

    metric: EGIP
    measurements: Mapping[str, Measurement]
    outcomes: Mapping[str, CaseResult | CaseError]
    num_asked: int
    num_reused: int

    def to_json(self) -> dict[str, Any]:
        """Rates with intervals and protocols, errors by row, and how complete the judge's answers were."""
        results = {name: outcome for name, outcome in self.outcomes.items() if isinstance(outcome, CaseResult)}
        items = [result.completeness for result in results.values()]
        return {
            "measurements": {name: measurement.to_json() for name, measurement in self.measurements.items()},
            "errors": {
                name: {"kind": outcome.kind, "message": outcome.message}
                for name, outcome in self.outcomes.items()
                if isinstance(outcome, CaseError)
            },
            "completeness": {
                "rows_incomplete": sum(not item.complete for item in items),
                "omitted": sum(len(item.omitted) for item in items),
                "extra": sum(len(item.extra) for item in items),
                "repeated": sum(len(item.repeated) for item in items),
                "undecided": sum(len(item.undecided) for item in items),
                "unreadable": sum(item.num_unreadable for item in items),
            },
            "num_asked": self.num_asked,
            "num_reused": self.num_reused,
        }


class ResultsFile:
    """``results.jsonl``: one line per judged row, written as soon as it is known.

    Lines are found by what their verdicts depend on, so one file may serve several judges and sets of images.

    Args:
        path: the file; made if needed. A last line that a crash cut off is taken away.

    Raises:
        ValueError: another line is no result.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known: dict[str, dict[str, Any]] = {}  # verdicts by key
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()

    def verdicts(self, key: str) -> Verdicts | None:
        """What a judge said before, if nothing that it depends on has changed.

        Args:
            key: see ``egip_judging.judgement_key``.

        Returns:
            The verdicts; None where they have to be asked for, also after an error.
        """
        stored = self._known.get(key)
        if stored is None:
            return None
        return Verdicts(
            tuple(Judgement(**item) for item in stored["entities"]),
            tuple(Judgement(**item) for item in stored["constraints"]),
            stored["num_unreadable"],
        )

    def append(self, case: GenArenaCase, key: str, judge: str, judged: JudgedCase) -> None:
        """Write one row.

        Args:
            case: the row.
            key: see ``egip_judging.judgement_key``; empty where there is no image.
            judge: its name.
            judged: what came out.
        """
        row: dict[str, Any] = {"case_id": case.case_id, "category": case.category, "judge": judge, "key": key}
        outcome = judged.outcome
        if isinstance(outcome, CaseError):
            row |= {"error": dataclasses.asdict(outcome), "egip": False}
        else:
            row |= {"error": None, "egip": outcome.passed, "entities": dict(outcome.entities)}
            row |= {"direct": dict(outcome.direct), "gated": dict(outcome.gated)}
            row |= {"completeness": dataclasses.asdict(outcome.completeness)}
        row["verdicts"] = None
        if judged.verdicts is not None:
            row["verdicts"] = self._known[key] = dataclasses.asdict(judged.verdicts)
        row |= {"attempts": judged.attempts, "reply": judged.reply}
        # ASCII: a judge may write half of a surrogate pair, which is no UTF-8.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if row["verdicts"] is not None:
                    self._known[row["key"]] = row["verdicts"]
            except (ValueError, LookupError, TypeError):
                raise ValueError(f"{self.path}, line {number} is no result of EGIP: take the line away") from None


def evaluate_egip(
    cases: Sequence[GenArenaCase],
    image_of: Callable[[GenArenaCase], Tensor],
    judge: Judge,
    *,
    results: str | Path | None = None,
    attempts: int = 3,
    strict_official: bool = False,
    workers: int = 1,
    categories: Sequence[str] = GEN_ARENA_CATEGORIES,
    progress: Callable[[int, int], None] | None = None,
) -> EGIPReport:
    """Judge the images of a benchmark.

    An image that is missing or damaged and an answer that never parses make error rows: they are counted, they fail,
    and they are tried again by the next call with the same results file. All specifications are checked before the
    first question is asked.

    Args:
        cases: rows; their order gives them their index.
        image_of: the generated image of a row, uint8, (3, H, W); may raise OSError or SampleError.
        judge: whom to ask; with several workers it must be safe to call from threads, as ``HTTPJudge`` is.
        results: where answers are kept; None = nowhere.
        attempts: how often to ask for an answer that parses.
        strict_official: as the official program: no prompt in the judge's message, a dangling dependency fails, an
            empty row passes.
        workers: questions at a time.
        categories: names that rows may have.
        progress: called with the number of rows done and of all rows.

    Returns:
        Rates, intervals and errors.

    Raises:
        SpecificationError: a row contradicts itself, or two rows have one id.
        ValueError: an image of another kind, a judge that cannot be used at all, or a results file that is none.
        FileNotFoundError: a reference image is not there.
        SampleError: a reference image is damaged.
    """
    for case in cases:
        check_case(case, strict_official)
    for name, count in Counter(case.case_id for case in cases).items():
        if count > 1:
            raise SpecificationError(f"case id {name!r} is used by {count} rows")
    file = None if results is None else ResultsFile(results)
    details = {
        **judge.settings,
        "instruction_version": EGIP_INSTRUCTION_VERSION,
        "strict_official": strict_official,
        "attempts": attempts,
    }
    metric = EGIP(judge.name, categories, details=details)
    outcomes: dict[str, CaseResult | CaseError] = {}
    asked = 0

    def judged(case: GenArenaCase) -> tuple[str, JudgedCase, bool]:
        """Key, what came out, and whether it is new."""
        try:
            image = image_of(case)
        except (OSError, SampleError) as error:
            return "", JudgedCase(CaseError("image", f"{type(error).__name__}: {error}")), True
        check_uint8([image], f"image of {case.case_id}")
        key = judgement_key(case, image, judge, strict_official)
        known = None if file is None else file.verdicts(key)
        if known is not None:
            return key, JudgedCase(score_verdicts(case, known, strict_official), known), False
        return key, judge_image(case, image, judge, attempts, strict_official), True

    for done, (case, (key, result, new)) in enumerate(_each(judged, cases, workers), 1):
        if new:
            asked += result.attempts > 0
            if file is not None:
                file.append(case, key, judge.name, result)
        outcomes[case.case_id] = result.outcome
        if progress is not None:
            progress(done, len(cases))
    for index, case in enumerate(cases):
        metric.update(index, case.category, outcomes[case.case_id])
    failed = sum(isinstance(outcome, CaseError) and outcome.kind == "image" for outcome in outcomes.values())
    ordered = {case.case_id: outcomes[case.case_id] for case in cases}
    return EGIPReport(metric, metric.measurements(), ordered, asked, len(cases) - asked - failed)


def _each(
    function: Callable[[GenArenaCase], tuple[str, JudgedCase, bool]], cases: Sequence[GenArenaCase], workers: int
) -> Iterator[tuple[GenArenaCase, tuple[str, JudgedCase, bool]]]:
    """Cases with their results, as they come; the first exception ends it without asking further."""
    if workers == 1:
        for case in cases:
            yield case, function(case)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="judge") as pool:
        futures = {pool.submit(function, case): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
