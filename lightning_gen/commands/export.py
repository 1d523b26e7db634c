"""`lightning export`: from a training checkpoint (file or folder of shards) to a folder of safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from .errors import deliberate, fail
from .options import Examples

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from torch import Tensor

__all__ = ["DTYPES", "SavesPretrained", "export", "main"]

DTYPES: Final = ("float32", "float16", "bfloat16")
"""Types in which weights can be written."""

_EPILOG = """\
examples:
  lightning export runs/vitok_v2_tiny weights/vitok_v2_tiny
  lightning export runs/text_to_image_shapes weights/base --dtype float16       # half the size
  lightning export runs/vitok_v2_5b/checkpoints/stage1.ckpt weights/stage1 --weights raw
"""


@runtime_checkable
class SavesPretrained(Protocol):
    """A model that knows the layout in which its weights are published."""

    def save_pretrained(self, folder: str) -> None:
        """Write weights and configuration.

        Args:
            folder: where to; made if it does not exist.
        """


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``export``.

    Returns:
        0 after success.
    """
    parser = argparse.ArgumentParser(
        "lightning export",
        description="Turn a training checkpoint into safetensors.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("checkpoint", help="a .ckpt file, a folder of shards, or a run folder (its newest checkpoint)")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--weights",
        default="auto",
        help="raw, ema, or the decay of an average; by default the average if there is exactly one, else raw",
    )
    parser.add_argument("--config", help="configuration of the model; by default the checkpoint's or its run's own")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the numbers in the files; by default as trained")
    options = parser.parse_args(argv)
    try:
        used = export(Path(options.checkpoint), Path(options.output), options.weights, options.config, options.dtype)
    except Exception as error:
        about_input = deliberate(error)
        if about_input is None:
            raise
        fail("export", str(about_input))
    print(f"{options.output}: {used} weights{f' in {options.dtype}' if options.dtype else ''}")
    return 0


def export(
    checkpoint: Path, output: Path, weights: str = "auto", config: str | None = None, dtype: str | None = None
) -> str:
    """Write a model's weights in the layout they are published in, and a card beside them.

    Args:
        checkpoint: file, folder of shards, or run folder.
        output: folder to write.
        weights: ``"raw"``, ``"ema"``, a decay, or ``"auto"``.
        config: configuration that names the model; None = what the checkpoint or its run folder says.
        dtype: one of ``DTYPES``, in which floating-point numbers are written; None = as they were trained.

    Returns:
        Which weights were written: ``"raw"`` or ``"ema <decay>"``.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the model is unknown, the wanted average is not in the checkpoint, or a number is too large for
            ``dtype``.
    """
    from lightning_gen.training.averages import read_weights

    path = _newest(checkpoint)
    average = _choose(path, weights)
    state = _rounded(read_weights(path, average), dtype, path)
    model = _build(path, config)
    # As wherever Lightning loads a checkpoint: a model may take more from it than tensors, or refuse it.
    model.on_load_checkpoint(dict(_rest(path)))
    _fill(model, state, path)
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, SavesPretrained):
        model.save_pretrained(str(output))
    else:
        _save_plain(model, output)
    used = "raw" if average is False else f"ema {average}"
    _describe(model, output, path, used, dtype)
    return used


def _describe(model: LightningModule, output: Path, path: Path, used: str, dtype: str | None) -> None:
    from .model_card import CARD, Exported, run_of, write_card
    from .model_card_sections import SECTIONS

    if not write_card(Exported(model, output, path, _rest(path), used, dtype, run_of(path)), SECTIONS):
        sys.stderr.write(
            f"{output / CARD} was written or changed by somebody and stays as it is; move it away to get a card made\n"
        )


