"""A vision-language model in this process that answers questions, in words or as the probability of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.metrics.compositional.geneval2_questions import first_token_probability
from lightning_gen.metrics.images import check_uint8
from lightning_gen.metrics.judging.local_judge import TransformersJudge
from lightning_gen.metrics.protocol import Detail

__all__ = ["TransformersVQA"]


class TransformersVQA:
    """Questions to an image-text model of transformers: GenEval 2's probabilities and DPG-Bench's words.

    The probability of an answer is read from the model's raw distribution over the first token that it would write,
    whatever the generation settings that came with the weights say. Questions go one by one.

    Args:
        model: the model; ``max_new_tokens`` limits the answers in words.
        deduplicate: count a first token once that several spellings share; see ``first_token_probability``.
    """

    def __init__(self, model: TransformersJudge, deduplicate: bool = False) -> None:
        self.model = model
        self.deduplicate = deduplicate
        self.name = model.name
        self.settings: Mapping[str, Detail] = {**model.settings, "deduplicate": deduplicate}

    def answer_probabilities(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> Tensor:
        """How probable the wanted answers are.

        Args:
            images: B pictures, uint8, each (3, H, W).
            questions: one per picture, complete with the instruction how to answer.
            answers: per question the spellings of the wanted answer.

        Returns:
            float64, (B,).

        Raises:
            ValueError: the three differ in number, an image is not uint8, or the model's numbers are not finite.
        """
        check_uint8(images)
        scores = [
            first_token_probability(self.first_token(image, question), spellings, self._encode, self.deduplicate)
            for image, question, spellings in zip(images, questions, answers, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64)

    @torch.no_grad()
    def first_token(self, image: Tensor, question: str) -> Tensor:
        """The distribution of the first token of the answer.

        Args:
            image: uint8, (3, H, W).
            question: complete with the instruction how to answer.

        Returns:
            float32, (V,), sums to 1.
        """
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = self.model.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.model.device, self.model.model.dtype)
        # logits, not scores: those of a model with a repetition penalty in its settings would be another distribution.
        output = self.model.model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        probabilities: Tensor = output.logits[0][0].float().softmax(-1)
        return probabilities

    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """Answer in words.

        Args:
            images: B pictures, uint8, each (3, H, W).
            questions: one per picture.

        Returns:
            B answers.

        Raises:
            ValueError: the two differ in number, or an image is not uint8.
        """
        check_uint8(images)
        return [self.model([image, question]).strip() for image, question in zip(images, questions, strict=True)]

    def _encode(self, text: str) -> list[int]:
        tokens: Any = self.model.processor.tokenizer.encode(text, add_special_tokens=False)
        return [int(token) for token in tokens]
