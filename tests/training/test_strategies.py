"""Networks prepared for training, and sharded training on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gen.training.averages import read_weights
from lightning_gen.training.initialisation import copy_into, initialise, local
from lightning_gen.training.strategies import FSDP2Strategy, prepare
from tests.harness import Recorder, fit, needs_cpu_fsdp2, two_processes
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyData, ToyModule, ToyNetwork, toy_batch
from tests.harness.training import whole_state


def mesh_of_two() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


# ------------------------------------------------------------------ prepare on one device


def test_prepare_materialises_a_network_that_is_on_meta() -> None:
    with torch.device("meta"):
        network = ToyNetwork()
    prepare(network, device_mesh=None, seed=3)
    expected = ToyNetwork()
    initialise(expected, 3)
    assert_equal_states(network.state_dict(), expected.state_dict())


def test_prepare_keeps_weights_that_are_in_memory() -> None:
    network = ToyNetwork()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare(network, device_mesh=None, seed=3, activation_checkpointing=True)
    assert_equal_states(network.state_dict(), before)


def test_compiled_blocks_keep_names_and_numbers() -> None:
    network = ToyNetwork()
    initialise(network, 0)
    batch = toy_batch(torch.arange(2)).images
    expected = network(batch)
    prepare(network, device_mesh=None, seed=0, activation_checkpointing=True, compile_blocks=True)
    assert all(block._compiled_call_impl is not None for block in network.blocks())
    assert set(network.state_dict()) == set(ToyNetwork().state_dict())
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(network(batch), expected)


def test_checkpointed_blocks_learn_behind_frozen_layers() -> None:
    """The older kind of checkpointing gives no gradient where a block's input needs none."""
    network = ToyNetwork()
    initialise(network, 0)
    prepare(network, device_mesh=None, seed=0, activation_checkpointing=True)
    network.embed.requires_grad_(False)
    network(toy_batch(torch.arange(2)).images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.layers.parameters())


class Half(ToyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2, device="meta")


