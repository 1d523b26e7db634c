"""Claims of ArenaPO (arXiv:2605.06070) in the embedded world.

    python benchmarks/claims/arena_po.py                                          # all claims, all seeds
    python benchmarks/claims/arena_po.py --claim arena_po_capabilities            # the arena alone, seconds
    python benchmarks/claims/arena_po.py --claim arena_po_reward --seed 0 --arm arena_po
    python benchmarks/claims/arena_po.py --quick                                  # does everything run?

The shipped base (``shapes_base``) learns from pairs of pictures by four copies of itself, some of them degraded: with
guidance, as it is, and two that take some colours, kinds and numbers of a prompt for others. Who is preferred is noisy:
P(a wins) = sigmoid((r_a - r_b) / noise), r = how much of what the prompt asks for the exact detector finds; pictures of
the same r are a tie. No arm sees r, or which copy is good: ArenaPO fits an arena to the labels.

arena_po_reward: every loss, and both readings of the gap's variance where a loss has a gap, at equal steps on the same
pairs. arena_po_noise and arena_po_spread: what ArenaPO has above Diffusion-DPO and above a fixed margin, where labels
are nearly certain or much noisier, and where copies are closer or further apart. arena_po_capabilities: twelve painters
of known strengths, who draw scenes with more faults the weaker they are; the arena has to tell them apart by labels,
P(a wins) = sigmoid((s_a - s_b) / noise).

Figures: ``reward`` is the true one, the mean of r over two pictures for each of the 553 prompts of the benchmark, for
which nobody trains, sampled with guidance 3, as the paper's protocols sample with guidance; ``reward@plain`` without,
``score`` GenEval's. ``capabilities`` is the correlation of what the arena says about the four copies with the mean of r
over their pictures. ``accuracy`` is the share of held-out pairs whose better picture the policy itself prefers,
``order`` Spearman's correlation of that preference with the difference of the copies' qualities, ``drift`` how much
further off than the base the policy is. ``above dpo`` and ``above fixed`` are ArenaPO's reward minus the other's of the
same seed.

Temperature and learning rate were chosen for Diffusion-DPO, on prompts that are not in the benchmark; the others have
them from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from copies import WORLDS, qualities
from harness import Budget, Claim, Comparison, main
from preference_training import ARMS, measured, model_of, numbers_of, tuned

from lightning_gen.alignment.arena_po.arena import Arena, fit_arena
from lightning_gen.alignment.arena_po.arena_calibration import predicted_wins
from lightning_gen.alignment.arena_po.arena_options import ArenaOptions, Solver
from lightning_gen.alignment.arena_po.arena_table import Comparisons
from lightning_gen.alignment.arena_po.sources import drawn_comparisons
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.preferences import ShapesPreferenceDataModule

FULL: Final = Budget(steps=160, batch=32, measured_on=553)
QUICK: Final = Budget(steps=2, batch=8, measured_on=6)
MARGIN: Final = 0.01
"""Of the reward, in [0, 1]: a hundredth of what is asked for."""
PAINTERS: Final[Mapping[str, dict[str, float]]] = {
    "usual": {},
    "sure": {"noise": 0.3},
    "noisy": {"noise": 3.0},
    "narrow": {"spread": 0.5},
    "wide": {"spread": 1.5},
}
"""Noise of the labels and factor of the strengths, where they are not 1."""
STRENGTHS: Final = [round(float(strength), 3) for strength in np.linspace(2.0, -2.0, 12)]
"""Of the painters whom the arena tells apart."""
HELD_AGAINST: Final = {"dpo": "diffusion_dpo", "fixed": "fixed_margin"}
SEEDS: Final = (0, 1, 2)
ENOUGH: Final = {"correlation@usual": 0.97, "correlation@noisy": 0.9}
"""How well strengths are recovered, with labels of which a tenth to a third are wrong and where nearly half are."""

_Floats = npt.NDArray[np.float64]


def _requests(budget: Budget) -> Sequence[Request]:
    every = benchmark_requests()
    return every[:: len(every) // budget.measured_on][: budget.measured_on]


def _policies(folder: Path, budget: Budget) -> Path:
    """Quick runs begin anew, so their policies stay in the run's own folder."""
    return folder if budget == QUICK else folder.parents[1] / "arena_po_policies"


