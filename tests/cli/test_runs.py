"""One folder per run: nothing is lost, a continued run continues everything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from lightning_gen.cli import main
from lightning_gen.training.checkpoint import AtomicCheckpointIO, RunCheckpoint, is_complete, newest
from tests.harness import needs_cpu_fsdp2

FIT = ["fit", "--config", "toy.yaml"]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_run_lives_in_one_folder(workshop, metrics):
    assert main(FIT) == 0
    assert names("runs") == ["toy"]
    assert names("runs/toy") == ["checkpoints", "config.yaml", "metrics.csv"]
    assert names("runs/toy/checkpoints") == ["last.ckpt", "step=0000004.ckpt"]
    assert Path("runs/toy/checkpoints/last.ckpt").resolve().name == "step=0000004.ckpt"
    assert [int(row["step"]) for row in metrics()] == [0, 1, 2, 3]
    config = yaml.safe_load(Path("runs/toy/config.yaml").read_text())
    assert config["data"]["init_args"]["dim"] == 4


def test_second_start_is_refused_and_loses_nothing(workshop, refused):
    main(FIT)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    message = refused(*FIT)
    assert "--ckpt_path last" in message
    assert "--name" in message
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    assert main([*FIT, "--name", "second"]) == 0


def test_continued_run_equals_uninterrupted_one(workshop, metrics):
    main([*FIT, "--name", "whole", "--trainer.max_epochs", "3"])
    main([*FIT, "--trainer.max_epochs", "1"])
    first = metrics()
    main([*FIT, "--trainer.max_epochs", "3", "--ckpt_path", "last"])
    assert metrics()[: len(first)] == first
    assert metrics() == metrics("whole")
    assert metrics(key="val") == metrics("whole", key="val")
    assert names("runs/toy") == ["checkpoints", "config-1.yaml", "config.yaml", "metrics.csv"]


def test_configuration_that_did_not_change_is_kept_once(workshop):
    for _ in range(3):
        main([*FIT, "--ckpt_path", "last-or-none"])
    assert names("runs/toy") == ["checkpoints", "config.yaml", "metrics.csv"]
    assert yaml.safe_load(Path("runs/toy/config.yaml").read_text())["ckpt_path"] == "last-or-none"


def test_continue_from_an_older_checkpoint_rewinds_the_log(workshop, metrics):
    main([*FIT, "--trainer.max_epochs", "2", "--checkpoint.keep", "-1"])
    whole = metrics()
    assert len(names("runs/toy/checkpoints")) == 5
    main([*FIT, "--trainer.max_epochs", "2", "--ckpt_path", "runs/toy/checkpoints/step=0000006.ckpt"])
    assert metrics() == whole


def test_typed_arguments_win_over_the_checkpoint(workshop):
    main(FIT)
    main([*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "2", "--model.init_args.learning_rate", "0.5"])
    config = yaml.safe_load(Path("runs/toy/config.yaml").read_text())
    assert config["model"]["init_args"]["learning_rate"] == 0.5
    saved = torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["learning_rate"] == 0.5


def test_last_without_checkpoint_is_an_error(workshop, refused):
    assert "no complete checkpoint under runs/toy/checkpoints" in refused(*FIT, "--ckpt_path", "last")
    assert not Path("runs").exists()
    assert "no such file" in refused(*FIT, "--ckpt_path", "nowhere.ckpt")


def test_last_or_none_starts_anew(workshop, metrics):
    assert main([*FIT, "--ckpt_path", "last-or-none"]) == 0
    assert len(metrics()) == 4


def test_half_written_checkpoints_do_not_count(workshop, refused):
    main(FIT)
    folder = Path("runs/toy/checkpoints")
    whole = (folder / "step=0000004.ckpt").read_bytes()
    (folder / "step=0000009.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "step=0000010.ckpt.partial").write_bytes(whole)
    (folder / "step=0000011.ckpt").mkdir()
    assert newest(folder, "*.ckpt").name == "step=0000004.ckpt"
    assert "not a complete checkpoint" in refused(*FIT, "--ckpt_path", str(folder / "step=0000009.ckpt"))
    assert main([*FIT, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert names(folder) == ["last.ckpt", "step=0000008.ckpt"]


def test_another_runs_checkpoint_does_not_overwrite_this_run(workshop, refused):
    main(FIT)
    main([*FIT, "--name", "other"])
    source = "runs/other/checkpoints/last.ckpt"
    assert "already holds checkpoints" in refused(*FIT, "--ckpt_path", source)
    assert main([*FIT, "--name", "stage2", "--ckpt_path", source, "--trainer.max_epochs", "2"]) == 0
    assert names("runs/stage2/checkpoints") == ["last.ckpt", "step=0000008.ckpt"]


def test_moved_run_folder_goes_on(workshop):
    main(FIT)
    Path("runs").rename("moved")
    main([*FIT, "--runs", "moved", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert names("moved/toy/checkpoints") == ["last.ckpt", "step=0000008.ckpt"]


@pytest.mark.parametrize("keep", [1, 2, -1])
def test_number_of_checkpoints_that_stay(workshop, keep):
    main([*FIT, "--checkpoint.keep", str(keep), "--trainer.max_epochs", "2"])
    kept = [f"step={step:07d}.ckpt" for step in (2, 4, 6, 8)]
    assert names("runs/toy/checkpoints") == ["last.ckpt", *(kept if keep == -1 else kept[-keep:])]


def test_last_steps_are_saved_too(workshop):
    main([*FIT, "--checkpoint.every_n_train_steps", "3"])
    assert Path("runs/toy/checkpoints/last.ckpt").resolve().name == "step=0000004.ckpt"


def test_finished_run_is_not_written_again(workshop):
    main(FIT)
    file = Path("runs/toy/checkpoints/step=0000004.ckpt")
    before = file.stat()
    main([*FIT, "--ckpt_path", "last"])
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_once_per_epoch_by_default(workshop):
    main([*FIT, "--checkpoint.every_n_train_steps", "null", "--trainer.max_epochs", "2", "--checkpoint.keep", "-1"])
    assert names("runs/toy/checkpoints") == ["last.ckpt", "step=0000004.ckpt", "step=0000008.ckpt"]


def test_other_verbs_use_the_same_folder(workshop):
    main(FIT)
    config = Path("runs/toy/config.yaml").read_bytes()
    log = Path("runs/toy/metrics.csv").read_bytes()
    for verb in ("validate", "test", "predict"):
        assert main([verb, "--config", "toy.yaml", "--ckpt_path", "last"]) == 0
    assert Path("runs/toy/config.yaml").read_bytes() == config
    assert Path("runs/toy/metrics.csv").read_bytes() == log
    assert {"validate.yaml", "validate.csv", "test.yaml", "test.csv", "predict.yaml"} <= set(names("runs/toy"))


def test_without_checkpoints_or_logger(workshop):
    main([*FIT, "--trainer.enable_checkpointing", "false", "--trainer.logger", "false"])
    assert names("runs/toy") == ["config.yaml"]


def test_more_loggers_beside_the_file(workshop, metrics):
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "boards"}}
    config = yaml.safe_load(Path("toy.yaml").read_text())
    config["trainer"]["logger"] = [logger]
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    main(FIT)
    assert len(metrics()) == 4
    assert Path("boards").is_dir()


def test_plugins_of_the_user_stay(workshop):
    from lightning_gen.commands.trainer import run

    cli = run([*FIT, "--trainer.fast_dev_run", "true"])
    assert isinstance(cli.trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    plugin = "lightning.pytorch.plugins.io.TorchCheckpointIO"
    cli = run([*FIT, "--trainer.fast_dev_run", "true", "--trainer.plugins", plugin])
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "TorchCheckpointIO"
    assert not Path("runs").exists()


def test_killed_while_a_checkpoint_is_written(workshop, start, metrics):
    slow = [*FIT, "--model", "my_idea.SlowToSave", "--name", "killed", "--trainer.max_epochs", "2"]
    process = start(*slow)
    deadline = time.monotonic() + 60
    while not Path("writing").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = Path("runs/killed/checkpoints")
    assert "step=0000004.ckpt.partial" in names(folder)
    assert "step=0000004.ckpt" not in names(folder)
    assert Path(folder / "last.ckpt").resolve().name == "step=0000002.ckpt"
    main([*FIT, "--name", "killed", "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    main([*FIT, "--name", "whole", "--trainer.max_epochs", "2"])
    assert metrics("killed") == metrics("whole")
    assert names(folder) == ["last.ckpt", "step=0000008.ckpt"]


def test_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"step": 1}, file)
    with pytest.raises(Exception, match="pickle"):
        plugin.save_checkpoint({"step": torch.zeros(1000), "bad": lambda: None}, file)
    assert plugin.load_checkpoint(file, weights_only=True) == {"step": 1}


def test_completeness(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"weight": torch.zeros(1000)}, file)
    assert is_complete(file)
    (tmp_path / "link.ckpt").symlink_to("a.ckpt")
    assert is_complete(tmp_path / "link.ckpt")
    file.write_bytes(file.read_bytes()[:-100])
    assert not is_complete(file)
    file.unlink()
    assert not is_complete(tmp_path / "link.ckpt")


LIGHTNINGS = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 1},
}


@needs_cpu_fsdp2
@pytest.mark.parametrize("strategy", ["FSDP2Strategy", {"class_path": "FSDP2Strategy"}, LIGHTNINGS])
def test_folders_of_shards(workshop, metrics, strategy):
    config = yaml.safe_load(Path("toy.yaml").read_text())
    config["trainer"]["strategy"] = strategy
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    sharded = [*FIT, "--model", "my_idea.Sharded"]
    main([*sharded, "--trainer.max_epochs", "2", "--checkpoint.keep", "-1"])
    whole = metrics()
    folder = Path("runs/toy/checkpoints")
    assert names(folder) == ["last.ckpt", *(f"step=000000{step}.ckpt" for step in (2, 4, 6, 8))]
    for name, part in (("step=0000008.ckpt", "meta.pt"), ("step=0000006.ckpt", ".metadata")):
        assert is_complete(folder / name)
        (folder / name / part).unlink()
        assert not is_complete(folder / name)
    assert newest(folder, "*.ckpt").name == "step=0000004.ckpt"
    _leave_process_group()
    main([*sharded, "--trainer.max_epochs", "2", "--ckpt_path", "last", "--checkpoint.keep", "2"])
    assert metrics() == whole
    assert names(folder) == ["last.ckpt", "step=0000006.ckpt", "step=0000008.ckpt"]


def _leave_process_group():
    torch.distributed.destroy_process_group()


@needs_cpu_fsdp2
def test_two_processes_share_one_folder(workshop, start, metrics):
    """Sharded by two processes of one command, continued by one."""
    sharded = [*FIT, "--model", "my_idea.Sharded", "--trainer.strategy", "FSDP2Strategy"]
    process = start(*sharded, "--trainer.devices", "2")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert sorted(path.name for path in Path("runs/toy/checkpoints/last.ckpt").iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt",
    ]  # fmt: skip
    assert [int(row["step"]) for row in metrics()] == [0, 1, 2, 3]
    main([*sharded, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    main([*FIT, "--name", "plain", "--trainer.max_epochs", "2"])
    losses, plain = ([float(row["loss"]) for row in metrics(name)] for name in ("toy", "plain"))
    assert losses == pytest.approx(plain, rel=1e-5)


def test_checkpoint_callback_needs_a_sensible_number():
    with pytest.raises(ValueError, match=r"checkpoint\.keep"):
        RunCheckpoint(keep=0)


@pytest.mark.parametrize("given", [("--runs", "taken"), ("--runs", "taken/deep"), ("--name", "taken", "--runs", ".")])
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_file_in_the_place_of_the_folder_is_named(workshop, refused, verb, given):
    Path("taken").write_text("not a folder")
    message = refused(verb, "--config", "toy.yaml", *given)
    assert "cannot be the run's folder: taken is a file; change runs: or name:" in message
    assert Path("taken").read_text() == "not a folder"


def test_the_bar_of_a_run_counts_no_epochs_that_nobody_set(workshop, capsys, monkeypatch):
    from lightning_gen.commands.progress import RunProgressBar
    from lightning_gen.commands.trainer import TrainerCLI

    bars = {}
    for name, options in {
        "steps": ["--trainer.max_epochs", "-1", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "true"],
        "off": ["--trainer.enable_progress_bar", "false"],
        "own": ["--trainer.callbacks+=TQDMProgressBar", "--trainer.enable_progress_bar", "true"],
    }.items():
        trainer = TrainerCLI([*FIT, "--name", name, *options]).trainer
        bars[name] = type(trainer.progress_bar_callback).__name__
        if name == "steps":
            assert trainer.progress_bar_callback._get_train_description(0).split() == ["Epoch", "0"]
    assert bars == {"steps": RunProgressBar.__name__, "off": "NoneType", "own": "TQDMProgressBar"}