class Keeps(ToyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.kept = list(self.layers)

    def blocks(self) -> list[nn.Module]:
        return self.kept


class Foreign(ToyNetwork):
    def blocks(self) -> list[nn.Module]:
        return [nn.Linear(2, 2)]


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (Half, ValueError, r"2 of 18 tensors of Half are on the meta device, for instance 'extra\.weight'"),
        (Keeps, ValueError, r"Keeps\.blocks\(\) must look its blocks up"),
        (Foreign, ValueError, r"Foreign\.blocks\(\) names a Linear that is no submodule"),
        (lambda: nn.Linear(2, 2), TypeError, r"Linear needs a method blocks\(\)"),
    ],
)
def test_prepare_explains_what_is_wrong(network: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(network(), device_mesh=None, seed=0, activation_checkpointing=True)


# ------------------------------------------------------------------ sharding


def sharded_start(width: int) -> tuple[dict[str, Tensor], list[str], dict[str, int]]:
    """Whole initial weights, the FSDP units by name, and the sizes of this rank's parts."""
    from torch.distributed.fsdp import FSDPModule

    with torch.device("meta"):
        network = ToyNetwork(width)
    prepare(network, device_mesh=mesh_of_two(), seed=3, activation_checkpointing=True)
    units = [name for name, module in network.named_modules() if isinstance(module, FSDPModule)]
    parts = {name: local(parameter).numel() for name, parameter in network.named_parameters()}
    whole = {name: value.full_tensor() for name, value in network.state_dict().items()}
    return whole, units, parts


@needs_cpu_fsdp2
def test_sharded_network_starts_with_the_weights_of_one_device() -> None:
    width = 5  # not divisible by two: the ranks' parts differ
    expected = ToyNetwork(width)
    initialise(expected, 3)
    answers = two_processes(sharded_start, width)
    for whole, units, _ in answers:
        assert_equal_states(whole, expected.state_dict())
        assert units == ["", "layers.0", "layers.1"], "each block must be its own unit, the rest the root's"
    sizes = {name: answers[0][2][name] + answers[1][2][name] for name in answers[0][2]}
    assert sum(sizes.values()) == sum(p.numel() for p in expected.parameters())
    assert answers[0][2]["embed.bias"] == 3 and answers[1][2]["embed.bias"] == 2


def copies_of_all_placements() -> bool:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, zeros

    mesh = init_device_mesh("cpu", (2,))
    full = torch.arange(15.0).view(3, 5)
    for placement in (Shard(0), Shard(1), Replicate()):
        target = zeros(3, 5, device_mesh=mesh, placements=[placement])
        copy_into(target, full)
        assert torch.equal(target.full_tensor(), full)
    single = zeros(1, device_mesh=mesh, placements=[Shard(0)])
    copy_into(single, torch.tensor([4.0]))  # rank 1 has no part of it
    assert single.full_tensor().item() == 4.0
    with pytest.raises(ValueError, match="only Shard and Replicate"):
        copy_into(zeros(3, 5, device_mesh=mesh, placements=[Partial()]), full)
    return True


def test_every_rank_takes_its_own_part_of_a_whole_tensor() -> None:
    assert two_processes(copies_of_all_placements) == [True, True]


STEPS = 4


def train(
    folder: Path,
    strategy: str,
    devices: int,
    ckpt_path: Path | None = None,
    bfloat16: bool = False,
    as_file: bool = False,
) -> tuple[list[float], dict[str, Tensor]]:
    """Train the toy, saving after half of the steps; losses of this rank and the whole weights."""
    recorder = Recorder()
    module = ToyModule(checkpointing=True, width=5, bfloat16=bfloat16)
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STEPS // 2, save_top_k=-1)
    fit(
        module,
        ToyData(),
        folder,
        strategy=FSDP2Strategy(save_distributed_checkpoint=not as_file) if strategy == "fsdp2" else strategy,
        devices=devices,
        max_steps=STEPS,
        callbacks=(recorder, keeper),
        ckpt_path=ckpt_path,
        precision="bf16-mixed" if bfloat16 else "32-true",
    )
    return recorder.losses, whole_state(module)


def mean(answers: list[Any]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(answers[0][0], answers[1][0], strict=True)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One uninterrupted run on one device and one on two sharded processes, with their checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "one": train(folder / "one", "auto", 1),
        "two": two_processes(train, folder / "two", "fsdp2", 2),
        "folder": folder,
    }


@needs_cpu_fsdp2
class TestShardedTraining:
    def test_losses_are_those_of_one_process(self, runs: dict[str, Any]) -> None:
        assert mean(runs["two"]) == pytest.approx(runs["one"][0], rel=1e-5)

    def test_resumed_on_two_processes_bit_for_bit(self, runs: dict[str, Any], tmp_path: Path) -> None:
        middle = runs["folder"] / "two" / f"step={STEPS // 2}.ckpt"
        again = two_processes(train, tmp_path, "fsdp2", 2, middle)
        for rank in range(2):
            assert again[rank][0] == runs["two"][rank][0][STEPS // 2 :]
        assert_equal_states(again[0][1], runs["two"][0][1])

    def test_resumed_on_one_process(self, runs: dict[str, Any], tmp_path: Path) -> None:
        middle = runs["folder"] / "two" / f"step={STEPS // 2}.ckpt"
        losses, state = train(tmp_path, "fsdp2", 1, middle)
        assert losses == pytest.approx(mean(runs["two"])[STEPS // 2 :], rel=1e-5)
        for name, value in runs["two"][0][1].items():
            assert torch.allclose(state[name], value, rtol=1e-3, atol=1e-5), name

    def test_consolidated_checkpoint_is_the_unsharded_state_dict(self, runs: dict[str, Any]) -> None:
        """A folder of two ranks' shards, read by one process without a group."""
        folder = runs["folder"] / "two" / f"step={STEPS}.ckpt"
        assert len(list(folder.glob("*.distcp"))) == 2 and (folder / "meta.pt").is_file()
        state = read_weights(folder)
        assert_equal_states(state, runs["two"][0][1])
        assert {name: value.shape for name, value in state.items()} == {
            name: value.shape for name, value in runs["one"][1].items()
        }
        ToyNetwork(5).load_state_dict({name.removeprefix("network."): value for name, value in state.items()})

    def test_file_of_one_device_is_continued_sharded(self, runs: dict[str, Any], tmp_path: Path) -> None:
        """With moments at the right parameters: the groups do not follow the order of the module."""
        middle = runs["folder"] / "one" / f"step={STEPS // 2}.ckpt"
        again = two_processes(train, tmp_path, "fsdp2", 2, middle)
        assert mean(again) == pytest.approx(runs["one"][0][STEPS // 2 :], rel=1e-5)
        for name, value in runs["one"][1].items():
            assert torch.allclose(again[0][1][name], value, rtol=1e-3, atol=1e-5), name

    def test_file_of_two_processes_is_continued_by_either(self, runs: dict[str, Any], tmp_path: Path) -> None:
        written = two_processes(train, tmp_path / "file", "fsdp2", 2, None, False, True)
        assert written[0][0] == runs["two"][0][0]
        middle = tmp_path / "file" / f"step={STEPS // 2}.ckpt"
        assert middle.is_file()
        again = two_processes(train, tmp_path / "two", "fsdp2", 2, middle)
        assert again[1][0] == written[1][0][STEPS // 2 :]
        assert_equal_states(again[0][1], written[0][1])
        losses, state = train(tmp_path / "one", "auto", 1, middle)
        assert losses == pytest.approx(mean(written)[STEPS // 2 :], rel=1e-5)
        for name, value in written[0][1].items():
            assert torch.allclose(state[name], value, rtol=1e-3, atol=1e-5), name

    def test_nothing_is_left_of_writing(self, runs: dict[str, Any]) -> None:
        names = sorted(path.name for path in (runs["folder"] / "two").iterdir())
        assert names == [f"step={STEPS // 2}.ckpt", f"step={STEPS}.ckpt"]


@needs_cpu_fsdp2
def test_bfloat16_weights_give_the_losses_of_bfloat16_autocast(tmp_path: Path) -> None:
    losses, _ = train(tmp_path / "one", "auto", 1, None, True)
    exact, _ = train(tmp_path / "exact", "auto", 1)
    pair = two_processes(train, tmp_path / "two", "fsdp2", 2, None, True)
    assert mean(pair) == pytest.approx(losses, rel=2e-3)
    assert mean(pair) != pytest.approx(exact, rel=1e-6), "nothing was computed in bfloat16"
    assert {value.dtype for value in pair[0][1].values()} == {torch.float32}


def train_after_validation(folder: Path) -> list[float]:
    """With a back end other than gloo Lightning validates in inference mode; here it is made to think so."""
    from unittest import mock

    recorder, module = Recorder(), ToyModule()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=FSDP2Strategy(),
        max_steps=3,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=str(folder),
    )
    with mock.patch("lightning.pytorch.loops.utilities._distributed_is_initialized", return_value=False):
        trainer.validate(module, datamodule=ToyData(), verbose=False)
        trainer.fit(module, datamodule=ToyData())
    return recorder.losses


@needs_cpu_fsdp2
def test_training_goes_on_after_validation(tmp_path: Path) -> None:
    losses = two_processes(train_after_validation, tmp_path)
    assert len(losses[0]) == 3 and losses[0] != losses[1]


# ------------------------------------------------------------------ checkpoints of the strategy


def save_twice(path: Path) -> list[str]:
    """Write a checkpoint over an older one, then fail in the middle of a third."""
    from torch.distributed.checkpoint import state_dict_saver

    strategy = FSDP2Strategy()
    strategy.parallel_devices = [torch.device("cpu")] * 2
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    strategy.cluster_environment = TorchElasticEnvironment()
    from torch.distributed.tensor import DTensor, Shard

    part = DTensor.from_local(torch.ones(2), mesh_of_two()["data_parallel"], [Shard(0)])
    for number in (1, 2):
        strategy.save_checkpoint({"state_dict": {"w": part * number}, "number": number}, path)

    def broken(*args: Any, **kwargs: Any) -> None:
        Path(kwargs["checkpoint_id"], "__0_0.distcp").write_bytes(b"half")
        raise OSError("disk full")

    whole, state_dict_saver.save = state_dict_saver.save, broken
    try:
        with pytest.raises(OSError, match="disk full"):
            strategy.save_checkpoint({"state_dict": {"w": part * 3}, "number": 3}, path)
    finally:
        state_dict_saver.save = whole
    torch.distributed.barrier()
    return sorted(p.name for p in path.parent.iterdir())


@needs_cpu_fsdp2
def test_interrupted_writing_leaves_the_older_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    names = two_processes(save_twice, path)[0]
    assert names == [".a.ckpt.partial", "a.ckpt"]
    assert torch.equal(read_weights(path)["w"], torch.full((4,), 2.0))
    assert torch.load(path / "meta.pt", weights_only=True) == {"number": 2}


@pytest.mark.parametrize(("nodes", "devices", "tensor", "data"), [(1, 8, 1, 8), (4, 8, 1, 32), (2, 8, 2, 8)])
def test_auto_shards_over_every_rank(
    monkeypatch: pytest.MonkeyPatch, nodes: int, devices: int, tensor: int, data: int
) -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    seen: list[Any] = []
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: seen.append(self._data_parallel_size))
    strategy = FSDP2Strategy(tensor_parallel_size=tensor)
    strategy.num_nodes = nodes
    strategy.parallel_devices = [torch.device("cpu")] * devices
    strategy.setup_environment()
    assert seen == [data]
