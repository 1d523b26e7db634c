"""The model card names things that exist, and its example runs."""

import importlib
import re
from pathlib import Path

import lightning_gen.generators.dit as room

CARD = (Path(room.__path__[0]) / "README.md").read_text()


def test_every_function_of_the_card_exists() -> None:
    names = re.findall(r"`([\w/]+)\.py:([\w.]+)`", CARD)
    assert len(names) >= 12
    for file, name in names:
        package = "lightning_gen" if "/" in file else "lightning_gen.generators.dit"
        found: object = importlib.import_module(f"{package}.{file.replace('/', '.')}")
        for part in name.split("."):
            found = getattr(found, part)


def test_the_example_runs() -> None:
    code = CARD.split("```python")[1].split("```")[0]
    space: dict[str, object] = {}
    exec(code, space)
    latents = space["latents"]
    assert latents.values.shape == (2, 256, 64) and latents.grid.tolist() == [[16, 16], [12, 20]]  # type: ignore[attr-defined]
