"""What evaluating costs, as ratios to torchmetrics in the same run.

(a) features to mean and covariance, in small batches and in the batches that suit torchmetrics best
(b) two covariances of full rank to the Frechet distance
(c) the most memory that a process takes for both, beyond what it held before
(d) GenEval's rules, against a budget of a millisecond per image (no detector is as fast)

Both sides are given the same features; no network is run.

    python benchmarks/speed/metrics.py
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import measure
import torch
from measure import Row, peak_apart, report, with_standard_options
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_prompts import Clause, GenEvalPrompt
from lightning_gen.metrics.compositional.geneval_rules import apply_rules
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.features import ImageGenerationMetrics
from lightning_gen.metrics.frechet import FrechetReference, Gaussian
from lightning_gen.metrics.images import Images

Compare = Callable[..., Row]


class Amounts(NamedTuple):
    """Sizes of a run."""

    size: int
    samples: int
    solve_repetitions: int
    images: int


FULL = Amounts(2048, 16_384, 3, 2000)
QUICK = Amounts(64, 2200, 1, 50)


def features(amounts: Amounts, seed: int) -> Tensor:
    """Rows that resemble pooled features: not negative, correlated, of very different variances."""
    generator = torch.Generator().manual_seed(seed)
    size = amounts.size
    mix = torch.randn(size, size, generator=generator) * torch.linspace(0, 3, size).neg().exp() / size**0.5
    return torch.randn(amounts.samples, size, generator=generator).matmul(mix).add(0.1 * seed).relu()


class Stored(FeatureExtractor):
    """Hands out given rows, as many as there are pictures."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__(nn.Linear(1, 1), "stored", {"pool": rows.shape[1]})
        self.rows, self.next = rows, 0

    def extract(self, images: Images) -> dict[str, Tensor]:
        start, self.next = self.next, (self.next + len(images)) % len(self.rows)
        return {"pool": self.rows[start : start + len(images)]}


class Passed(nn.Module):
    """torchmetrics' extractor: its pictures are the rows themselves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def our_moments(metric: ImageGenerationMetrics, count: int, batch: int) -> Gaussian:
    """Count pictures, and turn the sums into moments."""
    metric.reset()
    images = torch.zeros(batch, 3, 1, 1, dtype=torch.uint8)
    for start in range(0, count, batch):
        metric.update(images[: count - start])
    return metric.collect("fake").gaussians["pool"]


def their_moments(metric: FrechetInceptionDistance, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The same by torchmetrics; the last lines are those of its ``compute``."""
    metric.reset()
    for some in rows.split(batch):
        metric.update(some, real=False)
    count = metric.fake_features_num_samples
    mean = (metric.fake_features_sum / count).unsqueeze(0)
    return mean[0], (metric.fake_features_cov_sum - count * mean.t().mm(mean)) / (count - 1)


def accumulation(amounts: Amounts, compare: Compare) -> Iterator[Row]:
    """Part (a)."""
    rows = features(amounts, 1)
    ours = ImageGenerationMetrics(Stored(rows), metrics=("gfid",))
    theirs = FrechetInceptionDistance(feature=Passed(amounts.size))
    for batch in (64, 256, 1024):
        found, wanted = our_moments(ours, len(rows), batch), their_moments(theirs, rows, batch)
        yield compare(
            "a",
            f"{len(rows)} rows of {amounts.size} features to moments, batches of {batch}, torchmetrics",
            functools.partial(our_moments, ours, len(rows), batch),
            functools.partial(their_moments, theirs, rows, batch),
            target=1.5,
            items=len(rows),
            difference=float((found.covariance - wanted[1]).abs().max() / wanted[1].abs().max()),
        )


