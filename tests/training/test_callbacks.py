"""Sample grid, throughput and budget callbacks."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor

from lightning_gen.interfaces import Pictures
from lightning_gen.training.callbacks.budget import BudgetCurriculum
from lightning_gen.training.callbacks.sample_grid import SampleGrid, draw_grid
from lightning_gen.training.callbacks.throughput import Throughput, matmul_rate
from lightning_gen.training.curriculum import BudgetStage
from lightning_gen.training.ema import EMA
from tests.harness import fit, needs_cpu_fsdp2, two_processes
from tests.harness.toy import ToyBatch, ToyData, ToyLoader, ToyModule, toy_batch

VALIDATED: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}


# ------------------------------------------------------------------ sample grid


def flat(value: float, height: int, width: int) -> Tensor:
    return torch.full((3, height, width), value)


def test_grid_lays_pictures_of_different_sizes_out() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 4, 6)
    rows = [Pictures("first", [red, flat(-1.0, 8, 2)]), Pictures("second", [flat(0.0, 2, 3), flat(2.0, 2, 10)])]
    grid = draw_grid(rows, max_images=8, max_edge=512)
    # columns 6 and 10 wide, rows 8 and 2 high, gaps of 2, strips of 16 for the captions
    assert grid.size == (2 + 6 + 2 + 10 + 2, (16 + 8 + 2) + (16 + 2 + 2) + 2)
    pixel = grid.getpixel
    assert [pixel((2, 16)), pixel((7, 19))] == [(255, 0, 0)] * 2 and pixel((8, 19)) != (255, 0, 0)
    assert pixel((10, 16)) == (0, 0, 0) == pixel((11, 23))
    assert pixel((2, 42)) == (128, 128, 128), "0 is mid grey"
    assert pixel((10, 42)) == (255, 255, 255), "values beyond 1 are clamped"
    strip = grid.crop((0, 0, 22, 16))
    assert len(strip.getcolors()) > 1, "the caption is missing"


def test_grid_limits_columns_and_reduces_large_pictures() -> None:
    grid = draw_grid([Pictures("", [flat(1.0, 40, 80)] * 5)], max_images=2, max_edge=20)
    assert grid.size == (2 * 20 + 3 * 2, 16 + 10 + 2 + 2)
    with pytest.raises(ValueError, match="no picture"):
        draw_grid([Pictures("empty", [])], 2, 20)


class Board:
    """A logger that shows images in the manner of TensorBoard or of Weights & Biases."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, tuple[int, ...], int]] = []
        self.experiment = self

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.shown.append((tag, image.shape, step))


