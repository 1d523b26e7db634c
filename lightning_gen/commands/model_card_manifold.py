"""What a card says about the latent space of a tokenizer: the table of ``lightning evaluate manifold``.

The table is taken from the run that the weights come from (``<run>/manifold``, or a folder in it), and only where it
was measured on the very file that the card lies beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .model_card import Exported, Section

__all__ = ["manifold"]

_WEIGHTS: Final = "model.safetensors"
_MEANINGS: Final = {
    "ssc": "SSC, tokens fall into the picture's segments; higher is better",
    "lpc": "LPC, a small step moves the picture; lower is better",
    "gsq": "GSQ, the nearest neighbour is of the same class; higher is better",
    "erank": "eRank, share of the channels in use; higher is better",
}


def manifold(exported: Exported) -> Section | None:
    """SSC, LPC, GSQ and eRank of the weights, beside those of the tokenizers that were measured with them.

    Args:
        exported: what the card is about.

    Returns:
        The section, or None where the run holds no report on these weights.
    """
    weights = exported.output / _WEIGHTS
    reports = [] if exported.run is None else sorted(_reports(exported.run / "manifold"), key=_age)
    if not reports or not weights.is_file():
        return None
    from lightning_gen.metrics.protocol import file_sha256

    digest = file_sha256(weights)
    for path in reports:
        content = _read(path)
        own = [name for name, one in content["inputs"].items() if isinstance(one, Mapping) and _is_of(one, digest)]
        if own:
            return _section(content["metrics"], own[0], path.with_name("manifold.png"))
    return None


def _reports(folder: Path) -> Iterator[Path]:
    yield from folder.glob("metrics.json")
    yield from folder.glob("*/metrics.json")


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _read(path: Path) -> dict[str, Any]:
    """The report; nothing where the file is another one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if isinstance(content, dict) and content.get("verb") == "manifold":
        return content
    return {"inputs": {}, "metrics": []}


def _is_of(source: Mapping[str, Any], digest: str) -> bool:
    return source.get("sha256") == digest


def _section(metrics: Sequence[Mapping[str, Any]], own: str, picture: Path) -> Section:
    from lightning_gen.metrics.report import number

    cells: dict[str, dict[str, str]] = {}
    counts: dict[str, object] = {}
    names = [own]
    for one in metrics:
        card = one["protocol"]
        name = card["details"].get("tokenizer")
        if not name:
            continue
        names += [] if name in names else [name]
        ends = one["interval"]
        text = "-" if one["value"] is None else number(one["value"])
        text += "" if ends is None else f" [{', '.join(map(number, ends))}]"
        cells.setdefault(card["id"], {})[name] = text
        counts.setdefault(card["id"], card["count"])
    rows = ["| | N | " + " | ".join([f"**{own}** (these weights)", *names[1:]]) + " |"]
    rows += ["| --- | --- | " + " | ".join("---" for _ in names) + " |"]
    rows += [
        f"| `{measure}` | {counts[measure]} | " + " | ".join(found.get(name, "-") for name in names) + " |"
        for measure, found in cells.items()
    ]
    said = [text for metric, text in _MEANINGS.items() if any(measure.startswith(f"{metric}/") for measure in cells)]
    shown = picture.is_file()
    text = "\n".join(
        [
            "Measured by `lightning evaluate manifold` on this file of weights (arXiv:2605.07915), 95 % intervals. "
            f"{'; '.join(said)}.",
            "",
            *rows,
            *(["", "![the latent space](card/manifold.png)"] if shown else []),
        ]
    )
    return Section("Latent space", text, {"manifold.png": picture} if shown else {})
