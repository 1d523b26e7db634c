"""The Inception score: how sure a classifier is of every picture, and how different its answers are.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["InceptionScore", "inception_score"]

_SPLIT_SIZE: Final = 5000


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """The score of a set of pictures.

    Attributes:
        mean: mean over the splits.
        deviation: standard deviation over the splits, N in the denominator (ddof 0).
        splits: the score of every split.
    """

    mean: float
    deviation: float
    splits: tuple[float, ...]


def inception_score(
    logits: Tensor, split_size: int = _SPLIT_SIZE, num_splits: int | None = None, shuffle_seed: int | None = None
) -> InceptionScore:
    """Inception score of logits, in float64.

    IS = mean over splits of exp(mean_i sum_k p_ik (log p_ik - log q_k)),  q_k = mean_i p_ik,  p = softmax(logits)

    Splits are taken in order, and the last one may be smaller, as the ADM evaluator does it.

    Args:
        logits: float, (N, K), in the order in which the pictures were made, from the classifier WITHOUT its bias.
        split_size: pictures per split.
        num_splits: this many splits of nearly equal size instead, as torch-fidelity and torchmetrics take them (10).
        shuffle_seed: shuffle first by NumPy's legacy generator with this seed, as torch-fidelity does (2020);
            None keeps the order.

    Returns:
        Mean, deviation and the splits.

    Raises:
        ValueError: no logits, or a number that is not finite, or splits that are empty.

    Source: arXiv:1606.03498; github.com/openai/guided-diffusion, evaluations/evaluator.py.
    """
    count = len(logits)
    if logits.ndim != 2 or count == 0:
        raise ValueError(f"need logits of shape (N, K), got {tuple(logits.shape)}")
    if split_size < 1 or (num_splits is not None and not 1 <= num_splits <= count):
        raise ValueError(f"cannot take {num_splits or split_size} {'splits' if num_splits else 'per split'} of {count}")
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(count)
        logits = logits[torch.from_numpy(order).to(logits.device)]
    if num_splits is None:
        edges = [*range(0, count, split_size), count]
    else:
        edges = [number * count // num_splits for number in range(num_splits + 1)]
    splits = [_score(logits[start:end]) for start, end in zip(edges, edges[1:], strict=False)]
    return InceptionScore(float(np.mean(splits)), float(np.std(splits)), tuple(splits))


def _score(logits: Tensor) -> float:
    log_p = logits.detach().double().log_softmax(1)
    if not torch.isfinite(log_p).all():
        raise ValueError("a logit is NaN or infinite: look at the images and at the classifier")
    p = log_p.exp()
    # A class that no picture of the split has adds 0 * log 0, which is 0.
    log_q = p.mean(0).clamp(min=torch.finfo(torch.float64).tiny).log()
    return float((p * (log_p - log_q)).sum(1).mean().exp())
