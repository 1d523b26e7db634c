"""One number out of several: the averages that papers' tables end with, and what they are made of.

Shape letters: M methods, K measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["flow_opd_average", "mean_z_score"]

_DEQA_TOP = 5.0
_PICKSCORE_TOP = 26.0


def flow_opd_average(
    geneval: float | Tensor, ocr: float | Tensor, deqa: float | Tensor, pickscore: float | Tensor
) -> float | Tensor:
    """The "average" column of Flow-OPD's table.

    (GenEval + OCR + DeQA / 5 + PickScore / 26) / 4

    The paper does not state the formula where we could read it; it reproduces all its values.

    Args:
        geneval: overall score, [0, 1].
        ocr: mean OCR accuracy, [0, 1].
        deqa: mean DeQA score, [1, 5].
        pickscore: mean PickScore as its authors give it (100 times a cosine), about 20 to 24; not divided by 26.

    Returns:
        About [0, 1]; of the type of the arguments.

    Raises:
        ValueError: a number far outside its scale, which is one given in another unit.

    Source: derived from the figures of Flow-OPD, table 1.
    """
    for name, value, top in (
        ("GenEval", geneval, 1.0),
        ("OCR", ocr, 1.0),
        ("DeQA", deqa, _DEQA_TOP),
        ("PickScore", pickscore, 2 * _PICKSCORE_TOP),
    ):
        values = torch.as_tensor(value)
        if bool((values < 0).any() or (values > top).any()):
            raise ValueError(f"{name} is {value}, outside 0..{top:g}: is it given in another unit?")
    return (geneval + ocr + deqa / _DEQA_TOP + pickscore / _PICKSCORE_TOP) / 4


def mean_z_score(table: Tensor, measures: Sequence[str] | None = None) -> Tensor:
    """MARBLE's composite: how many standard deviations a method lies above the mean of a table, over all columns.

    s_m = (1 / K) sum_k (x_mk - mean_k) / std_k,  mean and population standard deviation (ddof 0) over the M methods

    It compares the methods of one table; adding or removing a row changes every value.

    Args:
        table: (M, K), one row per method, larger = better in every column.
        measures: K names of the columns for messages.

    Returns:
        float64, (M,); their sum is 0.

    Raises:
        ValueError: fewer than two methods, a value that is not finite, or a column in which all methods are equal.

    Source: derived from the figures of MARBLE, table 1.
    """
    values = table.double()
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"z-scores need a table (M, K) of at least 2 methods, got {tuple(table.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError("a value of the table is NaN or infinite: leave the method or the measure out")
    spread = values.std(0, correction=0)
    # Asked of the numbers, not of the deviation, which rounding can leave above 0.
    flat = (values == values[0]).all(0).nonzero().flatten().tolist()
    if flat:
        name = measures[flat[0]] if measures is not None else f"column {flat[0]}"
        raise ValueError(f"all methods have the same {name}: it has no z-score, leave it out")
    scores: Tensor = ((values - values.mean(0)) / spread).mean(1)
    return scores
