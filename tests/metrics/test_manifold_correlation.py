"""Rank correlations of measures with gFID."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lightning_gen.metrics.manifold import correlate, rank_correlation
from lightning_gen.metrics.manifold.correlation import read_results


@pytest.mark.parametrize("seed", range(4))
def test_both_are_those_of_scipy_with_ties(seed: int) -> None:
    from scipy.stats import kendalltau, spearmanr

    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, 6, (2, 12), generator=generator).double().tolist()
    found = rank_correlation(x, y, resamples=50)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    assert found.spearman_interval is not None and found.spearman_interval[0] <= found.spearman_interval[1]


def test_orders_agree_fully_or_not_at_all() -> None:
    up, curved = [1.0, 2, 3, 4, 5], [1.0, 8, 27, 64, 1000]
    same, reverse = rank_correlation(up, curved), rank_correlation(up, [-v for v in curved])
    assert (same.spearman, same.kendall) == (1, 1) and (reverse.spearman, reverse.kendall) == (-1, -1)
    assert same.kendall_interval == pytest.approx((1, 1))
    constant = rank_correlation(up, [3.0] * 5)
    assert math.isnan(constant.spearman) and constant.kendall_interval is None
    with pytest.raises(ValueError, match="at least 3 variants"):
        rank_correlation([1.0, 2], [1.0, 2])


def test_every_measure_is_held_against_gfid() -> None:
    results = {name: {"lpc": float(n), "ssc": -float(n), "gsq": math.nan} for n, name in enumerate("abcd")}
    found = correlate(results, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0})
    assert [one.protocol.id for one in found] == [
        "lpc:spearman/gfid", "lpc:kendall/gfid", "ssc:spearman/gfid", "ssc:kendall/gfid",
    ]  # fmt: skip
    assert [one.value for one in found] == [1, 1, -1, -1] and "4 variants" in found[0].note
    with pytest.raises(ValueError, match="variant 'd' has results but no gFID"):
        correlate(results, {"a": 1.0, "b": 2.0, "c": 3.0})
    with pytest.raises(ValueError, match="no measure is known of 3"):
        correlate({"a": {"lpc": 1.0}}, {"a": 1.0})


def test_reports_are_read_back(tmp_path: Path) -> None:
    card = {"metric": "lpc", "details": {"tokenizer": "toy"}}
    content = {"verb": "manifold", "metrics": [{"value": 0.5, "protocol": card}]}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_results(tmp_path) == {"toy": {"lpc": 0.5}}
    (tmp_path / "metrics.json").write_text(json.dumps({**content, "verb": "gfid"}))
    with pytest.raises(ValueError, match="no measures of tokenizers"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="writes it"):
        read_results(tmp_path / "nowhere.json")
