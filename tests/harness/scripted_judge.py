"""A judge for tests that says what it is told, and a small benchmark for it to judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lightning_gen.metrics.judging.egip_rules import Constraint, Entity
from lightning_gen.metrics.judging.gen_arena import GenArenaCase, ReferenceImage
from lightning_gen.metrics.judging.judges import Message

__all__ = ["ScriptedJudge", "benchmark", "image_of", "verdict_json"]


class ScriptedJudge:
    """Answers with what a function makes of the instruction (the JSON at the end of the message)."""

    def __init__(
        self, answer: Callable[[dict[str, Any]], str], name: str = "scripted", temperature: float = 0.0
    ) -> None:
        self.answer = answer
        self.name = name
        self.settings: Mapping[str, Any] = {"judge_temperature": temperature}
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> str:
        self.messages.append(list(message))
        instruction = next(part for part in reversed(message) if isinstance(part, str) and part.startswith("{"))
        return self.answer(json.loads(instruction))


def verdict_json(instruction: dict[str, Any], failing: tuple[str, ...] = ()) -> str:
    """Every item passes but those that are named."""
    return json.dumps(
        {
            kind: [
                {"id": item["id"], "verdict": "fail" if item["id"] in failing else "pass", "reason": "seen"}
                for item in instruction[kind]
            ]
            for kind in ("entities", "constraints")
        }
    )


def benchmark(folder: Path, count: int = 4) -> list[GenArenaCase]:
    """Cases with two entities, two constraints and one reference image."""
    path = folder / "hero.png"
    Image.new("RGB", (4, 3), (200, 10, 30)).save(path)
    return [
        GenArenaCase(
            f"1-cartoon_{number:03}",
            "1-cartoon",
            f"Hero {number} at a gate",
            (Entity("e1", "hero", ("r1",)), Entity("e2", "gate")),
            (Constraint("c1", "layout", "hero left of the gate", ("e1", "e2")), Constraint("c2", "attribute", "night")),
            (ReferenceImage("r1", path),),
        )
        for number in range(count)
    ]


def image_of(case: GenArenaCase) -> torch.Tensor:
    """A picture that depends on the case."""
    return torch.full((3, 4, 5), int(case.case_id[-3:]) + 1, dtype=torch.uint8)
