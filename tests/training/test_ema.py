"""Averages of the weights: their numbers, when they are in the module, and what checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_gen.training.averages import average_key, read_weights
from lightning_gen.training.ema import EMA
from lightning_gen.training.initialisation import local, plain_name
from lightning_gen.training.strategies import FSDP2Strategy
from tests.harness import Recorder, fit, needs_cpu_fsdp2, two_processes
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyData, ToyModule

DECAYS = (0.5, 0.9)


class Trace(Callback):
    """Whole weights after every optimiser step, and (this rank's part of) them while validation runs."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(weights(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == len(self.weights):
            self.weights.append(weights(pl_module))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(weights(pl_module))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.after.append(weights(pl_module))


def weights(module: LightningModule) -> dict[str, Tensor]:
    from torch.distributed.fsdp import FSDPModule

    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
    return {plain_name(name): whole(parameter) for name, parameter in module.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def closed_form(trace: list[dict[str, Tensor]], decay: float, start: int) -> dict[str, Tensor]:
    """average_s = d^(s-k) w_k + (1 - d) sum_{j=k+1..s} d^(s-j) w_j with k = min(start, s), in float64."""
    last = len(trace) - 1
    first = min(start, last)
    return {
        name: sum(
            ((decay ** (last - j)) * (1.0 if j == first else 1.0 - decay) * trace[j][name].double())
            for j in range(first, last + 1)
        )
        for name in trace[0]
    }


def assert_is_average(average: dict[str, Tensor], trace: list[dict[str, Tensor]], decay: float, start: int) -> None:
    for name, expected in closed_form(trace, decay, start).items():
        assert torch.allclose(average[name].double(), expected, rtol=1e-5, atol=1e-6), name


def averages(ema: EMA, decay: float) -> dict[str, Tensor]:
    start = average_key(decay, "")
    return {key.removeprefix(start): whole(v) for key, v in ema._averages.items() if key.startswith(start)}


def train(
    folder: Path,
    strategy: str = "auto",
    devices: int = 1,
    steps: int = 6,
    ckpt_path: Path | None = None,
    start: int = 2,
    **options: Any,
) -> tuple[EMA, Trace, ToyModule, Trainer]:
    ema, trace, module = EMA(DECAYS, start), Trace(), ToyModule(width=5, checkpointing=True)
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = fit(
        module,
        ToyData(),
        folder,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        devices=devices,
        max_steps=steps,
        callbacks=(ema, trace, keeper),
        ckpt_path=ckpt_path,
        **options,
    )
    return ema, trace, module, trainer


def summary(*arguments: Any) -> dict[str, Any]:
    """What a rank knows after training, whole."""
    ema, trace, module, _ = train(*arguments)
    parts = {plain_name(n): local(p).numel() for n, p in module.named_parameters()}
    kept = {key: local(value).numel() for key, value in ema._averages.items()}
    return {
        "averages": {decay: averages(ema, decay) for decay in DECAYS},
        "trace": trace.weights,
        "weights": weights(module),
        "parts": parts,
        "kept": kept,
    }


@pytest.mark.parametrize("start", [0, 2, 4, 100])
def test_closed_form_with_several_decays(tmp_path: Path, start: int) -> None:
    ema, trace, module, _ = train(tmp_path, start=start)
    assert len(trace.weights) == 7
    for decay in DECAYS:
        assert_is_average(averages(ema, decay), trace.weights, decay, start)
    if start == 100:
        assert_equal_states(averages(ema, 0.5), weights(module))


@pytest.mark.parametrize("ramp", [False, True])
def test_an_update_every_few_steps(tmp_path: Path, ramp: bool) -> None:
    ema, trace = EMA((0.5,), every=3, ramp=ramp), Trace()
    fit(ToyModule(width=5), ToyData(), tmp_path, max_steps=7, callbacks=(ema, trace))
    first, third, sixth = (trace.weights[step] for step in (0, 3, 6))
    decays = [min(0.5, n / (n + 9)) if ramp else 0.5 for n in (2, 5)]
    for name, found in averages(ema, 0.5).items():
        expected = first[name].double().lerp(third[name].double(), 1 - decays[0])
        assert torch.allclose(found.double(), expected.lerp(sixth[name].double(), 1 - decays[1]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EMA(every=0)


def test_accumulated_batches_count_once(tmp_path: Path) -> None:
    ema, trace, _, _ = train(tmp_path, steps=3, start=0, accumulate_grad_batches=2)
    assert len(trace.weights) == 4
    assert_is_average(averages(ema, 0.9), trace.weights, 0.9, 0)


@pytest.mark.parametrize("strategy", ["auto", "ddp", pytest.param("fsdp2", marks=needs_cpu_fsdp2)])
def test_validation_uses_the_average_and_training_goes_on_with_the_raw_weights(tmp_path: Path, strategy: str) -> None:
    if strategy == "auto":
        check_validation(tmp_path, strategy, 1)
    else:
        two_processes(check_validation, tmp_path, strategy, 2)


def check_validation(folder: Path, strategy: str, devices: int) -> None:
    options: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 2, "num_sanity_val_steps": 1}
    ema, trace, module, _ = train(
        folder / "with", strategy, devices, 6, None, 0, check_val_every_n_epoch=None, **options
    )
    assert len(trace.validated) == 3
    for number, seen in enumerate(trace.validated):
        assert_is_average(seen, trace.weights[: 2 * number + 3], 0.5, 0)
    for step, seen in enumerate(trace.after):
        assert_equal_states(seen, trace.weights[step])
    _, plain, other, _ = train(folder / "without", strategy, devices, 6, None, 0)
    for left, right in zip(trace.weights, plain.weights, strict=True):
        assert_equal_states(left, right)
    assert_equal_states(weights(module), weights(other))


def test_resumed_averages_are_those_of_the_uninterrupted_run(tmp_path: Path) -> None:
    ema, trace, module, _ = train(tmp_path / "whole")
    again, tail, resumed, _ = train(tmp_path / "rest", ckpt_path=tmp_path / "whole" / "step=3.ckpt")
    assert len(tail.weights) == 1  # it was resumed, not repeated
    assert_equal_states(weights(module), weights(resumed))
    for decay in DECAYS:
        assert_equal_states(averages(ema, decay), averages(again, decay))


def test_checkpoint_holds_raw_weights_and_averages(tmp_path: Path) -> None:
    ema, trace, module, _ = train(tmp_path)
    path = tmp_path / "step=6.ckpt"
    assert_equal_states(read_weights(path), module.state_dict())
    for decay in DECAYS:
        assert_equal_states(read_weights(path, decay), averages(ema, decay))
    # a module that knows nothing of averages loads the file as it is
    plain = ToyModule.load_from_checkpoint(path, weights_only=True, width=5)
    assert_equal_states(plain.state_dict(), module.state_dict())
    with pytest.raises(ValueError, match=r"decay 0\.5, 0\.9: 0\.7 is not among them"):
        read_weights(path, 0.7)
    with pytest.raises(ValueError, match="which one is not said"):
        read_weights(path, True)


def test_a_run_without_averages_may_go_on_with_them(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    first = ToyModule(width=5, checkpointing=True)
    fit(first, ToyData(), tmp_path, max_steps=3, callbacks=(keeper,))
    ema, trace, module, _ = train(tmp_path / "rest", ckpt_path=tmp_path / "step=3.ckpt", start=0, steps=4)
    expected = {n: 0.5 * first.state_dict()[n] + 0.5 * w for n, w in weights(module).items()}
    for name, average in averages(ema, 0.5).items():
        assert torch.allclose(average, expected[name], rtol=1e-5, atol=1e-7), name


def test_update_lost_to_an_exception_is_made_up_for(tmp_path: Path) -> None:
    """An exception after the optimiser's step and before the callback's: the checkpoint lacks that one update."""
    ema, _, _, _ = train(tmp_path / "whole", start=0)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "late.ckpt")
                raise KeyboardInterrupt

    late, module = EMA(DECAYS, 0), ToyModule(width=5, checkpointing=True)
    with pytest.raises(SystemExit):
        fit(module, ToyData(), tmp_path, max_steps=6, callbacks=(Stop(), late))
    again, _, _, _ = train(tmp_path / "rest", ckpt_path=tmp_path / "late.ckpt", start=0)
    for decay in DECAYS:
        assert_equal_states(averages(ema, decay), averages(again, decay))


class SaveInside(Callback):
    """Writes a checkpoint while validation runs, as a cluster's signal may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.raw = weights(pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.path)


FSDP2_KINDS = [pytest.param(kind, marks=needs_cpu_fsdp2) for kind in ("folder", "file")]


@pytest.mark.parametrize("kind", ["auto", *FSDP2_KINDS])
def test_checkpoint_written_during_validation_holds_the_raw_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "inside.ckpt"
    if kind == "auto":
        raw = save_inside(tmp_path, path, "auto", 1)
    else:
        raw = two_processes(save_inside, tmp_path, path, kind, 2)[0]
    assert path.is_dir() == (kind == "folder")
    assert_equal_states(read_weights(path), raw)
    assert any(not torch.equal(value, raw[name]) for name, value in read_weights(path, 0.5).items())


def save_inside(folder: Path, path: Path, kind: str, devices: int) -> dict[str, Tensor]:
    saver = SaveInside(path)
    strategy = "auto" if kind == "auto" else FSDP2Strategy(save_distributed_checkpoint=kind == "folder")
    options: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 3}
    module = ToyModule(width=5)
    fit(module, ToyData(), folder, strategy=strategy, devices=devices, callbacks=(EMA(DECAYS), saver), **options)
    return saver.raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ema")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """An uninterrupted sharded run, as both ranks saw it."""
    return two_processes(summary, folder / "two", "fsdp2", 2)


@needs_cpu_fsdp2
class TestSharded:
    def test_averages_are_sharded_like_the_weights_and_right(self, two: list[dict[str, Any]]) -> None:
        for rank in two:
            for decay in DECAYS:
                assert_is_average(rank["averages"][decay], rank["trace"], decay, 2)
                assert all(rank["kept"][average_key(decay, name)] == size for name, size in rank["parts"].items())
        assert two[0]["parts"]["network.embed.bias"] == 3 and two[1]["parts"]["network.embed.bias"] == 2

    def test_resume_on_two_processes_is_bitwise(self, folder: Path, two: list[dict[str, Any]], tmp_path: Path) -> None:
        again = two_processes(summary, tmp_path, "fsdp2", 2, 6, folder / "two" / "step=3.ckpt")
        for decay in DECAYS:
            assert_equal_states(again[0]["averages"][decay], two[0]["averages"][decay])
        assert_equal_states(again[0]["weights"], two[0]["weights"])

    def test_averages_of_two_processes_are_read_by_one(
        self, folder: Path, two: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        for decay in DECAYS:
            assert_equal_states(read_weights(folder / "two" / "step=6.ckpt", decay), two[0]["averages"][decay])
        # a finished run, opened by one process: nothing is trained, everything is loaded
        alone = summary(tmp_path / "loaded", "fsdp2", 1, 6, folder / "two" / "step=6.ckpt")
        for decay in DECAYS:
            assert_equal_states(alone["averages"][decay], two[0]["averages"][decay])
        assert_equal_states(alone["weights"], two[0]["weights"])
        # and continued by one
        on = summary(tmp_path / "continued", "fsdp2", 1, 6, folder / "two" / "step=3.ckpt")
        for decay in DECAYS:
            for name, value in on["averages"][decay].items():
                assert torch.allclose(value, two[0]["averages"][decay][name], rtol=1e-3, atol=1e-5), name

    def test_file_of_one_device_is_continued_sharded(self, tmp_path: Path) -> None:
        ema, _, _, _ = train(tmp_path / "one")
        on = two_processes(summary, tmp_path / "two", "fsdp2", 2, 6, tmp_path / "one" / "step=6.ckpt")
        for decay in DECAYS:
            assert_equal_states(on[1]["averages"][decay], averages(ema, decay))


def validated(folder: Path, path: Path | None, strategy: str, evaluate: bool) -> dict[str, Tensor]:
    trace, ema = Trace(), EMA(DECAYS, evaluate=evaluate)
    kind: Any = FSDP2Strategy() if strategy == "fsdp2" else strategy
    trainer = Trainer(
        accelerator="cpu",
        devices=2 if strategy == "fsdp2" else 1,
        strategy=kind,
        callbacks=[ema, trace],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )
    module = ToyModule(width=5)
    trainer.validate(module, datamodule=ToyData(), ckpt_path=path, verbose=False)
    assert path is None or not ema._raw
    return trace.validated[0]


def test_validate_command_uses_the_averages_of_the_checkpoint(tmp_path: Path) -> None:
    ema, _, module, _ = train(tmp_path)
    path = tmp_path / "step=6.ckpt"
    assert_equal_states(validated(tmp_path, path, "auto", True), averages(ema, 0.5))
    assert_equal_states(validated(tmp_path, path, "auto", False), weights(module))


@needs_cpu_fsdp2
def test_validate_command_uses_the_averages_of_a_folder_of_shards(tmp_path: Path) -> None:
    two = two_processes(summary, tmp_path, "fsdp2", 2)
    path = tmp_path / "step=6.ckpt"
    seen = two_processes(validated, tmp_path, path, "fsdp2", True)
    assert_equal_states(seen[0], two[0]["averages"][0.5])


def test_checkpoint_without_averages_is_evaluated_raw_and_said_so(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    module = ToyModule(width=5)
    fit(module, ToyData(), tmp_path, max_steps=3, callbacks=(keeper,))
    with pytest.warns(UserWarning, match="holds no averages"):
        seen = validated(tmp_path, tmp_path / "step=3.ckpt", "auto", True)
    assert_equal_states(seen, module.state_dict())


def test_averaged_weights_for_a_block_of_code(tmp_path: Path) -> None:
    ema, _, module, _ = train(tmp_path)
    raw = weights(module)
    with pytest.raises(ZeroDivisionError), ema.averaged(module, 0.9):
        assert_equal_states(weights(module), averages(ema, 0.9))
        raise ZeroDivisionError
    assert_equal_states(weights(module), raw)
    with ema.averaged(module), pytest.raises(RuntimeError, match="already in the module"):
        ema._swap_in(module, 0.5)


def test_half_precision_weights_are_averaged_in_float32() -> None:
    module = LightningModule()
    module.layer = torch.nn.Linear(3, 3).to(torch.bfloat16)
    ema = EMA((0.999,))
    ema._ensure(module)
    key = average_key(0.999, "layer.weight")
    before = module.layer.weight.detach().clone()
    with torch.no_grad():
        module.layer.weight.add_(1.0)
    ema._update(module, copy=False)
    assert ema._averages[key].dtype == torch.float32
    moved = module.layer.weight.detach().float() - before.float()
    assert torch.allclose(ema._averages[key] - before.float(), 1e-3 * moved, rtol=1e-2)
    raw = module.layer.weight.detach().clone()
    with ema.averaged(module):
        assert torch.equal(module.layer.weight, ema._averages[key].to(torch.bfloat16))
    assert torch.equal(module.layer.weight, raw)


def test_frozen_parameters_are_not_copied(tmp_path: Path) -> None:
    module = ToyModule()
    module.configure_model()
    module.network.embed.requires_grad_(False)
    ema = EMA()
    ema._ensure(module)
    assert not [key for key in ema._averages if "embed" in key] and len(ema._averages) == 14


@pytest.mark.parametrize("settings", [{"decays": ()}, {"decays": (1.0,)}, {"decays": (0.9, 0.9)}, {"start_step": -1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="EMA"):
        EMA(**settings)


def test_lightnings_own_sharding_strategy_is_refused_with_advice(tmp_path: Path) -> None:
    message = two_processes(refused, tmp_path)[0]
    assert "FSDP2Strategy" in message and "ModelParallelStrategy" in message


def refused(folder: Path) -> str:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.strategies import ModelParallelStrategy

    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    with pytest.raises(MisconfigurationException) as caught:
        fit(ToyModule(), ToyData(), folder, strategy=strategy, devices=2, callbacks=(EMA(), Recorder()))
    return str(caught.value)


def test_weights_only_checkpoints_are_warned_about(tmp_path: Path) -> None:
    light = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.warns(UserWarning, match="save_weights_only"):
        fit(ToyModule(), ToyData(), tmp_path, max_steps=1, callbacks=(EMA(), light))
