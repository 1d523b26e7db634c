"""`lightning evaluate npz` and `lightning evaluate verify-weights`: files that numbers come from and go to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate_options import images_of, positive
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_NPZ_EPILOG = """\
examples:
  lightning evaluate npz --samples samples/ --out samples.npz
  lightning evaluate npz --samples 'shards/gen-{0000..0009}.tar' --count 50000 --out samples.npz

The file is what evaluator.py of openai/guided-diffusion takes: arr_0, uint8, (N, H, W, 3). Memory does not grow with N,
and equal pictures give equal bytes.
"""

_WEIGHTS_EPILOG = """\
examples:
  lightning evaluate verify-weights weights/pt_inception-2015-12-05-6726825d.pth
  lightning evaluate verify-weights weights/model.safetensors --sha256 3f2a90c1

A file of Inception (.pth, .pt) is also loaded and run on a picture. Of other files the sha256 is printed, and compared
where --sha256 is given. Ends with code 1 where a file is missing, damaged or another one.
"""


def configure(verbs: Verbs) -> None:
    """Add the verbs.

    Args:
        verbs: where to.
    """
    npz = verbs.add_parser(
        "npz",
        help="write pictures as the npz that the ADM evaluator reads",
        description="Write pictures of one size as the npz that the TensorFlow evaluator of ADM reads.",
        epilog=_NPZ_EPILOG,
        formatter_class=Examples,
    )
    npz.add_argument("--samples", required=True, metavar="WHERE", help="folder of pictures, tar, pattern of tars, npz")
    npz.add_argument("--out", required=True, type=Path, metavar="FILE", help="the npz to write")
    npz.add_argument("--count", type=positive, metavar="N", help="the first N pictures; fewer are an error (all)")
    npz.set_defaults(run=_write_npz)
    weights = verbs.add_parser(
        "verify-weights",
        help="check the hashes of weight files",
        description="Check files of weights before a number is computed with them.",
        epilog=_WEIGHTS_EPILOG,
        formatter_class=Examples,
    )
    weights.add_argument("files", nargs="+", metavar="FILE", help="files of weights, or folders of safetensors")
    weights.add_argument("--sha256", metavar="HEX", help="what one file must have: its first 8 or more digits")
    weights.set_defaults(run=_verify)


def _write_npz(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.adm_npz import write_adm_npz

    from .data_packing import progress_bars

    images = images_of(options.samples, options.count)
    with progress_bars() as watch:
        shape = write_adm_npz(images, options.out, watch)
    print(f"{options.out}: arr_0 uint8 {shape}, from {options.samples} ({images.rule})")
    return 0


def _verify(options: argparse.Namespace) -> int:
    files = [one for name in options.files for one in _files(Path(name).expanduser())]
    if options.sha256 is not None and len(files) != 1:
        raise ValueError(f"--sha256 is that of one file, {len(files)} are given")
    lines = [_verified(path, options.sha256) for path in files]
    for is_good, line in lines:
        print(f"{'ok ' if is_good else 'BAD'}  {line}")
    return 0 if all(is_good for is_good, _ in lines) else 1


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{path} holds no safetensors file: give the file itself")
    return found


def _verified(path: Path, expected: str | None) -> tuple[bool, str]:
    from lightning_gen.metrics.protocol import file_sha256

    if not path.is_file():
        return False, f"{path}: there is no such file"
    if path.suffix in (".pth", ".pt", ".pb"):
        from lightning_gen.metrics.extraction.inception_weights import verify_inception_weights

        found = verify_inception_weights(path, expected)
        kind = {True: "the published file", False: "not the published file", None: "no published sha256 is known"}
        state = (
            found.problem or f"Inception ({found.layout}), {kind[found.published]}; gives {', '.join(found.features)}"
        )
        return found.usable, f"{found.sha256 or '-'}  {path.name}: {state}"
    digest = file_sha256(path)
    if expected is not None and not digest.startswith(expected.lower()):
        return False, f"{digest}  {path.name}: expected {expected}: another file, or one that was cut off"
    problem = _damage(path)
    return not problem, f"{digest}  {path.name}: {problem or ('as expected' if expected else 'readable')}"


def _damage(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            return ""
    except (SafetensorError, OSError):
        return "damaged or cut off: copy it again"
