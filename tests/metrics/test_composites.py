"""Averages of several measures reproduce the papers' tables."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gen.metrics.composites import flow_opd_average, mean_z_score

# Flow-OPD, table 1: GenEval, OCR, DeQA, PickScore and the published average.
FLOW_OPD = [
    (0.63, 0.59, 4.07, 21.64, 0.72),
    (0.94, 0.65, 4.01, 21.53, 0.81),
    (0.64, 0.92, 4.06, 21.69, 0.80),
    (0.64, 0.66, 4.23, 23.02, 0.76),
    (0.51, 0.69, 4.22, 23.19, 0.73),
    (0.73, 0.83, 4.33, 21.84, 0.82),
    (0.91, 0.92, 4.29, 21.83, 0.88),
    (0.92, 0.94, 4.35, 23.08, 0.90),
]

# MARBLE, table 1: GenEval, OCR, PickScore, CLIPScore, HPSv2.1, Aesthetic, ImageReward, UniReward; then the composite.
MARBLE = [
    (0.55, 0.14, 22.42, 0.287, 0.280, 5.60, 0.76, 2.93, -0.455),
    (0.71, 0.68, 22.91, 0.289, 0.288, 5.50, 0.96, 3.25, 0.116),
    (0.66, 0.59, 22.84, 0.295, 0.274, 5.71, 0.96, 3.27, 0.104),
    (0.24, 0.12, 20.51, 0.237, 0.204, 5.13, -0.58, 2.02, -2.319),
    (0.63, 0.59, 22.34, 0.285, 0.279, 5.36, 0.85, 3.03, -0.255),
    (0.95, 0.66, 22.51, 0.293, 0.274, 5.32, 1.06, 3.18, 0.120),
    (0.66, 0.92, 22.41, 0.290, 0.280, 5.32, 0.95, 3.15, 0.013),
    (0.54, 0.68, 23.50, 0.280, 0.316, 5.90, 1.29, 3.37, 0.362),
    (0.94, 0.91, 23.80, 0.293, 0.331, 6.01, 1.49, 3.49, 1.015),
    (0.92, 0.91, 21.53, 0.267, 0.300, 6.15, 1.16, 3.04, 0.184),
    (0.94, 0.96, 22.83, 0.286, 0.355, 6.59, 1.53, 3.52, 1.116),
]


@pytest.mark.parametrize("row", FLOW_OPD)
def test_every_row_of_flow_opd(row: tuple[float, ...]) -> None:
    assert float(flow_opd_average(*row[:4])) == pytest.approx(row[4], abs=0.005 + 1e-9)


@pytest.mark.parametrize(("row", "published"), [(7, 0.9044), (6, 0.8819), (5, 0.8165)])
def test_the_four_digit_values_of_flow_opd(row: int, published: float) -> None:
    assert round(float(flow_opd_average(*FLOW_OPD[row][:4])), 4) == published


def test_flow_opd_average_of_tensors_and_of_wrong_units() -> None:
    columns = torch.tensor(FLOW_OPD).double()[:, :4].unbind(1)
    values = flow_opd_average(*columns)
    assert isinstance(values, torch.Tensor)
    assert values[5] == pytest.approx(0.8165)
    for bad in ((63, 0.5, 4, 21), (0.6, 59, 4, 21), (0.6, 0.5, 80, 21), (0.6, -0.1, 4, 21), (0.6, 0.5, 4, 2164)):
        with pytest.raises(ValueError, match="another unit"):
            flow_opd_average(*bad)


def test_all_composites_of_marble_to_three_digits() -> None:
    table = torch.tensor(MARBLE, dtype=torch.float64)
    values = mean_z_score(table[:, :8])
    assert [round(value, 3) for value in values.tolist()] == table[:, 8].tolist()


def test_z_scores_do_not_depend_on_units_and_sum_to_nothing() -> None:
    table = torch.tensor(MARBLE, dtype=torch.float64)[:, :8]
    scaled = table * torch.arange(1, 9).double() + 3
    assert torch.allclose(mean_z_score(scaled), mean_z_score(table), atol=1e-12)
    assert float(mean_z_score(table).sum()) == pytest.approx(0, abs=1e-12)


def test_a_measure_without_differences_is_named() -> None:
    table = torch.tensor([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    with pytest.raises(ValueError, match="same OCR"):
        mean_z_score(table, ["GenEval", "OCR"])
    with pytest.raises(ValueError, match="same column 1"):
        mean_z_score(table)


def test_tables_without_z_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 methods"):
        mean_z_score(torch.ones(1, 8))
    with pytest.raises(ValueError, match="NaN"):
        mean_z_score(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))
