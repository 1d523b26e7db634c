"""Claims of Flow-GRPO (arXiv:2505.05470) and DiffusionNFT (arXiv:2509.16117) in the embedded world.

    python benchmarks/claims/alignment.py                                   # both claims, all seeds
    python benchmarks/claims/alignment.py --seed 0 --arm diffusion_nft      # one run, and what is known so far
    python benchmarks/claims/alignment.py --quick                           # does everything run?

alignment_score: the shipped base (``shapes_base``) is trained by rewards on its own pictures, by DiffusionNFT, which
knows no guidance, by Flow-GRPO without guidance, so that both methods train the same policy, and by Flow-GRPO with
guidance 3 in rollouts and in training, as its paper has it, on a window of four steps. Every arm samples as many
pictures for the same prompts, and is then measured once on the 553 prompts of the benchmark at 10 steps, without and
with guidance 3, beside the base with the same noise.

alignment_samples: how many pictures Flow-GRPO and DiffusionNFT, both without guidance, have to sample until the score
on prompts that nobody trains on lies 5 or 10 points above the base's. It looks at the same trained policies as the
other claim; whichever comes first trains them.

What is paid for is ``RequestMatch`` (dense: how much of what is asked for the exact detector finds). Prompts of the
even mixture are drawn until there are enough that are neither among the 553 nor held out, and each is used once. The
grammar is small: a fifth of what is drawn (three of four for single objects) is in the benchmark and left out for that,
and a quarter of what stays asks for what one of the 553 asks for in another opening ("a drawing of" for "a photo of").
GenEval's own training prompts are made by the benchmark's templates, too.

Figures: ``score`` is GenEval's, the mean of six tasks, in [0, 1]; ``@plain`` without guidance, ``@guided`` with 3,
``@sure`` by a detector at threshold 0.9, ``@noised`` after a little noise on the picture: a policy that fools the
detector would lose there what it has won. ``sharpness``, ``harmony`` and ``layout`` are rewards that nobody was paid
for; ``variety`` is the share of pairs of (right) pictures of one prompt that show different things, ``spread`` the
deviation of a pixel over pictures of one prompt; ``drift`` the mean squared distance of velocities from the base's,
``kl`` nats per picture. ``ln samples@5`` is the logarithm of the pictures that were sampled until the held-out score
was 5 points above the base's, all of them where it never was, with ``reached@5`` beside it; ``gain`` the held-out score
above the base's, the mean over the curve; ``held out@25%`` the score after a quarter of the pictures.

Planned time: 13 to 15 minutes per seed and trained arm on one core, 125 for both claims. In two processes with
different seeds that is an hour on two cores.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from alignment_measures import measured
from alignment_training import Policy, model_of, samples_to_reach, setting, trained
from harness import Budget, Claim, Comparison, main
from training import shared_folder

from lightning_gen.shapes.benchmark import benchmark_requests

FULL: Final = Budget(steps=128, batch=48, measured_on=553)
QUICK: Final = Budget(steps=2, batch=16, measured_on=6)
MANY: Final = 16
"""Variety is measured on one prompt of the benchmark in so many."""
TENTH: Final = 0.1
"""Points that are hoped for, of a score in [0, 1]."""
FEWER: Final = math.log(1.5)
"""Smallest ratio of samples that counts, as a logarithm."""
GAINS: Final = {"5": 0.05, "10": 0.1}
SHARES: Final = (25, 50, 75, 100)
"""Per cent of the pictures after which the curves are compared."""
TRAINED: Final = ("flow_grpo", "flow_grpo_guided", "diffusion_nft")

ARMS: Final[Mapping[str, str]] = {
    "base": "shapes_base as it was shipped",
    "flow_grpo": "Flow-GRPO, no guidance in rollouts and in training",
    "flow_grpo_guided": "Flow-GRPO, guidance 3 in rollouts and in training, a window of 4 steps",
    "diffusion_nft": "DiffusionNFT, no guidance",
}


def policy_folder(arm: str, seed: int, budget: Budget, folder: Path) -> Path:
    """Where an arm is trained: both claims look at the same policies.

    Args:
        arm: its name.
        seed: its seed.
        budget: its budget.
        folder: of the claim's run; quick runs begin anew, so they stay in it.

    Returns:
        The folder.

    Raises:
        ValueError: it holds a policy of another setting.
    """
    if budget == QUICK:
        return folder
    shared = folder.parents[1] / "alignment_policies" / f"{arm}-seed{seed}"
    return shared_folder(shared, {"is": ARMS[arm], "budget": str(budget), **setting()})


def policy(arm: str, seed: int, budget: Budget, folder: Path) -> Policy:
    """The trained policy of an arm.

    Args:
        arm: its name, not ``base``.
        seed: of prompts, noise and adapters.
        budget: of the run.
        folder: of the claim's run.

    Returns:
        The policy.
    """
    return trained(arm, seed, budget, policy_folder(arm, seed, budget, folder))


def score(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, float]:
    """Train an arm and measure it on the benchmark.

    Args:
        arm: its name; ``base`` is only measured.
        seed: of prompts, noise and adapters.
        budget: optimiser steps, pictures of each, prompts of the benchmark.
        folder: of the checkpoints.

    Returns:
        See the head of this file.
    """
    requests = benchmark_requests()
    requests = requests[:: len(requests) // budget.measured_on][: budget.measured_on]
    few = requests[::MANY] if len(requests) > MANY else requests[:2]
    if arm == "base":
        model = model_of(arm, seed)
        model.configure_model()
        return measured(model, requests, few)
    found = policy(arm, seed, budget, folder)
    with found.average.averaged(found.model):
        numbers = measured(found.model, requests, few)
    return {**numbers, "sampled": found.points[-1]["sampled"], "train_seconds": found.seconds}


def samples(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, float]:
    """Train an arm and look at its learning curve.

    Args:
        arm: ``flow_grpo`` or ``diffusion_nft``.
        seed: of prompts, noise and adapters.
        budget: optimiser steps, pictures of each.
        folder: of the checkpoints.

    Returns:
        See the head of this file, and the points of the curve: ``point@768`` for the score after 768 pictures.
    """
    found = policy(arm, seed, budget, folder)
    start, later = found.points[0]["score"], found.points[1:]
    numbers = {"gain": statistics.fmean(point["score"] - start for point in later), "train_seconds": found.seconds}
    for name, gain in GAINS.items():
        count, is_reached = samples_to_reach(found.points, gain)
        numbers |= {f"ln samples@{name}": math.log(count), f"reached@{name}": float(is_reached)}
    places, scores = ([point[name] for point in found.points] for name in ("sampled", "score"))
    for share in SHARES:
        numbers[f"held out@{share}%"] = float(np.interp(places[-1] * share / 100, places, scores))
    for point in found.points:
        place = f"{point['sampled']:.0f}"
        numbers |= {f"point@{place}": point["score"], f"dense@{place}": point["dense"]}
    return numbers


def against_base(measure: str) -> tuple[Comparison, ...]:
    """Every trained arm against the base, for the report.

    Args:
        measure: name of the number.

    Returns:
        The comparisons.
    """
    return tuple(Comparison(measure, arm, "base") for arm in TRAINED)


_EQUAL: Final = (
    "equal pictures, prompts, groups of 8, an optimiser step per rollout, reward, advantages, adapters and learning "
    "rate; no divergence from the base is paid for; DiffusionNFT is trained at 6 times of a picture, Flow-GRPO at 9"
)

CLAIMS: Final = (
    Claim(
        name="alignment_score",
        sentence="Trained by rewards on its own pictures, the base gains 10 points of GenEval's score without "
        "guidance, by Flow-GRPO and by DiffusionNFT",
        source="arXiv:2505.05470 and arXiv:2509.16117, abstracts (GenEval 0.63 to 0.95, and 0.24 to 0.98 without "
        "guidance)",
        arms=ARMS,
        baseline="base",
        seeds=(0, 1, 2),
        budget=FULL,
        equal=_EQUAL,
        quick=QUICK,
        comparisons=(
            Comparison("score@plain", "flow_grpo", "base", "higher", TENTH),
            Comparison("score@plain", "diffusion_nft", "base", "higher", TENTH),
            Comparison("score@plain", "flow_grpo_guided", "base"),
            *against_base("score@guided"),
            *against_base("score@sure"),
            *against_base("score@noised"),
            *(
                one
                for name in ("sharpness", "harmony", "layout", "variety@all", "variety@right", "spread")
                for one in against_base(name)
            ),
            *(Comparison(name, arm, None) for name in ("drift", "kl") for arm in TRAINED),
        ),
        run=score,
    ),
    Claim(
        name="alignment_samples",
        sentence="DiffusionNFT needs fewer samples than Flow-GRPO for the same score",
        source="arXiv:2509.16117, abstract (up to 25 times more efficient)",
        arms={arm: ARMS[arm] for arm in ("flow_grpo", "diffusion_nft")},
        baseline="flow_grpo",
        seeds=(0, 1, 2),
        budget=FULL,
        equal=_EQUAL,
        quick=QUICK,
        comparisons=(
            Comparison("ln samples@5", "flow_grpo", "diffusion_nft", "higher", FEWER),
            Comparison("ln samples@10", "flow_grpo", "diffusion_nft"),
            *(Comparison(f"reached@{name}", arm, None) for name in GAINS for arm in ("flow_grpo", "diffusion_nft")),
            *(Comparison(f"held out@{share}%", "diffusion_nft", "flow_grpo") for share in SHARES),
            Comparison("gain", "diffusion_nft", "flow_grpo"),
            Comparison("train_seconds", "diffusion_nft", "flow_grpo"),
        ),
        run=samples,
    ),
)


if __name__ == "__main__":
    sys.exit(main(CLAIMS))
