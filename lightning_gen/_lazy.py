"""Names that are imported the first time somebody asks for them.

`import lightning_gen` must stay free of torch and Lightning, and one broken optional package must break only the part
that needs it. A package's `__init__` therefore lists where its names live and hands the list to :func:`attach`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["attach"]


def attach(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make a package's names importable without importing their modules.

    Use it as ``__getattr__, __dir__, __all__ = attach(__name__, {"Tokens": ".tokens"})``.

    Args:
        package: the package's ``__name__``.
        exports: public name -> module that defines it, relative to the package (leading dot) or absolute.

    Returns:
        The module-level ``__getattr__`` and ``__dir__`` of PEP 562, and the list for ``__all__``.
    """
    names = sorted(exports)

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(exports[name], package), name)
        # Kept, so that the second access is an ordinary attribute access.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return __getattr__, __dir__, names
