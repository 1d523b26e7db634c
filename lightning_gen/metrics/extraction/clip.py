"""CLIP: pictures and texts to unit vectors whose cosine says how well they fit. The one loader of CLIP weights.

Two layouts are read, both from a folder or from the hub: that of transformers and that of open_clip. A lone file of
open_clip weights, as HPSv2.1 is published, is read from a local path.

Shape letters: B images or texts, H and W height and width, S edge of the network's square, D width of the embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.frozen import FrozenModule, full_float32, ordinary_construction
from lightning_gen.backbones.weights import (
    MissingWeightsError,
    fetch_files,
    fetch_weights,
    find_files,
    find_weights,
    read_config,
)
from lightning_gen.metrics.extraction.clip_pixels import (
    ClipImages,
    CLIPPixels,
    read_open_clip_pixels,
    read_transformers_pixels,
)
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.training.safe_reading import load_plain

__all__ = ["CLIPModel", "find_clip", "load_clip"]

_PREPROCESSOR = "preprocessor_config.json"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


class CLIPModel(FrozenModule):
    """A frozen CLIP; built by ``load_clip``.

    It computes in float32 without autocast and without TF32, on the device that it was moved to; pictures and texts
    come to it from wherever they are. Float pictures receive gradients where they ask for them.

    Args:
        network: ``CLIPModel`` of transformers, or ``CLIP`` of open_clip.
        layout: which of the two.
        tokenize: B texts to token numbers, (B, context length), cut off where they are longer.
        pixels: how pictures are prepared.
        source: where the weights come from, for messages and protocols.
        fingerprint: sha256 of the weights.

    Source: arXiv:2103.00020.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: Literal["transformers", "open_clip"],
        tokenize: Callable[[list[str]], Tensor],
        pixels: CLIPPixels,
        source: str,
        fingerprint: str,
    ) -> None:
        super().__init__(network)
        self.layout = layout
        self.tokenize = tokenize
        self.pixels = pixels
        self.source = source
        self.fingerprint = fingerprint
        self.logit_scale = float(self._part("logit_scale").exp())

    logit_scale: float
    """exp of the learned temperature: what logits multiply the cosine by; 100 in most published models."""

    def embed_images(self, images: ClipImages) -> Tensor:
        """Unit vectors of pictures.

        Args:
            images: B pictures, uint8 or float in [0, 1]; sizes may differ in a list.

        Returns:
            float32, (B, D), L2-normalised, on the network's device.

        Raises:
            ValueError: no picture, or one of another shape, type or range.
        """
        with full_float32(self.device):
            pixels = self.pixels(images, self.device)
            if self.layout == "transformers":
                embedding = self._part("visual_projection")(
                    self._part("vision_model")(pixel_values=pixels).pooler_output
                )
            else:
                embedding = self._part("encode_image")(pixels)
            return F.normalize(embedding, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts; what is longer than the context (77 tokens in published models) is cut off.

        Args:
            texts: B texts; equal ones are computed once.

        Returns:
            float32, (B, D), L2-normalised, on the network's device.

        Raises:
            ValueError: no text, or one text instead of a list.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise ValueError(f"need a list of texts, got {texts!r}")
        distinct = list(dict.fromkeys(texts))
        numbers = self.tokenize(distinct).to(self.device)
        with full_float32(self.device):
            if self.layout == "transformers":
                # Without a mask for the padding: it stands behind the end token, where a causal network cannot look.
                embedding = self._part("text_projection")(self._part("text_model")(input_ids=numbers).pooler_output)
            else:
                embedding = self._part("encode_text")(numbers)
            units = F.normalize(embedding, dim=-1)
        if len(distinct) == len(texts):
            return units
        position = {text: i for i, text in enumerate(distinct)}
        return units[torch.tensor([position[text] for text in texts], device=units.device)]

    @property
    def architecture(self) -> str:
        """Image tower and edge of its square as a word for protocol ids: ``vit-l14-336``; ``clip-224`` if no ViT."""
        vision: Any = self._part("config").vision_config if self.layout == "transformers" else self._part("visual")
        if self.layout == "transformers":
            depth, width, patch = vision.num_hidden_layers, vision.hidden_size, vision.patch_size
        elif hasattr(vision, "transformer"):
            depth, width = len(vision.transformer.resblocks), vision.conv1.out_channels
            patch = vision.conv1.kernel_size[0]
        else:
            return f"clip-{self.pixels.size}"
        known = {(12, 768): "b", (24, 1024): "l", (32, 1280): "h", (48, 1664): "bigg"}
        return f"vit-{known.get((depth, width), f'{depth}x{width}-')}{patch}-{self.pixels.size}"

    def extra_repr(self) -> str:
        """Source and layout, for ``print``."""
        return f"source={self.source!r}, layout={self.layout}, frozen parameters={self.num_parameters:,}"

    def _part(self, name: str) -> Any:
        return getattr(self.network, name)


def load_clip(
    source: str, model: str | None = None, revision: str | None = None, processor: str | None = None
) -> CLIPModel:
    """Load a CLIP from a folder, the hub, or a file of open_clip weights.

    - transformers: config.json (model_type clip), model.safetensors, tokenizer files, preprocessor_config.json
    - open_clip: open_clip_config.json, open_clip_model.safetensors
    - open_clip with ``model``: open_clip_model.safetensors alone, or a file .safetensors, .pt, .pth or .bin

    A source that has both layouts is read by transformers, unless ``model`` is given. The two give equal embeddings up
    to rounding. Torch files are read without running code, and from a local path only.

    Args:
        source: folder, hub id ``owner/name``, or a file.
        model: architecture of open_clip for weights that come without ``open_clip_config.json``, such as ``ViT-H-14``
            (HPSv2.1) or ``ViT-L-14-quickgelu`` (OpenAI's weights: trained with the quick approximation of GELU, so
            ``ViT-L-14`` would load them and give other numbers). A configuration that lies beside the weights wins.
        revision: branch, tag or commit of the hub repository.
        processor: folder or hub id of the tokenizer and of ``preprocessor_config.json``, for weights of transformers
            that were saved without them; default: the source itself.

    Returns:
        The model, on the CPU.

    Raises:
        MissingWeightsError: the files are absent, damaged, or do not fit each other; says what to do.
        ImportError: the library of the layout is not installed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _load_open_clip(path, model)
    if model is None and _is_for_transformers(source, revision):
        return _load_transformers(source, revision, processor or source)
    required = [_OPEN_CLIP_WEIGHTS] if model is not None else [_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS]
    folder = fetch_files(source, required, [_OPEN_CLIP_CONFIG, *_TOKENIZER_FILES], revision)
    return _load_open_clip(folder / _OPEN_CLIP_WEIGHTS, model)


def find_clip(source: str, model: str | None = None, processor: str | None = None) -> tuple[list[Path], str]:
    """Look for the weights of a CLIP on this machine, without any network connection.

    Args:
        source: folder, hub id, or a file, as for :func:`load_clip`.
        model: likewise.
        processor: likewise.

    Returns:
        The files that hold the weights, and an empty string; or none and a sentence that says what is missing.
    """
    if (path := Path(source).expanduser()).is_file():
        return [path], ""
    if path.suffix in _WEIGHT_FILES and not path.exists():
        return [], f"there is no file {source}"
    required = [_OPEN_CLIP_WEIGHTS] if model is not None else [_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS]
    folder, problem = find_files(source, required)
    if folder is not None:
        return [folder / _OPEN_CLIP_WEIGHTS], ""
    if model is None:
        folder, problem = find_weights(source)
        extra, lacking = find_files(processor or source, [_PREPROCESSOR])
        if folder is not None and extra is not None:
            return sorted(folder.glob("model*.safetensors")), ""
        problem = problem or lacking
    return [], problem


def _is_for_transformers(source: str, revision: str | None) -> bool:
    """False for a source that has open_clip's files only; where neither is there, the error speaks of transformers'."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            folder = fetch_files(source, ["config.json"], [_OPEN_CLIP_CONFIG], revision)
        except MissingWeightsError as error:
            try:
                fetch_files(source, [_OPEN_CLIP_CONFIG], (), revision)
            except MissingWeightsError:
                raise error from None
            return False
    if not (folder / "config.json").is_file():
        return not any((folder / name).is_file() for name in (_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS))
    # A repository of timm has a config.json of its own beside open_clip's files.
    return read_config(folder).get("model_type") == "clip" or not (folder / _OPEN_CLIP_CONFIG).is_file()


def _load_transformers(source: str, revision: str | None, processor: str) -> CLIPModel:
    from transformers import CLIPModel as TransformersCLIP
    from transformers import CLIPTokenizer

    folder = fetch_weights(source, revision)
    kind = read_config(folder).get("model_type")
    if kind != "clip":
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {kind!r}, not a CLIP (model_type 'clip'), and there is no "
            f"{_OPEN_CLIP_CONFIG} beside it: give another source"
        )
    local = Path(processor).expanduser()
    is_split = (local / "merges.txt").is_file() and not (local / "tokenizer.json").is_file()
    required = [_PREPROCESSOR, *(("vocab.json", "merges.txt") if is_split else ("tokenizer.json",))]
    extra = fetch_files(processor, required, _TOKENIZER_FILES, revision if processor == source else None)
    loader: Any = TransformersCLIP
    try:
        with ordinary_construction():
            network, report = loader.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        tokenizer: Any = CLIPTokenizer.from_pretrained(extra, local_files_only=True)
    except Exception as error:  # whatever transformers dislikes about the files
        raise _unfit(folder, error) from None
    # Weights of old releases also hold the numbers of the positions.
    surplus = {key for key in report["unexpected_keys"] if not key.endswith("position_ids")}
    wrong = sorted({*report["missing_keys"], *surplus})
    if wrong:
        raise _unfit(folder, ValueError(f"{len(wrong)} tensors lack or are too many, such as {', '.join(wrong[:3])}"))
    tokens = _Tokens(tokenizer, int(network.config.text_config.max_position_embeddings))
    pixels = read_transformers_pixels(extra / _PREPROCESSOR, int(network.config.vision_config.image_size))
    weights = sorted(folder.glob("model*.safetensors"))
    return CLIPModel(network, "transformers", tokens, pixels, source, _fingerprint(weights))