def solving(amounts: Amounts, compare: Compare) -> Iterator[Row]:
    """Part (b)."""
    pair = []
    for seed in (1, 2):
        rows = features(amounts, seed)
        pair.append(our_moments(ImageGenerationMetrics(Stored(rows), metrics=("gfid",)), len(rows), 1024))
    first, second = pair
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = FrechetReference(first).distance(second)

    def theirs() -> None:
        found["theirs"] = float(_compute_fid(first.mean, first.covariance, second.mean, second.covariance))

    repetitions = min(amounts.solve_repetitions, compare.keywords["repetitions"])  # type: ignore[attr-defined]
    row = compare(
        "b",
        f"Frechet distance of {amounts.size} features, torchmetrics",
        ours,
        theirs,
        repetitions=repetitions,
        target=3,
    )
    yield dataclasses.replace(row, difference=abs(found["ours"] - found["theirs"]) / found["theirs"])


def memory(amounts: Amounts, compare: Compare) -> Iterator[Row]:
    """Part (c): in a process of its own for either side, because the most is never forgotten."""
    del compare
    peaks = [peak_apart(functools.partial(side, amounts)) for side in (our_evaluation, their_evaluation)]
    case = f"memory of counting {amounts.samples} rows twice and solving"
    shown = f"{case}: {peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB, torchmetrics"
    ratio = peaks[1] / peaks[0]
    yield Row("c", shown, ratio, (ratio, ratio), peaks[0], peaks[1])


def our_evaluation(amounts: Amounts) -> Callable[[], float]:
    """Real and generated rows, and the distance."""
    rows = [features(amounts, seed) for seed in (1, 2)]
    metric = ImageGenerationMetrics(Stored(torch.cat(rows)), metrics=("gfid",))

    def evaluate() -> float:
        images = torch.zeros(256, 3, 1, 1, dtype=torch.uint8)
        for real in (True, False):
            for start in range(0, amounts.samples, 256):
                metric.update(images[: amounts.samples - start], real)
        return float(metric.compute().popitem()[1])

    return evaluate


def their_evaluation(amounts: Amounts) -> Callable[[], float]:
    """The same by torchmetrics."""
    rows = [features(amounts, seed) for seed in (1, 2)]
    metric = FrechetInceptionDistance(feature=Passed(amounts.size))

    def evaluate() -> float:
        for real, some in zip((True, False), rows, strict=True):
            for batch in some.split(256):
                metric.update(batch, real)
        return float(metric.compute())

    return evaluate


def rules(amounts: Amounts, compare: Compare) -> Iterator[Row]:
    """Part (d): a crowded scene, judged by the most demanding kind of prompt."""
    del compare
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, generator=generator) * 400
    boxes = torch.cat((corners, corners + 20 + 80 * torch.rand(20, 2, generator=generator)), 1)
    scores = torch.rand(20, generator=generator)
    found = Detections(boxes, scores, ("dog", "cat") * 10)
    prompt = GenEvalPrompt(
        "position", "a dog left of a cat", (Clause("cat", 1), Clause("dog", 1, relation="left of", target=0))
    )
    start = time.process_time()
    for _ in range(amounts.images):
        apply_rules(prompt, found)
    seconds = (time.process_time() - start) / amounts.images
    ratio = 1e-3 / seconds
    yield Row(
        "d", "GenEval's rules on 20 detections, a millisecond per image", ratio, (ratio, ratio), seconds, 1e-3,
        target=1, rates=(1 / seconds, 1e3),
    )  # fmt: skip


PARTS = {"a": accumulation, "b": solving, "c": memory, "d": rules}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only these parts; default: all")
    options = with_standard_options(parser, "benchmarks/results/speed_metrics.json").parse_args()
    torch.set_num_threads(options.threads)
    amounts, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    compare = functools.partial(measure.compare, repetitions=repetitions, clock=clock)
    settings = {"threads": options.threads, "repetitions": repetitions, "quick": options.quick, **amounts._asdict()}
    rows = []
    for part in options.part or sorted(PARTS):
        for row in PARTS[part](amounts, compare):
            print(f"{row.part} {row.case}: {row.ratio:.2f}", flush=True)
            rows.append(row)
    report(rows, options.out, settings, "rows")


if __name__ == "__main__":
    main()
