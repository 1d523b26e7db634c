"""Policies behind wrappers, sharded over two processes or with activation checkpointing, do what whole ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.guards import DivergenceGuard
from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.alignment.policies import PipelinePolicy
from lightning_gen.alignment.settings import Evaluation, Updates
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.training.averages import read_weights
from lightning_gen.training.ema import EMA
from lightning_gen.training.strategies import FSDP2Strategy
from tests.alignment.test_online import rewards, train
from tests.alignment.worlds import tiny_world
from tests.harness import needs_cpu_fsdp2, two_processes
from tests.harness.tiny_pipelines import write_tiny_pipeline

STEPS = 4
Outcome = dict[str, Tensor]


def data(folder: Path) -> PromptDataModule:
    file = folder / "prompts.jsonl"
    if not file.exists():
        words = ["a red circle", "a blue square", "a green triangle", "a red square"]
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in words))
    return PromptDataModule(train=str(file), val=str(file), global_batch_size=4, repeats=2, num_workers=0, seed=1)


def model(kind: str, pipeline: str, checkpointing: bool = False) -> OnlineTraining:
    """Flow-GRPO on the embedded world's network, DiffusionNFT on SD3's with a base in bfloat16."""
    rest: dict[str, Any] = {
        "lora": LoRASettings(2, 4.0),
        "updates": Updates(2, 1, skip_worthless=False, activation_checkpointing=checkpointing),
        "evaluation": Evaluation(2, "euler", 1.0),
        "seed": 3,
    }
    if kind == "grpo":
        return FlowGRPO(tiny_world(), rewards(), StochasticRollout(3, 2.0), clip=0.2, **rest)
    policy = PipelinePolicy(pipeline, text_length=8, dtype="bfloat16")
    return DiffusionNFT(policy, rewards(), CleanRollout(3), **rest)


def outcome(trained: OnlineTraining) -> Outcome:
    """Adapters as a whole, and what the policy says with each of them and with none."""
    bank, policy = trained.bank, trained.policy
    found = {
        f"{name} {module} {half}": factor
        for name in bank.names
        for module, pair in bank.weights(name).factors.items()
        for half, factor in zip("AB", pair, strict=True)
    }
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    for name in (*bank.names, None):
        with torch.no_grad(), bank.disabled() if name is None else bank.using(name):
            text = policy.encode_prompts(["a red circle", ""])
            found[f"velocity {name}"] = policy.velocity(x, torch.tensor([0.3, 0.8]), text).float()
    return found


def run(
    kind: str,
    folder: Path,
    pipeline: str,
    devices: int,
    checkpointing: bool = False,
    ckpt_path: Path | None = None,
    as_file: bool = False,
) -> Outcome:
    """Train with guard, average and checkpoints; sharded where there are two devices or something to go on with."""
    trained = model(kind, pipeline, checkpointing)
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    sharded = devices > 1 or ckpt_path is not None
    strategy: Any = FSDP2Strategy(save_distributed_checkpoint=not as_file) if sharded else "auto"
    trainer = train(
        trained, data(Path(pipeline).parent), folder, steps=STEPS, strategy=strategy, devices=devices,
        callbacks=[EMA((0.5,)), DivergenceGuard(None, largest_roughness=None, patience=1), keeper],
        enable_checkpointing=True, ckpt_path=ckpt_path,
    )  # fmt: skip
    assert trainer.global_step == STEPS, "the guard stopped it"
    trained.save_pretrained(folder / "adapter")
    return outcome(trained)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("sharded") / "sd3", "sd3")
    data(folder.parent)
    return str(folder)


@pytest.fixture(scope="module")
def whole(pipeline: str) -> dict[str, Outcome]:
    """Undisturbed runs on one device, beside the pipeline."""
    return {kind: run(kind, Path(pipeline).parent / kind, pipeline, 1) for kind in ("grpo", "nft")}


def close(found: Outcome, expected: Outcome, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@needs_cpu_fsdp2
@pytest.mark.parametrize(("kind", "tolerance"), [("grpo", 2e-5), ("nft", 2e-3)])
def test_a_sharded_policy_learns_what_a_whole_one_learns(
    kind: str, tolerance: float, pipeline: str, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    expected = whole[kind]
    pair = two_processes(run, kind, tmp_path / "two", pipeline, 2, True)
    for found in pair:
        close(found, expected, tolerance)
    spoken = [expected[name] for name in expected if name.startswith("velocity")]
    assert all(not torch.allclose(one, spoken[-1], atol=1e-4) for one in spoken[:-1]), "adapters say nothing"
    if kind == "nft":
        assert not torch.equal(spoken[0], spoken[1]), "old and trained adapter are one"
    # A folder of shards holds the adapters alone; a run that was stopped goes on from it bit for bit.
    middle = tmp_path / "two" / "step=2.ckpt"
    assert all(".lora_" in name for name in read_weights(middle)) and (tmp_path / "two" / "adapter").is_dir()
    again = two_processes(run, kind, tmp_path / "again", pipeline, 2, True, middle)
    assert all(torch.equal(again[0][name], value) for name, value in pair[0].items())


@needs_cpu_fsdp2
def test_a_file_of_one_device_is_continued_sharded(pipeline: str, whole: dict[str, Outcome], tmp_path: Path) -> None:
    middle = Path(pipeline).parent / "grpo" / "step=2.ckpt"
    again = two_processes(run, "grpo", tmp_path, pipeline, 2, False, middle, True)
    assert all(torch.equal(again[0][name], value) for name, value in again[1].items())
    close(again[1], whole["grpo"], 2e-5)


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_activation_checkpointing_changes_nothing(
    kind: str, pipeline: str, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    """Blocks are computed again in the backward pass, when another adapter may be on."""
    found = run(kind, tmp_path, pipeline, 1, True)
    assert found.keys() == whole[kind].keys()
    assert all(torch.equal(found[name], value) for name, value in whole[kind].items())


def test_adapters_come_before_shards_and_the_base_stays(pipeline: str, whole: dict[str, Outcome]) -> None:
    first = model("nft", pipeline, checkpointing=True)
    first.configure_model()
    network: Any = first.policy.network
    wrapped = [name for name, _ in network.named_modules() if name.endswith("_checkpoint_wrapped_module")]
    assert len(wrapped) == len(network.blocks()) > 0 and first.bank.names == ("default", "old")
    with pytest.raises(RuntimeError, match="checkpointed or sharded already"):
        first.bank.add("late", LoRASettings(2, 4.0))
    assert torch.equal(outcome(first)["velocity None"], whole["nft"]["velocity None"])
