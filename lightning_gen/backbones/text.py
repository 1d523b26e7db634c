"""Frozen text encoders of other papers: CLIP's and T5's, through transformers, from a local folder or from the hub.

Shape letters: B prompts, T tokens of a prompt, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_weights, read_config
from lightning_gen.interfaces import Conditioning

__all__ = ["FrozenTextEncoder"]

_CLASSES = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")


class FrozenTextEncoder(FrozenModule):
    """Prompts to the last hidden states of a text encoder that is never trained.

    It is a constant of the run, see :class:`FrozenModule`.

    Args:
        source: folder or hub id with config.json, safetensors and the tokenizer's files; CLIP (whole or its text half)
            or T5.
        length: tokens of every prompt; longer ones are cut.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: weights or tokenizer are absent, or it is another kind of model.
    """

    def __init__(self, source: str, length: int = 77, revision: str | None = None) -> None:
        import transformers

        folder = fetch_weights(source, revision)
        kind = str(read_config(folder).get("model_type"))
        if kind not in _CLASSES:
            raise MissingWeightsError(f"{source} holds {kind!r}, not a text encoder of {', '.join(_CLASSES)}")
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise MissingWeightsError(
                f"{source} has no tokenizer ({', '.join(_TOKENIZERS)}): copy the tokenizer's files of the same model "
                "beside its weights"
            )
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with ordinary_construction():
            network = getattr(transformers, _CLASSES[kind]).from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        super().__init__(network)
        self.length = length
        self.width = int(network.config.d_model if kind == "t5" else network.config.hidden_size)
        self.pooled_width = self.width

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts.

        Args:
            prompts: B texts.

        Returns:
            Sequence (B, T, E) and mask; pooled (B, E): CLIP's own, or the mean over the tokens where there is none.
        """
        words = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        output = self.network(input_ids=words.input_ids, attention_mask=words.attention_mask)
        mask: Tensor = words.attention_mask.bool()
        weight = mask[..., None].to(output.last_hidden_state.dtype)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = (output.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)
        return Conditioning(output.last_hidden_state, mask, pooled)
