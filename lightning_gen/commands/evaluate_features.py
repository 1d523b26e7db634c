"""`lightning evaluate gfid` and `lightning evaluate statistics`: distances between sets of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .evaluate_alpha import add_alpha, transparency, with_alpha
from .evaluate_options import add_out, add_work, compressed, images_of, positive, without_repeats
from .options import Examples

if TYPE_CHECKING:
    from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
    from lightning_gen.metrics.features import FeatureMetric
    from lightning_gen.metrics.reference import ReferenceStatistics

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["PUBLISHED_COUNT", "add_extractor", "configure"]

_GFID_EPILOG = """\
metrics (--metrics, several separated by commas):
  gfid   Frechet distance of the pooled features       sfid   of the spatial ones (Inception state dicts only)
  is     Inception score, 5,000 per split in order      pr     precision, recall, density, coverage, k = 3
  kid    100 subsets of 1000                            cmmd   of CLIP's embeddings, times 1000
  fdd, gfdd   gfid under the names that go with DINOv2 and DINOv3

examples:
  lightning evaluate gfid --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz \\
      --weights pt_inception-2015-12-05-6726825d.pth --out runs/gfid
  lightning evaluate gfid --samples out/ --reference stats.safetensors --extractor dinov2 --weights dinov2-large
  lightning evaluate gfid --samples 'gen-{0000..0009}.tar' --reference data/val --metrics gfid,kid --weights fid.pth
  lightning evaluate gfid --samples out/ --reference data/val --extractor my_idea.MyNetwork
  lightning evaluate gfid --samples few/ --reference data/val --metrics kid,pr --kid-subset-size 50 --neighbours 2 ...

Transparent pictures are laid over white, as in training; --alpha drop takes their hidden colours, as pytorch-fid and
clean-fid do. A metric that needs more pictures than there are is refused before the first one is read.

Published numbers count 50,000 samples; with another number the protocol id says so (gfid@2048/...). An extractor of
yours is a class or function that is called with --weights (or without arguments) and returns a FeatureExtractor or a
module from float (B, 3, H, W) in [-1, 1] to (B, D).
"""

_STATISTICS_EPILOG = """\
examples:
  lightning evaluate statistics --images imagenet-1k#train --weights inception.pth --out imagenet.safetensors
  lightning evaluate statistics --images data/val --extractor dinov2 --weights dinov2 --keep-features --out val.npz

