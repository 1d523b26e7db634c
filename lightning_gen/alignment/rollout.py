"""On-policy sampling: pictures that a policy makes for prompts, with what is needed to learn from them.

Time runs from t = 1 (noise) to t = 0 (clean). Every draw is keyed by (seed, purpose, epoch, row), where a row is a
prompt of its file and a member of its group, so that neither batches nor world size change a picture.

Shape letters: B rows, K trained steps, n steps of the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lightning_gen.data.batches import PromptBatch
from lightning_gen.flow.guidance import Guidance, guided
from lightning_gen.flow.sde import StepNoise
from lightning_gen.flow.solvers import Velocity, falling
from lightning_gen.flow.transitions import Stochasticity
from lightning_gen.interfaces import Conditioning, TextToImage
from lightning_gen.training.randomness import normal, numpy_generator

__all__ = [
    "Rollout",
    "Trajectory",
    "initial_noise",
    "micro_batches",
    "policy_velocity",
    "roll_out",
    "row_keys",
    "step_noise",
    "stochastic_steps",
]

_MEMBERS = 1 << 16
_OF_ROWS = ("latents", "images", "keys", "group", "valid")
"""Fields of a rollout that are tensors with a row for every picture."""


class Trajectory(NamedTuple):
    """A walk from noise to latents.

    Attributes:
        latents: where it ended, (B, ...).
        states: before every trained step, (B, K, ...).
        actions: after it, (B, K, ...).
        log_probs: of the actions, (B, K).
    """

    latents: Tensor
    states: Tensor
    actions: Tensor
    log_probs: Tensor


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a policy did for prompts, and what it got for it.

    Attributes:
        trajectory: states, actions and log-probabilities of the trained steps, and the final latents; None = only the
            latents were kept.
        latents: clean, (B, ...).
        times: the grid, float64, (n + 1,).
        steps: numbers of the K trained steps on the grid.
        images: float, (B, 3, H, W) in [0, 1].
        prompts: B texts.
        metadata: B records of what they ask for.
        keys: int64, (B,), see :func:`row_keys`.
        group: int64, (B,), rows of one group share their prompt, numbered over all ranks.
        valid: bool, (B,), False = only fills the batch.
        rewards: name -> float, (B,); NaN = does not apply.
    """

    trajectory: Trajectory | None
    latents: Tensor
    times: Tensor
    steps: tuple[int, ...]
    images: Tensor
    prompts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]
    keys: Tensor
    group: Tensor
    valid: Tensor
    rewards: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows B."""
        return len(self.prompts)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Rollouts of one policy on one grid as one.

        Args:
            parts: at least one, without rewards.

        Returns:
            All rows, in their order.
        """
        first = parts[0]
        tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _OF_ROWS}
        walks = [part.trajectory for part in parts if part.trajectory is not None]
        return dataclasses.replace(
            first,
            trajectory=Trajectory(*(torch.cat(several) for several in zip(*walks, strict=True))) if walks else None,
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            metadata=tuple(record for part in parts for record in part.metadata),
            **tensors,
        )

    def rewarded(self, rewards: Mapping[str, Tensor]) -> Self:
        """The same with rewards.

        Args:
            rewards: name -> (B,).

        Returns:
            A new record.

        Raises:
            ValueError: a reward of another length.
        """
        if wrong := {name: tuple(value.shape) for name, value in rewards.items() if value.shape != (len(self),)}:
            name, shape = next(iter(wrong.items()))
            raise ValueError(f"reward {name!r} has shape {shape} for {len(self)} pictures")
        return dataclasses.replace(self, rewards=dict(rewards))


def row_keys(batch: PromptBatch) -> Tensor:
    """One number for every row, the same whatever batch it stands in.

    65,536 index + member

    Args:
        batch: prompts.

    Returns:
        int64, (B,).
    """
    return batch.index * _MEMBERS + batch.member


def initial_noise(shape: Sequence[int], seed: int, epoch: int, keys: Tensor, shared: Tensor | None = None) -> Tensor:
    """States at t = 1.

    Args:
        shape: of one picture's latents.
        seed: the run's seed.
        epoch: number of the pass over the prompts.
        keys: of the rows, int64, (B,).
        shared: int64, (B,), in place of the keys: rows of one number begin with the same noise.

    Returns:
        float32, (B, ...).
    """
    return normal(seed, "rollout noise", epoch, keys if shared is None else shared, tuple(shape))