def _newest(checkpoint: Path) -> Path:
    from lightning_gen.training.checkpoint import is_complete
    from lightning_gen.training.run_folder import RunFolder
    from lightning_gen.training.safe_reading import require_harmless

    if (checkpoint / "checkpoints").is_dir():
        last = RunFolder(checkpoint.parent, checkpoint.name).last_checkpoint()
        if last is None:
            raise FileNotFoundError(f"{checkpoint} holds no complete checkpoint")
        return last
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}")
    if not is_complete(checkpoint):
        raise ValueError(f"{checkpoint} is no complete checkpoint: it was cut off, or is something else")
    if checkpoint.is_dir():
        require_harmless(checkpoint)
    return checkpoint


def _choose(path: Path, weights: str) -> float | bool:
    """Decay of the average to write, or False for the raw weights."""
    decays = _decays(path)
    there = f"its averages have the decays {', '.join(map(str, decays))}" if decays else "it holds no averages"
    if weights == "raw" or (weights == "auto" and not decays):
        return False
    if weights in ("auto", "ema"):
        if len(decays) != 1:
            raise ValueError(f"{path}: {there}; say which weights to write, for instance --weights raw")
        return decays[0]
    try:
        decay = float(weights)
    except ValueError:
        decay = -1.0
    if decay not in decays:
        raise ValueError(f"--weights {weights}: expected raw, ema or a decay; in {path}, {there}")
    return decay


def _decays(path: Path) -> list[float]:
    from lightning_gen.training.averages import AVERAGES

    if path.is_dir():
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        names = [key.partition(".")[2] for key in stored if key.startswith(f"{AVERAGES}.")]
    else:
        names = list(_rest(path).get(AVERAGES, {}))
    return sorted({float(name.split("/", 1)[0]) for name in names})


def _rest(path: Path) -> Mapping[str, Any]:
    """What a checkpoint holds besides tensors of the model (for a file: everything, read lazily)."""
    from lightning_gen.training.safe_reading import load_plain

    return load_plain(path / "meta.pt" if path.is_dir() else path)


def _build(path: Path, config: str | None) -> LightningModule:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    section = _model_section(path, config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parsed = parser.parse_object({"model": section})
    return cast(LightningModule, parser.instantiate(parsed).model)


def _model_section(path: Path, config: str | None) -> Mapping[str, Any]:
    from .trainer import prepare, read_config

    beside = path.parent.parent / "config.yaml"
    if config is None:
        rest = _rest(path)
        arguments = dict(rest.get("hyper_parameters") or {})
        class_path = rest.get("class_path", arguments.pop("_class_path", None))
        arguments.pop("_instantiator", None)
        if class_path is not None:
            prepare([class_path])
            return {"class_path": class_path, "init_args": arguments}
        if not beside.is_file():
            raise ValueError(f"{path} does not say which model it belongs to; name its configuration with --config")
    return cast(Mapping[str, Any], read_config(["fit", "--config", config or str(beside)])["model"])


def _rounded(state: Mapping[str, Tensor], dtype: str | None, path: Path) -> dict[str, Tensor]:
    import torch

    if dtype is None:
        return dict(state)
    kind: torch.dtype = getattr(torch, dtype)
    rounded = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    lost = [name for name, value in state.items() if value.isfinite().all() and not rounded[name].isfinite().all()]
    if lost:
        raise ValueError(f"{path}: {lost[0]} holds numbers that {dtype} cannot: write another type with --dtype")
    return rounded


def _fill(model: LightningModule, state: Mapping[str, Tensor], path: Path) -> None:
    from lightning_gen.training.meta_module import MetaModule

    if isinstance(model, MetaModule):
        state = model.of_use(state)
    if not set(state) <= set(model.state_dict()):
        # A model that builds its layers there, like one that is sharded while it is built.
        model.configure_model()
    own = model.state_dict()
    wrong = sorted(
        key for key in set(own) | set(state) if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong and model.strict_loading:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing, unknown or of another shape: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
    # assign: a model on the meta device takes the tensors as they are, nothing is initialised first.
    model.load_state_dict(dict(state), strict=model.strict_loading, assign=True)


def _save_plain(model: LightningModule, output: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous().clone() for key, value in model.state_dict().items()}, output / "model.safetensors"
    )
