"""Float8 products on the CPU: torchao rounds the factors and multiplies in float32."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from unittest import mock

import pytest

from lightning_gen.training import strategies

__all__ = ["emulated_float8", "needs_torchao"]

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="pip install torchao")


@contextlib.contextmanager
def emulated_float8() -> Iterator[None]:
    """Let the CPU pass for a device that multiplies in float8, also in training."""
    import torchao.float8

    config = functools.partial(torchao.float8.Float8LinearConfig, emulate=True)
    with (
        mock.patch.object(torchao.float8, "Float8LinearConfig", config),
        mock.patch.object(strategies, "require_float8", lambda device: None),
    ):
        yield
