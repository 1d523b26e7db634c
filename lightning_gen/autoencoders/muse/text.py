"""Text towers: captions to the unit vectors that pictures are to meet. They are constants of a run.

Shape letters: B captions, E width of an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, find_weights, read_config
from lightning_gen.training.needs import WeightNeed
from lightning_gen.training.randomness import torch_generator

__all__ = ["CLIPText", "TextTower", "WordVectors"]

_LENGTH = 77


class TextTower(Protocol):
    """Anything that embeds captions."""

    def load(self) -> None:
        """Read the weights, if that has not happened yet; called before training."""
        ...

    def need(self) -> WeightNeed | None:
        """Whether the weights are here, for the preflight; None = nothing is needed."""
        ...

    def embed(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Embed captions.

        Args:
            captions: B texts.
            device: where the result is wanted.

        Returns:
            Unit vectors, (B, E), without gradient.
        """
        ...


class CLIPText:
    """CLIP's text tower through transformers, padded to 77 tokens; paper: ViT-L/14 trained on LAION-2B, E = 768.

    Args:
        source: folder or hub id with ``config.json``, ``model.safetensors`` and the tokenizer's files.
        revision: branch, tag or commit of the hub repository.

    Source: arXiv:2605.05646; arXiv:2103.00020.
    """

    def __init__(self, source: str = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", revision: str | None = None) -> None:
        self.source, self.revision = source, revision
        self._network: FrozenModule | None = None
        self._tokenizer: Any = None

    def need(self) -> WeightNeed | None:
        """Whether the weights are here."""
        folder, problem = find_weights(self.source, self.revision)
        hint = "" if folder is not None else f"{problem}. Fetch them, or give a local folder in the tower's `source`"
        return WeightNeed("CLIP text tower", self.source, folder is not None, hint)

    def load(self) -> None:
        """Read the weights.

        Raises:
            MissingWeightsError: they are absent, or it is another kind of model.
        """
        if self._network is not None:
            return
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        tokenizer = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
        folder = fetch_files(self.source, ["config.json", "model.safetensors"], tokenizer, self.revision)
        kind = read_config(folder).get("model_type")
        if kind not in ("clip", "clip_text_model"):
            raise MissingWeightsError(f"{self.source} holds {kind!r}, not a CLIP: give the folder of a CLIP model")
        if not any((folder / name).is_file() for name in tokenizer[:2]):
            raise MissingWeightsError(
                f"{self.source} has no tokenizer (tokenizer.json or vocab.json): copy the tokenizer's files of the "
                "same model beside its weights"
            )
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with ordinary_construction():
            network: Any = CLIPTextModelWithProjection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        self._network = FrozenModule(network)

    @torch.no_grad()
    def embed(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Embed captions.

        Args:
            captions: B texts; longer ones than 77 tokens are cut.
            device: where the result is wanted.

        Returns:
            Unit vectors, (B, E).
        """
        self.load()
        assert self._network is not None
        self._network.to(device)
        words = self._tokenizer(
            list(captions), padding="max_length", max_length=_LENGTH, truncation=True, return_tensors="pt"
        ).to(device)
        output = self._network.network(input_ids=words.input_ids, attention_mask=words.attention_mask)
        return F.normalize(output.text_embeds.float(), dim=-1)


class WordVectors:
    """Captions as sums of random vectors, one per word and one per pair of neighbours; needs no weights.

    t = unit(sum over words w of r(w) + sum over neighbours (v, w) of r(v w)),  r(.) standard normal, keyed by its text

    For worlds whose captions are made of few words, such as the embedded one: captions with the same words are near
    each other, and no other meaning is claimed.

    Args:
        width: E.
        seed: of the vectors.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, width: int = 64, seed: int = 0) -> None:
        if width < 1:
            raise ValueError(f"a vector has at least one number, got width {width}")
        self.width, self.seed = width, seed
        self._known: dict[str, Tensor] = {}

    def need(self) -> WeightNeed | None:
        """Nothing."""
        return None

    def load(self) -> None:
        """Nothing to read."""

    def embed(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Embed captions.

        Args:
            captions: B texts.
            device: where the result is wanted.

        Returns:
            Unit vectors, (B, E).
        """
        return torch.stack([self._caption(caption) for caption in captions]).to(device)

    def _caption(self, caption: str) -> Tensor:
        words = re.findall(r"\w+", caption.lower())
        parts = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]
        return F.normalize(torch.stack([self._vector(part) for part in parts or [""]]).sum(0), dim=0)

    def _vector(self, text: str) -> Tensor:
        if text not in self._known:
            generator = torch_generator(self.seed, f"word {text}")
            self._known[text] = torch.randn(self.width, generator=generator)
        return self._known[text]