def step_noise(shape: Sequence[int], seed: int, epoch: int, keys: Tensor) -> StepNoise:
    """Noise of the stochastic steps.

    Args:
        shape: of one picture's latents.
        seed: the run's seed.
        epoch: number of the pass.
        keys: of the rows, int64, (B,).

    Returns:
        Number of a step -> (B, ...).
    """
    return lambda step: normal(seed, f"rollout step {step}", epoch, keys, tuple(shape))


def stochastic_steps(
    steps: int, size: int = 0, window: tuple[int, int] | None = None, seed: int = 0, number: int = 0
) -> tuple[int, ...]:
    """Which steps are stochastic, and therefore trained.

    Size 0: all but the last one, whose transition is too peaked. Otherwise ``size`` neighbours, the first drawn
    uniformly from low to high - size, both ends included.

    Args:
        steps: of the grid, n.
        size: of the window.
        window: low and high; None = (0, n).
        seed: the run's seed.
        number: of the rollout; every one has its own window.

    Returns:
        Numbers of steps, rising.

    Raises:
        ValueError: a window that does not fit, or a grid of fewer than two steps.

    Source: arXiv:2505.05470, later published code ("Fast").
    """
    if steps < 2:
        raise ValueError(f"a stochastic rollout takes at least 2 steps, got {steps}: the last one is never trained")
    if size == 0:
        return tuple(range(steps - 1))
    low, high = window or (0, steps)
    if size < 0 or not 0 <= low <= high - size or high > steps:
        raise ValueError(f"a window of {size} steps does not fit between step {low} and step {high} of {steps}")
    first = int(numpy_generator(seed, "stochastic window", number).integers(low, high - size, endpoint=True))
    return tuple(range(first, first + size))


def policy_velocity(model: TextToImage, text: Conditioning, nothing: Conditioning, guidance: Guidance) -> Velocity:
    """A model with its prompts as a velocity field; where it is guided, the guided velocity is the policy.

    Args:
        model: predicts velocities.
        text: encoded prompts, B of them.
        nothing: the empty prompt, B times; not used without guidance.
        guidance: how strongly.

    Returns:
        v(x, t), float32 at least, with gradients where they are on.
    """

    def field(condition: Conditioning) -> Velocity:
        def velocity(x: Tensor, t: float) -> Tensor:
            v = model.velocity(x, torch.full((len(x),), t, device=x.device, dtype=torch.float32), condition)
            return v.to(torch.promote_types(v.dtype, torch.float32))

        return velocity

    return guided(field(text), field(nothing), guidance)


@torch.no_grad()
def roll_out(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    stochasticity: Stochasticity,
    steps: Sequence[int],
    drawn: StepNoise,
) -> Trajectory:
    """Walk from noise to latents; the given steps are stochastic and remembered, the others are those of the ODE.

    Args:
        velocity: v(x, t) of the policy.
        noise: state at ``times[0]``, (B, ...); what ``TextToImage.from_noise`` makes of noise.
        times: falling grid, (n + 1,).
        stochasticity: how noise enters.
        steps: numbers of the stochastic steps, rising.
        drawn: standard normal numbers of a step.

    Returns:
        The walk.

    Raises:
        ValueError: a step that the grid does not have.

    Source: arXiv:2505.05470 (sampling of the old policy).
    """
    grid = falling(times)
    if unknown := [step for step in steps if not 0 <= step < len(grid) - 1]:
        raise ValueError(f"the grid has steps 0 to {len(grid) - 2}, not {unknown[0]}")
    x, kept = noise, []
    for step, t in enumerate(grid[:-1]):
        transition = stochasticity.transition(x, velocity(x, t), times, step, stochastic=step in steps)
        if step in steps:
            action = transition.sample(drawn(step).to(x.device))
            kept.append((x, action, stochasticity.log_prob(action, transition)))
            x = action
        else:
            x = transition.mean
    states, actions, log_probs = (torch.stack(part, 1) for part in zip(*kept, strict=True))
    return Trajectory(x, states, actions, log_probs)


def micro_batches(rows: int, size: int) -> Iterator[slice]:
    """Cut rows into batches of one size, in order; the last one may be smaller.

    Args:
        rows: how many.
        size: of a batch.

    Yields:
        Slices.
    """
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
