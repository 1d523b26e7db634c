"""Settings that every online training by rewards has: how pictures are judged, and how a rollout is learned from."""

from __future__ import annotations

import dataclasses

from lightning_gen.flow.solvers import SOLVERS

__all__ = ["Evaluation", "Updates"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How pictures are made in validation and for the sample grid.

    Attributes:
        steps: of the solver.
        solver: see ``flow.solvers.SOLVERS``.
        guidance: scale of classifier-free guidance; 1 = none.
        gap_batches: validation batches of every rank whose pictures are made by the rollout's sampler too, from the
            same noise and with the same adapter, to log by how much those are paid less: few noisy steps may look so
            much worse that nearly all rewards are 0. 0 = none.

    Raises:
        ValueError: an unknown solver, no step, or a negative number of batches.

    Source: arXiv:2505.05470 and arXiv:2509.16117: 40 deterministic Euler steps. The gap: repository
    yifan123/flow_grpo, issue 193.
    """

    steps: int = 40
    solver: str = "euler"
    guidance: float = 4.5
    gap_batches: int = 1

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS or self.steps < 1:
            raise ValueError(
                f"evaluation takes at least 1 step of {', '.join(SOLVERS)}, got {self.steps} of {self.solver!r}"
            )
        if self.gap_batches < 0:
            raise ValueError(f"evaluation.gap_batches is 0 for none, or a number of batches, got {self.gap_batches}")


@dataclasses.dataclass(frozen=True)
class Updates:
    """How a rollout is learned from.

    Attributes:
        per_rollout: optimiser steps per rollout; every row is in one of them, by its place in the global batch.
        micro_batch_size: rows in one pass through the network, in sampling too.
        clip: largest norm of the gradient.
        skip_worthless: leave out rows whose advantage is 0, filled up at random to equal updates.
        activation_checkpointing: keep only the inputs of the network's blocks, and compute the rest again in the
            backward pass: less memory, about a third more time.

    Raises:
        ValueError: a number that makes no sense.
    """

    per_rollout: int = 1
    micro_batch_size: int = 8
    clip: float = 1.0
    skip_worthless: bool = True
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.per_rollout < 1 or self.micro_batch_size < 1 or self.clip <= 0:
            raise ValueError(f"updates need per_rollout and micro_batch_size of at least 1 and a positive clip: {self}")
