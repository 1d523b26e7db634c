"""The Inception score in its limiting cases."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gen.metrics.inception_score import inception_score


def test_uniform_answers_score_one_and_sure_ones_the_number_of_classes() -> None:
    assert inception_score(torch.zeros(100, 7)).mean == pytest.approx(1, abs=1e-12)
    sure = 1e4 * torch.eye(7).repeat(30, 1)
    assert inception_score(sure).mean == pytest.approx(7, rel=1e-12)
    # A class nobody names adds nothing.
    assert inception_score(sure[:, :5][(sure[:, :5] > 0).any(1)]).mean == pytest.approx(5, rel=1e-12)


def test_splits_are_taken_in_order() -> None:
    """One class per split: every split scores 1; shuffled, nearly the number of classes."""
    blocks = (1e4 * torch.eye(4)).repeat_interleave(50, 0)
    assert inception_score(blocks, split_size=50).splits == pytest.approx([1] * 4, abs=1e-12)
    assert inception_score(blocks, split_size=50, shuffle_seed=0).mean > 3.5


def test_the_last_split_is_kept_and_counts_as_much_as_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5003, 6, generator=generator)
    found = inception_score(logits)
    assert len(found.splits) == 2 and found.splits[1] == inception_score(logits[5000:]).mean
    assert found.mean == pytest.approx(sum(found.splits) / 2, rel=1e-12)
    assert found.deviation == pytest.approx(abs(found.splits[0] - found.splits[1]) / 2, rel=1e-12)
    assert len(inception_score(logits, num_splits=10).splits) == 10


def test_the_closed_form_of_two_pictures() -> None:
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64))
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert inception_score(logits).mean == pytest.approx(math.exp(divergence), rel=1e-14)


def test_what_scores_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="need logits"):
        inception_score(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="NaN"):
        inception_score(torch.full((3, 4), float("nan")))
    with pytest.raises(ValueError, match="5 splits of 3"):
        inception_score(torch.zeros(3, 4), num_splits=5)
