"""A judge in this process: any image-text model of transformers, from a folder or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, find_weights, read_config
from lightning_gen.metrics.judging.judges import Message, judge_name
from lightning_gen.metrics.protocol import Detail

__all__ = ["TransformersJudge"]

_REQUIRED = ("config.json", "tokenizer_config.json")
_OPTIONAL = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors")


class TransformersJudge:
    """A vision-language model of transformers that decodes greedily.

    The model is a constant: in eval mode, without gradients, outside every module and checkpoint. Call it from one
    thread only.

    Args:
        source: local folder or hub id; safetensors weights, tokenizer, processor and chat template.
        revision: branch, tag or commit of the hub repository.
        device: where the model runs.
        dtype: of the weights; None = as they are stored.
        max_new_tokens: longest answer.
        name: short name for protocol ids; default: the last part of ``source``.

    Raises:
        MissingWeightsError: files are missing, or they are no image-text model with a chat template.
    """

    def __init__(
        self,
        source: str,
        revision: str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        max_new_tokens: int = 8192,
        name: str | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = fetch_files(source, _REQUIRED, _OPTIONAL, revision)
        complete, problem = find_weights(str(folder))
        if complete is None:
            raise MissingWeightsError(f"weights of {source}: {problem}")
        kind = read_config(folder).get("model_type")
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype or "auto", local_files_only=True, use_safetensors=True
            )
        except (ValueError, OSError, KeyError) as error:
            raise MissingWeightsError(
                f"{source} (model_type {kind!r}) is no image-text model that transformers can load: {error}"
            ) from None
        if not getattr(self.processor, "chat_template", None):
            raise MissingWeightsError(f"{folder} holds no chat template: copy it again from its source, with all files")
        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.max_new_tokens = max_new_tokens
        self.name = judge_name(name or source)
        self.settings: Mapping[str, Detail] = {
            "judge_model": judge_name(source),
            "judge_revision": revision,
            "judge_dtype": str(model.dtype).removeprefix("torch."),
            "judge_decoding": "greedy",
            "judge_max_tokens": max_new_tokens,
        }

    @torch.no_grad()
    def __call__(self, message: Message) -> str:
        """Answer.

        Args:
            message: texts and pictures.

        Returns:
            The decoded answer without special tokens.
        """
        conversation = [{"role": "user", "content": [_part(part) for part in message]}]
        inputs = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        # Greedy whatever the generation settings that came with the weights say.
        tokens = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        answer = tokens[:, inputs["input_ids"].shape[1] :]
        text: str = self.processor.batch_decode(answer, skip_special_tokens=True)[0]
        return text


def _part(part: str | Tensor) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    from PIL import Image

    return {"type": "image", "image": Image.fromarray(part.permute(1, 2, 0).contiguous().cpu().numpy())}
