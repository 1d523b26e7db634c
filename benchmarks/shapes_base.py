"""Everything that stands in the card of the embedded world's text-to-image base.

(a) GenEval's score with the exact detector on the 553 prompts, by task, rare pairs against common ones, per guidance
(b) every pair of colour and kind alone, rare against common
(c) images per second at 4, 10 and 25 steps, with and without guidance
(d) with --run: the training curve and time, and what float16 and bfloat16 weights change against float32

    python benchmarks/shapes_base.py --run runs/text_to_image_shapes --card data/shapes_base

writes score.json and curve.png into the card's folder and its tables into the card's README.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes_scoring import Share, is_rare, pair_requests, pictures_of, share, summary, verdicts

from lightning_gen.backbones.shipped import shipped_or_given
from lightning_gen.generators.dit.text_module import TextLatentDiffusion
from lightning_gen.metrics.compositional.geneval_prompts import TAGS
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.detector import ShapesDetector

STEPS = (4, 10, 25)
_TIMED = 64


def scores(model: TextLatentDiffusion, options: argparse.Namespace) -> dict[str, Any]:
    """Part (a) for every guidance, and part (b)."""
    requests, found, pairs = benchmark_requests()[:: options.every], {}, {}
    for scale in options.guidance:
        how = dataclasses.replace(model.sampling, guidance=scale)
        found[f"{scale:g}"] = summary(verdicts(model, requests, how, options.seed, options.pictures), requests)
        alone = verdicts(model, pair_requests(), how, options.seed, options.pairs)
        parts = {"rare": [], "common": []}
        for request, results in zip(pair_requests(), alone, strict=True):
            parts["rare" if is_rare(request) else "common"].append(results)
        pairs[f"{scale:g}"] = {name: share(part)._asdict() for name, part in parts.items()}
    return {"guidance": found, "pairs": pairs}


def speed(model: TextLatentDiffusion, guidance: Sequence[float], repetitions: int) -> list[dict[str, float]]:
    """Part (c): the median over some batches of 64."""
    prompts = [request.prompt() for request in benchmark_requests()[:_TIMED]]
    rows = []
    for steps in STEPS:
        for scale in guidance:
            how = dataclasses.replace(model.sampling, steps=steps, guidance=scale)
            model.make(prompts[:8], sampling=how)
            seconds = []
            for _ in range(repetitions):
                start = time.perf_counter()
                model.make(prompts, sampling=how)
                seconds.append(time.perf_counter() - start)
            rows.append({"steps": steps, "guidance": scale, "images_per_second": _TIMED / statistics.median(seconds)})
    return rows


def training(run: Path, out: Path) -> dict[str, float]:
    """Part (d): time and last scores; draws the curve."""
    import yaml
    from matplotlib.figure import Figure

    batch = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["global_batch_size"]
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    loss, score, rate = (
        column(rows, name) for name in ("train/loss", "val/geneval_overall", "throughput/images_per_second")
    )
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    left = figure.subplots()
    left.plot(*zip(*loss, strict=True), color="0.75", linewidth=0.6)
    left.plot(*zip(*smoothed(loss), strict=True), color="tab:blue", label="loss, mean of 20")
    left.set(xlabel=f"optimiser steps of {batch} pictures", ylabel="training loss", yscale="log")
    if score:
        right = left.twinx()
        right.plot(*zip(*score, strict=True), color="tab:red", marker="o", label="GenEval's score, averaged weights")
        right.set(ylabel="score, every fourth prompt", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(out / "curve.png", dpi=130)
    steps = loss[-1][0] + 1
    seconds = steps * batch / statistics.harmonic_mean([value for _, value in rate])
    return {"steps": steps, "pictures": steps * batch, "training_minutes": round(seconds / 60, 2)} | (
        {"last_validation_score": score[-1][1]} if score else {}
    )


def column(rows: Sequence[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    """Steps and values of one column of a run's log."""
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


def smoothed(points: Sequence[tuple[int, float]], width: int = 20) -> list[tuple[float, float]]:
    """Means of neighbours."""
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups]


