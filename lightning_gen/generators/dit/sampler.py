"""From noise to latents. t = 1 is noise, t = 0 is clean.

Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gen.flow.guidance import Guidance, guided
from lightning_gen.flow.schedules import linear_grid
from lightning_gen.flow.sde import StepNoise
from lightning_gen.flow.solvers import Callback, Solver, Velocity, unipc
from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.network import DiT, check_labels
from lightning_gen.nn.norms import layer_norm
from lightning_gen.nn.tokens import Tokens, patchify
from lightning_gen.training.randomness import normal

__all__ = ["class_velocity", "latent_noise", "reproject", "sample_latents", "step_noise"]


def latent_noise(sizes: Sequence[tuple[int, int]], patch: int, channels: int, seed: int, index: Tensor) -> Tokens:
    """Noise on the token grids of pictures that are to be made.

    The noise of picture i depends on (seed, index[i]) alone: not on its neighbours, its row or the padding.

    Args:
        sizes: height and width of every picture in pixels.
        patch: patch edge of the tokenizer in pixels.
        channels: C.
        seed: the run's seed.
        index: number of every picture, int64, (I,), on the device where the noise is wanted.

    Returns:
        Unpacked tokens, values float32, (I, L, C), the state at t = 1.

    Raises:
        ValueError: not one index per size.

    Source: none, house convention for keyed randomness.
    """
    if index.shape != (len(sizes),):
        raise ValueError(f"{len(sizes)} pictures need as many indices, got shape {tuple(index.shape)}")
    canvas = patchify([torch.zeros(1, *size, device=index.device) for size in sizes], patch)
    noise = normal(seed, "latent noise", 0, index, (canvas.mask.shape[1], channels))
    return canvas.with_values(noise * canvas.mask[..., None])


def step_noise(noise: Tokens, seed: int, index: Tensor) -> StepNoise:
    """Noise for the steps of a stochastic solver.

    That of picture i at step n depends on (seed, n, index[i]) alone.

    Args:
        noise: what :func:`latent_noise` gave for the same pictures.
        seed: the run's seed.
        index: number of every picture, int64, (I,).

    Returns:
        A function from n to (I, L, C), 0 at padding.

    Source: none, house convention for keyed randomness.
    """
    shape = tuple(noise.values.shape[1:])
    return lambda step: normal(seed, "step noise", step, index, shape) * noise.mask[..., None]


def class_velocity(network: DiT | LightningDiT, tokens: Tokens, label: Tensor) -> Velocity:
    """The network as a velocity field of one class per image.

    Args:
        network: predicts velocities.
        tokens: mask, coordinates and sizes of the states; their values are not read.
        label: class in [0, num_classes], int64, (I,).

    Returns:
        v(x, t) on values (B, L, C), in the dtype of x whatever the network computes in.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        time = torch.full((tokens.num_images,), t, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        v: Tensor = network(tokens.with_values(x), time, label)
        return v.to(x.dtype)

    return velocity


def reproject(latents: Tokens) -> Tokens:
    """Put every latent token back on the sphere where the tokenizer's latents live.

    z <- LayerNorm(z), which leaves a tokenizer's own latents as they are

    Args:
        latents: values (B, L, C).

    Returns:
        Tokens whose values have mean 0 and variance 1 over the channels.

    Source: arXiv:2605.05331 (LayerNorm bottleneck).
    """
    return latents.with_values(layer_norm(latents.values).to(latents.values.dtype))


@torch.no_grad()
def sample_latents(
    network: DiT | LightningDiT,
    noise: Tokens,
    label: Tensor,
    *,
    times: Tensor | None = None,
    guidance: Guidance | None = None,
    solver: Solver = unipc,
    reprojected: bool = True,
    callback: Callback | None = None,
) -> Tokens:
    """Make latents of given classes.

    dx/dt = v(x, t, class) from noise to clean, v with classifier-free guidance

    Args:
        network: predicts velocities.
        noise: start, packed or unpacked, values (B, L, C), float32 for 16-bit networks too.
        label: class of every image in [0, num_classes], int64, (I,).
        times: falling sampling times; default: ``linear_grid(50)``.
        guidance: default: none, that is scale 1 and one evaluation per step.
        solver: ``euler``, ``heun`` or ``unipc``.
        reprojected: whether the result goes through ``reproject``.
        callback: called once per step with values (B, L, C).

    Returns:
        Clean latents with 0 at padding, ready for the tokenizer's ``decode``.

    Raises:
        ValueError: a class out of range, or times that do not fall.

    Source: arXiv:2605.05331 (generator): UniPC, 50 steps, guidance for t in [0.1, 0.9].
    """
    check_labels(label, network.num_classes)
    conditional = class_velocity(network, noise, label)
    nothing = class_velocity(network, noise, torch.full_like(label, network.null_class))
    image = torch.where(noise.mask, noise.image, -1)
    velocity = guided(conditional, nothing, guidance or Guidance(), image)
    grid = linear_grid(50) if times is None else times
    latents = noise.with_values(solver(velocity, noise.values, grid, callback))
    latents = reproject(latents) if reprojected else latents
    return latents.with_values(latents.values.masked_fill(~latents.mask[..., None], 0.0))
