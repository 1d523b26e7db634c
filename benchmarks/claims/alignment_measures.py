"""What became of a policy that was trained by rewards: score, second opinions, looks, variety, distance from the base.

Shape letters: B pictures, T steps of the grid, D numbers of a picture's latents.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Final

import torch
from alignment_training import GUIDANCE, STEPS, Shown, asked, verdicts
from torch import Tensor

from lightning_gen.alignment.online import Evaluation, OnlineTraining
from lightning_gen.alignment.rollout import Rollout, micro_batches, policy_velocity
from lightning_gen.flow import paths
from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.transitions import Stochasticity, gaussian_divergence
from lightning_gen.interfaces import Reward
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.shapes.detector import find_objects, name_backgrounds
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.rewards import ColorHarmony, Layout, Sharpness
from lightning_gen.training.randomness import normal

__all__ = ["drift", "looks", "measured", "of_task", "overall", "second_opinions", "variety"]

SURE: Final = GenEvalRules(threshold=0.9, counting_threshold=0.9)
"""A judge that believes the detector only where it is sure; for the reward 0.3 is enough."""
NOISE: Final = 12 / 255
"""Deviation of the noise under which a picture has to stay right."""
SEEN: Final = 0.3
"""Objects of a lower score are not there."""
EACH: Final = 8
"""Pictures of a prompt where variety is measured."""


def measured(model: OnlineTraining, requests: Sequence[Request], few: Sequence[Request]) -> dict[str, float]:
    """All numbers of a policy, by the adapter that is on.

    Args:
        model: the policy; its seed decides all noise.
        requests: of the benchmark.
        few: prompts of the benchmark of which several pictures are made.

    Returns:
        ``score@plain`` and ``score@guided``, the tasks as ``counting@plain``; ``score@sure`` and ``score@noised``; the
        numbers of :func:`looks`, :func:`variety` and :func:`drift`. All but the second are made without guidance.
    """
    batch = asked(requests)
    plain = model.make(batch, Evaluation(STEPS, "euler", 1.0))
    guided = model.make(batch, Evaluation(STEPS, "euler", GUIDANCE))
    right = verdicts(plain.images, plain)
    numbers = {
        "score@plain": overall(right, requests),
        "score@guided": overall(verdicts(guided.images, guided), requests),
    }
    numbers |= {f"{tag}@plain": share for tag, share in of_task(right, requests).items()}
    numbers |= {f"score@{name}": overall(found, requests) for name, found in second_opinions(plain, model.seed).items()}
    numbers |= looks(plain)
    numbers |= variety(model.make(asked(few, EACH), Evaluation(STEPS, "euler", 1.0)), EACH)
    return numbers | drift(model, plain, slice(0, len(batch), max(1, len(batch) // (len(few) * 3))))


# ------------------------------------------------------------------ right or wrong


def of_task(right: Tensor, requests: Sequence[Request]) -> dict[str, float]:
    """Share of right pictures of every task.

    Args:
        right: 1 or 0, (B,).
        requests: B of them.

    Returns:
        Tag -> share, for the tags that come.
    """
    found: dict[str, list[float]] = {}
    for one, verdict in zip(requests, right.tolist(), strict=True):
        found.setdefault(one.tag, []).append(verdict)
    return {tag: statistics.fmean(values) for tag, values in found.items()}


def overall(right: Tensor, requests: Sequence[Request]) -> float:
    """GenEval's score: the mean of the tasks' shares.

    Args:
        right: 1 or 0, (B,).
        requests: B of them.

    Returns:
        The score.

    Source: arXiv:2310.11513.
    """
    return statistics.fmean(of_task(right, requests).values())


def second_opinions(rollout: Shown, seed: int) -> dict[str, Tensor]:
    """Verdicts that nobody was paid for: who only fools the detector at its threshold loses them.

    Args:
        rollout: pictures of the benchmark.
        seed: of the noise.

    Returns:
        ``sure``: by a detector that has to be sure; ``noised``: by the usual one, after a little noise on the pictures.
        (B,) each.
    """
    images = rollout.images
    noise = normal(seed, "noise on a picture", 0, rollout.keys, tuple(images.shape[1:]))
    return {
        "sure": verdicts(images, rollout, SURE),
        "noised": verdicts((images + NOISE * noise).clamp(0, 1), rollout),
    }


def looks(rollout: Shown) -> dict[str, float]:
    """Rewards of the embedded world that nobody was paid for.

    Args:
        rollout: pictures.

    Returns:
        ``sharpness``, ``harmony`` and ``layout``, means over the pictures.
    """
    rewards: dict[str, Reward] = {"sharpness": Sharpness(), "harmony": ColorHarmony(), "layout": Layout()}
    return {
        name: float(reward(rollout.images, rollout.prompts, rollout.metadata).nanmean())
        for name, reward in rewards.items()
    }


# ------------------------------------------------------------------ variety


def variety(rollout: Rollout, each: int) -> dict[str, float]:
    """Whether a prompt still gets different pictures.

    A scene is a background and the colours and kinds of its objects. Where only right pictures are compared, they
    differ in what the prompt leaves open.

    Args:
        rollout: pictures, those of a prompt one after the other.
        each: how many there are of every prompt.

    Returns:
        ``variety@all``: share of the pairs of pictures of one prompt that show different scenes; ``variety@right``: the
        same for pairs of right ones, 0 where no prompt has two; ``spread``: standard deviation of a pixel over the
        pictures of a prompt, root of the mean square.
    """
    shown, right = _scenes(rollout.images), verdicts(rollout.images, rollout).bool().tolist()
    differ: dict[str, list[bool]] = {"all": [], "right": []}
    for first in range(0, len(rollout), each):
        for one, other in itertools.combinations(range(first, first + each), 2):
            is_different = shown[one] != shown[other]
            differ["all"].append(is_different)
            if right[one] and right[other]:
                differ["right"].append(is_different)
    pixels = rollout.images.double().reshape(-1, each, *rollout.images.shape[1:])
    numbers = {f"variety@{name}": statistics.fmean(pairs) if pairs else 0.0 for name, pairs in differ.items()}
    return numbers | {"spread": float(pixels.var(1, correction=0).mean().sqrt())}


def _scenes(images: Tensor) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """What pictures show, without places."""
    objects = [[(one.color, one.kind) for one in found if one.score >= SEEN] for found in find_objects(images)]
    return [(ground, tuple(sorted(found))) for ground, found in zip(name_backgrounds(images), objects, strict=True)]


# ------------------------------------------------------------------ distance from the base


@torch.no_grad()
def drift(model: OnlineTraining, rollout: Rollout, rows: slice) -> dict[str, float]:
    """How far the policy is from the base, on pictures of its own that are noised anew.

    drift = mean over the T times of mean (v - v_base)^2
    kl    = D sum over the steps but the last of mean (mu - mu_base)^2 / (2 deviation^2),  of the SDE with a = 0.7

    Args:
        model: the policy, with the adapter that is measured.
        rollout: its pictures.
        rows: which of them.

    Returns:
        Both; ``kl`` is in nats of a whole picture, as if the noised pictures were states of the sampler.
    """
    x_0, keys, prompts = rollout.latents[rows], rollout.keys[rows], rollout.prompts[rows]
    times, size = model.policy.times(STEPS), x_0[0].numel()
    noise_of_steps = Stochasticity("sde", 0.7)
    distances, divergences = torch.zeros(len(x_0)), torch.zeros(len(x_0))
    for part in micro_batches(len(x_0), model.updates.micro_batch_size):
        text = model.policy.encode_prompts(prompts[part])
        velocity = policy_velocity(model.policy, text, text, Guidance(1.0))
        for step, t in enumerate(times[:-1].tolist()):
            noise = normal(model.seed, f"noise of drift {step}", 0, keys[part], tuple(x_0.shape[1:]))
            x_t = paths.noised(x_0[part], noise, torch.full((len(noise),), t))
            v = velocity(x_t, t)
            with model.bank.disabled():
                v_base = velocity(x_t, t)
            distances[part] += (v - v_base).square().flatten(1).mean(1) / STEPS
            if step < STEPS - 1:
                here, there = (noise_of_steps.transition(x_t, one, times, step) for one in (v, v_base))
                divergences[part] += size * gaussian_divergence(here, there, "exact")
    return {"drift": float(distances.mean()), "kl": float(divergences.mean())}
