"""`lightning evaluate rfid`: reconstructions against the very originals they were made from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .evaluate_alpha import add_alpha, transparency, with_alpha
from .evaluate_features import PUBLISHED_COUNT, add_extractor
from .evaluate_options import add_out, add_work, check_pairs, compressed, images_of, positive, without_repeats
from .options import Examples, device_of

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.features import ReconstructionFrechet
    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.reconstruction_table import ReconstructionTable

    from .evaluate_output import Finding

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning evaluate rfid --originals data/val --reconstructions out/ --weights inception.pth --out runs/rfid
  lightning evaluate rfid --originals data/val --reconstructions out/ --lpips alexnet-owt-7be5be79.pth
  lightning evaluate rfid --originals val.npz --reconstructions out.npz --extractor dinov3 --weights dinov3-vitb16

PSNR and SSIM are means over pictures, on 8-bit values with a range of 255 (SSIM as scikit-image computes it with a
Gaussian of 11 pixels, sigma 1.5). The SSIM that ViTok-v2 logs in training sees [-1, 1] and is another number, which
--variants adds. rFID (rFDD with a DINO) compares with these originals, never with the statistics of a training set:
values against those are other numbers. Without --weights it is left out.
Both sides must hold pictures of the same names and sizes.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "rfid",
        help="PSNR, SSIM, LPIPS, rFID, rFDD of reconstructions",
        description="Reconstructions of an auto-encoder against their originals, all numbers from one pass.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("--originals", required=True, metavar="WHERE", help="folder of pictures, npz, tar")
    parser.add_argument("--reconstructions", required=True, metavar="WHERE", help="the same pictures, reconstructed")
    parser.add_argument("--count", type=positive, metavar="N", help="the first N pairs; fewer are an error (all)")
    add_extractor(parser)
    add_alpha(parser)
    more = parser.add_argument_group("more numbers")
    more.add_argument("--lpips", metavar="FILE", help="torchvision's ImageNet weights of the trunk")
    more.add_argument("--lpips-net", choices=("alex", "vgg", "squeeze"), default="alex", help="which trunk (alex)")
    more.add_argument("--variants", action="store_true", help="PSNR of the pooled error, SSIM of ViTok-v2 and MUSE")
    add_out(parser)
    add_work(parser, batch_size=32)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.lpips import LPIPS
    from lightning_gen.metrics.reconstruction_table import reconstruction_table

    from .data_packing import progress_bars
    from .evaluate_output import finish

    originals = images_of(options.originals, options.count).with_alpha(options.alpha)
    results = images_of(options.reconstructions, options.count).with_alpha(options.alpha)
    warnings = check_pairs(results, originals)
    if len(originals) > PUBLISHED_COUNT:
        raise ValueError(f"{len(originals):,} pairs, published numbers count {PUBLISHED_COUNT:,}: give --count")
    frechet = _frechet(options)
    if not frechet:
        warnings.append("rFID is left out: give --weights")
    lpips = None
    if options.lpips is not None:
        lpips = LPIPS(options.lpips, options.lpips_net).to(device_of(options.device, apple=False))
    with progress_bars() as watch, without_repeats():
        table = reconstruction_table(
            _one_by_one(results, options, watch),
            _one_by_one(originals, options, None),
            lpips,
            frechet,
            options.variants,
            options.batch_size,
        )
    sets = {"reconstructions": results, "originals": originals}
    warnings += compressed(results) + transparency(sets, options.alpha)
    table = dataclasses.replace(table, measurements=with_alpha(table.measurements, sets, options.alpha))
    return finish(options, _finding(options, table, originals, results, warnings))


def _frechet(options: argparse.Namespace) -> list[ReconstructionFrechet]:
    if options.weights is None and options.extractor == "inception":
        return []
    from lightning_gen.metrics.features import ReconstructionFrechet

    from .evaluate_extractors import extractor_of

    extractor = extractor_of(options)
    name = "rfdd" if options.extractor in ("dinov2", "dinov3") else "rfid"
    return [ReconstructionFrechet(extractor, name, quantisation="as stored").to(extractor.device)]  # type: ignore[arg-type]


def _one_by_one(images: ImageSet, options: argparse.Namespace, watch: Any) -> Iterator[Tensor]:
    done = 0
    for batch in images.batches(options.batch_size, options.threads):
        yield from batch
        done += len(batch)
        if watch is not None:
            watch("pairs", done, len(images))


def _finding(
    options: argparse.Namespace,
    table: ReconstructionTable,
    originals: ImageSet,
    results: ImageSet,
    warnings: list[str],
) -> Finding:
    from .evaluate_output import Cases, Finding

    columns = {name: values.tolist() for name, values in table.per_image.items()}
    rows = [
        {"name": name, **{column: values[number] for column, values in columns.items()}}
        for number, name in enumerate(results.names)
    ]
    score = "lpips" if "lpips" in columns else "psnr"
    meaning = {"lpips": "LPIPS, lower is better", "psnr": "PSNR in dB, higher is better"}[score]
    cases = Cases(
        f"{meaning}; originals on the left, reconstructions on the right",
        columns[score],
        score == "psnr",
        results.names,
        lambda case: [*originals.select([case]), *results.select([case])],
    )
    inputs = {"originals": originals.fingerprint, "reconstructions": results.fingerprint}
    title = f"{options.reconstructions} against {options.originals}"
    return Finding(title, table.measurements, inputs, rows, cases, warnings=warnings)
