"""The 553 prompts on which generators of the embedded world are measured, in GenEval's proportions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.mixture import draw_request
from lightning_gen.training.randomness import numpy_generator

__all__ = ["COUNTS", "ShapesPrompts", "benchmark_prompts", "benchmark_requests"]

COUNTS: Final = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""Prompts of every task."""

_SEED: Final = 2310_11513


@functools.cache
def benchmark_requests() -> tuple[Request, ...]:
    """All requests, task by task; no prompt comes twice, and rare pairs are as frequent as others.

    Returns:
        553 of them, always the same.
    """
    requests: dict[str, Request] = {}
    for tag, count in COUNTS.items():
        wanted, number = len(requests) + count, 0
        while len(requests) < wanted:
            request = draw_request(numpy_generator(_SEED, f"benchmark {tag}", number), skewed=False, tag=tag)
            requests.setdefault(request.prompt(), request)
            number += 1
    return tuple(requests.values())


def benchmark_prompts() -> list[dict[str, Any]]:
    """All records in GenEval's schema.

    Returns:
        553 dictionaries with tag, include, exclude and prompt.
    """
    return [request.metadata() for request in benchmark_requests()]


class ShapesPrompts:
    """The prompts as a configuration names them."""

    def records(self) -> Sequence[Mapping[str, Any]]:
        """All records in GenEval's schema."""
        return benchmark_prompts()
