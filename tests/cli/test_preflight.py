"""The preflight: numbers that can be checked by hand, and everything that is missing in one message."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from lightning_gen.cli import main
from lightning_gen.commands import recipes, trainer
from lightning_gen.training.footprint import memory_of_use, memory_per_rank, run_shape
from lightning_gen.training.machine import GIB, Machine, free_disk, host_memory, inspect_machine, readable
from lightning_gen.training.needs import WeightNeed, add_needs
from lightning_gen.training.preflight import DataNeeds, ModelNeeds, check, table

LAPTOP = Machine("cpu", (), 16 * GIB, 500 * GIB)
SERVER = Machine("cuda", (80 * GIB,) * 8, 1000 * GIB, 10**14, "H100")
FIVE_BILLION = ModelNeeds(trainable=4_994_721_600, frozen=21_600_000, largest_block=113_400_064)


def config(**trainer_arguments):
    return {"trainer": trainer_arguments, "model": None, "data": None}


def shape(machine=SERVER, **trainer_arguments):
    return run_shape(config(**trainer_arguments), machine)


def test_sixteen_bytes_per_parameter_split_over_the_shards():
    sharded = shape(strategy={"class_path": "lightning_gen.training.strategies.FSDP2Strategy"}, num_nodes=16)
    assert (sharded.world, sharded.sharded) == (128, True)
    memory = memory_per_rank(FIVE_BILLION, None, sharded)
    frozen = 4 * FIVE_BILLION.frozen
    state = memory.weights - frozen + memory.gradients + memory.optimizer
    assert state == pytest.approx(79.9e9 / 128, rel=1e-3)  # 0.62 GB on each of 128
    one = memory_per_rank(FIVE_BILLION, None, shape(devices=8))
    assert one.weights - frozen + one.gradients + one.optimizer == 16 * FIVE_BILLION.trainable


def test_gathered_blocks_copies_and_activations():
    data = DataNeeds(tokens_per_global_batch=1_572_864, global_batch_size=6144)
    model = ModelNeeds(trainable=1000, largest_block=100, activation_bytes_per_token=10.0)
    # the data counts micro-batches, so accumulation changes nothing
    sharded = shape(strategy="fsdp", precision="bf16-mixed", devices=4, accumulate_grad_batches=2)
    memory = memory_per_rank(model, data, sharded)
    assert memory.compute_copies == 2 * 100 * 2
    assert memory.activations == 1_572_864 / 4 * 10 / 2
    assert memory.weights == 250 * 4
    replicated = memory_per_rank(model, data, shape(strategy="ddp", precision="bf16-mixed", devices=4))
    assert replicated.compute_copies == 2 * 1000
    assert replicated.weights == 4000
    half = memory_per_rank(model, data, shape(precision="bf16-true", devices=1))
    assert (half.weights, half.gradients, half.optimizer, half.compute_copies) == (2000, 2000, 4000, 0)
    assert half.total == sum((2000, 2000, 4000, half.activations, half.process))


def test_frozen_weights_may_have_a_format_of_their_own():
    half = ModelNeeds(trainable=1000, frozen=500, frozen_bytes=1000)
    one = shape(devices=1)
    assert memory_per_rank(ModelNeeds(trainable=1000, frozen=500), None, one).weights == 4 * 1000 + 4 * 500
    assert memory_per_rank(half, None, one).weights == 4 * 1000 + 1000
    both = add_needs([half, ModelNeeds(trainable=0, frozen=3)])
    need = WeightNeed("a detector", "me/detector", False, "fetch it")
    assert add_needs([ModelNeeds(0, weights=(need,)), ModelNeeds(0, weights=(need,))]).weights == (need,)
    assert (both.trainable, both.frozen, both.frozen_bytes) == (1000, 503, 1012)
    assert memory_of_use(half, None, one).weights == 4 * 1000


def test_eight_bit_optimiser_and_averages():
    arguments = {
        "trainer": {"devices": 1, "callbacks": [{"class_path": "x.EMA", "init_args": {"decays": [0.9, 0.99]}}]},
        "model": {"class_path": "", "init_args": {"optimizer": {"eight_bit": True}}},
    }
    memory = memory_per_rank(ModelNeeds(trainable=100), None, run_shape(arguments, SERVER))
    assert (memory.optimizer, memory.averages) == (200, 800)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [("auto", 8), (-1, 8), ("-1", 8), (3, 3), ("3", 3), ([0, 5], 2), ("0,5", 2), (None, 8)],
)
def test_number_of_devices(requested, expected):
    assert shape(devices=requested).devices == expected


def test_what_auto_and_gpu_mean():
    assert shape(LAPTOP).accelerator == "cpu"
    assert shape(LAPTOP).devices == 1
    assert shape(SERVER, accelerator="gpu").accelerator == "cuda"
    assert shape(Machine("mps", (8 * GIB,), 8 * GIB, 1), accelerator="gpu").accelerator == "mps"
    assert shape(SERVER, accelerator="cpu", devices=2).world == 2


def test_memory_limit_of_a_container_counts(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  99 kB\nMemAvailable:   4194304 kB\n")
    assert host_memory(meminfo, tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(meminfo, tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{1 * GIB}\n")
    assert host_memory(meminfo, tmp_path) == 2 * GIB
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{GIB}")
    assert host_memory(meminfo, tmp_path) == GIB


def test_this_machine(tmp_path):
    machine = inspect_machine(tmp_path / "not" / "there" / "yet")
    assert machine.host_memory > 0
    assert machine.disk == pytest.approx(free_disk(tmp_path), rel=0.1)
    assert readable(1536 * 1024**2) == "1.5 GiB"
    assert readable(3 * 1024**2) == "3 MiB"


def subjects(shortages):
    return [shortage.subject for shortage in shortages]


HUGE = {
    "trainer": {"accelerator": "gpu", "devices": 8, "strategy": "fsdp"},
    "model": {"class_path": "tests.cli.toys.Huge", "init_args": {"parameters": 10**15, "weights": "somewhere/gated"}},
    "data": {"class_path": "tests.cli.toys.MissingData", "init_args": {}},
    "runs": "runs",
}


def test_everything_is_listed_at_once():
    shortages = check(HUGE, LAPTOP)
    assert subjects(shortages) == ["devices", "memory", "batch", "data", "weights", "disk"]
    text = table(shortages, ["toy_tiny"])
    for expected in ("8 x cuda", "0 x cuda", "16.0 GiB of main memory", "no manifest at shards/", "somewhere/gated",
                     "ask its owner", "500.0 GiB free under runs", "(their data not looked at): toy_tiny"):  # fmt: skip
        assert expected in text


def test_a_run_that_fits_has_no_shortage():
    small = {**HUGE, "model": {"class_path": "tests.cli.toys.Small", "init_args": {"dim": 4}}, "data": None}
    assert check(small, SERVER) == []
    assert subjects(check(small, LAPTOP)) == ["devices"]


def test_classes_that_do_not_say_are_not_judged():
    silent = {**HUGE, "model": {"class_path": "tests.cli.toys.ToyModel"}, "data": None}
    assert check(silent, SERVER) == []


def test_processes_on_one_machine_share_its_memory():
    model = {"class_path": "tests.cli.toys.Small", "init_args": {"dim": 2 * GIB // 16}}
    cpu = {"trainer": {"accelerator": "cpu", "devices": 1, "strategy": "ddp"}, "model": model}
    assert check(cpu, LAPTOP) == []
    cpu["trainer"]["devices"] = 8
    assert subjects(check(cpu, LAPTOP)) == ["memory"]


@pytest.fixture
def huge(workshop, monkeypatch):
    """A configuration that no machine can run, beside a shipped recipe that every machine can."""
    values = yaml.safe_load((workshop / "toy.yaml").read_text())
    values["model"] = {"class_path": "my_idea.Small", "init_args": {"dim": 4}}
    folder = workshop / "shipped"
    folder.mkdir()
    (folder / "toy_tiny.yaml").write_text(yaml.safe_dump(values))
    values.update(model={"class_path": "my_idea.Huge"}, data={"class_path": "my_idea.MissingData"})
    values["trainer"].update(accelerator="gpu", devices=64, strategy="fsdp")
    (folder / "toy_huge.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(recipes, "_folder", lambda: folder)
    return "toy_huge"


def test_fit_stops_before_anything_is_built(huge, refused):
    message = refused("fit", "--config", huge)
    for subject in ("devices", "memory", "batch", "data", "weights", "disk"):
        assert f"\n  {subject}" in message
    assert "(their data not looked at): toy_tiny" in message
    assert "toy_huge" not in message
    assert not Path("runs").exists()


def test_missing_checkpoint_is_listed_with_the_rest(huge, refused, capsys):
    message = refused("fit", "--config", huge, "--ckpt_path", "nowhere.ckpt")
    assert "\n  checkpoint  needs  --ckpt_path nowhere.ckpt: no such file" in message
    assert "\n  devices" in message
    alone = refused("fit", "--config", "toy_tiny", "--ckpt_path", "nowhere.ckpt")
    assert alone.count("\n") <= 2
    assert "no such file" in alone
    assert main(["doctor", "--config", "toy_tiny", "--ckpt_path", "last"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().out


def test_doctor_says_the_same_without_starting(huge, capsys):
    assert main(["doctor", "--config", huge]) == 2
    out = capsys.readouterr().out
    assert "\n  memory" in out
    assert "(their data not looked at): toy_tiny" in out
    assert main(["doctor", "--config", "toy_tiny", "--trainer.max_epochs", "3"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_print_config_works_where_the_run_does_not(huge, parsed):
    assert parsed("--config", huge)["trainer"]["devices"] == 64


def test_preflight_can_be_switched_off(huge):
    with pytest.raises(Exception, match="built before the preflight"):
        main(["fit", "--config", huge, "--preflight", "false"])


def test_only_the_first_process_of_a_machine_looks(huge, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(Exception, match="built before"):
        main(["fit", "--config", huge])


def test_fitting_recipes_are_ordered_by_size(huge, workshop):
    values = yaml.safe_load((workshop / "shipped/toy_tiny.yaml").read_text())
    values["model"]["init_args"]["dim"] = 1000
    values["data"] = {"class_path": "my_idea.MissingData"}
    values["trainer"]["devices"] = 7
    (workshop / "shipped/toy_middle.yaml").write_text(yaml.safe_dump(values))
    assert trainer.fitting_recipes(LAPTOP) == ["toy_middle", "toy_tiny"]


def test_use_needs_the_weights_alone():
    config = {
        "trainer": {"accelerator": "cpu", "devices": 1},
        "model": {
            "class_path": "lightning_gen.autoencoders.vitok_v2.module.ViTokV2",
            "init_args": {"variant": "5B-f16x64"},
        },
    }
    small = dataclasses.replace(LAPTOP, host_memory=16 * GIB)
    (found,) = check(config, small, training=False)
    assert found.subject == "memory" and "weights 18.6 GiB" in found.needed and "optimizer" not in found.needed
    assert check(config, dataclasses.replace(LAPTOP, host_memory=32 * GIB), training=False) == []


def float8_run(machine, accelerator="gpu", training=True):
    config = {
        "trainer": {"accelerator": accelerator, "devices": 1},
        "model": {
            "class_path": "lightning_gen.autoencoders.vitok_v2.module.ViTokV2",
            "init_args": {"variant": "350M-f16x64", "dino_weight": 0.0, "float8": True},
        },
    }
    return check(config, machine, training=training)


@pytest.mark.parametrize("training", [True, False])
def test_float8_is_missing_where_the_device_or_the_package_is(monkeypatch, training):
    from lightning_gen.training import float8

    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: object())
    ada = dataclasses.replace(SERVER, device_name="L40S", capability=(8, 9))
    assert float8_run(ada, training=training) == []
    (old,) = float8_run(dataclasses.replace(ada, capability=(8, 0)), training=training)
    assert (old.subject, old.here) == ("float8", "compute capability 8.0")
    # a run that stays on the CPU of that machine cannot use its devices
    (cpu,) = float8_run(ada, "cpu", training)
    assert cpu.here == "no CUDA compute capability"
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: None)
    (package,) = float8_run(ada, training=training)
    assert package.remedy == "pip install 'lightning-gen[fp8]'"
    assert "\n  float8  needs  the package torchao" in table([package], [])


def test_memory_of_use_counts_the_largest_batch():
    model = ModelNeeds(trainable=1000, frozen=500, use_bytes_per_token=10.0)
    data = DataNeeds(tokens_per_global_batch=10**9, global_batch_size=1, use_tokens=100)
    memory = memory_of_use(model, data, shape(LAPTOP))
    assert (memory.weights, memory.activations, memory.gradients, memory.optimizer) == (4000, 1000, 0, 0)
    assert memory_of_use(model, data, shape(precision="bf16-mixed", devices=1)).activations == 500
    assert memory_of_use(model, None, shape(LAPTOP)).activations == 0
