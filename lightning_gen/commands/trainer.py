"""The Trainer's verbs: `lightning fit | validate | test | predict --config C`.

LightningCLI with the settings of this house: any model and DataModule class by short name, interpolation that follows
overrides, one folder per run, checkpoints that survive a kill, and a preflight before anything is built.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from omegaconf.errors import OmegaConfBaseException

import lightning_gen
from lightning_gen import COMPONENTS, __version__
from lightning_gen.data.report import DataReport
from lightning_gen.training.checkpoint import AtomicCheckpointIO, RunCheckpoint
from lightning_gen.training.machine import Machine, inspect_machine
from lightning_gen.training.metrics_file import MetricsFile
from lightning_gen.training.preflight import check, needs_of, table
from lightning_gen.training.run_folder import RunFolder

from .components import import_mentioned
from .config_files import ConfigFile, RecipeOrFile, config_files, resolvable
from .errors import deliberate, explain, explain_interpolation, fail
from .progress import with_progress_bar
from .recipes import recipes

__all__ = ["TrainerCLI", "fitting_recipes", "prepare", "read_config", "run"]

_DEFAULTS = {
    # The plan of the data deals out samples to ranks and changes from epoch to epoch.
    "use_distributed_sampler": False,
    "reload_dataloaders_every_n_epochs": 1,
}


def run(argv: list[str]) -> TrainerCLI:
    """Parse arguments and run a Trainer verb.

    Args:
        argv: arguments beginning with the verb, as after `lightning`.

    Returns:
        The command line with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        SystemExit: with code 2 after a message, when the input is at fault.
    """
    prepare(argv)
    try:
        return TrainerCLI(argv)
    except Exception as error:
        about_input = deliberate(error)
        if about_input is None:
            raise
        fail(_verb(argv), str(about_input))


def prepare(argv: list[str]) -> None:
    """Make the classes that arguments mention importable by short name or from the current folder.

    Args:
        argv: arguments; configuration files and recipes among them are read too.

    Raises:
        SystemExit: with code 2 after a message, when a component cannot be imported.
    """
    # Process-wide, therefore here and not at import.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    _import(argv)


def _import(argv: list[str]) -> None:
    try:
        import_mentioned(resolvable(argument) for argument in argv)
    except ImportError as error:
        fail(_verb(argv), str(error))


def _verb(argv: list[str]) -> str:
    return next((argument for argument in argv if argument in TrainerCLI.subcommands()), "")


class TrainerCLI(LightningCLI):
    """LightningCLI with run folders, recipe names, a preflight and one clear message for bad input.

    Args:
        args: arguments beginning with the verb.
    """

    def __init__(self, args: list[str]) -> None:
        # Errors are raised, so that they can be reported together with the file they come from.
        settings = {"parser_mode": "omegaconf+", "exit_on_error": False}
        super().__init__(
            save_config_callback=ConfigFile,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": f"{_config_name(_verb(args))}.yaml"},
            # Bad samples, reads tried again and waiting belong into every run's log.
            trainer_defaults={**_DEFAULTS, "callbacks": [DataReport()]},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "lightning", **settings, **{verb: dict(settings) for verb in self.subcommands()}},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` also takes the name of a recipe.

        Args:
            **kwargs: arguments of Lightning's parser.

        Returns:
            The parser.
        """
        kwargs.setdefault("dump_header", [f"lightning-gen=={__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c", "--config", action=RecipeOrFile, help="Configuration file, or the name of a shipped recipe."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run: its name, its folder, its checkpoints, its preflight.

        Args:
            parser: parser of one verb.
        """
        parser.add_argument("--name", type=str, default="run", help="Name of the run; its folder is <runs>/<name>.")
        parser.add_argument("--runs", type=str, default="runs", help="Parent folder of all runs.")
        parser.add_argument(
            "--vars",
            type=dict[str, Any],
            default={},
            help="Values to write once and use as ${vars.size}; `--vars.size 512` changes all uses.",
        )
        parser.add_argument(
            "--preflight",
            type=bool,
            default=True,
            help="Before a run, compare what it needs with what is here and stop if something is missing.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # A checkpoint is data: nothing in it may run code.
        parser.set_defaults({"weights_only": True})
        if subcommand == "predict":
            # Predictions go to the disk as they are made; a large folder of them must not pile up in memory.
            parser.set_defaults({"return_predictions": False})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; unlike Lightning's, silent about ``sys.argv`` because ``main(args=[...])`` is meant to be called.

        Args:
            parser: the main parser.
            args: arguments beginning with the verb.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            fail(_verb(args), explain(str(error), args, config_files(args)))
        except (OmegaConfBaseException, RecursionError) as error:
            fail(_verb(args), explain_interpolation(error, _verb(args)))

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's arguments win over the ones that were typed."""

    @property
    def settings(self) -> Namespace:
        """Parsed arguments of the chosen verb."""
        values: Namespace = self.config[self.config["subcommand"]]
        return values

    def before_instantiate_classes(self) -> None:
        """Find run folder and checkpoint; check that nothing is missing and, for `fit`, that nothing is lost."""
        verb = str(self.subcommand)
        self.folder = RunFolder(Path(self.settings["runs"]), self.settings["name"])
        if self.settings["trainer"]["default_root_dir"] is not None:
            raise ValueError("trainer.default_root_dir: the run folder is set by runs: and name:, leave this one out")
        if self.settings["preflight"]:
            self._check()
        self.checkpoint = self.folder.resolve(self.settings["ckpt_path"])
        if verb == "fit" and not self.settings["trainer"]["fast_dev_run"] and not self.folder.holds(self.checkpoint):
            self.folder.refuse_to_lose()

    def _check(self) -> None:
        # Once per machine: later processes would see the memory that the first one has taken already.
        if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "SLURM_LOCALID")):
            return
        machine = inspect_machine(self.folder.path)
        missing = check(self.settings.as_dict(), machine, training=self.subcommand == "fit")
        # A missing checkpoint alone is told without the table, as for the other verbs.
        if missing and {short.subject for short in missing} != {"checkpoint"}:
            sys.stderr.write(table(missing, fitting_recipes(machine)))
            raise SystemExit(2)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer around the run folder.

        Args:
            **kwargs: trainer arguments that override the parsed ones.

        Returns:
            The trainer.
        """
        # From here on the resolved path; the saved configuration keeps the word that was typed.
        self.config_init[self.subcommand]["ckpt_path"] = self.checkpoint
        trainer = self.config_init[self.subcommand]["trainer"]
        if trainer["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        rank_zero_info(f"run folder {self.folder.path}" + (f", from {self.checkpoint}" if self.checkpoint else ""))
        strategy = _strategy(trainer["strategy"])
        own = {
            "default_root_dir": str(self.folder.path),
            "logger": self._loggers(trainer["logger"]),
            "strategy": strategy,
            "plugins": _plugins(trainer["plugins"], strategy),
        }
        if trainer["enable_progress_bar"] is not False:
            own["callbacks"] = with_progress_bar(trainer["callbacks"])
        try:
            return super().instantiate_trainer(**own, **kwargs)
        except (MisconfigurationException, ValueError) as error:
            # The Trainer's constructor only checks its arguments.
            raise ValueError(f"trainer: {error}") from error

    def _loggers(self, configured: Any) -> Any:
        if configured is False:
            return False
        verb = str(self.subcommand)
        # First, because Lightning takes the folder of its own files from the first logger.
        own = MetricsFile(str(self.folder.runs), self.folder.name, f"{'metrics' if verb == 'fit' else verb}.csv")
        if configured is None or configured is True:
            return [own]
        return [own, *(configured if isinstance(configured, list) else [configured])]


def _config_name(verb: str) -> str:
    return "config" if verb == "fit" else verb


def _strategy(configured: Any) -> Any:
    """Also `strategy: FSDP2Strategy`, written like the names that Lightning knows."""
    return getattr(lightning_gen, configured)() if configured in COMPONENTS else configured


def _plugins(configured: Any, strategy: Any) -> list[Any]:
    plugins = list(configured) if isinstance(configured, (list, tuple)) else [configured] if configured else []
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    # These bring their own way of writing and refuse another one.
    if any(isinstance(plugin, CheckpointIO) for plugin in plugins) or any(
        word in name.lower() for word in ("deepspeed", "xla")
    ):
        return plugins
    return [*plugins, AtomicCheckpointIO()]


def read_config(argv: list[str]) -> dict[str, Any]:
    """Parse a configuration completely and build nothing from it.

    Args:
        argv: arguments beginning with the verb, for instance ``["fit", "--config", "vitok_v2_tiny"]``.

    Returns:
        Plain dicts, defaults filled in.

    Raises:
        SystemExit: with code 2 after a message, when the input is at fault.
    """
    prepare(argv)
    return dict(_ConfigReader(argv).settings.as_dict())


class _ConfigReader(TrainerCLI):
    """The command line without everything that follows parsing."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _set_seed(self) -> None:
        # Reading a file must not change random numbers.
        pass


def fitting_recipes(machine: Machine) -> list[str]:
    """Shipped configurations that this machine can hold.

    Data and checkpoints that are not there yet do not count against a recipe; devices, memory, weights and disk do.

    Args:
        machine: what is there.

    Returns:
        Names, the ones with most parameters first.
    """
    return [name for _, name in sorted(_sizes_that_fit(machine), reverse=True)]


def _sizes_that_fit(machine: Machine) -> Iterator[tuple[int, str]]:
    for name, file in recipes().items():
        if name.startswith("evaluate_"):  # recipes of `lightning evaluate`
            continue
        config = read_config(["fit", "--config", str(file)])
        model, _ = needs_of(config)
        if model is not None and {short.subject for short in check(config, machine)} <= {"data", "checkpoint"}:
            yield model.trainable, name
