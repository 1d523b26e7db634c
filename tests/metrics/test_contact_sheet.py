"""Best, median and worst cases as one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_gen.metrics.contact_sheet import Cell, best_median_worst, draw_contact_sheet


def solid(red: int, green: int, blue: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).reshape(3, 1, 1).expand(3, height, width)


def test_the_right_end_is_the_best() -> None:
    scores = [3.0, 1.0, 2.0, 5.0, 4.0, 0.0, 9.0]
    low = best_median_worst(scores, higher_is_better=False, count=2)
    assert low == ([5, 1], [2, 0], [6, 3])
    high = best_median_worst(scores, higher_is_better=True, count=2)
    assert (high.best, high.worst) == ([6, 3], [5, 1])
    assert best_median_worst(scores, True, 1).median == [0], "the middle of seven"


@pytest.mark.parametrize("total", range(1, 30))
def test_no_case_is_shown_twice(total: int) -> None:
    chosen = best_median_worst([float(number % 5) for number in range(total)], True)
    shown = [*chosen.best, *chosen.median, *chosen.worst]
    assert len(shown) == len(set(shown)) > 0


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="case 1 is not a number"):
        best_median_worst([0.0, float("nan")], True)
    with pytest.raises(ValueError, match="no case"):
        best_median_worst([], True)


def test_pictures_lie_in_rows_beside_their_partners() -> None:
    red, blue, green = solid(255, 0, 0), solid(0, 0, 255), solid(0, 128, 0)
    rows = [("best", [Cell([red, blue], "a"), Cell([green, red], "b")]), ("median", []), ("worst", [Cell([blue], "c")])]
    sheet = np.asarray(draw_contact_sheet("title", rows, tile=32))
    found = {}
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("green", (0, 128, 0))):
        where = (sheet == colour).all(2)
        found[name] = int(where.sum())
    assert found == {"red": 2 * 32 * 32, "blue": 2 * 32 * 32, "green": 32 * 32}, "small ones are enlarged fourfold"
    top = (sheet == (255, 0, 0)).all(2).any(1).nonzero()[0]
    assert top.max() - top.min() == 31, "one row"


def test_large_pictures_are_shrunk_and_keep_their_ratio() -> None:
    sheet = np.asarray(draw_contact_sheet("t", [("best", [Cell([solid(255, 0, 0, 50, 100)], "")])], tile=40))
    rows, columns = (sheet == (255, 0, 0)).all(2).nonzero()
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (20, 40)


def test_long_captions_are_broken_and_cut_inside_their_cell() -> None:
    long = Cell([solid(200, 200, 200)], "word " * 60 + "x" * 300)
    one = draw_contact_sheet("t", [("best", [long, long])], tile=96)
    short = draw_contact_sheet("t", [("best", [long._replace(caption="a"), long])], tile=96)
    assert one.size == short.size
    left = np.asarray(one)[:, 12 + 96 : 24 + 96]
    assert (left == 255).all(), "the gap between two cells stays empty"
    assert draw_contact_sheet("x" * 400, [("best", [long])], tile=96).height > short.height, "a long title takes lines"


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="no case"):
        draw_contact_sheet("t", [("best", [])])
    with pytest.raises(ValueError, match="uint8"):
        draw_contact_sheet("t", [("best", [Cell([torch.zeros(3, 4, 4)], "")])])
