"""UnifiedReward: a vision-language model writes a verdict that ends in a number, and the number is the reward.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.judging.judges import Judge, JudgeReplyError, Message, ask
from lightning_gen.rewards.applicability import AppliesEverywhere, check_batch

__all__ = ["FINAL_SCORE_QUESTION", "UnifiedReward", "parse_final_score"]

FINAL_SCORE_QUESTION: Final = (
    "You see a picture that was made for a caption. Judge it by two things: how well it shows what the caption says "
    "(objects, their attributes and relations), and how good it looks (clarity, detail, colours, composition). Give a "
    "score from 1 to 5 after the words 'Final Score:'.\nCaption: {prompt}"
)
"""What a judge is asked; ``{prompt}`` stands for the prompt. [inferred]: only the scale and 'Final Score:' are known.
UnifiedReward was trained with the wording on its model card: give that where numbers are to be compared."""

_NUMBER: Final = re.compile(r"Final Score:[\s*]*([0-9]+(?:\.[0-9]+)?)")
_HIGHEST: Final = 5.0


def parse_final_score(reply: str) -> float:
    """The number behind the last ``Final Score:``.

    Args:
        reply: the judge's words.

    Returns:
        In [1, 5].

    Raises:
        JudgeReplyError: there is none, or it is not from 1 to 5.
    """
    found = _NUMBER.findall(reply)
    if not found or not 1 <= float(found[-1]) <= _HIGHEST:
        raise JudgeReplyError(f"a number from 1 to 5 after 'Final Score:' is wanted, got {reply[-80:]!r}")
    return float(found[-1])


class UnifiedReward(AppliesEverywhere):
    """What a judge says after "Final Score:", divided by 5.

    reward = number / 5, number in [1, 5]

    Args:
        judge: for instance ``HTTPJudge`` with an address of vLLM or SGLang that serves
            ``CodeGoat24/UnifiedReward-7b-v1.5``, and ``json_mode: false``.
        question: what it is asked; ``{prompt}`` is replaced by the prompt.
        revision: any text that changes with the judge's weights: cached scores belong to it.
        attempts: how often it is asked until its answer has a score.
        threads: pictures that are judged at a time; 1 for a judge in this process, whose
            entry says ``background: false``.

    Raises:
        ValueError: a question without ``{prompt}``, or a number below 1.

    Source: repository yifan123/flow_grpo, rewards.py. deviates: an answer without a score is asked for again and is
        then an error; there it counts 0.
    """

    background = True
    """It waits for another process."""

    def __init__(
        self,
        judge: Judge,
        question: str = FINAL_SCORE_QUESTION,
        revision: str = "",
        attempts: int = 3,
        threads: int = 4,
    ) -> None:
        if "{prompt}" not in question:
            raise ValueError(f"the question must say where the prompt stands, {{prompt}}, got {question!r:.80}")
        if attempts < 1 or threads < 1:
            raise ValueError(f"attempts and threads must be at least 1, got {attempts} and {threads}")
        self.judge = judge
        self.question = question
        self.revision = revision
        self.attempts = attempts
        self.threads = threads

    @property
    def fingerprint(self) -> str:
        """sha256 of the judge's name and settings, the question and the revision."""
        parts = [self.judge.name, sorted(self.judge.settings.items()), self.question, self.revision]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,), in [0.2, 1].

        Raises:
            JudgeError: the judge cannot be asked, or gives no score.
            ValueError: images, prompts and metadata that do not belong together.
        """
        check_batch(images, prompts, metadata)
        levels = unit_to_uint8(images).cpu()
        with ThreadPoolExecutor(self.threads) as pool:
            scores = list(pool.map(self._ask, levels, prompts))
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, picture: Tensor, prompt: str) -> float:
        message: Message = [picture, self.question.replace("{prompt}", prompt)]
        number: float = ask(self.judge, message, parse_final_score, self.attempts).parsed
        return number / _HIGHEST
