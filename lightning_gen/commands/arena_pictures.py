"""Pictures of an arena: the leaderboard with intervals, who beats whom, and whether predictions hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from lightning_gen.alignment.arena_po.arena import Arena
    from lightning_gen.alignment.arena_po.arena_calibration import Calibration

__all__ = ["draw_calibration", "draw_leaderboard", "draw_wins"]

_MOST_MODELS: Final = 40
_DPI: Final = 120


def draw_leaderboard(arena: Arena, level: float, path: Path) -> Path:
    """Means with their intervals, the best above.

    Args:
        arena: fitted.
        level: coverage.
        path: PNG to write.

    Returns:
        The file.
    """
    lines = arena.leaderboard(level)[:_MOST_MODELS]
    figure = _figure(8, 1.5 + 0.28 * len(lines))
    axes = figure.subplots()
    places = np.arange(len(lines))
    means = np.array([line.mean for line in lines])
    ends = np.array([line.interval for line in lines])
    axes.errorbar(means, places, xerr=np.abs(ends - means[:, None]).T, fmt="o", capsize=3, markersize=4)
    axes.set_yticks(places, [line.name for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel=f"capability, {level:.0%} interval")
    return _saved(figure, path)


def draw_wins(arena: Arena, path: Path) -> Path:
    """Share of games won of every pair of models: counted, ties as half where they counted, and beside it predicted.

    Args:
        arena: fitted.
        path: PNG to write.

    Returns:
        The file.
    """
    from lightning_gen.alignment.arena_po.arena_calibration import predicted_wins

    order = np.argsort(-arena.mean, kind="stable")[:_MOST_MODELS]
    met = arena.counted
    points, games = np.zeros((2, len(arena), len(arena)))
    points[met.first, met.second] = met.wins + met.ties / 2
    points[met.second, met.first] = met.losses + met.ties / 2
    games[met.first, met.second] = games[met.second, met.first] = met.wins + met.losses + met.ties
    with np.errstate(invalid="ignore"):
        counted = np.where(games > 0, points / np.maximum(games, 1), np.nan)
    every = np.repeat(np.arange(len(arena)), len(arena)), np.tile(np.arange(len(arena)), len(arena))
    predicted = predicted_wins(arena, *every).reshape(len(arena), -1)
    np.fill_diagonal(predicted, np.nan)
    names = [arena.names[model] for model in order]
    side = 3 + 0.42 * len(names)
    figure = _figure(2 * side, side + 0.8)
    for axes, title, shares in zip(figure.subplots(1, 2), ("counted", "predicted"), (counted, predicted), strict=True):
        _matrix(axes, shares[np.ix_(order, order)], names, title)
    return _saved(figure, path)


def draw_calibration(found: Calibration, path: Path) -> Path:
    """Predicted against counted shares, the number of games below.

    Args:
        found: the comparison.
        path: PNG to write.

    Returns:
        The file.
    """
    figure = _figure(5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    predicted = np.array([one.predicted for one in found.bins])
    observed = np.array([one.observed for one in found.bins])
    ends = np.array([one.interval for one in found.bins])
    above.plot((0.5, 1), (0.5, 1), color="grey", linewidth=1)
    above.errorbar(predicted, observed, yerr=np.abs(ends - observed[:, None]).T, fmt="o", capsize=3, markersize=4)
    above.set(ylabel="favourite won", title=f"calibration error {found.error:.4f}, log loss {found.log_loss:.4f}")
    below.bar(predicted, [one.games for one in found.bins], width=0.03)
    below.set(xlabel="predicted", ylabel="games", xlim=(0.48, 1.02))
    return _saved(figure, path)


def _matrix(axes: Any, shares: Any, names: list[str], title: str) -> None:
    axes.imshow(shares, vmin=0, vmax=1, cmap="RdBu")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="against", title=title)
    for row, column in np.argwhere(~np.isnan(shares)).tolist():
        # Dark text on the pale middle of the scale, light text on its ends.
        colour = "black" if abs(shares[row, column] - 0.5) < 0.3 else "white"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pictures of an arena need matplotlib: pip install matplotlib, or leave --out away for the table alone"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path
