"""From the rewards of an epoch to what each picture is worth in training: advantages and optimality probabilities.

All functions are pure and see a whole epoch: who samples on several ranks gathers the rewards first. A reward that is
NaN does not apply to that picture. Statistics are computed in float64 and given back in the dtype of the rewards.

Shape letters: N pictures of an epoch, G pictures of one prompt (a group).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_gen.training.randomness import uniform

__all__ = [
    "AdvantageMode",
    "AdvantageSettings",
    "Advantages",
    "combine_rewards",
    "epoch_advantages",
    "group_advantages",
    "limit_advantages",
    "optimality",
    "training_mask",
    "whiten",
]

_ROUNDING = 1e-6

AdvantageMode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


@dataclasses.dataclass(frozen=True)
class AdvantageSettings:
    """How several rewards become one advantage.

    Attributes:
        order: "combine_first" adds the rewards and normalises the sum; "normalise_first" normalises each reward and
            adds the advantages, so that no reward counts more because its scale is larger.
        deviation: what the distance from the group's mean is divided by: the standard deviation over the whole epoch
            ("global"), over the group ("group"), or nothing ("none").
        epsilon: added to the standard deviation, > 0.
        whiten: with "normalise_first", bring the sum to mean 0 and deviation 1 over the epoch once more, so that its
            scale does not depend on the number of rewards. The mean of every group is 0 before, and stays so as long as
            no reward is missing.

    Raises:
        ValueError: an epsilon that is not positive, or ``whiten`` with another order.

    Source: arXiv:2505.05470, published code (sum first, deviation over the epoch, epsilon 1e-4); arXiv:2601.05242
    (each reward by itself, over its group, then whitened).
    """

    order: Literal["combine_first", "normalise_first"] = "combine_first"
    deviation: Literal["global", "group", "none"] = "global"
    epsilon: float = 1e-4
    whiten: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0.0:
            raise ValueError(f"epsilon keeps groups of equal rewards finite and is positive, got {self.epsilon}")
        if self.whiten and self.order != "normalise_first":
            raise ValueError("whiten goes with order: normalise_first; a sum of rewards is normalised once already")


@dataclasses.dataclass(frozen=True)
class Advantages:
    """What the pictures of an epoch are worth.

    Attributes:
        total: the combined advantage, (N,), 0 where no reward applies.
        by_reward: advantage in each reward alone, (N,) each, NaN where it does not apply; of weight 0 too.
    """

    total: Tensor
    by_reward: dict[str, Tensor]


def epoch_advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    settings: AdvantageSettings = AdvantageSettings(),  # noqa: B008 (frozen)
    combination: Literal["sum", "mean"] = "sum",
) -> Advantages:
    """Advantages of all pictures of an epoch.

    combine_first:    A = normalise(sum_k w_k r_k)
    normalise_first:  A = sum_k w_k normalise(r_k);  the sum is a mean where ``combination`` says so

    Args:
        rewards: name -> (N,), NaN = does not apply.
        weights: name -> weight, for the same names; 0 = only watched.
        groups: number of the prompt of each picture, int64, (N,).
        settings: how.
        combination: of the rewards, or of their advantages, see :func:`combine_rewards`; that of the ``RewardSuite``.

    Returns:
        The total and the parts; not clipped, see :func:`limit_advantages`.

    Raises:
        ValueError: names, shapes or weights that do not fit, or no prompt with more than one picture.
    """
    parts = {
        name: group_advantages(reward, groups, settings.deviation, settings.epsilon) for name, reward in rewards.items()
    }
    if settings.order == "combine_first":
        combined = combine_rewards(rewards, weights, combination)
        total = group_advantages(combined, groups, settings.deviation, settings.epsilon)
    else:
        total = combine_rewards(parts, weights, combination)
        total = whiten(total, settings.epsilon) if settings.whiten else total
    return Advantages(total.nan_to_num(nan=0.0), parts)


def combine_rewards(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], combination: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Weighted sum or mean of what applies.

    sum:   R = sum_{k applies} w_k r_k
    mean:  R = sum_{k applies} w_k r_k / sum_{k applies} w_k

    Args:
        rewards: name -> (N,), NaN = does not apply.
        weights: name -> weight >= 0, for the same names, at least one of them positive; 0 = only watched: such a reward
            counts nowhere, also not by being NaN.
        combination: which of the two.

    Returns:
        (N,), NaN where no reward of positive weight applies.

    Raises:
        ValueError: other names in the weights, weights that are negative or all 0, or rewards of different shapes.

    Source: the sum in the published code of arXiv:2505.05470 and arXiv:2509.16117, without missing rewards there.
    """
    _require_weights(rewards, weights)
    counted = [name for name, weight in weights.items() if weight > 0.0]
    first = rewards[counted[0]]
    stacked = torch.stack([rewards[name].double() for name in counted])
    weight = torch.tensor([weights[name] for name in counted], dtype=torch.float64, device=first.device)[:, None]
    applies = ~stacked.isnan()
    total = (weight * stacked.nan_to_num(nan=0.0)).sum(0)
    if combination == "mean":
        total = total / (weight * applies).sum(0)
    return total.masked_fill(~applies.any(0), float("nan")).to(first.dtype)