def reward(arm: str, seed: int, budget: Budget, folder: Path) -> Mapping[str, float]:
    """Train an arm in the usual world and measure it.

    Args:
        arm: its name; ``base`` is only measured.
        seed: of pairs, noise and adapter.
        budget: optimiser steps, pairs of each, prompts of the benchmark.
        folder: of the run.

    Returns:
        See the head of this file.
    """
    if arm == "base":
        model = model_of(ARMS["diffusion_dpo"], seed)
        model.configure_model()
        return measured(model, _requests(budget), seed)
    found = tuned(arm, "usual", seed, budget, _policies(folder, budget))
    numbers = numbers_of(found, _requests(budget), seed)
    source = getattr(found.model, "gap_source", None)
    if source is None:
        return numbers
    true = qualities(found.pairs)
    names = sorted(set(true) & set(source.arena.names))
    fitted = source.arena.mean[source.arena.numbers(names)]
    return {**numbers, "capabilities": float(np.corrcoef(fitted, [true[name] for name in names])[0, 1])}


def advantage(world: str, seed: int, budget: Budget, folder: Path) -> Mapping[str, float]:
    """Train ArenaPO and both baselines in a world.

    Args:
        world: its name.
        seed: of pairs, noise and adapter.
        budget: optimiser steps, pairs of each, prompts of the benchmark.
        folder: of the run.

    Returns:
        ``above dpo``, ``above fixed``, and the same of accuracies; every arm's ``reward@...`` and ``accuracy@...``.
    """
    arms = ("arena_po", *HELD_AGAINST.values())
    policies = {arm: tuned(arm, world, seed, budget, _policies(folder, budget)) for arm in arms}
    found = {arm: numbers_of(policy, _requests(budget), seed) for arm, policy in policies.items()}
    numbers = {f"{name}@{arm}": found[arm][name] for arm in arms for name in ("reward", "accuracy")}
    for name, arm in HELD_AGAINST.items():
        numbers[f"above {name}"] = found["arena_po"]["reward"] - found[arm]["reward"]
        numbers[f"accuracy above {name}"] = found["arena_po"]["accuracy"] - found[arm]["accuracy"]
    return numbers


# ------------------------------------------------------------------ the arena


def capabilities(solver: str, seed: int, budget: Budget, folder: Path) -> Mapping[str, float]:
    """Fit an arena to labels of twelve painters, in every world.

    Args:
        solver: one of the package's, or ``win_rate``, the share of games that a painter has won.
        seed: of pairs and labels.
        budget: its steps times its batch is the number of labels.
        folder: not used.

    Returns:
        By world: ``correlation`` of the fitted with the true strengths, Pearson's; ``order``, Spearman's; ``error``,
        root mean square over pairs of painters of the predicted probability to win minus the true one; ``covered``,
        share of pairs whose true probability lies in the 95 % interval. The last two are the arenas' alone.
    """
    del folder
    numbers: dict[str, float] = {}
    for name, judging in PAINTERS.items():
        data = ShapesPreferenceDataModule(
            samples=budget.steps * budget.batch, strengths=STRENGTHS, seed=seed, **judging
        )
        data.setup("fit")
        table = drawn_comparisons(data.comparisons())
        true = np.array([data.painters[painter] for painter in table.names])
        if solver == "win_rate":
            fitted = _win_rates(table, len(true))
        else:
            arena = fit_arena(table, ArenaOptions(solver=cast(Solver, solver)))
            fitted = arena.mean
            numbers |= {f"{kind}@{name}": value for kind, value in told(arena, true / data.noise).items()}
        numbers[f"correlation@{name}"] = float(np.corrcoef(fitted, true)[0, 1])
        found, wanted = (np.argsort(np.argsort(values)) for values in (fitted, true))
        numbers[f"order@{name}"] = float(np.corrcoef(found, wanted)[0, 1])
    return numbers


def _win_rates(table: Comparisons, painters: int) -> _Floats:
    wins = np.bincount(table.first, table.outcome, painters) + np.bincount(table.second, 1 - table.outcome, painters)
    rates: _Floats = wins / (np.bincount(table.first, None, painters) + np.bincount(table.second, None, painters))
    return rates


def told(arena: Arena, logits: _Floats) -> Mapping[str, float]:
    """How well an arena foretells who wins.

    Args:
        arena: fitted.
        logits: true strengths over the noise of the labels, (M,).

    Returns:
        ``error`` and ``covered``.
    """
    from scipy.special import ndtr

    first, second = np.triu_indices(len(arena), 1)
    true = 1 / (1 + np.exp(logits[second] - logits[first]))
    mean, variance = arena.differences(first, second)
    reach = 1.96 * np.sqrt(variance)
    scale = np.sqrt(2) * arena.options.performance
    low, high = (ndtr((mean + side * reach) / scale) for side in (-1, 1))
    error = predicted_wins(arena, first, second) - true
    return {
        "error": float(np.sqrt(np.mean(error**2))),
        "covered": float(np.mean((low <= true) & (true <= high))),
    }


