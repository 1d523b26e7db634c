"""Reading a folder of a diffusers pipeline: checked before anything is loaded, safetensors only, nothing executed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_gen.backbones.diffusers_models import installed_diffusers, load_diffusers_model
from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.weights import (
    MissingWeightsError,
    fetch_folder,
    find_folder,
    read_config,
    weights_problem,
)

from .families import FAMILIES
from .family import Family

__all__ = ["PipelineFolder", "TextEncoders", "find_pipeline", "open_pipeline"]

_INDEX = "model_index.json"
_SCHEDULER = "scheduler_config.json"
_NETWORK = "diffusion_pytorch_model.safetensors"
_ENCODER = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tekken.json")
_CHUNK, _SAMPLES = 1 << 16, 1024


@dataclass(frozen=True)
class PipelineFolder:
    """A complete folder of a pipeline.

    Attributes:
        path: where it is.
        source: as it was asked for, for messages.
        index: its ``model_index.json``.
        family: of the pipeline.
    """

    path: Path
    source: str
    index: Mapping[str, Any]
    family: type[Family]

    @property
    def encoders(self) -> dict[str, str]:
        """Text encoders that the pipeline has -> their tokenizers."""
        return _encoders(self.index, self.family)

    def network(self, dtype: torch.dtype) -> nn.Module:
        """The transformer or U-Net, on the CPU, in eval mode.

        Args:
            dtype: of its weights.

        Returns:
            A model of diffusers.

        Raises:
            MissingWeightsError: its files do not fit each other, or name an unknown class.
        """
        diffusers = installed_diffusers("text-to-image pipelines")
        folder = self.path / self.family.network_folder
        name = read_config(folder).get("_class_name")
        kind: Any = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if not isinstance(kind, type) or not issubclass(kind, diffusers.ModelMixin):
            raise MissingWeightsError(
                f"{folder / 'config.json'} describes {name!r}, which is no network of the installed diffusers "
                f"({diffusers.__version__})"
            )
        return load_diffusers_model(folder, kind, dtype).eval()

    def scheduler(self) -> Any:
        """The scheduler of diffusers.

        Returns:
            The scheduler.

        Raises:
            MissingWeightsError: its file names an unknown class.
        """
        diffusers = installed_diffusers("text-to-image pipelines")
        config = read_config(self.path / "scheduler", _SCHEDULER)
        name = config.get("_class_name")
        kind: Any = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
            raise MissingWeightsError(
                f"{self.path / 'scheduler' / _SCHEDULER} describes {name!r}, which is no scheduler of the installed "
                f"diffusers ({diffusers.__version__})"
            )
        loaded: Any = kind
        return loaded.from_config(config)

    def text_encoders(self, network: nn.Module, dtype: torch.dtype) -> TextEncoders:
        """Text encoders and tokenizers inside the pipeline's own class, which knows how they are used.

        Args:
            network: transformer or U-Net; some pipelines ask it for widths.
            dtype: of the encoders' weights.

        Returns:
            The encoders, on the CPU.

        Raises:
            MissingWeightsError: their files do not fit each other.
        """
        diffusers = installed_diffusers("text-to-image pipelines")
        kind = getattr(diffusers, str(self.index["_class_name"]))
        given = {"vae": None, self.family.network_folder: network, "scheduler": self.scheduler()}
        for encoder, tokenizer in self.family.encoders.items():
            if encoder not in self.encoders:
                given |= {encoder: None, tokenizer: None}
        options = {"local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
        try:
            with ordinary_construction(), _quiet(diffusers):
                pipeline = kind.from_pretrained(str(self.path), **given, **self.family.left_out, **options)
        except Exception as error:  # whatever diffusers or transformers dislike about the files
            reason = str(error).strip().splitlines() or [""]
            raise MissingWeightsError(
                f"the text encoders of {self.source} cannot be read ({type(error).__name__}: {reason[0][:200]}). Copy "
                "the whole folder from one source"
            ) from None
        return TextEncoders(pipeline, list(self.encoders))

    def fingerprint(self) -> str:
        """Digest of everything that decides what a prompt is encoded to: settings, tokenizers, encoders' weights.

        Of large files the length and evenly spaced pieces are read.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256(str(self.index["_class_name"]).encode())
        for key in self.family.prompt_settings:
            digest.update(f"{key} {self.index.get(key)}\n".encode())
        for name in sorted({*self.encoders, *self.encoders.values()}):
            for path in sorted((self.path / name).rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    digest.update(f"{path.relative_to(self.path).as_posix()} {path.stat().st_size}\n".encode())
                    for piece in _pieces(path):
                        digest.update(piece)
        return digest.hexdigest()


class TextEncoders(FrozenModule):
    """The text encoders of a pipeline; see :class:`FrozenModule`. They keep the dtypes that they were loaded in.

    Args:
        pipeline: of diffusers, with its tokenizers.
        names: of its encoders.
    """

    def __init__(self, pipeline: Any, names: list[str]) -> None:
        # Layers that transformers keeps in float32 (T5's second projection in float16) would overflow after a cast.
        super().__init__(nn.ModuleDict({name: getattr(pipeline, name) for name in names}), dtype=None)
        self.pipeline = pipeline


def open_pipeline(source: str, revision: str | None = None) -> PipelineFolder:
    """Find a pipeline's folder, here or on the hub, and check that it is complete.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; None = ``main``.

    Returns:
        The folder.

    Raises:
        MissingWeightsError: it is of an unknown family, or lacks a part; says which and what to do.
    """
    path = fetch_folder(source, revision, _INDEX, _wanted(), _problem)
    index = read_config(path, _INDEX)
    return PipelineFolder(path, source, index, FAMILIES[str(index["_class_name"])])


def find_pipeline(source: str, revision: str | None = None) -> tuple[Path | None, str]:
    """Look for a pipeline's folder on this machine, without any network connection.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; None = ``main``.

    Returns:
        The folder if it is complete, and an empty string; or None and a sentence that says what is missing.
    """
    return find_folder(source, revision, _INDEX, _problem)


def _problem(folder: Path) -> str:
    """What a folder lacks, as a sentence; empty if it is complete."""
    if not (folder / _INDEX).is_file():
        return f"{folder} holds no {_INDEX}: give the folder of a whole diffusers pipeline, not of one of its parts"
    index = read_config(folder, _INDEX)
    name = index.get("_class_name")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return f"{folder / _INDEX} describes a {name!r}; what can be read is {', '.join(FAMILIES)}"
    parts: list[tuple[str, Callable[[Path], str]]] = [
        ("scheduler", _scheduler_problem),
        (family.network_folder, lambda part: weights_problem(part, _NETWORK)),
        ("vae", lambda part: weights_problem(part, _NETWORK)),
    ]
    for encoder, tokenizer in _encoders(index, family).items():
        parts += [(encoder, lambda part: weights_problem(part, _ENCODER)), (tokenizer, _tokenizer_problem)]
    for part, problem_of in parts:
        if not (folder / part).is_dir():
            return f"{folder} has no folder {part}, which a {name} needs: copy the whole pipeline"
        problem = problem_of(folder / part)
        if problem:
            return problem
    return ""


def _encoders(index: Mapping[str, Any], family: type[Family]) -> dict[str, str]:
    """Encoders of the family without those optional ones that the pipeline says it does not have."""

    def is_absent(name: str) -> bool:
        entry = index.get(name)
        return name in family.optional_encoders and (entry is None or entry[0] is None)

    return {name: tokenizer for name, tokenizer in family.encoders.items() if not is_absent(name)}


def _scheduler_problem(folder: Path) -> str:
    return "" if (folder / _SCHEDULER).is_file() else f"{folder} holds no {_SCHEDULER}: copy it from the model's source"


def _tokenizer_problem(folder: Path) -> str:
    if any((folder / name).is_file() for name in _TOKENIZERS):
        return ""
    return f"{folder} holds no tokenizer ({', '.join(_TOKENIZERS)}): copy its files from the model's source"


def _wanted() -> list[str]:
    """Files that are fetched: of every part the settings and the full-precision weights, never a pickle."""
    wanted = [_INDEX, f"scheduler/{_SCHEDULER}"]
    for family in FAMILIES.values():
        for part in (family.network_folder, "vae"):
            wanted += [f"{part}/config.json", f"{part}/{_NETWORK}*", f"{part}/diffusion_pytorch_model-*.safetensors"]
        for encoder, tokenizer in family.encoders.items():
            wanted += [f"{encoder}/*.json", f"{encoder}/{_ENCODER}", f"{encoder}/model-*.safetensors"]
            wanted += [f"{tokenizer}/*.json", f"{tokenizer}/*.txt", f"{tokenizer}/*.model", f"{tokenizer}/*.jinja"]
    return sorted(set(wanted))


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    step = max(_CHUNK, size // _SAMPLES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            yield file.read(_CHUNK)
        file.seek(max(size - _CHUNK, 0))
        yield file.read()


class _quiet:
    """Silence progress bars of diffusers, and only while something is loaded."""

    def __init__(self, diffusers: Any) -> None:
        self.logging = diffusers.utils.logging

    def __enter__(self) -> None:
        self.was_on = self.logging.is_progress_bar_enabled()
        self.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.was_on:
            self.logging.enable_progress_bar()