def group_advantages(
    reward: Tensor,
    groups: Tensor,
    deviation: Literal["global", "group", "none"] = "global",
    epsilon: float = 1e-4,
) -> Tensor:
    """Distance of a reward from the mean of its prompt, in standard deviations.

    A_i = (r_i - mean(group of i)) / (std + epsilon),  std over the epoch or over the group, population (ddof 0)

    Pictures to which the reward does not apply count in no mean and no deviation. In a group whose rewards are all
    equal A is 0 exactly, and over any group A sums to 0.

    Args:
        reward: (N,), NaN = does not apply.
        groups: number of the prompt of each picture, int64, (N,), any numbers.
        deviation: over what the standard deviation is taken; "none" = not divided.
        epsilon: > 0.

    Returns:
        (N,), NaN where the reward is.

    Raises:
        ValueError: other shapes, an infinite reward, or no prompt with more than one picture.

    Source: arXiv:2505.05470 eq. 4 ("group"); "global" is the default of the published code.
    """
    _require_groups(reward, groups)
    values, applies = reward.double().nan_to_num(nan=0.0), ~reward.isnan()
    number, inverse = _numbered(groups)

    def over_group(terms: Tensor) -> Tensor:
        return terms.new_zeros(number).index_add_(0, inverse, terms)[inverse]

    count = over_group(applies.double()).clamp(min=1.0)
    centred = (values - over_group(values) / count).masked_fill(~applies, 0.0)
    # Rounding of the mean would make something of nothing, and such pictures could not be left out.
    centred = centred.masked_fill(_all_equal(values, applies, number, inverse), 0.0)
    if deviation == "group":
        centred = centred / ((over_group(centred.square()) / count).sqrt() + epsilon)
    elif deviation == "global":
        centred = centred / (_deviation(values[applies]) + epsilon)
    return centred.masked_fill(~applies, float("nan")).to(reward.dtype)