The file remembers the extractor and the sha256 of its weights; comparing samples of another one with it is refused.
"""

PUBLISHED_COUNT: Final = 50_000
"""Samples behind published numbers."""

_NAMES: Final = {"is": "inception_score", "pr": "precision_recall"}
_DEFAULTS: Final = {"dinov2": ("fdd",), "dinov3": ("gfdd",), "clip": ("cmmd",)}
_KNOWN: Final = ("gfid", "sfid", "inception_score", "precision_recall", "kid", "cmmd", "fdd", "gfdd")


def configure(verbs: Verbs) -> None:
    """Add the verbs.

    Args:
        verbs: where to.
    """
    gfid = verbs.add_parser(
        "gfid",
        help="FID, sFID, Inception score, precision and recall, KID, CMMD, FDD",
        description="Distances between generated pictures and a reference, all from one pass over the pictures.",
        epilog=_GFID_EPILOG,
        formatter_class=Examples,
    )
    gfid.add_argument("--samples", required=True, metavar="WHERE", help="folder of pictures, npz with arr_0, tar")
    gfid.add_argument(
        "--reference",
        metavar="WHERE",
        help="npz with mu and sigma, saved statistics, or pictures like --samples",
    )
    gfid.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="see below (all the extractor allows)")
    gfid.add_argument("--count", type=positive, metavar="N", help="the first N samples; fewer are an error (all)")
    gfid.add_argument(
        "--assume-extractor", metavar="NAME", help="what a reference npz that does not say comes from (ADM's Inception)"
    )
    add_extractor(gfid)
    add_alpha(gfid)
    details = gfid.add_argument_group("details")
    details.add_argument("--float16-distances", action="store_true", help="pr: as the ADM evaluator computes them")
    details.add_argument("--extrapolate", action="store_true", help="also FID for infinitely many samples")
    details.add_argument(
        "--kid-subset-size", type=positive, default=1000, metavar="N", help="samples in a subset of KID (%(default)s)"
    )
    details.add_argument(
        "--neighbours", type=positive, default=3, metavar="K", help="pr: k, 3 in published numbers (%(default)s)"
    )
    details.add_argument("--sampling", default="", metavar="TEXT", help="guidance, steps, seeds: for the protocol card")
    add_out(gfid)
    add_work(gfid)
    gfid.set_defaults(run=_run_gfid, check=_check_gfid)
    statistics = verbs.add_parser(
        "statistics",
        help="compute reference statistics once and save them",
        description="Moments of the features of real pictures, for later comparisons.",
        epilog=_STATISTICS_EPILOG,
        formatter_class=Examples,
    )
    statistics.add_argument("--images", required=True, metavar="WHERE", help="folder of pictures, npz, tar, manifest")
    statistics.add_argument("--out", required=True, type=Path, metavar="FILE", help=".safetensors or .npz")
    statistics.add_argument("--count", type=positive, metavar="N", help="the first N pictures (all)")
    statistics.add_argument(
        "--keep-features", action="store_true", help="keep the features too, for pr, kid and cmmd (N x D numbers)"
    )
    add_extractor(statistics)
    add_alpha(statistics)
    add_work(statistics)
    statistics.set_defaults(run=_run_statistics)


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """Add which network looks at the pictures.

    Args:
        parser: of the verb.
    """
    group = parser.add_argument_group("extractor")
    group.add_argument(
        "--extractor",
        default="inception",
        metavar="KIND",
        help="inception, dinov2, dinov3, clip, grid-colours (needs no weights), or package.Class (%(default)s)",
    )
    group.add_argument("--weights", metavar="SOURCE", help="file of Inception, or folder of the others")
    group.add_argument(
        "--resize",
        choices=("tf1", "clean", "torch", "antialias", "vitok_release"),
        help="inception: how pictures come to 299 pixels; tf1 is what published gFID means (tf1)",
    )
    group.add_argument(
        "--sha256", metavar="HEX", help="inception: take a file with this sha256, or any (the published)"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of the network (%(default)s)"
    )


def _run_gfid(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.features import ImageGenerationMetrics

    from .data_packing import progress_bars
    from .evaluate_distances import ReferenceDistances, distance_cases
    from .evaluate_extractors import extractor_of
    from .evaluate_output import Finding, finish
    from .evaluate_reference import ON_FEATURES, Counts, GivenReference

    images = images_of(options.samples, options.count).with_alpha(options.alpha)
    if len(images) > PUBLISHED_COUNT:
        raise ValueError(
            f"{options.samples} has {len(images):,} pictures, published numbers count {PUBLISHED_COUNT:,}: "
            f"--count {PUBLISHED_COUNT} takes the first ones"
        )
    asked = _asked(options.metrics)
    needs_features = not asked or any(name in ON_FEATURES for name in asked)
    given = None if options.reference is None else GivenReference(options, needs_features)
    sets = {"samples": images} | ({} if given is None else given.sets)
    counts = Counts(len(images), given, options.neighbours, options.kid_subset_size)
    counts.check(asked)
    extractor = extractor_of(options)
    with progress_bars() as watch:
        reference = None if given is None else given.load(extractor, watch)
        counts.check(asked)
        chosen, warnings = _chosen(asked, options.extractor, extractor, reference)
        chosen = counts.possible(chosen, warnings)
        metrics = ImageGenerationMetrics(
            extractor,
            reference,
            chosen,
            standard_error=True,
            extrapolate=options.extrapolate,
            half_distances=options.float16_distances,
            neighbours=options.neighbours,
            kid_subset_size=options.kid_subset_size,
            quantisation="as stored" + (", JPEG" if images.is_lossy else ""),
            sampling=options.sampling,
        ).to(extractor.device)
        distances = (
            ReferenceDistances(extractor, reference) if options.out is not None and reference is not None else None
        )
        done = 0
        for batch in images.batches(options.batch_size, options.threads):
            metrics.update(batch)
            done += len(batch)
            watch("samples", done, len(images))
    warnings += compressed(images) + transparency(sets, options.alpha)
    with without_repeats():
        measured = with_alpha(metrics.measurements(), sets, options.alpha)
    inputs = {"samples": images.fingerprint, "order": images.rule, "extractor_sha256": extractor.fingerprint}
    scores = distances.all() if distances is not None else []
    rows = [{"name": name, "distance": score} for name, score in zip(images.names, scores, strict=False)]
    cases = distance_cases(images, scores) if scores else None
    return finish(options, Finding(f"{options.samples}", measured, inputs, rows, cases, warnings=warnings))


def _run_statistics(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.reference import ReferenceStatistics

    from .data_packing import progress_bars
    from .evaluate_extractors import extractor_of
    from .evaluate_reference import watched

    if options.out.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"--out {options.out}: statistics are files that end in .safetensors or .npz")
    images = images_of(options.images, options.count).with_alpha(options.alpha)
    if len(images) < 2:
        raise ValueError(f"{options.images} has 1 picture: a covariance needs at least 2")
    extractor = extractor_of(options)
    keep = ("pool",) if options.keep_features else ()
    with progress_bars() as watch:
        batches = watched(images, options, watch)
        found = ReferenceStatistics.from_images(batches, extractor, keep, images.fingerprint)
    found.save(options.out)
    for name, gaussian in found.gaussians.items():
        size = len(gaussian.mean)
        print(f"{options.out}: {name}, {len(images):,} pictures, {size} values")
        if len(images) <= size:
            print(f"warning: {len(images):,} pictures for {size} values: the covariance is singular and FID is biased")
    for warning in transparency({"pictures": images}, options.alpha):
        print(f"warning: {warning}")
    print(f"extractor {extractor.name}, weights {extractor.fingerprint}")
    return 0


def _check_gfid(options: argparse.Namespace) -> None:
    _asked(options.metrics)


def _asked(given: list[str]) -> list[FeatureMetric]:
    names: list[Any] = []
    for name in (part for word in given for part in word.split(",") if part):
        full = _NAMES.get(name, name)
        if full not in _KNOWN:
            raise ValueError(f"--metrics {name}: there are gfid, sfid, is, pr, kid, cmmd, fdd, gfdd")
        names.append(full)
    return names


def _chosen(
    asked: list[FeatureMetric], kind: str, extractor: FeatureExtractor, reference: ReferenceStatistics | None
) -> tuple[list[FeatureMetric], list[str]]:
    """What is measured; where nothing was asked for, all that is possible, and a word about the rest."""
    if reference is None and (not asked or any(name != "inception_score" for name in asked)):
        raise ValueError("give --reference: only the Inception score (--metrics is) needs none")
    if asked:
        return asked, []
    if kind in _DEFAULTS:
        return [*_DEFAULTS[kind]], []  # type: ignore[list-item]
    chosen: list[FeatureMetric] = ["gfid"]
    warnings = []
    assert reference is not None
    for name, is_possible, why in (
        ("sfid", {"spatial"} <= extractor.sizes.keys() & reference.gaussians.keys(), "no spatial features"),
        ("inception_score", "logits" in extractor.sizes, "no classifier"),
        ("precision_recall", "pool" in reference.features, "a reference without features"),
    ):
        if is_possible:
            chosen.append(name)  # type: ignore[arg-type]
        elif kind == "inception":
            warnings.append(f"{name} is left out: {why}")
    return chosen, warnings
