"""Configurations: interpolation follows overrides, recipes stand for files, bad input ends in one message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, ListConfig

from lightning_gen.cli import OWN_VERBS, TRAINER_VERBS, main
from lightning_gen.commands import recipes


def dims(config):
    return config["model"]["init_args"]["dim"], config["data"]["init_args"]["dim"]


def test_plain(parsed):
    assert dims(parsed("--config", "toy.yaml")) == (4, 4)


def test_override_reaches_interpolated_values(parsed):
    assert dims(parsed("--config", "toy.yaml", "--model.init_args.dim", "6")) == (6, 6)


def test_variable_of_the_configuration(parsed):
    assert dims(parsed("--config", "toy.yaml", "--vars.dim", "7")) == (7, 7)


def test_top_level_key_as_variable(parsed, workshop):
    text = (workshop / "toy.yaml").read_text().replace("${vars.dim}", "${seed_everything}")
    (workshop / "toy.yaml").write_text("seed_everything: 3\n" + text)
    assert dims(parsed("--config", "toy.yaml")) == (3, 3)
    assert dims(parsed("--config", "toy.yaml", "--seed_everything", "5")) == (5, 5)


def test_value_in_another_file(parsed, workshop):
    whole = yaml.safe_load((workshop / "toy.yaml").read_text())
    (workshop / "data.yaml").write_text(yaml.safe_dump({"data": whole.pop("data")}))
    (workshop / "model.yaml").write_text(yaml.safe_dump(whole))
    assert dims(parsed("--config", "model.yaml", "--config", "data.yaml", "--vars.dim", "9")) == (9, 9)


def test_print_config_round_trip(parsed, workshop):
    first = parsed("--config", "toy.yaml", "--model.init_args.dim", "6", "--trainer.max_epochs", "3")
    (workshop / "printed.yaml").write_text(yaml.safe_dump(first))
    assert parsed("--config", "printed.yaml") == first


@pytest.mark.parametrize("verb", TRAINER_VERBS)
def test_defaults_of_the_house(workshop, capsys, verb):
    with pytest.raises(SystemExit):
        main([verb, "--config", "toy.yaml", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["weights_only"] is True
    assert config["trainer"]["use_distributed_sampler"] is False
    assert config["trainer"]["reload_dataloaders_every_n_epochs"] == 1
    assert config["runs"] == "runs"


def test_omegaconf_never_reaches_hyperparameters(workshop):
    text = (workshop / "toy.yaml").read_text()
    text = text.replace("  dim: 4\n", "  dim: 4\n  widths: [3, 5]\n", 1)
    (workshop / "toy.yaml").write_text(text.replace("    dim: ${vars.dim}\n", "    widths: ${vars.widths}\n", 1))
    assert main(["fit", "--config", "toy.yaml"]) == 0
    saved = torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["widths"] == [3, 5]
    for value in saved.values():
        assert not isinstance(value, (ListConfig, DictConfig))


# ---------------------------------------------------------------- recipes


@pytest.fixture
def shipped(workshop, monkeypatch):
    folder = workshop / "shipped"
    folder.mkdir()
    (workshop / "toy.yaml").rename(folder / "toy_tiny.yaml")
    monkeypatch.setattr(recipes, "_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("given", ["toy_tiny", "toy_tiny.yaml", "configs/toy_tiny.yaml"])
def test_recipe_where_a_path_is_expected(parsed, shipped, given):
    assert dims(parsed("--config", given, "--vars.dim", "5")) == (5, 5)
    assert dims(parsed(f"--config={given}")) == (4, 4)


def test_file_before_recipe(parsed, shipped, workshop):
    (workshop / "configs").mkdir()
    own = (shipped / "toy_tiny.yaml").read_text().replace("dim: 4", "dim: 8")
    (workshop / "configs/toy_tiny.yaml").write_text(own)
    assert dims(parsed("--config", "configs/toy_tiny.yaml")) == (8, 8)
    assert dims(parsed("--config", "toy_tiny")) == (4, 4)


def test_unknown_recipe_names_a_close_one(refused, shipped):
    message = refused("fit", "--config", "toy_tinny")
    assert "'toy_tinny' is neither a file nor a shipped recipe" in message
    assert "did you mean toy_tiny?" in message


@pytest.mark.parametrize("given", ["overrides/wide", "configs/overrides/wide.yaml"])
def test_override_over_a_recipe(parsed, shipped, given):
    (shipped / "overrides").mkdir()
    (shipped / "overrides/wide.yaml").write_text("vars:\n  dim: 7\n")
    assert dims(parsed("--config", "toy_tiny", "--config", given)) == (7, 7)


def test_an_override_is_asked_for_with_its_folder(refused, shipped):
    (shipped / "overrides").mkdir()
    (shipped / "overrides/wide.yaml").write_text("vars:\n  dim: 7\n")
    assert "did you mean overrides/wide?" in refused("fit", "--config", "override/wide")
    assert "neither a file nor a shipped recipe" in refused("fit", "--config", ".")


def test_recipes_verb(shipped, workshop, capsys, refused):
    head = "# A toy of 0.6 M\n# parameters, for tests. Told\n# at length.\n#\n# Not this.\n"
    (shipped / "toy_tiny.yaml").write_text(head + (shipped / "toy_tiny.yaml").read_text())
    assert main(["recipes", "list"]) == 0
    assert capsys.readouterr().out == "toy_tiny  A toy of 0.6 M parameters, for tests.\n"
    assert main(["recipes", "show", "toy_tiny"]) == 0
    assert capsys.readouterr().out == (shipped / "toy_tiny.yaml").read_text()
    assert main(["recipes", "copy", "toy_tiny"]) == 0
    assert (workshop / "toy_tiny.yaml").read_text() == (shipped / "toy_tiny.yaml").read_text()
    assert "exists" in refused("recipes", "copy", "toy_tiny")
    assert main(["recipes", "copy", "toy_tiny", "mine/own.yaml"]) == 0
    assert (workshop / "mine/own.yaml").is_file()
    assert "neither a file nor a shipped recipe" in refused("recipes", "show", "nothing")


# ------------------------------------------------- classes of other packages


@pytest.fixture
def distribution(workshop, monkeypatch):
    """An installed package that declares two components, one of them broken."""
    site = workshop / "site"
    info = site / "somebodys_idea-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-idea\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lightning_gen.components]\nTheirToy = somebodys_idea:TheirToy\nBroken = somebodys_idea.broken:Broken\n"
    )
    package = site / "somebodys_idea"
    package.mkdir()
    (package / "__init__.py").write_text("from tests.cli.toys import ToyModel\nclass TheirToy(ToyModel):\n    pass\n")
    (package / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(site))
    yield package
    for name in [name for name in sys.modules if name.startswith("somebodys_idea")]:
        del sys.modules[name]


def test_short_name_from_an_entry_point(parsed, distribution):
    config = parsed("--config", "toy.yaml", "--model", "TheirToy", "--model.init_args.dim", "2")
    assert config["model"]["class_path"] == "somebodys_idea.TheirToy"
    assert dims(config) == (2, 2)


def test_broken_component_hurts_only_who_uses_it(parsed, refused, distribution):
    parsed("--config", "toy.yaml")
    message = refused("fit", "--config", "toy.yaml", "--model", "Broken")
    assert "component 'Broken'" in message
    assert "somebodys-idea" in message
    assert "a_package_that_is_not_there" in message


def test_short_name_in_a_file_that_another_file_names(workshop, distribution):
    from lightning_gen.commands.components import import_mentioned

    (workshop / "outer.yaml").write_text("model: sub/inner.yaml\n")
    (workshop / "sub").mkdir()
    (workshop / "sub/inner.yaml").write_text("class_path: TheirToy\n")
    assert "somebodys_idea" not in sys.modules
    import_mentioned(["--config", "outer.yaml"])
    assert "somebodys_idea" in sys.modules


# ------------------------------------------------------------------ bad input


def test_unknown_key(refused, workshop):
    text = (workshop / "toy.yaml").read_text()
    (workshop / "bad.yaml").write_text(text.replace("  max_epochs: 1", "  max_epoch: 1"))
    message = refused("fit", "--config", "bad.yaml")
    assert "max_epoch" in message
    assert "bad.yaml:7" in message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.init_args.dmi", "3"], "'dmi' is not accepted"),
        (["--model", "ToyModl"], "'ToyModl' is no class this package knows"),
        (["--model", "vitokv2"], "'vitokv2' is no class this package knows: did you mean ViTokV2?"),
        (["--data", "ImageNetDatamodule"], "did you mean ImageNetDataModule?"),
        (
            ["--data", "ImageDataModule", "--data.train", "[im/train]"],
            "a list of sets holds entries {shards: im/train, weight: 1.0}",
        ),
        (["--model", "nowhere.Model"], "No module named 'nowhere'"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs"),
        (["--trainer.default_root_dir", "x"], "set by runs: and name:"),
        (["--name", "../x"], "plain folder name"),
        (["--checkpoint.keep", "0"], "checkpoint.keep"),
        (["--trainer.strategy", "dpp"], "trainer: You selected an invalid strategy name"),
        (["--trainer.precision", "bf17"], "trainer.precision"),
    ],
)
def test_bad_argument(refused, args, expected):
    message = refused("fit", "--config", "toy.yaml", *args)
    assert expected in message
    assert "Given value type" not in message


@pytest.mark.parametrize("preflight", ["true", "false"])
def test_value_that_a_constructor_refuses(refused, workshop, preflight):
    text = (workshop / "toy.yaml").read_text().replace("    dim: ${model.init_args.dim}\n", "    dim: 4\n")
    (workshop / "toy.yaml").write_text(text)
    arguments = ["--model", "ViTokV2", "--model.init_args.variant", "7B-f9", "--preflight", preflight]
    message = refused("fit", "--config", "toy.yaml", *arguments)
    assert "7B-f9" in message
    assert "Union" not in message


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("${vars.size}", "data.init_args.dim: there is no vars.size"), ("${data.init_args.dim}", "data.init_args.dim")],
)
def test_interpolation_that_leads_nowhere(refused, workshop, reference, expected):
    text = (workshop / "toy.yaml").read_text().replace("${model.init_args.dim}", reference)
    (workshop / "toy.yaml").write_text(text)
    assert expected in refused("fit", "--config", "toy.yaml")


def test_missing_file(refused):
    assert "nosuch.yaml" in refused("fit", "--config", "nosuch.yaml")


def test_unknown_verb(refused):
    assert "did you mean `lightning fit`?" in refused("fitt")


def test_defects_keep_their_stack_trace(workshop):
    source = (workshop / "my_idea.py").read_text()
    (workshop / "my_bug.py").write_text(source.replace("self.widths = widths", "self.widths = int('many')"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["fit", "--config", "toy.yaml", "--model", "my_bug.ToyModel"])


def test_help_shows_all_verbs(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in [*TRAINER_VERBS, *OWN_VERBS])
    assert main([]) == 0
    assert capsys.readouterr().out == out


def test_every_own_verb_has_a_main():
    folder = Path(recipes.__file__).parent
    assert {verb for verb in OWN_VERBS if not (folder / f"{verb}.py").is_file()} == set()