def whiten(advantages: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Mean 0 and deviation 1 over the epoch.

    A_i <- (A_i - mean(A)) / (std(A) + epsilon)

    Args:
        advantages: (N,), NaN = none.
        epsilon: > 0.

    Returns:
        (N,), NaN where the input is.

    Source: arXiv:2601.05242 (the last step, over the batch).
    """
    known = advantages.double()[~advantages.isnan()]
    deviation = _deviation(known)
    # The mean is mostly 0 but for rounding, which would make something of nothing.
    mean = known.mean() if len(known) else known.new_zeros(())
    mean = mean.where(mean.abs() > _ROUNDING * deviation, 0.0)
    return ((advantages.double() - mean) / (deviation + epsilon)).to(advantages.dtype)


def limit_advantages(advantages: Tensor, mode: AdvantageMode = "all", limit: float = 5.0) -> Tensor:
    """Clip advantages, and choose which of them are learned from.

    all: clip(A, -c, c);  positive_only: clip(A, 0, c);  negative_only: clip(A, -c, 0)
    one_only: 1 if A > 0 else 0;  binary: sign(A)

    Args:
        advantages: any shape.
        mode: which.
        limit: c > 0; the last two modes do not use it.

    Returns:
        The same shape, NaN where the input is.

    Raises:
        ValueError: an unknown mode, or a limit that is not positive.

    Source: arXiv:2509.16117, published code; "all" with 5 in that of arXiv:2505.05470.
    """
    if mode not in get_args(AdvantageMode):
        raise ValueError(f"unknown mode {mode!r} of advantages: one of {', '.join(get_args(AdvantageMode))}")
    if not limit > 0.0:
        raise ValueError(f"advantages are clipped at a positive limit, got {limit}")
    if mode in ("one_only", "binary"):
        marks = (advantages > 0.0).to(advantages.dtype) if mode == "one_only" else advantages.sign()
        return marks.masked_fill(advantages.isnan(), float("nan"))
    return advantages.clamp(0.0 if mode == "positive_only" else -limit, 0.0 if mode == "negative_only" else limit)


def optimality(advantages: Tensor, mode: AdvantageMode = "all", limit: float = 5.0) -> Tensor:
    """Probability that a picture is an optimal answer.

    r = clip(limited A / (2 c) + 1/2, 0, 1)

    With A from :func:`group_advantages` over the epoch this is 1/2 + 1/2 clip((R - E[R | prompt]) / Z, -1, 1) with
    Z = c (std + epsilon). At c = 5, "one_only" gives 0.6 or 0.5, and "binary" gives 0.6, 0.4 or 0.5.

    Args:
        advantages: A, any shape.
        mode: see :func:`limit_advantages`.
        limit: c > 0.

    Returns:
        r in [0, 1], the same shape, NaN where the input is.

    Raises:
        ValueError: as :func:`limit_advantages`.

    Source: arXiv:2509.16117 (optimality probability), published code.
    """
    return (limit_advantages(advantages, mode, limit) / (2.0 * limit) + 0.5).clamp(0.0, 1.0)


def training_mask(advantages: Tensor, divisor: int, *, seed: int, epoch: int, index: Tensor, parts: int = 1) -> Tensor:
    """Which pictures are trained on: those that are worth something, filled up to whole batches with others.

    A picture of advantage 0 has no gradient of the policy. Those that fill up are drawn at random, keyed by picture.
    Where ranks keep their own pictures, every rank fills up to the same number, so that all take equal batches.

    Args:
        advantages: (N,) or (N, steps), no NaN; 0 in all steps = worth nothing.
        divisor: number of batches that the pictures of a part are cut into, >= 1.
        seed: of the run.
        epoch: number of the epoch.
        index: global number of each picture in the epoch, int64, (N,), all different.
        parts: ranks; the pictures of one stand together, in equal shares.

    Returns:
        bool, (N,). In every part the same number of pictures, a multiple of ``divisor``; none at all where every
        advantage is 0.

    Raises:
        ValueError: NaN, shapes that do not fit, or pictures that cannot be cut into ``parts * divisor`` equal shares.

    Source: arXiv:2505.05470, published code. deviates: there every rank draws without a key and keeps its own count;
    a share that is no multiple of ``divisor`` is refused here, where the code trains on unequal batches.
    """
    count = len(advantages)
    if index.shape != (count,) or bool(advantages.isnan().any()):
        raise ValueError(f"{count} advantages, without NaN, and as many indices are needed, got {tuple(index.shape)}")
    if min(divisor, parts) < 1 or count % (divisor * parts):
        raise ValueError(f"{count} pictures cannot be cut into {parts} shares of {divisor} equal batches each")
    worth = (advantages != 0).reshape(count, -1).any(1).reshape(parts, -1)
    kept = divisor * -(-int(worth.sum(1).max()) // divisor) if count else 0
    # Below every draw, so that what is worth something comes first.
    order = uniform(seed, "refill", epoch, index, ()).reshape(parts, -1).masked_fill(worth, -1.0).argsort(1)
    mask = torch.zeros_like(worth).scatter_(1, order[:, :kept], True)
    return mask.flatten()


def _deviation(values: Tensor) -> Tensor:
    return values.std(correction=0) if len(values) else values.new_zeros(())


def _numbered(groups: Tensor) -> tuple[int, Tensor]:
    """Number of different groups, and the place of each picture's among them."""
    different, inverse = torch.unique(groups, return_inverse=True)
    return len(different), inverse


def _all_equal(values: Tensor, applies: Tensor, number: int, inverse: Tensor) -> Tensor:
    """(N,), True where all rewards of the picture's group that apply are one value."""
    extremes = [
        values.new_full((number,), start).scatter_reduce_(
            0, inverse, values.masked_fill(~applies, start), "amax" if start < 0 else "amin"
        )
        for start in (-torch.inf, torch.inf)
    ]
    return (extremes[0] == extremes[1])[inverse]


def _require_groups(reward: Tensor, groups: Tensor) -> None:
    if reward.ndim != 1 or groups.shape != reward.shape or groups.dtype != torch.int64:
        raise ValueError(
            f"rewards (N,) and the int64 number of each one's prompt are needed, got {tuple(reward.shape)} and "
            f"{groups.dtype} of {tuple(groups.shape)}"
        )
    if bool(reward.isinf().any()):
        raise ValueError(f"reward {int(reward.isinf().nonzero()[0])} is infinite: a reward that does not apply is NaN")
    if len(groups) and len(torch.unique(groups)) == len(groups):
        raise ValueError(
            f"each of the {len(groups)} pictures has a prompt of its own, so every advantage would be 0: sample groups "
            "of several pictures per prompt, the papers 24"
        )


def _require_weights(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    if set(rewards) != set(weights):
        lost = sorted(set(rewards) ^ set(weights))
        raise ValueError(
            f"rewards and weights are not of the same names: {', '.join(lost)} is only in one of them (weight 0 "
            "watches a reward without training on it)"
        )
    if not any(weight > 0.0 for weight in weights.values()) or any(weight < 0.0 for weight in weights.values()):
        raise ValueError(f"weights of rewards are not negative and not all 0, got {dict(weights)}")
    if len({tuple(reward.shape) for reward in rewards.values()}) > 1:
        raise ValueError(f"rewards differ in shape: { {name: tuple(r.shape) for name, r in rewards.items()} }")
