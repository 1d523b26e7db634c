"""Jobs for two processes: metrics that count samples of prompts."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist

from lightning_gen.metrics.compositional.dpg_bench import DPGBench, DPGPrompt, DPGQuestion, score_answers
from lightning_gen.metrics.compositional.geneval2 import GenEval2Prompt, GenEval2Question, GenEval2Score
from lightning_gen.metrics.compositional.geneval_prompts import TAGS
from lightning_gen.metrics.compositional.geneval_rules import FAILURES, Failure, RuleResult
from lightning_gen.metrics.compositional.ocr import OCRResult, OCRScore
from lightning_gen.metrics.geneval import GenEvalScore

GENEVAL2 = tuple(
    GenEval2Prompt(
        "p", 3 + i, (GenEval2Question("Is it?", "Yes", "object"), GenEval2Question("How many?", "two", skill))
    )
    for i, skill in enumerate(("count", "verb"))
)

Row = tuple[int, int, RuleResult]


def verdict(tag: str, correct: bool, *kinds: Any, reward: float | None = None) -> RuleResult:
    failures = tuple(Failure(kind, kind) for kind in kinds)
    return RuleResult(tag, correct, failures, float(correct) if reward is None else reward, correct, {})


def geneval_rows(prompts_per_tag: int = 3, samples: int = 4) -> list[Row]:
    """Verdicts of a whole benchmark in which no two tags have the same share of correct images."""
    rows = []
    for number in range(len(TAGS) * prompts_per_tag):
        tag = number % len(TAGS)
        for sample in range(samples):
            correct = (7 * number + 3 * sample) % (tag + 2) == 0
            kinds = () if correct else (FAILURES[(number + sample) % len(FAILURES)], "missing")
            rows.append((number, sample, verdict(TAGS[tag], correct, *kinds, reward=math.cos(number + sample))))
    return rows


def counted(metric: GenEvalScore, rows: list[Row], batch: int = 5) -> GenEvalScore:
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        metric.update([row[2] for row in part], [row[0] for row in part], [row[1] for row in part])
    return metric


def geneval_job(split: str) -> dict[str, Any]:
    """Every rank counts its share: uneven, padded by repeats as a distributed sampler does, or all on rank 0."""
    rows, rank = geneval_rows(), dist.get_rank()
    if split == "uneven":
        mine = rows[:17] if rank == 0 else rows[17:]
    elif split == "padded":
        padded = rows + rows[:5]
        mine = padded[rank :: dist.get_world_size()]
    else:
        mine = rows if rank == 0 else []
    return geneval_values(counted(GenEvalScore("toy"), mine))


def geneval_values(metric: GenEvalScore) -> dict[str, Any]:
    return {
        "compute": {name: float(value) for name, value in metric.compute().items()},
        "measurements": [
            {key: value for key, value in one.to_json().items() if key != "protocol"} | {"id": one.protocol.id}
            for one in metric.measurements()
        ],
        "failures": metric.failures(),
    }


def other_metrics(rank: int | None) -> dict[str, float]:
    """GenEval 2, DPG-Bench and the OCR score of the samples of one rank (None = all, in one process)."""
    prompts = [dpg_prompt(number) for number in range(5)]
    geneval2, dpg, ocr = GenEval2Score("toy"), DPGBench("toy", prompts), OCRScore("toy")
    for number, prompt in enumerate(prompts):
        # Both ranks count the last one.
        if rank is not None and number % 2 != rank and number != 4:
            continue
        geneval2.update([GENEVAL2[number % 2]], [[0.1 + 0.1 * number, 0.7]], [number])
        answers = [[number % 2 == 0, True], [True, True], [True, number < 2], [number > 0, number != 3]]
        dpg.update([score_answers(prompt.questions, answers)], [number])
        ocr.update([OCRResult(1 / (1 + number), "")], [number], [0])
    return {
        **{name: float(value) for name, value in geneval2.compute().items()},
        **{f"dpg {name}": float(value) for name, value in dpg.compute().items()},
        "ocr": float(ocr.compute()),
        "geneval2 N": geneval2.measurements()[0].protocol.count or 0,
        "dpg N": dpg.measurements()[0].protocol.count or 0,
        "ocr N": ocr.measurements()[0].protocol.count or 0,
    }


def dpg_prompt(number: int) -> DPGPrompt:
    relation = "relation - spatial" if number % 2 else "attribute - color"
    return DPGPrompt(
        f"item{number}", "", (DPGQuestion(1, (0,), "Q1?", "entity - whole"), DPGQuestion(2, (1,), "Q2?", relation))
    )


def other_metrics_job() -> dict[str, float]:
    return other_metrics(dist.get_rank())
