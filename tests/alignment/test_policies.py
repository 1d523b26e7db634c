"""Policies by name and from pipelines of diffusers, trained for a step through the same code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.alignment import policies
from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import Evaluation, Updates
from lightning_gen.alignment.policies import PipelinePolicy, open_policy, warn_of_double_guidance
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.interfaces import TextToImage
from tests.alignment.test_online import prompts, rewards, train
from tests.harness.tiny_pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_pipeline(tmp_path_factory.mktemp("pipelines"), "sd3"))


def test_a_hub_id_in_the_cache_is_a_pipeline(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        policies, "find_pipeline", lambda source: (Path(pipeline), "") if source == "me/sd" else (None, "")
    )
    monkeypatch.setattr(PipelinePolicy, "load", lambda policy: asked.append(policy.pipeline) or nn.Identity())
    with pytest.raises(TypeError, match="Identity is no text-to-image model"):
        open_policy("me/sd")
    with pytest.raises(MissingWeightsError):
        open_policy("me/other")
    assert asked == ["me/sd"]


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_a_pipeline_of_diffusers_is_trained_like_any_other(kind: str, pipeline: str, tmp_path: Path) -> None:
    policy = PipelinePolicy(pipeline, text_length=8, dtype="float32", prompt_cache=str(tmp_path / "prompts"))
    rest: dict[str, Any] = {
        "lora": LoRASettings(2, 4.0), "updates": Updates(1, 2, skip_worthless=False),
        "evaluation": Evaluation(2, "euler", 1.0),
    }  # fmt: skip
    model = (
        FlowGRPO(policy, rewards(), StochasticRollout(3, 2.0, window_size=1), **rest)
        if kind == "grpo"
        else DiffusionNFT(policy, rewards(), CleanRollout(2), **rest)
    )
    train(model, prompts(tmp_path, global_batch_size=2, repeats=2), tmp_path, steps=1)
    still = [p for p in model.bank.parameters("default") if not bool(p.detach().any())]
    # B begins with 0 and has moved, but for the text's queries in the last block, whose answers nobody reads.
    assert len(still) == 1 < len(model.bank.parameters("default"))
    model.save_pretrained(tmp_path / "adapter")
    _require_read_by_diffusers(model, pipeline, tmp_path / "adapter")


def _require_read_by_diffusers(model: Any, pipeline: str, folder: Path) -> None:
    """By the method that people call, and with the same pictures."""
    import diffusers

    reader: Any = diffusers.StableDiffusion3Pipeline.from_pretrained(pipeline, torch_dtype=torch.float32)
    before = open_policy(pipeline)
    reader.load_lora_weights(str(folder))
    x, t = torch.randn(2, *model.policy.latent_shape, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    with torch.no_grad():
        text = model.policy.encode_prompts(["x", "xx"])
        ours, plain = model.policy.velocity(x, t, text), cast(Any, before).velocity(x, t, text)
        cast(Any, before).network = reader.transformer
        theirs = cast(Any, before).velocity(x, t, text)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs, plain, rtol=1e-3, atol=1e-4)


def test_prompts_can_be_encoded_before_the_run_and_the_encoders_forgotten(pipeline: str, tmp_path: Path) -> None:
    policy = PipelinePolicy(
        pipeline, text_length=8, dtype="float32", prompt_cache=str(tmp_path / "prompts"), encode_first=True
    )
    updates, evaluation = Updates(1, 2, skip_worthless=False), Evaluation(2, "euler", 1.0)
    model = FlowGRPO(
        policy, rewards(), StochasticRollout(3, 2.0, window_size=1), updates=updates, lora=LoRASettings(2, 4.0),
        evaluation=evaluation,
    )  # fmt: skip
    train(model, prompts(tmp_path, global_batch_size=2, repeats=2), tmp_path, steps=1)
    loaded: Any = model.policy
    assert loaded._freed and loaded._text is None
    assert all("x" * n in loaded.cache for n in range(9)), "8 prompts and the empty one"
    with pytest.raises(RuntimeError, match="were freed"):
        loaded.encode_prompts(["something else"])
    with pytest.raises(ValueError, match="policy.encode_first needs prompts that are known"):
        policies.encode_run(loaded, None, model.trainer)
    with pytest.raises(ValueError, match=r"encode_first without policy\.prompt_cache"):
        PipelinePolicy("x", encode_first=True)


def test_prompts_of_a_rollout_are_encoded_at_once(pipeline: str, tmp_path: Path) -> None:
    """Encoders that wait in host memory come to the device once for it, not for every micro-batch."""
    policy = PipelinePolicy(pipeline, None, 8, prompt_cache=str(tmp_path / "prompts"), dtype="float32")
    updates, evaluation = Updates(1, 2, skip_worthless=False), Evaluation(2, "euler", 1.0)
    model: Any = DiffusionNFT(
        policy, rewards(), CleanRollout(2), updates=updates, evaluation=evaluation, lora=LoRASettings(2, 4.0)
    )
    model.configure_model()
    encode, new = model.policy.encode_prompts, list[int]()

    def watched(texts: list[str]) -> Any:
        new.append(sum(text not in model.policy.cache for text in texts))
        return encode(texts)

    model.policy.encode_prompts = watched
    train(model, prompts(tmp_path, global_batch_size=8, repeats=2), tmp_path, steps=1)
    assert len(new) == 4 + 4 and not any(new)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear is no text-to-image model: it has no network"):
        open_policy(nn.Linear(1, 1))
    with pytest.raises(MissingWeightsError):
        open_policy(str(tmp_path / "nothing"))
    with pytest.raises(MissingWeightsError):
        open_policy(PipelinePolicy(str(tmp_path / "nothing")))


def test_a_policy_is_frozen_and_a_run_can_be_described_without_it(pipeline: str) -> None:
    model = open_policy(pipeline)
    assert isinstance(model, nn.Module) and not any(p.requires_grad for p in model.parameters())
    described = FlowGRPO(PipelinePolicy("not/there"), rewards())
    assert not list(described.parameters())
    with torch.no_grad(), pytest.raises(MissingWeightsError):
        described.configure_model()


def test_the_preflight_asks_for_the_pipeline(pipeline: str) -> None:
    [there] = FlowGRPO.needs({"policy": {"pipeline": pipeline}}).weights
    [missing] = FlowGRPO.needs({"policy": PipelinePolicy("weights/sd35m")}).weights
    assert there.found and not missing.found and missing.source == "weights/sd35m"
    assert "no folder weights/sd35m" in missing.hint


def test_the_preflight_counts_what_is_trained_and_what_stays_frozen(pipeline: str) -> None:
    own = FlowGRPO("shapes_base", rewards(), lora=LoRASettings(4, 8.0))
    full = FlowGRPO(PipelinePolicy(pipeline), rewards(), lora=LoRASettings(4, 8.0))
    for model, policy, width in ((own, "shapes_base", 4), (full, {"pipeline": pipeline}, 2)):
        needs = FlowGRPO.needs({"policy": policy, "lora": {"rank": 4, "alpha": 8.0}})
        model.configure_model()
        assert needs.trainable == model.bank.num_parameters("default") > 0
        beside = sum(p.numel() for p in model.policy.network.parameters()) - needs.trainable
        if policy != "shapes_base":
            text = full.policy._folder.text_encoders(full.policy.network, torch.float32)  # type: ignore[attr-defined]
            beside += text.num_parameters + full.policy.vae.num_parameters  # type: ignore[attr-defined]
        assert needs.frozen == beside and needs.frozen_bytes == width * beside
    [need] = FlowGRPO.needs({"policy": "weights/nothing"}).weights
    assert not need.found and need.source == "weights/nothing"
    assert FlowGRPO.needs({"policy": {"class_path": "some.Model"}}).trainable == 0


def test_text_encoders_that_wait_in_host_memory_need_a_cache() -> None:
    with pytest.raises(ValueError, match=r"text_offload without policy\.prompt_cache"):
        PipelinePolicy("x", text_offload=True)


def test_every_option_of_the_pipeline_reaches_its_model(tmp_path: Path) -> None:
    """Each is one that the model would not choose itself."""
    asked: dict[str, Any] = {
        "canvas": (16, 24), "text_length": 8, "clip_length": 16, "prompt_cache": str(tmp_path / "prompts"),
        "embedded_guidance": 2.5, "dtype": "float16", "text_offload": True, "encode_first": True, "vae_slicing": True,
        "vae_tiling": True, "is_distilled": True, "revision": "main",
    }  # fmt: skip
    policy = PipelinePolicy(str(write_tiny_pipeline(tmp_path / "dev", "flux_dev")), **asked)
    assert {*asked, "pipeline"} == {field.name for field in dataclasses.fields(policy)}
    assert all(getattr(policy, field.name) != field.default for field in dataclasses.fields(policy))
    model: Any = policy.load()
    assert (model.canvas.height, model.canvas.width) == asked["canvas"] and model.is_distilled
    assert (model.lengths.clip, model.lengths.text, model.embedded_guidance) == (16, 8, 2.5)
    assert model.cache is not None and model._text_offload
    assert model.vae.network.vae.use_slicing and model.vae.network.vae.use_tiling
    assert {p.dtype for p in [*model.network.parameters(), *model.vae.network.parameters()]} == {torch.float16}


def test_guidance_on_top_of_guidance_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    distilled, plain = (cast(TextToImage, SimpleNamespace(embeds_guidance=embeds)) for embeds in (True, False))
    for policy, scale in ((distilled, 1.0), (plain, 4.5), (cast(TextToImage, SimpleNamespace()), 4.5)):
        warn_of_double_guidance(policy, scale)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"guidance of 4\.5 with the empty prompt.*policy\.embedded_guidance"):
        warn_of_double_guidance(distilled, 4.5)


@pytest.mark.parametrize("source", ["sd3", "shapes_base"])
def test_without_adapters_a_loaded_model_is_to_the_last_bit_what_it_was(source: str, pipeline: str) -> None:
    """Weights that were read from disk, through the same code as in a run; adapters that say something."""
    name = pipeline if source == "sd3" else source
    base = open_policy(name)
    model = FlowGRPO(name, rewards(), lora=LoRASettings(2, 4.0))
    model.configure_model()
    with torch.no_grad():
        for parameter in model.bank.parameters("default"):
            parameter.fill_(0.1)
    x = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    t, prompts = torch.tensor([0.3, 0.8]), ["a red circle", ""]

    def spoken(policy: TextToImage) -> Tensor:
        with torch.no_grad():
            return policy.velocity(x, t, policy.encode_prompts(prompts))

    expected = spoken(base)
    assert not torch.allclose(spoken(model.policy), expected, atol=1e-3)
    with model.bank.disabled():
        assert torch.equal(spoken(model.policy), expected)
