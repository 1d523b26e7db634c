"""How configuration files come in (by path or by recipe name) and how a run keeps its own."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.cli import SaveConfigCallback

from lightning_gen.training.metrics_file import MetricsFile, set_aside

from .recipes import resolve

__all__ = ["ConfigFile", "RecipeOrFile", "config_files", "resolvable"]


class RecipeOrFile(ActionConfigFile):
    """`--config`: a file, or the name of a shipped recipe."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolve the name, then read the file.

        Args:
            parser: the parser.
            cfg: values so far.
            values: what was given.
            option_string: how the option was written.

        Raises:
            ArgumentError: if it names neither a file nor a recipe.
        """
        try:
            values = resolve(values) if isinstance(values, str) else values
        except FileNotFoundError as error:
            raise ArgumentError(None, f"--config: {error}") from error
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class ConfigFile(SaveConfigCallback):
    """Writes the configuration into the run folder and lets the log continue where the run does."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` (``<verb>.yaml`` for other verbs); one that differs is kept under another name.

        Args:
            trainer: the trainer.
            pl_module: the model.
            stage: what is about to run.
        """
        target = Path(trainer.default_root_dir) / self.config_filename
        text = self.parser.dump(self.config)
        if target.is_file() and target.read_text(encoding="utf-8") != text:
            set_aside(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rewind the log to the checkpoint, or begin a new one.

        Args:
            trainer: the trainer.
            pl_module: the model.
        """
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.rewind(trainer.global_step) if trainer.ckpt_path else logger.start_anew()


def resolvable(argument: str) -> str:
    """What an argument stands for, if it is a configuration.

    Args:
        argument: one command-line argument.

    Returns:
        Path of the file or of the shipped recipe; any other argument unchanged.
    """
    value = argument.partition("=")[2] if argument.startswith("--config=") else argument
    try:
        return resolve(value)
    except (FileNotFoundError, OSError):
        return argument


def config_files(args: list[str]) -> list[Path]:
    """Configuration files among the arguments.

    Args:
        args: command-line arguments.

    Returns:
        Their paths, recipes resolved.
    """
    return [
        Path(value) for value in map(resolvable, args) if value.endswith((".yaml", ".yml")) and Path(value).is_file()
    ]
