"""Online training: a step samples, scores, compares and learns; it resumes exactly, whatever the world size."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.alignment.rollout import Rollout, initial_noise, row_keys
from lightning_gen.alignment.settings import Evaluation, Updates
from lightning_gen.alignment.shares import share_of
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PromptBatch
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.rewards.advantages import group_advantages
from lightning_gen.rewards.lanes import RewardError
from lightning_gen.rewards.rewards import RewardEntry, RewardScores, RewardSuite
from tests.alignment.worlds import ToyPolicy
from tests.harness import two_processes

LORA = LoRASettings(2, 4.0, ("0",))


class Redness:
    """How red a picture is."""

    fingerprint = None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return images[:, 0].flatten(1).mean(1)


def rewards(**weights: float) -> RewardSuite:
    return RewardSuite([RewardEntry("redness", Redness(), weights.get("redness", 1.0))])


class Group(Redness):
    """Pays for red pictures of long prompts alone, so that whole groups are worth nothing."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        red = super().__call__(images, prompts, metadata)
        return torch.tensor([float(r > 0.5 and len(p) > 4) for r, p in zip(red.tolist(), prompts, strict=True)])


def coarse() -> RewardSuite:
    return RewardSuite([RewardEntry("group", Group())])


def module(kind: str, **changed: Any) -> OnlineTraining:
    paid = changed.pop("rewards", None) or rewards()
    rest: dict[str, Any] = {
        "lora": LORA,
        "updates": Updates(1, 4, skip_worthless=False),
        "evaluation": Evaluation(4, "euler", 1.0),
        "seed": 3,
    } | changed
    model: OnlineTraining = (
        FlowGRPO(ToyPolicy(), paid, StochasticRollout(4, 2.0), clip=0.2, **rest)
        if kind == "grpo"
        else DiffusionNFT(ToyPolicy(), paid, CleanRollout(4), **rest)
    )
    model.configure_model()
    return model


def prompts(tmp_path: Path, **changed: Any) -> PromptDataModule:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": "x" * n}) + "\n" for n in range(1, 9)))
    rest = {"global_batch_size": 8, "repeats": 4, "num_workers": 0, "seed": 1} | changed
    return PromptDataModule(train=str(file), val=str(file), **rest)


def train(model: OnlineTraining, data: PromptDataModule, folder: Path, steps: int = 4, **rest: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": steps, "limit_val_batches": 0, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "reload_dataloaders_every_n_epochs": 1, "enable_checkpointing": False, "use_distributed_sampler": False,
    }  # fmt: skip
    ckpt = rest.pop("ckpt_path", None)
    trainer = pl.Trainer(**(arguments | rest))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return trainer


