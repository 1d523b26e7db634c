"""Pipelines of diffusers as models of the house: their own final latents, from our solver on our grid."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lightning_gen.backbones.text_to_image import DiffusersTextToImage
from lightning_gen.flow import paths
from lightning_gen.flow.guidance import Guidance, guided
from lightning_gen.flow.solvers import Callback, Step
from lightning_gen.interfaces import Conditioning, TextToImage
from lightning_gen.training.strategies import prepare
from tests.harness.tiny_pipelines import FAMILIES, TinyFamily, write_tiny_pipeline

PROMPTS = ["a red circle", "two blue squares"]
CANVAS = (16, 24)
LENGTH = 24
STEPS = 4
F64 = torch.float64
DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    for family in FAMILIES:
        write_tiny_pipeline(root / family, family)
    return root


def ddim(**options: Any) -> Any:
    return diffusers.DDIMScheduler(**DDPM, clip_sample=False, **options)


def ours(folder: Path, **options: Any) -> DiffusersTextToImage:
    if folder.name == "sd3" or folder.name.startswith("flux"):
        options.setdefault("text_length", LENGTH)
    return DiffusersTextToImage(str(folder), canvas=CANVAS, **options)


def sampled(
    model: DiffusersTextToImage, noise: Tensor, guidance: float = 1.0, callback: Callback | None = None
) -> Tensor:
    prompts, empty = model.encode_prompts(PROMPTS), model.encode_prompts([""] * len(PROMPTS))

    def velocity_of(conditioning: Conditioning) -> Any:
        return lambda x, t: model.velocity(x, torch.full((len(x),), t, dtype=F64), conditioning)

    field = guided(velocity_of(prompts), velocity_of(empty), Guidance(guidance))
    with torch.no_grad():
        return model.solver(field, model.from_noise(noise, STEPS), model.times(STEPS), callback)


def theirs(folder: Path, noise: Tensor, guidance: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """Final latents as maps, and pictures in [-1, 1], of the pipeline's own call."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    batch, channels, height, width = noise.shape
    if "Flux" in name or "3" in name:
        options["max_sequence_length"] = LENGTH
    if name == "FluxPipeline":
        noise = pipeline._pack_latents(noise, *noise.shape)
        if guidance > 1:
            options |= {"negative_prompt": [""] * batch, "true_cfg_scale": guidance}
    elif name != "Flux2Pipeline":
        options["guidance_scale"] = guidance
    seen: list[Tensor] = []

    def keep(pipeline: Any, step: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(state["latents"])
        return state

    pictures = pipeline(
        prompt=PROMPTS,
        height=CANVAS[0],
        width=CANVAS[1],
        num_inference_steps=STEPS,
        latents=noise,
        output_type="pt",
        callback_on_step_end=keep,
        **options,
    ).images
    latents = seen[-1]
    if name == "FluxPipeline":
        latents = pipeline._unpack_latents(latents, *CANVAS, pipeline.vae_scale_factor)
    elif "Flux2" in name:
        latents = latents.mT.reshape(batch, channels, height, width)
    return latents, 2 * pictures - 1


@pytest.mark.parametrize(
    ("family", "guidance", "distance"),
    [
        ("sd3", 1.0, 0),
        ("sd3", 4.5, 0.01),
        ("flux_dev", 1.0, 0),
        ("flux_dev", 2.0, 1e-3),
        ("flux_schnell", 1.0, 0),
        ("flux2_dev", 1.0, 0),
        ("flux2_klein", 1.0, 0),
        ("flux2_klein", 4.0, 1e-3),
        ("sdxl", 1.0, 0),
        ("sdxl", 5.0, 0.01),
        ("sd15", 1.0, 0),
        ("sd15", 7.5, 0.01),
    ],
)
@torch.no_grad()
def test_final_latents_and_pictures_are_the_pipelines(
    family: TinyFamily, guidance: float, distance: float, folders: Path
) -> None:
    model = ours(folders / family)
    noise = torch.randn(2, *model.latent_shape)
    own = {"flux_dev": 3.5, "flux2_dev": 4.0}
    expected, pictures = theirs(
        folders / family, noise, guidance, **({"guidance_scale": own[family]} if family in own else {})
    )
    found = sampled(model, noise, guidance)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    # A range of 2 and the auto-encoder's own rounding.
    torch.testing.assert_close(model.latents_to_images(found), pictures, atol=1e-3, rtol=0)
    if guidance > 1:
        assert (sampled(model, noise) - found).abs().max() > distance


@torch.no_grad()
def test_guidance_that_is_an_input_reaches_the_network_through_the_conditioning(folders: Path) -> None:
    for family in ("flux_dev", "flux2_dev"):
        model = ours(folders / family, embedded_guidance=9.0)
        noise = torch.randn(2, *model.latent_shape)
        expected, _ = theirs(folders / family, noise, guidance_scale=9.0)
        torch.testing.assert_close(sampled(model, noise), expected, atol=1e-4, rtol=1e-5)
        conditioning = model.encode_prompts(PROMPTS)
        assert model.embeds_guidance and conditioning.extra["guidance"].tolist() == [9.0, 9.0]
        bare = Conditioning(conditioning.sequence, conditioning.mask, conditioning.pooled)
        with pytest.raises(ValueError, match=r"Conditioning.extra needs 'guidance'"):
            model.velocity(noise, torch.ones(2), bare)
        other = Conditioning(bare.sequence, bare.mask, bare.pooled, {"guidance": torch.tensor([1.0, 9.0])})
        at_one, at_nine = (model.velocity(noise, torch.ones(2), each) for each in (other, conditioning))
        # The same row with the same guidance, the other with another one.
        torch.testing.assert_close(at_one[1], at_nine[1])
        assert not torch.allclose(at_one[0], at_nine[0], atol=1e-5)
    for family in ("flux_schnell", "flux2_klein", "sd15"):
        with pytest.raises(ValueError, match="does not take the guidance as an input"):
            ours(folders / family, embedded_guidance=2.0)


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(lambda: ddim(prediction_type="v_prediction"), id="v"),
        pytest.param(lambda: ddim(prediction_type="sample"), id="data"),
        pytest.param(
            lambda: ddim(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True),
            id="from pure noise",
        ),
        pytest.param(lambda: diffusers.EulerDiscreteScheduler(**DDPM, timestep_spacing="linspace"), id="euler"),
        pytest.param(
            lambda: diffusers.EulerDiscreteScheduler(**DDPM, prediction_type="v_prediction", use_karras_sigmas=True),
            id="karras",
        ),
        pytest.param(lambda: diffusers.DPMSolverMultistepScheduler(**DDPM), id="dpm_solver"),
        pytest.param(lambda: diffusers.UniPCMultistepScheduler(**DDPM), id="unipc"),
        pytest.param(lambda: diffusers.PNDMScheduler(**DDPM, skip_prk_steps=True, set_alpha_to_one=True), id="pndm"),
    ],
)
@torch.no_grad()
def test_unets_of_every_kind_of_prediction_and_start(scheduler: Any, tmp_path: Path) -> None:
    folder = write_tiny_pipeline(tmp_path / "sd15", "sd15", scheduler())
    model = ours(folder)
    noise = torch.randn(2, *model.latent_shape)
    torch.testing.assert_close(sampled(model, noise, 3.0), theirs(folder, noise, 3.0)[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler"])
@torch.no_grad()
def test_a_scheduler_that_leaves_noise_in_the_latents_is_walked_to_the_end(kind: str, tmp_path: Path) -> None:
    # As published for Stable Diffusion 1.5.
    options = {"clip_sample": False} if kind == "DDIMScheduler" else {"skip_prk_steps": True}
    scheduler = getattr(diffusers, kind)(**DDPM, set_alpha_to_one=False, **options)
    folder = write_tiny_pipeline(tmp_path / "sd15", "sd15", scheduler)
    model = ours(folder)
    noise, seen = torch.randn(2, *model.latent_shape), list[Step]()
    found = sampled(model, noise, callback=seen.append)
    assert float(model.times(STEPS)[-1]) == 0
    # What diffusers gives is the same prediction with the noise of the first training step.
    last = seen[-1]
    eps = (last.x - (1 - last.time) * found) / last.time
    a = float(scheduler.alphas_cumprod[0])
    expected = math.sqrt(a) * found + math.sqrt(1 - a) * eps
    torch.testing.assert_close(expected, theirs(folder, noise)[0], atol=1e-4, rtol=1e-5)


def test_pndm_walks_the_times_of_ddim(tmp_path: Path) -> None:
    pndm = diffusers.PNDMScheduler(**DDPM, skip_prk_steps=True, set_alpha_to_one=False)
    model = ours(write_tiny_pipeline(tmp_path / "sd15", "sd15", pndm))
    scheduler = diffusers.DDIMScheduler.from_config(pndm.config)
    scheduler.set_timesteps(7)
    expected = paths.time_from_alpha_bar(scheduler.alphas_cumprod.double()[scheduler.timesteps])
    torch.testing.assert_close(model.times(7)[:-1], expected)


class Oracle(nn.Module):
    """Knows what it should predict, and looks at what it is given."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, sample: Tensor, timestep: Tensor, **other: Any) -> tuple[Tensor]:
        self.sample, self.timestep = sample, timestep
        return (self.answer,)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_perfect_predictions_become_the_straight_velocity(kind: str, tmp_path: Path) -> None:
    model = ours(write_tiny_pipeline(tmp_path / "sd15", "sd15", ddim(prediction_type=kind)))
    x_0, eps = torch.randn(3, 4, 8, 12, dtype=F64), torch.randn(3, 4, 8, 12, dtype=F64)
    steps = torch.tensor([0, 321, 999])
    a = model.family.scheduler.alphas_cumprod.double()[steps].view(3, 1, 1, 1)
    signal, disorder = a.sqrt(), (1 - a).sqrt()
    answers = {"epsilon": eps, "v_prediction": signal * eps - disorder * x_0, "sample": x_0}
    t = (disorder / (signal + disorder)).flatten()
    oracle = Oracle(answers[kind])
    conditioning = Conditioning(torch.zeros(3, 1, 1, dtype=F64), torch.ones(3, 1, dtype=torch.bool))
    found = model.family.velocity(oracle, paths.noised(x_0, eps, t), t, conditioning)
    torch.testing.assert_close(found, eps - x_0, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(oracle.sample, signal * x_0 + disorder * eps)
    assert oracle.timestep.tolist() == pytest.approx(steps.tolist(), abs=1e-6)


def test_stable_diffusion_3_walks_its_published_times(folders: Path) -> None:
    published = [1.0, 0.96012932, 0.91334897, 0.8576923, 0.79036826, 0.70727849, 0.60215056, 0.46487603, 0.27804878,
                 0.00892857, 0.0]  # fmt: skip
    model = ours(folders / "sd3")
    torch.testing.assert_close(model.times(10), torch.tensor(published, dtype=F64), atol=1e-7, rtol=0)
    for steps in (1, 2, 28):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(model.times(steps), scheduler.sigmas.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("canvas", [(256, 256), (1024, 1024), (1536, 2048)])
def test_times_shift_with_the_picture(canvas: tuple[int, int], folders: Path, tmp_path: Path) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.16)
    sd3 = write_tiny_pipeline(tmp_path / "sd3", "sd3", dynamic)
    for folder in (sd3, folders / "flux_dev", folders / "flux2_dev"):
        model = DiffusersTextToImage(str(folder), canvas=canvas)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(model.family.scheduler.config)
        for steps in (5, 50):
            # Tiny auto-encoders halve a picture, networks halve it again.
            num_tokens = canvas[0] * canvas[1] // 16
            mu = 0.5 + (num_tokens - 256) * ((1.16 if folder == sd3 else 1.15) - 0.5) / (4096 - 256)
            sigmas = None if folder == sd3 else [1 - i / steps for i in range(steps)]
            if folder.name == "flux2_dev":
                mu = compute_empirical_mu(num_tokens, steps)
            scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
            torch.testing.assert_close(model.times(steps), scheduler.sigmas.double(), atol=1e-6, rtol=0)


def test_pictures_come_back_and_only_the_network_is_saved(folders: Path) -> None:
    for family in FAMILIES:
        model: TextToImage = ours(folders / family)
        assert isinstance(model, DiffusersTextToImage)
        assert {name.partition(".")[0] for name in model.state_dict()} == {"network"}
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.network.parameters())
        images = torch.rand(2, 3, *CANVAS) * 2 - 1
        with torch.no_grad():
            latents = model.images_to_latents(images)
            assert latents.shape == (2, *model.latent_shape)
            vae = model.vae.network.vae  # type: ignore[union-attr]
            raw = vae.encode(images).latent_dist.mode()
            again = vae.decode(raw).sample.clamp(-1, 1)
            torch.testing.assert_close(model.latents_to_images(latents), again, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match=r"images of 15 x 24 pixels.*multiples of"):
            model.images_to_latents(images[..., :15, :])


def test_blocks_are_called_once_each_in_their_order(folders: Path) -> None:
    for family, count in {"sd3": 2, "flux_dev": 2, "flux2_klein": 2, "sdxl": 5, "sd15": 5}.items():
        model = ours(folders / family)
        called: list[nn.Module] = []
        for block in model.blocks():
            block.register_forward_pre_hook(lambda module, inputs, called=called: called.append(module))
        with torch.no_grad():
            model.velocity(torch.randn(2, *model.latent_shape), torch.tensor([0.3, 0.9]), model.encode_prompts(PROMPTS))
        assert called == model.blocks() and len(called) == count
        assert set(model.blocks()) <= set(model.network.modules())


def test_velocity_has_gradients_with_checkpointing_too_and_rows_of_their_own(folders: Path) -> None:
    for family in FAMILIES:
        model = ours(folders / family)
        conditioning = model.encode_prompts(PROMPTS)
        x, t = torch.randn(2, *model.latent_shape), torch.tensor([0.3, 0.9])
        together = model.velocity(x, t, conditioning)
        together.square().mean().backward()
        # The last block of a transformer may have parts for text that nobody reads any more.
        grads = [p.grad for p in model.network.parameters()]
        assert sum(grad is not None for grad in grads) > 0.9 * len(grads)
        with torch.no_grad():
            alone = model.velocity(x[1:], t[1:], model.encode_prompts(PROMPTS[1:]))
        torch.testing.assert_close(together[1:].detach(), alone, atol=1e-5, rtol=1e-4)

        model.zero_grad()
        prepare(model.network, device_mesh=None, seed=0, activation_checkpointing=True)
        assert all("Checkpoint" in type(block).__name__ for block in model.blocks())
        again = model.velocity(x, t, conditioning)
        again.square().mean().backward()
        torch.testing.assert_close(again, together)
        for parameter, grad in zip(model.network.parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad)


def test_frozen_parts_keep_their_own_number_formats(folders: Path) -> None:
    precise = ours(folders / "sd3")
    coarse = ours(folders / "sd3", network_dtype="bfloat16", text_dtype="bfloat16", vae_dtype="bfloat16")
    x, t = torch.randn(2, *precise.latent_shape), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        wanted = precise.velocity(x, t, precise.encode_prompts(PROMPTS))
        conditioning = coarse.encode_prompts(PROMPTS)
        found = coarse.velocity(x, t, conditioning)
        images = coarse.latents_to_images(x)
    assert conditioning.sequence.dtype == torch.bfloat16
    assert {p.dtype for p in coarse.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in coarse.vae.network.parameters()} == {torch.bfloat16}
    assert found.dtype == torch.float32 and not torch.equal(found, wanted) and images.dtype == torch.float32
    assert (found - wanted).square().mean() < 1e-3 * wanted.square().mean()
    # A parent's cast reaches what is trained, not what is constant.
    precise.to(torch.float64)
    assert {p.dtype for p in precise.vae.network.parameters()} == {torch.float32}
    assert next(precise.network.parameters()).dtype == torch.float64


def test_few_step_models_are_told_apart(folders: Path, tmp_path: Path) -> None:
    assert {family: ours(folders / family).is_distilled for family in FAMILIES} == {
        family: family == "flux_schnell" for family in FAMILIES
    }
    turbo = write_tiny_pipeline(tmp_path / "sd-turbo", "sd15")
    assert DiffusersTextToImage(str(turbo)).is_distilled
    assert not DiffusersTextToImage(str(turbo), is_distilled=False).is_distilled


def test_a_snapshot_has_the_name_of_its_repository(folders: Path, tmp_path: Path) -> None:
    """The hub's cache calls the folder after a commit, and the repository's folder after its owner, too."""
    for name, few in (("models--me--sd-turbo", True), ("sd-turbo", True), ("models--turbo--sd", False)):
        folder = tmp_path / name / "snapshots" / "0a1b"
        shutil.copytree(folders / "sd15", folder)
        assert DiffusersTextToImage(f"{folder}/").is_distilled == few, name


def test_the_models_own_size_is_the_default(folders: Path) -> None:
    for family, shape in {"sd3": (4, 8, 8), "flux2_dev": (16, 64, 64), "sd15": (4, 8, 8)}.items():
        assert DiffusersTextToImage(str(folders / family)).latent_shape == shape
