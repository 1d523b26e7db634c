"""`lightning evaluate manifold`: the latent spaces of several tokenizers side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate_options import new_folder, positive
from .options import Examples, add_workers, device_of

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from lightning_gen.interfaces import Autoencoder
    from lightning_gen.metrics.lpips import LPIPS
    from lightning_gen.metrics.manifold.measures import ManifoldMeasures
    from lightning_gen.metrics.protocol import Measurement
    from lightning_gen.metrics.segmented_pictures import SegmentedPictures

    from .manifold_picture import ClusteredPicture, MeasuredTokenizer
    from .manifold_sources import LabelledPictures, TokenizerSource

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
    Watch = Callable[[str, int, int], None]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning evaluate manifold --tokenizers vitok=ViTokV2:350M-f16x64 sd=DiffusersVAE:weights/sdxl/vae \\
      --data data/imagenet/val --segments coco/panoptic_val2017.json coco/val2017 \\
      --lpips vgg16-397923af.pth --out runs/manifold
  lightning evaluate manifold --tokenizers tiny=ViTokV2:runs/tiny/export --resolution 64 \\
      --data data/shapes/val --segments lightning_gen.shapes.segments.ShapesSegments --out runs/manifold
  lightning evaluate manifold --results runs/*/manifold --against gfid.json

what is measured (arXiv:2605.07915), and what it needs:
  ssc    do the tokens of a picture cluster into its segments?            --segments; higher is better
  lpc    how far does a small step in any direction move the picture?     --data, --lpips; lower is better
  gsq    is the nearest neighbour of the mean token of the same class?    --data with classes; higher is better
  erank  share of the channels that the mean tokens use                   --data; higher is better

--data is a folder whose first folders are classes, or shards. Pictures are cut to squares, so every tokenizer sees the
same pixels; numbers of different resolutions do not compare. --statistics measures latents as a generator sees them,
with every channel normalised. --against is a JSON object, name of a tokenizer -> gFID of a generator trained on it; the
rank correlations with it are printed with their intervals. They join what is measured now with earlier --results.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "manifold",
        help="SSC, LPC, GSQ and effective rank of tokenizers' latent spaces",
        description="Measure the latent spaces of tokenizers side by side: structure, continuity, semantics, rank.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument(
        "--tokenizers", nargs="+", default=[], metavar="NAME=CLASS:WEIGHTS", help="what is measured, under which name"
    )
    parser.add_argument("--data", metavar="SOURCE", help="pictures with classes: a folder of folders, or shards")
    parser.add_argument(
        "--segments", nargs="+", metavar="WHERE", help="panoptic JSON and picture folder, shards, or package.Class"
    )
    parser.add_argument("--statistics", nargs="+", default=[], metavar="NAME=FILE", help="latents.json of a tokenizer")
    parser.add_argument("--resolution", type=positive, default=256, metavar="PIXELS", help="of the pictures (256)")
    parser.add_argument("--count", type=positive, metavar="N", help="the first N pictures of --data (all)")
    parser.add_argument("--segments-count", type=positive, metavar="N", help="the first N of --segments (all)")
    parser.add_argument("--lpips", metavar="FILE", help="torchvision's ImageNet weights of the trunk, for lpc")
    parser.add_argument("--lpips-net", choices=("alex", "vgg", "squeeze"), default="vgg", help="which trunk (vgg)")
    parser.add_argument("--lpc-count", type=positive, metavar="N", help="pictures for lpc: 9 decodes each (all)")
    rules = parser.add_argument_group("rules (they are in the protocol cards)")
    rules.add_argument("--sigma", type=float, default=0.1, metavar="F", help="temperature of ssc (%(default)s)")
    rules.add_argument("--void", choices=("ignore", "segment"), default="ignore", help="pixels of no segment (ignore)")
    rules.add_argument("--classes", type=positive, default=100, metavar="N", help="of a draw of gsq (%(default)s)")
    rules.add_argument("--draws", type=positive, default=5, metavar="N", help="of gsq (%(default)s)")
    rules.add_argument("--seed", type=int, default=0, help="of draws, directions and clusterings (0)")
    correlation = parser.add_argument_group("correlation with generators")
    correlation.add_argument("--results", nargs="+", default=[], metavar="WHERE", help="earlier reports of this verb")
    correlation.add_argument("--against", metavar="FILE", help="JSON: name of a tokenizer -> gFID")
    parser.add_argument(
        "--out",
        type=new_folder,
        metavar="FOLDER",
        help="write metrics.json and manifold.png there",
    )
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=positive, default=16, metavar="N", help="pictures at a time (%(default)s)")
    work.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto = cuda if there is one (auto)")
    add_workers(work, "--num-workers", "processes that decode")
    parser.set_defaults(run=_run, check=_check)


def _check(options: argparse.Namespace) -> None:
    from .manifold_sources import tokenizer_sources

    if not options.tokenizers and not (options.results and options.against):
        raise ValueError("give --tokenizers to measure, or earlier --results with --against to correlate")
    if options.tokenizers and options.data is None and options.segments is None:
        raise ValueError("there is nothing to measure on: give --data (gsq, erank, lpc), --segments (ssc), or both")
    if options.results and options.against is None:
        raise ValueError("--results are only read for a correlation: give --against too")
    tokenizer_sources(options.tokenizers, options.statistics)


def _run(options: argparse.Namespace) -> int:
    from .data_packing import progress_bars
    from .manifold_sources import generation_scores, open_labelled, open_segmented, tokenizer_sources

    _check(options)
    device = device_of(options.device, apple=False)
    sources = tokenizer_sources(options.tokenizers, options.statistics)
    generation = None if options.against is None else generation_scores(options.against)
    earlier = _earlier(options.results, list(sources))
    data = open_labelled(options.data, options.resolution, options.count) if sources else None
    segmented = open_segmented(options.segments) if sources else None
    if segmented is not None and options.segments_count is not None and options.segments_count > len(segmented):
        raise ValueError(f"--segments has {len(segmented):,} pictures, {options.segments_count:,} are asked for")
    warnings = []
    if sources and data is not None and options.lpips is None:
        warnings.append("lpc is left out: give --lpips")
    measured = []
    lpips = _lpips(options, device) if data is not None else None
    with progress_bars() as watch:
        for name, source in sources.items():
            measured.append(_measure(options, name, source, data, segmented, lpips, device, watch))
    if data is not None and not any(one.protocol.metric == "gsq" for each in measured for one in each.measurements):
        warnings.append("gsq is left out: no picture of --data has a class")
    correlations = [] if generation is None else _correlations(earlier, measured, generation, options.seed)
    inputs: dict[str, Any] = {name: source.described() for name, source in sources.items()}
    if data is not None:
        inputs["data"] = {"where": data.where, "count": data.count, "fingerprint": data.fingerprint}
    return _finish(options, measured, correlations, {"inputs": inputs, "warnings": warnings})


def _lpips(options: argparse.Namespace, device: torch.device) -> LPIPS | None:
    if options.lpips is None:
        return None
    from lightning_gen.metrics.lpips import LPIPS

    return LPIPS(options.lpips, options.lpips_net).to(device)


def _earlier(places: Sequence[str], taken: Sequence[str]) -> dict[str, dict[str, float]]:
    from lightning_gen.metrics.manifold.correlation import read_results

    found: dict[str, dict[str, float]] = {}
    for place in places:
        for name, values in read_results(place).items():
            if name in found or name in taken:
                raise ValueError(f"--results {place}: the tokenizer {name!r} has results already; names must differ")
            found[name] = values
    return found


def _measure(
    options: argparse.Namespace,
    name: str,
    source: TokenizerSource,
    data: LabelledPictures | None,
    segmented: SegmentedPictures | None,
    lpips: LPIPS | None,
    device: torch.device,
    watch: Watch,
) -> MeasuredTokenizer:
    import torch

    from lightning_gen.metrics.manifold.continuity import LPC
    from lightning_gen.metrics.manifold.measures import ManifoldMeasures
    from lightning_gen.metrics.manifold.structure import SSC

    from .manifold_picture import MeasuredTokenizer

    tokenizer = _loaded(source, device)
    try:
        with torch.no_grad():
            grey = tokenizer.encode(torch.zeros(1, 3, options.resolution, options.resolution, device=device))
        measures = ManifoldMeasures(
            grey.values.shape[-1],
            None if lpips is None else LPC(lpips, seed=options.seed),
            SSC(options.sigma, void=options.void, seed=options.seed),
            options.classes,
            options.draws,
            options.seed,
            options.lpc_count,
        ).to(device)
        if data is not None:
            _count_pictures(options, name, tokenizer, measures, data, device, watch)
        clustered = None
        if segmented is not None:
            clustered = _count_segments(options, name, tokenizer, measures, segmented, device, watch)
        numbers = measures.measurements(name)
    except ValueError as error:
        raise ValueError(f"tokenizer {name}: {error}") from None
    pooled = None if data is None else measures.gsq.table()
    return MeasuredTokenizer(name, numbers, pooled, clustered)


def _loaded(source: TokenizerSource, device: torch.device) -> Autoencoder:
    tokenizer = source.load()
    if source.statistics is None:
        loaded: Autoencoder = tokenizer.to(device)
        return loaded
    from lightning_gen.data.latents.record import LatentRecord
    from lightning_gen.metrics.manifold.measures import NormalisedLatents

    return NormalisedLatents(tokenizer.to(device), LatentRecord.load(source.statistics))


def _count_pictures(
    options: argparse.Namespace,
    name: str,
    tokenizer: Autoencoder,
    measures: ManifoldMeasures,
    data: LabelledPictures,
    device: torch.device,
    watch: Watch,
) -> None:
    done = 0
    for batch in data.batches(options.batch_size, options.num_workers):
        here = batch.to(device)
        measures.count(tokenizer, here.images, here.index, here.label, here.valid)
        done += len(batch)
        watch(f"{name}: pictures", done, data.count)


def _count_segments(
    options: argparse.Namespace,
    name: str,
    tokenizer: Autoencoder,
    measures: ManifoldMeasures,
    segmented: SegmentedPictures,
    device: torch.device,
    watch: Watch,
) -> ClusteredPicture | None:
    """Count all of them; the first with two segments is kept to be shown."""
    import torch

    from .manifold_picture import ClusteredPicture

    shown: ClusteredPicture | None = None
    total = options.segments_count or len(segmented)
    for start in range(0, total, options.batch_size):
        numbers = range(start, min(start + options.batch_size, total))
        pairs = [segmented.read(number, options.resolution) for number in numbers]
        images = torch.stack([image for image, _ in pairs]).to(device)
        maps, index = [one for _, one in pairs], torch.tensor(numbers)
        latents = measures.count_segments(tokenizer, images, maps, index)
        if shown is None:
            candidates = zip(images, measures.ssc.maps(latents, maps, index), strict=True)
            shown = next((ClusteredPicture(x, found) for x, found in candidates if not math.isnan(found.score)), None)
        watch(f"{name}: segments", numbers[-1] + 1, total)
    return shown


def _correlations(
    earlier: Mapping[str, Mapping[str, float]],
    measured: Sequence[MeasuredTokenizer],
    generation: Mapping[str, float],
    seed: int,
) -> list[Measurement]:
    from lightning_gen.metrics.manifold.correlation import correlate

    now = {each.name: {one.protocol.metric: one.value for one in each.measurements} for each in measured}
    return correlate({**earlier, **now}, generation, seed)


def _finish(
    options: argparse.Namespace,
    measured: Sequence[MeasuredTokenizer],
    correlations: Sequence[Measurement],
    more: Mapping[str, Any],
) -> int:
    """Files first: nothing that goes wrong with the terminal or the picture can lose the numbers."""
    from rich.console import Console
    from rich.text import Text

    from lightning_gen.metrics.report import as_table, write_report

    from .manifold_picture import draw_manifold

    paths: list[Path] = []
    if options.out is not None:
        numbers = [*(one for each in measured for one in each.measurements), *correlations]
        rules = {name: getattr(options, name) for name in ("resolution", "segments", "results", "against")}
        inputs = {**more["inputs"], "options": rules}
        paths.append(write_report(options.out, "manifold", numbers, inputs, warnings=more["warnings"]))
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width: protocol ids stay in one piece.
        console = Console(width=180)
    if measured:
        console.print(_side_by_side(measured, options.resolution))
    if correlations:
        console.print(as_table("rank correlation with gFID over tokenizers", correlations))
    notes = dict.fromkeys(
        f"{each.name}: {one.protocol.metric}: {one.note}" for each in measured for one in each.measurements if one.note
    )
    for warning in (*more["warnings"], *notes):
        console.print(Text(f"warning: {warning}"))
    if options.out is not None and measured:
        paths.append(draw_manifold(measured, options.out / "manifold.png"))
    for path in paths:
        console.print(Text(str(path)), soft_wrap=True)
    return 0


def _side_by_side(measured: Sequence[MeasuredTokenizer], resolution: int) -> Table:
    """One row per protocol, one column per tokenizer."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lightning_gen.metrics.report import number

    table = Table(
        title=Text(f"latent spaces at {resolution} x {resolution} pixels, 95 % intervals", style="table.title"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("protocol", no_wrap=True)
    table.add_column("N", justify="right", no_wrap=True)
    for each in measured:
        table.add_column(Text(each.name), justify="right", no_wrap=True)
    rows = [{one.protocol.id: one for one in each.measurements} for each in measured]
    for name in dict.fromkeys(name for row in rows for name in row):
        found = [row.get(name) for row in rows]
        counts = dict.fromkeys(f"{one.protocol.count:,}" for one in found if one is not None)
        cells = []
        for one in found:
            interval = "" if one is None or one.interval is None else " [{}, {}]".format(*map(number, one.interval))
            cells.append(Text("-" if one is None else f"{number(one.value)}{interval}"))
        table.add_row(Text(name), "/".join(counts), *cells)
    return table
