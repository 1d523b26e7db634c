"""Jobs of two ranks that count preference scores and win rates; each rank shows some samples, one of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_gen.metrics.preference_score import PairwiseAccuracy, PreferenceScore
from lightning_gen.metrics.protocol import Protocol
from lightning_gen.metrics.win_rate import WinRate

__all__ = ["count_on_ranks"]


def count_on_ranks(rows_of_rank: Sequence[Sequence[tuple[int, int, float, float]]]) -> dict[str, Any]:
    """Every rank counts its rows (prompt, sample, first score, second score) in all three metrics."""
    rows = rows_of_rank[torch.distributed.get_rank()]
    protocol = Protocol("toy", "table")
    score, pairs, wins = PreferenceScore(protocol), PairwiseAccuracy(protocol), WinRate(protocol)
    for prompt, sample, first, second in rows:
        a, b = torch.tensor([first]), torch.tensor([second])
        score.update(a, [prompt], [sample])
        pairs.update(a, b, [10 * prompt + sample])
        wins.update(a, b, [prompt], [sample])
    measured = [*score.measurements(), *pairs.measurements(), *wins.measurements()]
    values = {name: float(value) for name, value in score.compute().items()}
    values |= {"pairwise": float(pairs.compute()), "winrate": float(wins.compute())}
    return {"values": values, "measured": [one.to_json() for one in measured]}
