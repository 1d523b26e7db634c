"""Rollouts: what is remembered can be replayed, and no row depends on its neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_gen.alignment.rollout import (
    Rollout,
    Trajectory,
    initial_noise,
    micro_batches,
    policy_velocity,
    roll_out,
    row_keys,
    step_noise,
    stochastic_steps,
)
from lightning_gen.data.batches import PromptBatch
from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.solvers import Velocity, euler
from lightning_gen.flow.transitions import Stochasticity
from lightning_gen.interfaces import TextToImage
from tests.alignment.worlds import ToyPolicy

PROMPTS = ("a", "a cat", "two red dogs")
KEYS = torch.tensor([0, 65536, 65537])


def field(scale: float = 1.0, prompts: tuple[str, ...] = PROMPTS) -> Velocity:
    model: TextToImage = ToyPolicy()
    return policy_velocity(
        model, model.encode_prompts(prompts), model.encode_prompts([""] * len(prompts)), Guidance(scale)
    )


def walk(
    kind: str = "sde", steps: tuple[int, ...] = (0, 1, 2), scale: float = 1.0, rows: slice = slice(3)
) -> Trajectory:
    shape = ToyPolicy().latent_shape
    return roll_out(
        field(scale, PROMPTS[rows]),
        initial_noise(shape, 7, 0, KEYS[rows]),
        ToyPolicy().times(4),
        Stochasticity(kind, 0.7),  # type: ignore[arg-type]
        steps,
        step_noise(shape, 7, 0, KEYS[rows]),
    )


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_what_is_remembered_is_what_happened(kind: str) -> None:
    found = walk(kind)
    assert found.states.shape == (3, 3, 3, 2, 2) and found.log_probs.shape == (3, 3)
    assert torch.equal(found.states[:, 0], initial_noise((3, 2, 2), 7, 0, KEYS))
    assert torch.equal(found.states[:, 1:], found.actions[:, :-1])
    last = found.actions[:, 2]
    times = ToyPolicy().times(4)
    expected = Stochasticity(kind, 0.7).transition(last, field()(last, float(times[3])), times, 3, False)  # type: ignore[arg-type]
    torch.testing.assert_close(found.latents, expected.mean)


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_replay_gives_the_same_log_probabilities_bit_for_bit(kind: str, scale: float) -> None:
    found, times, how = walk(kind, scale=scale), ToyPolicy().times(4), Stochasticity(kind, 0.7)  # type: ignore[arg-type]
    for place, step in enumerate((0, 1, 2)):
        state = found.states[:, place]
        again = how.transition(state, field(scale)(state, float(times[step])), times, step)
        assert torch.equal(how.log_prob(found.actions[:, place], again), found.log_probs[:, place])


def test_steps_outside_the_window_are_those_of_the_ode() -> None:
    model = ToyPolicy()
    with pytest.raises(ValueError, match="steps 0 to 3, not 4"):
        walk(steps=(4,))
    noise = initial_noise(model.latent_shape, 7, 0, KEYS)
    late = walk(steps=(2,))
    torch.testing.assert_close(late.states[:, 0], euler(field(), noise, model.times(4)[:3]))
    assert late.log_probs.shape == (3, 1)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together, alone = walk(), walk(rows=slice(1, 2))
    torch.testing.assert_close(alone.latents[0], together.latents[1])
    torch.testing.assert_close(alone.actions[0], together.actions[1])
    assert not torch.allclose(together.states[1, 0], together.states[2, 0], atol=0.1)
    shared = initial_noise((3, 2, 2), 7, 0, KEYS, torch.tensor([5, 5, 6]))
    assert torch.equal(shared[0], shared[1]) and not torch.equal(shared[1], shared[2])
    assert not torch.equal(initial_noise((3, 2, 2), 7, 1, KEYS), initial_noise((3, 2, 2), 7, 0, KEYS))


def test_guidance_is_part_of_the_policy() -> None:
    x, t = torch.ones(3, 3, 2, 2), 0.5
    plain, strong = field()(x, t), field(3.0)(x, t)
    nothing = field(prompts=("", "", ""))(x, t)
    torch.testing.assert_close(strong, nothing + 3 * (plain - nothing))
    assert strong.requires_grad and not walk(scale=3.0).latents.requires_grad


def test_windows_are_drawn_evenly_and_stay_inside() -> None:
    assert stochastic_steps(5) == (0, 1, 2, 3)
    firsts = [stochastic_steps(10, 2, (0, 10), seed=1, number=number)[0] for number in range(400)]
    assert set(firsts) == set(range(9)) and max(firsts.count(first) for first in range(9)) < 80
    assert stochastic_steps(10, 3, (2, 5)) == (2, 3, 4)
    assert stochastic_steps(10, 2, seed=1, number=3) == stochastic_steps(10, 2, seed=1, number=3)
    for size, window in ((3, (0, 2)), (2, (9, 11)), (-1, None)):
        with pytest.raises(ValueError, match="does not fit"):
            stochastic_steps(10, size, window)
    with pytest.raises(ValueError, match="at least 2 steps"):
        stochastic_steps(1)


def test_a_row_has_one_number_in_every_batch() -> None:
    batch = PromptBatch(
        ("a", "b"), ("{}", "{}"), torch.tensor([3, 3]), torch.tensor([0, 0]), torch.tensor([0, 1]),
        torch.tensor([True, True]), 0,
    )  # fmt: skip
    assert row_keys(batch).tolist() == [3 * 65536, 3 * 65536 + 1]


def test_rewards_of_another_length_are_refused() -> None:
    def rollout() -> Rollout:
        empty = torch.zeros(2)
        return Rollout(
            None, empty, empty, (), torch.zeros(2, 3, 2, 2), ("a", "b"), ({}, {}), empty.long(), empty.long(), empty > 0
        )

    scored: dict[str, Tensor] = {"good": torch.tensor([1.0, 2.0])}
    assert rollout().rewarded(scored).rewards["good"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"'bad' has shape \(3,\) for 2 pictures"):
        rollout().rewarded({"bad": torch.zeros(3)})


def test_micro_batches_cover_all_rows_in_order() -> None:
    assert [list(range(7))[part] for part in micro_batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