def adapters(model: OnlineTraining) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_what_is_paid_for_grows(kind: str, tmp_path: Path) -> None:
    from lightning_gen.training.optim import AdamW

    model = module(kind, optimizer=AdamW(3e-2, weight_decay=0.0), **({"kl": 0.0} if kind == "grpo" else {}))
    data = prompts(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    batch = _batch(data)
    start = float(model.score(model.make(batch)).total.mean())
    train(model, data, tmp_path, steps=30)
    assert float(model.score(model.make(batch)).total.mean()) > start + 0.03
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(kind: str, tmp_path: Path) -> None:
    whole = module(kind)
    train(whole, prompts(tmp_path), tmp_path / "whole", steps=4)
    keeper = ModelCheckpoint(tmp_path / "kept", filename="two", every_n_train_steps=2)
    train(module(kind), prompts(tmp_path), tmp_path / "half", steps=2, callbacks=[keeper], enable_checkpointing=True)
    again = module(kind)
    train(again, prompts(tmp_path), tmp_path / "half", steps=4, ckpt_path=tmp_path / "kept/two.ckpt")
    expected, found = adapters(whole), adapters(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    kept = torch.load(tmp_path / "kept/two.ckpt", weights_only=True)["state_dict"]
    assert set(kept) == set(expected)
    with pytest.raises(ValueError, match="adapters are not those of this run"):
        train(
            module(kind, lora=LoRASettings(1, 4.0, ("0",))),
            prompts(tmp_path), tmp_path / "other", ckpt_path=tmp_path / "kept/two.ckpt",
        )  # fmt: skip


class Failing(Redness):
    """Says something useless from the third rollout of two micro-batches on."""

    def __init__(self, answer: Any) -> None:
        self.asked, self.answer = 0, answer

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        self.asked += 1
        found = super().__call__(images, prompts, metadata)
        if self.asked < 5:
            return found
        if self.answer is None:
            raise OSError("the judge is gone")
        return self.answer * found if isinstance(self.answer, float) else found[: self.answer]


@pytest.mark.parametrize(
    ("answer", "message"), [(None, "gone"), (float("nan"), "NaN for all of its 8"), (3, "must give 4 numbers")]
)
def test_a_reward_that_fails_leaves_whole_steps_behind(answer: Any, message: str, tmp_path: Path) -> None:
    two = Updates(2, 4, skip_worthless=False)
    keeper = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    broken = module("nft", updates=two, rewards=RewardSuite([RewardEntry("redness", Failing(answer))]))
    with pytest.raises(RewardError, match=message):
        train(broken, prompts(tmp_path), tmp_path, steps=6, callbacks=[keeper], enable_checkpointing=True)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
    again, whole = module("nft", updates=two), module("nft", updates=two)
    train(again, prompts(tmp_path), tmp_path, steps=6, ckpt_path=tmp_path / "kept/step=4.ckpt")
    train(whole, prompts(tmp_path), tmp_path, steps=6)
    assert all(torch.equal(adapters(again)[name], value) for name, value in adapters(whole).items())


def test_weights_of_a_reward_are_read_before_the_first_rollout(tmp_path: Path) -> None:
    class Damaged(Redness):
        def load(self) -> None:
            raise OSError("half a file")

    broken = module("nft", rewards=RewardSuite([RewardEntry("damaged", Damaged())]))
    broken.sample = None  # type: ignore[method-assign, assignment]  # a rollout would fail in another way
    with pytest.raises(RewardError, match="'damaged' cannot be made ready: half a file"):
        train(broken, prompts(tmp_path), tmp_path)


def test_a_group_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.repeats is 1: .* at least twice"):
        train(module("grpo"), prompts(tmp_path, repeats=1), tmp_path)


def test_updates_that_a_rollout_cannot_be_shared_out_over_are_refused_before_it(tmp_path: Path) -> None:
    broken = module("nft", updates=Updates(3, 4))
    broken.sample = None  # type: ignore[method-assign, assignment]  # a rollout would fail in another way
    with pytest.raises(ValueError, match=r"8 rows cannot be shared out over 3 updates: change data.global_batch_size"):
        train(broken, prompts(tmp_path), tmp_path)


class Named(Redness):
    """Is for prompts whose file says more than their text."""

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        return None if "tag" in metadata else "it has no tag"


def test_prompts_that_a_reward_is_not_for_are_found_before_the_first_rollout(tmp_path: Path) -> None:
    broken = module("grpo", rewards=RewardSuite([RewardEntry("named", Named())]))
    broken.sample = None  # type: ignore[method-assign, assignment]  # a rollout would fail in another way
    with pytest.raises(RewardError, match=r"'named' does not apply to the prompt 'x' \(row 0\): it has no tag"):
        train(broken, prompts(tmp_path), tmp_path)


class Slow(Redness):
    """Waits until the second half of a rollout has been sampled."""

    background = True

    def __init__(self) -> None:
        self.sampled = threading.Event()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        assert self.sampled.wait(20), "nothing is sampled while scores are waited for"
        return super().__call__(images, prompts, metadata)


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_pictures_are_made_while_servers_score(kind: str, tmp_path: Path) -> None:
    slow = Slow()
    model, calls = module(kind, rewards=RewardSuite([RewardEntry("slow", slow, time_limit=20)])), list[int]()
    sample = model.sample

    def counted(batch: PromptBatch) -> Rollout:
        calls.append(len(batch))
        if len(calls) == 2:
            slow.sampled.set()
        return sample(batch)

    model.sample = counted  # type: ignore[method-assign]
    other = module(kind)
    train(model, prompts(tmp_path), tmp_path, steps=1)
    train(other, prompts(tmp_path), tmp_path, steps=1)
    assert calls == [4, 4]
    assert all(torch.equal(adapters(model)[name], value) for name, value in adapters(other).items())


def test_a_rollout_in_parts_is_the_rollout(tmp_path: Path) -> None:
    model = module("grpo")
    model.trainer = train(module("grpo"), prompts(tmp_path), tmp_path, steps=1)
    batch = _training_batch(prompts(tmp_path))
    whole, (parts, scores) = model.sample(batch), model.sample_and_score(batch)
    for name in ("latents", "images", "keys", "group", "valid", "times"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    assert whole.trajectory is not None and parts.trajectory is not None
    assert all(torch.equal(one, two) for one, two in zip(parts.trajectory, whole.trajectory, strict=True))
    assert (parts.prompts, parts.metadata, parts.steps) == (whole.prompts, whole.metadata, whole.steps)
    assert torch.equal(parts.rewards["redness"], scores.total) and not whole.rewards


class ForLong(Redness):
    """Is for prompts of more than four letters."""

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        return None if len(prompt) > 4 else "it is short"


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_what_is_paid_is_what_is_learned_from(combine: Any, tmp_path: Path) -> None:
    """A group with one reward and a group with two: their sum is four times the mean."""
    entries = [RewardEntry("redness", Redness()), RewardEntry("long", ForLong(), weight=3.0, elsewhere="skip")]
    model = module("nft", rewards=RewardSuite(entries, combine))
    model.log_all = lambda *_: None  # type: ignore[method-assign]
    rollout = model.make(_training_batch(prompts(tmp_path)))
    short = rollout.group == rollout.group[0]
    rollout = replace(rollout, prompts=tuple("x" if one else "x" * 6 for one in short.tolist()))
    scores = model.score(rollout)
    red = scores.raw["redness"]
    torch.testing.assert_close(scores.total, red if combine == "mean" else torch.where(short, red, 4 * red))
    torch.testing.assert_close(model.advantages(scores, rollout), group_advantages(scores.total, rollout.group))


def test_guidance_is_refused_where_the_velocity_is_learned() -> None:
    with pytest.raises(ValueError, match="guidance is 4.5: DiffusionNFT learns the velocity"):
        CleanRollout(guidance=4.5)


def test_a_distilled_policy_is_warned_about(tmp_path: Path) -> None:
    model = module("nft")
    model.policy.is_distilled = True  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="distilled to few steps"):
        trainer = train(model, prompts(tmp_path), tmp_path, steps=1)
    assert trainer.global_step == 1


def _batch(data: PromptDataModule) -> Any:
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def test_pictures_are_those_of_the_latents(tmp_path: Path) -> None:
    model = module("grpo")
    rollout = model.make(_batch(prompts(tmp_path)))
    torch.testing.assert_close(rollout.images, (rollout.latents.clamp(-1, 1) + 1) / 2)
    [row] = model.pictures(_batch(prompts(tmp_path)))
    assert row.notes[0] == f"redness {float(rollout.images[0, 0].mean()):.2f}" and len(row.notes) == len(row.images)


def test_every_row_is_in_one_update_and_the_worthless_are_left_out(tmp_path: Path) -> None:
    model = module("grpo", updates=Updates(2, 4, skip_worthless=True))
    model.trainer = train(module("grpo"), prompts(tmp_path), tmp_path, steps=1)
    rollout = model.make(_batch(prompts(tmp_path)))
    worth = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    first, second = model.updates_of(worth, rollout)
    assert first.rows.tolist() == [0, 2, 4, 6] and second.rows.tolist() == [1, 3, 5, 7]
    assert first.weights.tolist() == [0.25] * 4
    worth[[1, 2, 5]] = 0.0
    kept = torch.cat([share.rows for share in model.updates_of(worth, rollout)]).tolist()
    assert len(kept) == 6 and {0, 3, 4, 6, 7} < set(kept)
    assert [len(share.rows) for share in model.updates_of(0 * worth, rollout)] == [0, 0]
    model.updates = Updates(3, 4)
    with pytest.raises(ValueError, match="8 rows cannot be shared out over 3 updates"):
        list(model.updates_of(worth, rollout))


def test_shares_of_ranks_are_the_rows_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = torch.tensor([0, 1, 2, 5, 6])
    parts = [share_of(chosen, first, 4, 8) for first in (0, 4)]
    assert [len(part.rows) for part in parts] == [3, 3] and parts[1].weights.tolist()[2] == 0
    values = torch.arange(8.0) ** 2
    sums = [float((part.weights * values[part.rows + first]).sum()) for part, first in zip(parts, (0, 4), strict=True)]
    assert sum(sums) / 2 == pytest.approx(float(values[chosen].mean()))


Rows = dict[tuple[int, int], tuple[Tensor, float]]
"""(optimiser step, key of a row) -> its latents and what it was worth."""


def job(kind: str, strategy: str, folder: Path, devices: int) -> tuple[dict[str, Tensor], Rows, list[bool]]:
    """Two rollouts of two updates, some rows worth nothing; on two ranks every rank has half of the rows."""
    model = module(kind, updates=Updates(2, 2, skip_worthless=True), rewards=coarse())
    rows: Rows = {}
    syncs: list[bool] = []
    judge = model.advantages

    def watched(scores: RewardScores, rollout: Rollout) -> Tensor:
        found = judge(scores, rollout)
        wrapped = model.trainer.strategy.model
        syncs.append(bool(getattr(wrapped, "require_backward_grad_sync", False)))
        for row, key in enumerate(rollout.keys.tolist()):
            rows[model.trainer.global_step, key] = (rollout.latents[row].clone(), float(found[row]))
        return found

    model.advantages = watched  # type: ignore[method-assign]
    train(model, prompts(folder), folder, steps=4, strategy=strategy, devices=devices)
    return adapters(model), rows, syncs


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    alone, rows, _ = job(kind, "auto", tmp_path / "one", 1)
    (tmp_path / "two").mkdir()
    (first, rows_1, syncs), (second, rows_2, _) = two_processes(job, kind, "ddp", tmp_path / "two", 2)
    assert not any(syncs), "gradients are averaged in every backward pass"
    assert rows_1.keys() | rows_2.keys() == rows.keys() and not rows_1.keys() & rows_2.keys() and len(rows) == 16
    for key, (latents, worth) in (rows_1 | rows_2).items():
        torch.testing.assert_close(latents, rows[key][0], rtol=1e-6, atol=1e-6)
        assert worth == pytest.approx(rows[key][1], abs=1e-6)
    start = adapters(module(kind))
    assert any(not torch.equal(alone[name], value) for name, value in start.items())
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0.0, atol=1e-6)


def test_the_adapter_after_a_checkpoint_can_be_exported_and_started_from(tmp_path: Path) -> None:
    model = module("nft")
    train(model, prompts(tmp_path), tmp_path, steps=2)
    model.save_pretrained(tmp_path / "adapter")
    other = module("nft", init_adapter=str(tmp_path / "adapter"), seed=9)
    trained = [p.detach() for p in model.bank.parameters("default")]
    assert all(
        torch.equal(one, two) for one, two in zip(trained, other.bank.parameters("default"), strict=True)
    ) and all(torch.equal(one, two) for one, two in zip(trained, other.bank.parameters("old"), strict=True))


def test_a_checkpoint_fills_a_model_that_was_only_described() -> None:
    """As `lightning export` does it."""
    described = DiffusionNFT(ToyPolicy(), rewards(), CleanRollout(4), lora=LORA)
    described.on_load_checkpoint({"state_dict": adapters(module("nft"))})
    assert described.bank.names == ("default", "old")


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_a_model_that_begins_below_pure_noise_gets_its_own_first_state(kind: str, tmp_path: Path) -> None:
    """As Stable Diffusion 1.5 and XL do: their noisiest time is about 0.94."""
    how: dict[str, Any] = {"lora": LORA, "evaluation": Evaluation(4, "euler", 1.0), "seed": 3}
    model = (
        FlowGRPO(ToyPolicy(start=0.5), rewards(), StochasticRollout(4, 1.0), **how)
        if kind == "grpo"
        else DiffusionNFT(ToyPolicy(start=0.5), rewards(), CleanRollout(4), **how)
    )
    model.configure_model()
    seen: list[Tensor] = []
    velocity = model.policy.velocity
    model.policy.velocity = lambda x, *rest: seen.append(x.detach()) or velocity(x, *rest)  # type: ignore[method-assign,func-returns-value]
    train(model, prompts(tmp_path), tmp_path, steps=1)
    noise = initial_noise((3, 2, 2), 3, 0, _first_keys(prompts(tmp_path)))
    assert torch.equal(seen[0], 0.5 * noise)
    seen.clear()
    batch = _batch(prompts(tmp_path))
    model.make(batch)
    assert torch.equal(seen[0], 0.5 * initial_noise((3, 2, 2), 3, 0, row_keys(batch)))


def _training_batch(data: PromptDataModule) -> Any:
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def _first_keys(data: PromptDataModule) -> Tensor:
    return row_keys(_training_batch(data))


def _passes(model: OnlineTraining, tmp_path: Path) -> list[tuple[str | None, bool]]:
    """Which adapter was on, and whether with gradients, in every pass of one training step."""
    seen: list[tuple[str | None, bool]] = []
    velocity = model.policy.velocity

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append((model.bank.active, torch.is_grad_enabled()))
        return velocity(x, *rest)

    model.policy.velocity = watched  # type: ignore[method-assign,assignment]
    train(model, prompts(tmp_path), tmp_path, steps=1)
    return seen


def test_flow_grpo_samples_by_the_policy_and_holds_it_against_the_base(tmp_path: Path) -> None:
    model = module("grpo", updates=Updates(1, 8, skip_worthless=False))
    seen = _passes(model, tmp_path)
    # 4 guided steps; then each of 3 trained steps: the policy with gradients, the base without, guided both.
    assert seen[:8] == [("default", False)] * 8
    assert seen[8:] == ([("default", True)] * 2 + [(None, False)] * 2) * 3


def test_diffusion_nft_samples_and_compares_by_the_old_policy(tmp_path: Path) -> None:
    model = module("nft", updates=Updates(1, 8, skip_worthless=False))
    seen = _passes(model, tmp_path)
    assert seen[:4] == [("old", False)] * 4
    assert seen[4:] == [("old", False), ("default", True), (None, False)] * 3
