"""The clipped policy gradient of one denoising step.

Log-probabilities are per number of the state (``flow/transitions.py``), so a ratio is the whole state's to the power of
1 / D. Where the velocity has changed by dv, root mean square,

    log ratio = N(0, 1) w dv / sqrt(D) - (w dv)^2 / 2,  w = |d mean / d v| / deviation of the step

so that with D = 65,536 the clip range is 1e-4 and not 0.2; only the first term depends on D.

Shape letters: B pictures, D numbers of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_clipped", "policy_losses", "probability_ratio"]


def probability_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """How much likelier the action has become.

    ratio = exp(log p - log p_old)

    Args:
        log_prob: of the actions under the policy, float, (B,).
        old_log_prob: when they were taken, (B,).

    Returns:
        (B,); exactly 1 where nothing has changed.
    """
    return torch.exp(log_prob - old_log_prob)


def policy_losses(ratio: Tensor, advantage: Tensor, clip: float, advantage_clip: float = 5.0) -> Tensor:
    """PPO's pessimistic loss of every picture.

    loss = max(-A ratio, -A clip(ratio, 1 - c, 1 + c)),  A clipped to +- advantage_clip

    Args:
        ratio: see :func:`probability_ratio`, (B,).
        advantage: A, (B,), no gradient.
        clip: c; 1e-4 with guidance in the published configurations, 1e-5 without.
        advantage_clip: largest advantage.

    Returns:
        (B,).

    Source: arXiv:2505.05470 and its published trainer; arXiv:1707.06347 eq. 7.
    """
    gain = advantage.clamp(-advantage_clip, advantage_clip)
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip, 1 + clip))


def is_clipped(ratio: Tensor, clip: float) -> Tensor:
    """Which actions' ratios have left the clip range; for the log.

    Args:
        ratio: (B,).
        clip: c.

    Returns:
        1.0 or 0.0, (B,).
    """
    return ((ratio - 1).abs() > clip).float()
