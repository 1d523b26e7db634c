"""The picture of `lightning evaluate manifold`: values, the two main directions of the pooled latents, clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.labelled_features import FeatureTable
    from lightning_gen.metrics.manifold.structure import ClusterMap
    from lightning_gen.metrics.protocol import Measurement

__all__ = ["ClusteredPicture", "MeasuredTokenizer", "draw_manifold"]

_CLASSES: Final = 10
_POINTS: Final = 2000
_DPI: Final = 110


@dataclasses.dataclass(frozen=True)
class ClusteredPicture:
    """A picture with a tokenizer's clusters of it.

    Attributes:
        image: float, (3, S, S) in [-1, 1].
        found: clusters and true segments.
    """

    image: Tensor
    found: ClusterMap


@dataclasses.dataclass(frozen=True)
class MeasuredTokenizer:
    """What was found about one tokenizer.

    Attributes:
        name: as the user calls it.
        measurements: its numbers.
        pooled: mean tokens with classes; None = no labelled pictures were given.
        clustered: None = no segment maps were given, or no picture has two segments.
    """

    name: str
    measurements: Sequence[Measurement]
    pooled: FeatureTable | None
    clustered: ClusteredPicture | None


def draw_manifold(tokenizers: Sequence[MeasuredTokenizer], path: Path) -> Path:
    """Draw bars of every measure, a scatter of each tokenizer's pooled latents, and its clusters of one picture.

    Args:
        tokenizers: in the order of the table.
        path: PNG to write; its folder exists.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the picture needs matplotlib: pip install matplotlib (the numbers are written already)"
        ) from None
    names = list(dict.fromkeys(one.protocol.metric for each in tokenizers for one in each.measurements))
    names = [name for name in names if not name.startswith("lpc-")]
    rows = [bool(names), any(one.pooled for one in tokenizers), any(one.clustered for one in tokenizers)]
    columns = max(len(tokenizers) + 2 * rows[2], len(names), 2)
    figure: Any = Figure(figsize=(2.6 * columns, 2.8 * sum(rows)), layout="constrained")
    # Drawn into memory: no window system and no state of the process is involved.
    FigureCanvasAgg(figure)
    strips = list(figure.subfigures(sum(rows), 1, squeeze=False)[:, 0])
    if rows[0]:
        _bars(strips.pop(0), names, tokenizers)
    if rows[1]:
        _scatters(strips.pop(0), [one for one in tokenizers if one.pooled is not None])
    if rows[2]:
        _clusters(strips.pop(0), [one for one in tokenizers if one.clustered is not None])
    figure.savefig(path, dpi=_DPI)
    return path


def _bars(strip: Any, names: Sequence[str], tokenizers: Sequence[MeasuredTokenizer]) -> None:
    directions = {"ssc": "higher is better", "gsq": "higher is better", "erank": "higher is better"}
    axes = strip.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for place, tokenizer in enumerate(tokenizers):
            found = [one for one in tokenizer.measurements if one.protocol.metric == name]
            if not found or found[0].value != found[0].value:
                continue
            value, interval = found[0].value, found[0].interval
            reach = None
            if interval is not None:
                reach = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axis.bar(place, value, yerr=reach, capsize=4, color=f"C{place % 10}")
        axis.set_xticks(range(len(tokenizers)), [one.name for one in tokenizers], rotation=30, ha="right")
        axis.set_title(f"{name}, {directions.get(name, 'lower is better')}", fontsize=9)


def _scatters(strip: Any, tokenizers: Sequence[MeasuredTokenizer]) -> None:
    import torch

    axes = strip.subplots(1, len(tokenizers), squeeze=False)[0]
    for axis, tokenizer in zip(axes, tokenizers, strict=True):
        assert tokenizer.pooled is not None
        table = tokenizer.pooled
        places, share = _main_plane(table.features)
        for number, label in enumerate(torch.unique(table.labels).tolist()[:_CLASSES]):
            mine = places[table.labels == label][:_POINTS]
            axis.scatter(mine[:, 0], mine[:, 1], s=6, color=f"C{number}", linewidths=0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{tokenizer.name}: 2 directions, {100 * share:.0f} % of the variance", fontsize=9)


def _main_plane(features: Tensor) -> tuple[Any, float]:
    """Coordinates along the two directions of largest variance, and their share of it."""
    import torch

    rows = features.detach().double().cpu()
    rows = rows - rows.mean(0)
    values, directions = torch.linalg.eigh(rows.T @ rows)
    plane = directions[:, -2:].flip(1)
    share = float(values[-2:].sum() / values.sum().clamp(min=1e-300))
    places = rows @ plane
    # One channel alone spans no plane.
    places = torch.cat([places, torch.zeros(len(rows), 2 - places.shape[1], dtype=places.dtype)], 1)
    return places.numpy(), share


def _clusters(strip: Any, tokenizers: Sequence[MeasuredTokenizer]) -> None:
    import torch

    axes = strip.subplots(1, 2 + len(tokenizers), squeeze=False)[0]
    first = tokenizers[0].clustered
    assert first is not None
    axes[0].imshow(((first.image.cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
    axes[0].set_title("picture", fontsize=9)
    maps = [("segments", first.found.segments)]
    for one in tokenizers:
        assert one.clustered is not None
        maps.append((f"{one.name}: {one.clustered.found.score:.2f}", one.clustered.found.clusters))
    for axis, (title, numbers) in zip(axes[1:], maps, strict=True):
        # Numbers of segments may be millions: only which cells are alike is shown.
        plain = torch.unique(numbers.cpu(), return_inverse=True)[1]
        axis.imshow(plain.numpy(), cmap="tab20", interpolation="nearest", vmin=0, vmax=19)
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
