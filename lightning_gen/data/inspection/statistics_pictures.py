"""Counts of a data set as pictures: sizes, labels, and who beats whom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gen.data.inspection.statistics import PairStatistics, Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_statistics"]

_MOST_MODELS = 24
_MOST_BARS = 60


def draw_statistics(found: Statistics, folder: Path) -> list[Path]:
    """Write ``sizes.png``, ``labels.png`` and ``wins.png``, those of them for which there is anything to show.

    Args:
        found: the counts.
        folder: where to; made if it does not exist.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Figure] = {}
    if any(len(sizes) for sizes in found.sizes.values()):
        pictures["sizes"] = _sizes(found)
    if found.pairs is not None or found.classes or found.tasks:
        pictures["labels"] = _labels(found)
    if found.pairs is not None and found.pairs.meetings:
        pictures["wins"] = _wins(found.pairs)
    written = []
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pictures of the counts need matplotlib: pip install matplotlib, or leave --out away for the table alone"
        ) from None
    figure: Figure = Figure(figsize=(width, height), layout="constrained")
    # Drawn into memory: no window system and no state of the process is involved.
    FigureCanvasAgg(figure)
    return figure


def _sizes(found: Statistics) -> Figure:
    figure = _figure(10, 4)
    short, ratio = figure.subplots(1, 2)
    for stem, sizes in found.sizes.items():
        if len(sizes):
            name = stem or "picture"
            short.hist(sizes.min(1), bins=50, histtype="step", label=name)
            ratio.hist(np.log2(sizes[:, 1] / sizes[:, 0]), bins=50, histtype="step", label=name)
    short.set(xlabel="shorter side, pixels", ylabel="pictures")
    ratio.set(xlabel="width / height", ylabel="pictures")
    ticks = np.arange(np.floor(ratio.get_xlim()[0]), np.ceil(ratio.get_xlim()[1]) + 1)
    ratio.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    short.legend()
    return figure


def _labels(found: Statistics) -> Figure:
    figure = _figure(10, 4)
    axes = figure.subplots()
    if found.pairs is not None:
        names = {1.0: "picture 0 won", 0.5: "tie", 0.0: "picture 1 won"}
        bars = {names.get(label, f"{label:g}"): n for label, n in sorted(found.pairs.labels.items(), reverse=True)}
        _bars(axes, bars, "pairs")
    elif found.classes:
        counts = sorted(found.classes.values(), reverse=True)
        axes.step(np.arange(len(counts)), counts, where="mid")
        axes.set(xlabel="classes, the most frequent first", ylabel="samples", ylim=(0, None))
    else:
        _bars(axes, dict(found.tasks.most_common(_MOST_BARS)), "samples")
    return figure


def _bars(axes: Any, counts: dict[str, int], unit: str) -> None:
    axes.bar(list(counts), list(counts.values()))
    axes.set(ylabel=unit)
    if len(counts) > 6:
        axes.tick_params(axis="x", labelrotation=90)


def _wins(pairs: PairStatistics) -> Figure:
    models = pairs.models(_MOST_MODELS)
    rates, games = pairs.wins(models)
    side = 3 + 0.5 * len(models)
    figure = _figure(side + 1.5, side)
    axes = figure.subplots()
    image = axes.imshow(rates, vmin=0, vmax=1, cmap="RdBu")
    axes.set_xticks(range(len(models)), models, rotation=90)
    axes.set_yticks(range(len(models)), models)
    axes.set(xlabel="against", title="share of pairs won, a tie as half")
    for row, column in np.argwhere(games > 0).tolist():
        # Dark text on the pale middle of the scale, light text on its ends.
        colour = "black" if abs(rates[row, column] - 0.5) < 0.3 else "white"
        axes.text(column, row, f"{100 * rates[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes)
    return figure