class Wand(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shown: list[tuple[str, tuple[int, int], int]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.shown.append((key, images[0].size, step))


class TensorBoardLike(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.board = Board()

    @property
    def experiment(self) -> Any:
        return self.board

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, params: Any = None) -> None:
        pass

    def save(self) -> None:
        pass


def test_grids_of_a_run(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), Wand(tmp_path), TensorBoardLike(tmp_path)]
    module = ToyModule()
    fit(module, ToyData(), tmp_path, max_steps=4, callbacks=(SampleGrid(),), logger=loggers, **VALIDATED)
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step_00000002.png", "step_00000004.png"]
    first, second = (Image.open(file) for file in files)
    # four images of widths 5 and 8 in two rows
    assert first.size == second.size == (5 + 8 + 5 + 8 + 5 * 2, 2 * (16 + 8 + 2) + 2)
    expected = draw_grid(module.eval().pictures(toy_batch(torch.arange(4), epoch=1000)), 8, 512)
    assert second.tobytes() == expected.tobytes(), "the last grid must show the last weights on the first batch"
    originals = (0, 0, first.width, 26)
    assert first.crop(originals).tobytes() == second.crop(originals).tobytes()
    assert first.tobytes() != second.tobytes()
    assert loggers[1].shown == [("samples", first.size, 2), ("samples", first.size, 4)]
    assert loggers[2].board.shown == [("samples", (*first.size[::-1], 3), step) for step in (2, 4)]


def test_untrained_model_is_drawn_when_there_is_a_sanity_check(tmp_path: Path) -> None:
    grid = SampleGrid()
    fit(ToyModule(), ToyData(), tmp_path, max_steps=2, callbacks=(grid,), num_sanity_val_steps=1, **VALIDATED)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_00000000.png", "step_00000002.png"]


def test_grid_shows_the_averaged_weights(tmp_path: Path) -> None:
    module, ema = ToyModule(), EMA((0.5,))
    fit(module, ToyData(), tmp_path, max_steps=2, callbacks=(SampleGrid(), ema), **VALIDATED)
    batch = toy_batch(torch.arange(4), epoch=1000)
    drawn = Image.open(tmp_path / "samples" / "step_00000002.png").tobytes()
    with ema.averaged(module):
        averaged = draw_grid(module.eval().pictures(batch), 8, 512).tobytes()
    assert drawn == averaged != draw_grid(module.pictures(batch), 8, 512).tobytes()


def grid_job(folder: Path) -> list[str]:
    from lightning_gen.training.strategies import FSDP2Strategy

    options = {**VALIDATED, "strategy": FSDP2Strategy(), "devices": 2}
    fit(ToyModule(), ToyData(), folder, max_steps=2, callbacks=(SampleGrid(),), **options)
    torch.distributed.barrier()
    return sorted(path.name for path in (folder / "samples").iterdir())


@needs_cpu_fsdp2
def test_all_ranks_take_part_and_one_writes(tmp_path: Path) -> None:
    assert two_processes(grid_job, tmp_path) == [["step_00000002.png"]] * 2


def test_module_without_pictures_is_named() -> None:
    class Plain(LightningModule):
        pass

    with pytest.raises(TypeError, match=r"pictures\(batch\).*Plain"):
        SampleGrid().setup(None, Plain(), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_images"):
        SampleGrid(max_images=0)


def test_real_tensorboard_gets_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(ToyModule(), ToyData(), tmp_path, max_steps=2, callbacks=(SampleGrid(tag="look"),), logger=logger, **VALIDATED)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    [image] = events.Images("look")
    assert image.step == 2 and (image.width, image.height) == (36, 54)


# ------------------------------------------------------------------ throughput


class FakeTime(Callback):
    """A clock that only moves when something is done: 2 s per batch, 5 s per validation, 7 s per checkpoint."""

    def __init__(self, throughput: Throughput) -> None:
        self.now = 100.0
        self.logged: list[dict[str, float]] = []
        throughput._clock = lambda: self.now
        throughput._rate = lambda device, dtype: 4e6

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now += 50.0 if trainer.global_step == 0 else 2.0  # the first batch compiles

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self.now += 5.0

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        self.now += 7.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if "throughput" in name}
        self.logged.append(values)


class SlowData(ToyData):
    """The trainer waits 3 s for every batch, and somebody counts."""

    def __init__(self, clock: FakeTime, counted: bool = True) -> None:
        super().__init__(images=40)
        self.clock, self.waited = clock, 0.0
        if counted:
            self.counters = lambda: {"wait_seconds": self.waited}

    def train_dataloader(self) -> Any:
        return SlowLoader(super().train_dataloader(), self)


class SlowLoader:
    def __init__(self, loader: Any, data: SlowData) -> None:
        self.loader, self.data = loader, data

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for batch in self.loader:
            self.data.clock.now += 3.0
            self.data.waited += 3.0
            yield batch


class Save(Callback):
    """Writes a checkpoint after every batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.path)


def throughput_run(folder: Path, devices: int = 1, warmup: int = 1, **options: Any) -> list[dict[str, float]]:
    throughput = Throughput(window=3, warmup=warmup)
    clock = FakeTime(throughput)
    strategy = "ddp" if devices > 1 else "auto"
    module = ToyModule()
    fit(
        module,
        ToyData(images=40),
        folder,
        max_steps=8,
        callbacks=(throughput, clock),
        strategy=strategy,
        devices=devices,
        **options,
    )
    return clock.logged


def test_throughput_arithmetic(tmp_path: Path) -> None:
    """4 images of 2 sizes per batch, all of 4 places: 2 x 4 + 2 x 4 = 16 tokens at 2 s, 4e6 FLOP against 4e6 FLOP/s."""
    logged = throughput_run(tmp_path)
    assert logged[:3] == [{}] * 3, "the warm-up and the first window hold no measurement yet"
    for values in logged[3:]:
        assert values["throughput/images_per_second"] == pytest.approx(4 / 2)
        assert values["throughput/tokens_per_second"] == pytest.approx(16 / 2)
        assert values["throughput/padding_fraction"] == pytest.approx(0.0)
        assert values["throughput/model_flop_utilisation"] == pytest.approx(4e6 / 2 / 4e6)


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_measurement_starts_after_the_warm_up(tmp_path: Path, warmup: int) -> None:
    logged = throughput_run(tmp_path, warmup=warmup)
    assert [bool(values) for values in logged] == [number >= warmup + 2 for number in range(8)]
    seconds = 2 + 2 + 50 if warmup == 0 else 2 + 2 + 2
    assert logged[warmup + 2]["throughput/images_per_second"] == pytest.approx(3 * 4 / seconds)


def test_validation_and_checkpoints_are_not_counted(tmp_path: Path) -> None:
    logged = throughput_run(tmp_path, limit_val_batches=2, val_check_interval=2)
    assert logged[-1]["throughput/images_per_second"] == pytest.approx(4 / 2)
    throughput = Throughput(window=3, warmup=1)
    clock = FakeTime(throughput)
    fit(ToyModule(), ToyData(40), tmp_path, max_steps=8, callbacks=(throughput, clock, Save(tmp_path / "x.ckpt")))
    assert clock.now > 100 + 7 * 8 and clock.logged[-1]["throughput/images_per_second"] == pytest.approx(4 / 2)


@pytest.mark.parametrize("interrupted", [False, True])
def test_waiting_for_data_is_counted_and_told(tmp_path: Path, interrupted: bool) -> None:
    """3 s of waiting and 2 s of work per batch, whatever validations and checkpoints lie between."""
    throughput = Throughput(window=3, warmup=1)
    clock = FakeTime(throughput)
    options = {"limit_val_batches": 2, "val_check_interval": 2} if interrupted else {}
    savers = (Save(tmp_path / "x.ckpt"),) if interrupted else ()
    fit(ToyModule(), SlowData(clock), tmp_path, max_steps=8, callbacks=(throughput, clock, *savers), **options)
    for values in clock.logged[3:]:
        assert values["throughput/images_per_second"] == pytest.approx(4 / 5)
        assert values["throughput/waiting_fraction"] == pytest.approx(3 / 5)
        assert values["throughput/model_flop_utilisation"] == pytest.approx(4e6 / 5 / 4e6)


def test_waiting_lowers_the_rate_also_where_nobody_counts(tmp_path: Path) -> None:
    throughput = Throughput(window=3, warmup=1)
    clock = FakeTime(throughput)
    fit(ToyModule(), SlowData(clock, counted=False), tmp_path, max_steps=8, callbacks=(throughput, clock))
    assert clock.logged[-1]["throughput/images_per_second"] == pytest.approx(4 / 5)
    assert "throughput/waiting_fraction" not in clock.logged[-1]


def slow_run(folder: Path) -> list[dict[str, float]]:
    throughput = Throughput(window=3, warmup=1)
    clock = FakeTime(throughput)
    fit(ToyModule(), SlowData(clock), folder, max_steps=8, callbacks=(throughput, clock), strategy="ddp", devices=2)
    return clock.logged


def test_waiting_is_a_mean_over_ranks(tmp_path: Path) -> None:
    for logged in two_processes(slow_run, tmp_path):
        assert logged[-1]["throughput/images_per_second"] == pytest.approx(4 / 5)
        assert logged[-1]["throughput/waiting_fraction"] == pytest.approx(3 / 5)


def test_ranks_are_added_up(tmp_path: Path) -> None:
    for logged in two_processes(throughput_run, tmp_path, 2):
        assert logged[-1]["throughput/images_per_second"] == pytest.approx(4 / 2)
        assert logged[-1]["throughput/tokens_per_second"] == pytest.approx(16 / 2)
        assert logged[-1]["throughput/model_flop_utilisation"] == pytest.approx(4e6 / 2 / (2 * 4e6))


def test_padding_is_counted_and_plain_tensors_have_no_tokens() -> None:
    throughput = Throughput(window=2, warmup=0)
    times = iter([10.0, 14.0, 14.0])
    throughput._clock = lambda: next(times)
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, value, **_: logged.update({name: value}), flops_per_step=None
    )
    trainer = SimpleNamespace(precision="32-true", strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor))
    batch = toy_batch(torch.arange(3))
    batch.images.mask[0, 1:] = False
    del module.flops_per_step
    throughput._current = None
    throughput._unmeasured = 1
    for number in range(3):
        throughput.on_train_batch_end(trainer, module, None, batch, number)  # type: ignore[arg-type]
    assert logged == {
        "throughput/images_per_second": 6 / 4,
        "throughput/tokens_per_second": 2 * 9 / 4,
        "throughput/padding_fraction": 0.25,
    }


def test_measured_rate_is_plausible_and_measured_once() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14
    assert matmul_rate(torch.device("cpu"), torch.float32) == rate
    assert matmul_rate.cache_info().hits >= 1


@pytest.mark.parametrize("settings", [{"window": 0}, {"warmup": -1}])
def test_impossible_windows_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Throughput"):
        Throughput(**settings)


# ------------------------------------------------------------------ token budget

STAGES = [BudgetStage(4, 4, until_step=2), BudgetStage(16, 2)]


class Grown(ToyData):
    """Images of at most 4 tokens for two plans of one step each, of 16 afterwards."""

    def __init__(self, stages: list[BudgetStage] | None, early: bool = False) -> None:
        super().__init__(images=4, global_batch=4)
        self.early = early
        if stages is not None:
            self.curriculum = stages

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        large = self.trainer.global_step >= (1 if self.early else 2)
        return Large(2, 2, 0, 1, 0) if large else super().train_dataloader()


class Large(ToyLoader):
    def __iter__(self) -> Any:
        from lightning_gen.nn.tokens import patchify

        yield ToyBatch(patchify(torch.zeros(2, 3, 16, 16), 4), torch.arange(2))


class Metrics(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen.append(tuple(float(trainer.callback_metrics[f"budget/{k}"]) for k in ("tokens", "stage")))


def test_stages_are_logged_and_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        fit(ToyModule(), Grown(STAGES), tmp_path, max_steps=4, callbacks=(BudgetCurriculum(), metrics))
    assert metrics.seen == [(4.0, 1.0), (4.0, 1.0), (16.0, 2.0), (16.0, 2.0)]
    said = [record.message for record in caplog.records if "token budget" in record.message]
    assert said == [
        "step 0: token budget 4, 4 images per batch, until step 2 (stage 1 of 2)",
        "step 2: token budget 16, 2 images per batch, to the end (stage 2 of 2)",
    ]


def test_batch_over_budget_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="rank 0, step 1, batch 0: an image has 16 tokens, but the budget of stage 1 is 4"
    ):
        fit(ToyModule(), Grown(None, early=True), tmp_path, max_steps=4, callbacks=(BudgetCurriculum(STAGES),))


def test_packed_rows_are_judged_by_image() -> None:
    from lightning_gen.nn.tokens import pack

    trainer = SimpleNamespace(global_step=0, global_rank=0)
    module = SimpleNamespace(log=lambda *args, **kwargs: None)
    packed = ToyBatch(pack(toy_batch(torch.arange(4)).images, 16), torch.arange(4))
    assert packed.images.mask.shape[1] == 16
    BudgetCurriculum([BudgetStage(4, 4)]).on_train_batch_start(trainer, module, packed, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an image has 4 tokens, but the budget of stage 1 is 3"):
        BudgetCurriculum([BudgetStage(3, 4)]).on_train_batch_start(trainer, module, packed, 0)  # type: ignore[arg-type]


def test_a_ladder_allows_its_highest_rung_and_other_batches_have_no_tokens() -> None:
    trainer = SimpleNamespace(global_step=0, global_rank=0)
    module = SimpleNamespace(log=lambda *args, **kwargs: None)
    batch = toy_batch(torch.arange(4))
    assert batch.images.mask.shape[1] == 4
    rising = BudgetCurriculum([BudgetStage(2, 8, ladder=(2, 4))])
    rising.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an image has 4 tokens, but the budget of stage 1 is 2"):
        BudgetCurriculum([BudgetStage(4, 8, ladder=(1, 2))]).on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
    rising.on_train_batch_start(trainer, module, [1, 2, 3], 0)  # type: ignore[arg-type]


def test_missing_stages_are_asked_for() -> None:
    trainer = SimpleNamespace(datamodule=ToyData())
    with pytest.raises(TypeError, match="was given no stages"):
        BudgetCurriculum().setup(trainer, ToyModule(), "fit")  # type: ignore[arg-type]
    BudgetCurriculum().setup(trainer, ToyModule(), "validate")  # type: ignore[arg-type]
