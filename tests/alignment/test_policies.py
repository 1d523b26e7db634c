"""Policies by name and from pipelines of diffusers, trained for a step through the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import Evaluation, Updates
from lightning_gen.alignment.policies import PipelinePolicy, open_policy
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.backbones.weights import MissingWeightsError
from tests.alignment.test_online import prompts, rewards, train
from tests.harness.tiny_pipelines import write_tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_pipeline(tmp_path_factory.mktemp("pipelines"), "sd3"))


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
    assert model.save_pretrained(tmp_path / "adapter") is None and any((tmp_path / "adapter").glob("*.safetensors"))


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
    assert FlowGRPO.needs({"policy": "shapes_base"}).weights == ()