def _load_open_clip(weights: Path, model: str | None) -> CLIPModel:
    try:
        import open_clip
    except ImportError:
        raise ImportError(f"{weights} needs the package open_clip: pip install open_clip_torch") from None

    own = weights.parent / _OPEN_CLIP_CONFIG
    has_own = own.is_file() and weights.name == _OPEN_CLIP_WEIGHTS
    name = f"local-dir:{weights.parent}" if has_own else str(model)
    if not has_own and model not in open_clip.list_models():
        raise MissingWeightsError(
            f"{weights} comes without {_OPEN_CLIP_CONFIG}: give as model the name of its architecture in open_clip, "
            f"for instance 'ViT-H-14' (got {model!r}; open_clip.list_models() lists them)"
        )
    try:
        architecture = {**open_clip.get_model_config(name)}
        make = open_clip.CustomTextCLIP if architecture.pop("custom_text", False) else open_clip.CLIP
        with ordinary_construction():
            network = make(**architecture)
        network.load_state_dict(_open_clip_state(weights))
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever open_clip dislikes about the files
        raise _unfit(weights, error) from None
    pixels = read_open_clip_pixels(own if has_own else None, network.visual.image_size)
    return CLIPModel(network, "open_clip", tokenizer, pixels, str(weights), _fingerprint([weights]))


def _open_clip_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = load_plain(path, mmap=False)  # files of old releases cannot be mapped
    state: dict[str, Tensor] = content.get("state_dict", content)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """A tokenizer of transformers, called as one of open_clip is."""

    tokenizer: Any
    length: int

    def __call__(self, texts: list[str]) -> Tensor:
        padded = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        numbers: Tensor = padded["input_ids"]
        return numbers


def _fingerprint(files: Sequence[Path]) -> str:
    """sha256 of one file, or of the sha256 of several."""
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _unfit(place: Path, error: Exception) -> MissingWeightsError:
    reason = str(error).strip().splitlines() or [""]
    return MissingWeightsError(
        f"the weights in {place} do not fit their configuration ({type(error).__name__}: {reason[0][:300]}). "
        f"Copy all files from one source, or name the architecture that the weights have"
    )
