"""The sampling grids that pipelines of diffusers walk, read off the settings of their schedulers.

t = 0 is clean, t = 1 is noise; the sigma of a flow scheduler is t.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.plms import plms
from lightning_gen.flow.schedules import double_shift_grid, linear_grid, shifted
from lightning_gen.flow.solvers import Solver, dpm_solver, euler, unipc

__all__ = [
    "ddpm_grid",
    "ddpm_solver",
    "flux2_exponent",
    "linear_exponent",
    "require_ddpm_scheduler",
    "require_flow_scheduler",
    "sampled_grid",
    "shift_of",
    "stable_diffusion_3_grid",
]

_FLOW = "FlowMatchEulerDiscreteScheduler"
_UNUSUAL_FLOW = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
_CLIPPING = ("clip_sample", "thresholding")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_MULTISTEP: dict[str, tuple[Solver, dict[str, Any]]] = {
    "PNDMScheduler": (plms, {"skip_prk_steps": True, "prediction_type": "epsilon"}),
    "DPMSolverMultistepScheduler": (
        dpm_solver, {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    ),
    "UniPCMultistepScheduler": (unipc, {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}),
}  # fmt: skip


def require_flow_scheduler(scheduler: Any, owner: str) -> None:
    """Refuse a scheduler whose grid is none of those below.

    Args:
        scheduler: of a flow pipeline.
        owner: whose it is, for the message.

    Raises:
        ValueError: another class, or settings that no published pipeline of this family has.
    """
    name = type(scheduler).__name__
    if name != _FLOW:
        raise ValueError(f"{owner} has the scheduler {name}; flow pipelines are sampled with {_FLOW}: put its "
                         "scheduler_config.json into the folder")  # fmt: skip
    unusual = [key for key in _UNUSUAL_FLOW if scheduler.config.get(key)]
    if unusual:
        raise ValueError(f"the scheduler of {owner} sets {', '.join(unusual)}, which is not supported: set it to false")


def require_ddpm_scheduler(scheduler: Any, owner: str) -> None:
    """Refuse a scheduler that does not describe a variance-preserving diffusion.

    Args:
        scheduler: of a U-Net pipeline.
        owner: whose it is, for the message.

    Raises:
        ValueError: it has no table of noise levels, an unknown kind of prediction, or clips predictions.
    """
    name, config = type(scheduler).__name__, scheduler.config
    prediction = config.get("prediction_type")
    if not hasattr(scheduler, "alphas_cumprod") or prediction not in _PREDICTIONS:
        raise ValueError(
            f"the scheduler {name} of {owner} predicts {prediction!r}; U-Nets are read with schedulers of a discrete "
            f"diffusion (DDIMScheduler, EulerDiscreteScheduler, ...) that predict one of {', '.join(_PREDICTIONS)}"
        )
    clipping = [key for key in _CLIPPING if config.get(key)]
    if clipping or config.get("timestep_type", "discrete") != "discrete":
        what = ", ".join(clipping) or "timestep_type"
        raise ValueError(f"the scheduler of {owner} sets {what}, which is not made for latents: set it to its default")


def stable_diffusion_3_grid(scheduler: Any, num_tokens: int, steps: int) -> Tensor:
    """Times of Stable Diffusion 3: shifted twice by a constant, or once by one that grows with the picture.

    Args:
        scheduler: of the pipeline.
        num_tokens: patches of the picture.
        steps: number of steps, at least 1.

    Returns:
        float64, (steps + 1,), from 1 to 0.

    Source: arXiv:2403.03206; the pipeline of diffusers.
    """
    config = scheduler.config
    if steps == 1:
        return linear_grid(1, 1.0)
    if not config.use_dynamic_shifting:
        return double_shift_grid(steps, float(config.shift), int(config.num_train_timesteps))
    shift = shift_of(scheduler, linear_exponent(config, num_tokens))
    low = linear_grid(steps - 1, 1.0, 1 / config.num_train_timesteps)
    return torch.cat([shifted(low, shift), low.new_zeros(1)])


def sampled_grid(scheduler: Any, exponent: float, steps: int) -> Tensor:
    """Times of FLUX.1 and FLUX.2: evenly spaced, shifted once.

    t_i = shifted(1 - i / n, s)

    Args:
        scheduler: of the pipeline.
        exponent: log of the shift that a dynamic scheduler uses.
        steps: number of steps, at least 1.

    Returns:
        float64, (steps + 1,), from 1 to 0.
    """
    return shifted(linear_grid(steps, 1.0), shift_of(scheduler, exponent))


def shift_of(scheduler: Any, exponent: float) -> float:
    """The shift of a flow scheduler.

    Args:
        scheduler: of the pipeline.
        exponent: mu, used by dynamic schedulers only.

    Returns:
        s for ``schedules.shifted``: e^mu or mu of a dynamic scheduler, else its constant.
    """
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return float(config.shift)
    return math.exp(exponent) if config.time_shift_type == "exponential" else exponent


def linear_exponent(config: Any, num_tokens: int) -> float:
    """The exponent that grows with the number of tokens of a picture.

    mu = base + (max - base) (L - L_base) / (L_max - L_base)

    Args:
        config: of the scheduler, which holds the four numbers.
        num_tokens: L.

    Returns:
        mu.
    """
    share = (num_tokens - config.base_image_seq_len) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(config.base_shift + (config.max_shift - config.base_shift) * share)


def flux2_exponent(num_tokens: int, steps: int) -> float:
    """The exponent of FLUX.2, fitted by its authors to the number of tokens and of steps.

    mu_200 = 0.00016927 L + 0.45666666,  mu_10 = 8.73809524e-05 L + 1.89833333
    mu = mu_200 + (steps - 200) (mu_200 - mu_10) / 190 up to 4300 tokens, mu_200 above

    Args:
        num_tokens: L.
        steps: number of steps.

    Returns:
        mu.

    Source: published sampling code of FLUX.2.
    """
    many = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return many
    few = 8.73809524e-05 * num_tokens + 1.89833333
    return many + (steps - 200) * (many - few) / 190


def ddpm_grid(scheduler: Any, steps: int) -> Tensor:
    """Times that a scheduler of a discrete diffusion walks, ending at 0.

    deviates: schedulers that stop at the noise of the first training step (``set_alpha_to_one: false``,
    ``final_sigmas_type: sigma_min``) leave that noise in the latents; here the last step goes to t = 0.

    Args:
        scheduler: its settings are used, its state is changed.
        steps: number of steps, at least 1.

    Returns:
        float64, (steps + 1,); the first is the noisiest time of the training, below 1.

    Raises:
        ValueError: the scheduler walks more times than steps (solvers of higher order with times in between).
    """
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        times = paths.time_from_sigma(scheduler.sigmas.double().cpu()[:-1])
    else:
        # Multistep schedulers name a time twice where they start up.
        numbers = torch.unique_consecutive(scheduler.timesteps.cpu())
        times = paths.time_from_alpha_bar(scheduler.alphas_cumprod.double().cpu()[numbers])
    if len(times) != steps:
        raise ValueError(
            f"{type(scheduler).__name__} walks {len(times)} times in {steps} steps: use a scheduler with one network "
            "evaluation per step, such as DDIMScheduler or EulerDiscreteScheduler"
        )
    return torch.cat([times, times.new_zeros(1)])


def ddpm_solver(scheduler: Any) -> Solver:
    """The solver of the house that does what a scheduler of a discrete diffusion does.

    An Euler step of the straight path is a step of DDIM, and of Euler's method on x_0 + sigma eps.

    Args:
        scheduler: any.

    Returns:
        ``plms``, ``dpm_solver`` or ``unipc`` for the multistep schedulers in their usual settings, else ``euler``.
    """
    solver, settings = _MULTISTEP.get(type(scheduler).__name__, (euler, {}))
    usual = all(scheduler.config.get(key) == value for key, value in settings.items())
    return solver if usual else euler