def precision(run: Path, seed: int, every: int) -> list[dict[str, Any]]:
    """Part (d): pictures of rounded weights against those of the same weights in float32."""
    from lightning_gen.commands.export import export

    requests = benchmark_requests()[::every]
    pictures, judged, rows = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float16", "bfloat16"):
            export(run, Path(folder) / dtype, dtype=dtype)
            model = TextLatentDiffusion.from_pretrained(Path(folder) / dtype)
            parts = [images for _, images in pictures_of(model, requests, model.sampling, seed)]
            pictures[dtype] = torch.cat(parts).float()
            results = verdicts(model, requests, model.sampling, seed, 1)
            judged[dtype] = [one[0].correct for one in results]
    for dtype in ("float16", "bfloat16"):
        apart = (pictures[dtype] - pictures["float32"]).abs()
        changed = sum(a != b for a, b in zip(judged[dtype], judged["float32"], strict=True))
        rows.append(
            {
                "dtype": dtype,
                "pictures": len(requests),
                "mean_levels": float(apart.mean()),
                "share_off_by_8": float((apart > 8).float().mean()),
                "verdicts_changed": changed,
                "score": sum(judged[dtype]) / len(requests),
                "score_float32": sum(judged["float32"]) / len(requests),
            }
        )
    return rows


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The card's tables by the names of their places."""
    scales = list(found["guidance"])
    head = [f"| | {' | '.join(f'guidance {scale}' for scale in scales)} |", "| --- |" + " --- |" * len(scales)]
    by = [found["guidance"][scale] for scale in scales]
    overall = [f"{100 * one['overall']:.1f} +- {196 * (one['overall_error'] or 0):.1f}" for one in by]
    lines = [*head, f"| overall (mean of tasks) | {' | '.join(overall)} |"]
    for tag in TAGS:
        name = f"{tag} ({by[0]['tags'][tag]['prompts']})"
        lines.append(f"| {name} | {' | '.join(str(Share(**one['tags'][tag])) for one in by)} |")
    rare = list(head)
    for part in ("rare", "common"):
        prompts = f"prompts that name a {part} pair ({by[0][part]['prompts']})"
        rare.append(f"| {prompts} | {' | '.join(str(Share(**one[part])) for one in by)} |")
    for part in ("rare", "common"):
        alone = [Share(**found["pairs"][scale][part]) for scale in scales]
        rare.append(
            f"| {part} pairs alone ({alone[0].prompts}, {found['pairs_pictures']} pictures each) | "
            f"{' | '.join(map(str, alone))} |"
        )
    made = {"score": "\n".join(lines), "rare": "\n".join(rare)}
    rows = [f"| {row['steps']} | {row['guidance']:g} | {row['images_per_second']:.1f} |" for row in found["speed"]]
    made["speed"] = "\n".join(["| steps | guidance | images/s |", "| --- | --- | --- |", *rows])
    if "precision" in found:
        rows = [
            f"| {row['dtype']} | {row['mean_levels']:.3f} | {100 * row['share_off_by_8']:.2f} % | "
            f"{row['verdicts_changed']} of {row['pictures']} | {100 * row['score']:.1f} "
            f"({100 * row['score_float32']:.1f}) |"
            for row in found["precision"]
        ]
        title = "| weights | mean difference, levels | values off by over 8 | verdicts changed | correct (float32) |"
        made["precision"] = "\n".join([title, "| --- | --- | --- | --- | --- |", *rows])
    if "training" in found:
        lines = [f"- {key.replace('_', ' ')}: {value:,.10g}" for key, value in found["training"].items()]
        made["training"] = "\n".join(["![training loss and score](curve.png)", "", *lines])
    return made


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A card with its tables between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, table in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start not in text or end not in text:
            raise ValueError(f"the card has no place for the table {name!r}: put {start} and {end} into it")
        text = f"{text.partition(start)[0]}{start}\n{table}\n{end}{text.partition(end)[2]}"
    return text


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shapes_base", help="folder (the shipped ones)")
    parser.add_argument("--card", type=Path, help="folder whose README.md gets the tables; score.json goes there too")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes_base_score"), help="without --card: folder")
    parser.add_argument("--run", type=Path, help="run folder, for the curve and the precision")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0], help="scales (%(default)s)")
    parser.add_argument("--pictures", type=int, default=1, help="for every prompt (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pictures of every pair alone (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the noise (%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth prompt: a quick look")
    parser.add_argument("--repetitions", type=int, default=3, help="timed batches per row of speed (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = options_of(argv)
    torch.set_num_threads(options.threads)
    out = options.card or options.out
    out.mkdir(parents=True, exist_ok=True)
    model = TextLatentDiffusion.from_pretrained(options.weights)
    file = Path(shipped_or_given(options.weights)) / "model.safetensors"
    found: dict[str, Any] = {
        "weights": {"sha256": file_sha256(file), "bytes": file.stat().st_size},
        "detector": {"name": ShapesDetector.name, "sha256": ShapesDetector().fingerprint},
        "seed": options.seed,
        "pictures": options.pictures,
        "every": options.every,
        "pairs_pictures": options.pairs,
        "sampling": dataclasses.asdict(model.sampling),
        "threads": options.threads,
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()},
        **scores(model, options),
        "speed": speed(model, options.guidance, options.repetitions),
    }
    if options.run is not None:
        found["training"] = training(options.run, out)
        found["precision"] = precision(options.run, options.seed, max(4, options.every))
    (out / "score.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    made = tables(found)
    print("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()))
    if options.card is not None:
        card = options.card / "README.md"
        card.write_text(filled(card.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(f"\nsaved under {out}")


if __name__ == "__main__":
    main()
