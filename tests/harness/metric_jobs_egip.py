"""Jobs of EGIP for the pair of processes, and the rows that they share with the tests of one process."""

from __future__ import annotations

import random

import torch

from lightning_gen.metrics.egip import EGIP, CaseError
from lightning_gen.metrics.judging.egip_rules import Constraint, Entity, Judgement, Verdicts, judge_case
from lightning_gen.metrics.judging.gen_arena import GEN_ARENA_CATEGORIES

__all__ = ["Row", "egip_of_shares", "random_rows"]

Row = tuple[int, str, object]


def random_rows(count: int, seed: int = 0, errors: int = 3) -> list[Row]:
    """Rows with one to four entities and up to six constraints; the last ``errors`` of them could not be judged."""
    chance = random.Random(seed)
    rows: list[Row] = []
    for index in range(count):
        category = chance.choice(GEN_ARENA_CATEGORIES)
        if index >= count - errors:
            rows.append((index, category, CaseError("judge", "no JSON")))
            continue
        entities = [Entity(f"e{number}", "thing") for number in range(chance.randint(1, 4))]
        constraints = [
            Constraint(
                f"c{number}",
                chance.choice(("attribute", "layout", "relation")),
                "text",
                tuple(entity.id for entity in entities if chance.random() < 0.4),
            )
            for number in range(chance.randint(0, 6))
        ]
        verdicts = Verdicts(
            tuple(Judgement(entity.id, chance.choice(("pass", "pass", "pass", "fail"))) for entity in entities),
            tuple(Judgement(item.id, chance.choice(("pass", "pass", "uncertain"))) for item in constraints),
        )
        rows.append((index, category, judge_case(entities, constraints, verdicts)))
    return rows


def egip_of_shares(shares: list[list[Row]]) -> tuple[dict[str, float], dict[str, object], int]:
    """Scores, measurements and the number of rows on this rank afterwards, where each rank sees its share of rows."""
    metric = EGIP("scripted")
    for index, category, outcome in shares[torch.distributed.get_rank()]:
        metric.update(index, category, outcome)  # type: ignore[arg-type]
    scores = {name: value.item() for name, value in metric.compute().items()}
    measurements: dict[str, object] = {name: value.to_json() for name, value in metric.measurements().items()}
    return scores, measurements, metric.num_samples