# ------------------------------------------------------------------ what is asked

_EQUAL: Final = (
    "equal steps on the same pairs and prompts, with the same times and noise, adapters, initial weights, temperature "
    "and learning rate; a fixed margin is 1 nat, the mean of ArenaPO's"
)
_OTHERS: Final = tuple(arm for arm in ARMS if arm != "diffusion_dpo")
_SOLVERS: Final = {
    "win_rate": "share of games won, no model of the games",
    "ep_sequential": "one pass of TrueSkill, as the paper has it",
    "batch_ep": "expectation propagation over all games",
    "laplace": "Gaussian around the most probable capabilities",
}


def _worlds(*names: str) -> dict[str, str]:
    return {name: str(WORLDS[name]) for name in names}


def _growth(name: str, sentence: str, low: str, high: str) -> Claim:
    """A claim that ArenaPO's advantage is larger in one world than in another."""
    above = [f"above {other}" for other in HELD_AGAINST]
    return Claim(
        name=name,
        sentence=sentence,
        source="arXiv:2605.06070, abstract (a fixed preference strength is what it improves on); the growth is ours",
        arms=_worlds(low, "usual", high),
        baseline=low,
        seeds=SEEDS,
        budget=FULL,
        equal=_EQUAL,
        quick=QUICK,
        comparisons=(
            *(Comparison(one, high, low, "higher", MARGIN) for one in above),
            *(Comparison(one, world, None) for one in above for world in (low, "usual", high)),
            *(Comparison(f"accuracy {one}", high, low) for one in above),
            *(Comparison(f"reward@{arm}", high, low) for arm in ("arena_po", *HELD_AGAINST.values())),
        ),
        run=advantage,
    )


CLAIMS: Final = (
    Claim(
        name="arena_po_capabilities",
        sentence="The arena recovers the true capabilities of models from noisy binary labels",
        source="arXiv:2605.06070, abstract (capabilities as Gaussians, inferred from annotations)",
        arms=_SOLVERS,
        baseline="win_rate",
        seeds=(0, 1, 2, 3, 4),
        budget=Budget(256, 32, len(STRENGTHS)),
        equal="the same 8,192 labels; no arm knows how noisy they are",
        quick=Budget(100, 4, len(STRENGTHS)),
        comparisons=(
            *(Comparison(name, "ep_sequential", None, "higher", share) for name, share in ENOUGH.items()),
            *(Comparison(f"correlation@{world}", solver, None) for solver in _SOLVERS for world in PAINTERS),
            *(Comparison(f"order@{world}", "ep_sequential", "win_rate") for world in PAINTERS),
            *(
                Comparison(f"{kind}@{world}", solver, None)
                for kind in ("error", "covered")
                for solver in _SOLVERS
                if solver != "win_rate"
                for world in PAINTERS
            ),
        ),
        run=capabilities,
    ),
    Claim(
        name="arena_po_reward",
        sentence="At equal steps ArenaPO reaches a higher true reward than Diffusion-DPO and than a fixed margin",
        source="arXiv:2605.06070, abstract (preferences with their strength against binary and fixed ones)",
        arms={"base": "shapes_base as it was shipped", **{name: str(arm) for name, arm in ARMS.items()}},
        baseline="diffusion_dpo",
        seeds=SEEDS,
        budget=FULL,
        equal=_EQUAL,
        quick=QUICK,
        comparisons=(
            *(Comparison("reward", "arena_po", arm, "higher", MARGIN) for arm in HELD_AGAINST.values()),
            Comparison("reward", "diffusion_dpo", "base"),
            Comparison("capabilities", "arena_po", None),
            *(Comparison("reward", arm, "diffusion_dpo") for arm in _OTHERS if arm != "arena_po"),
            *(
                Comparison(name, arm, "diffusion_dpo")
                for name in ("reward@plain", "score", "accuracy", "order")
                for arm in _OTHERS
            ),
            *(Comparison(f"drift@{side}", arm, None) for side in ("first", "second") for arm in ARMS),
        ),
        run=reward,
    ),
    _growth("arena_po_noise", "ArenaPO's advantage grows with the noise of the labels", "sure", "noisy"),
    _growth("arena_po_spread", "ArenaPO's advantage grows with the spread of the models", "narrow", "wide"),
)


if __name__ == "__main__":
    sys.exit(main(CLAIMS))
