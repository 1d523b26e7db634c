"""`lightning evaluate verify-weights`: are these the files that numbers are to be computed with?"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
kinds (--kind; a file that loads is recognised by the names of its tensors):
  inception  the published file, or the one of --sha256; a picture is run through it
  lpips      AlexNet, VGG-16 or SqueezeNet of torchvision      dinov2     the file of torch.hub
  clip       HPS_v2.1_compressed.pt and others of open_clip    aesthetic  LAION's head

examples:
  lightning evaluate verify-weights weights/pt_inception-2015-12-05-6726825d.pth
  lightning evaluate verify-weights weights/alexnet-owt-7be5be79.pth --kind lpips
  lightning evaluate verify-weights weights/model.safetensors --sha256 3f2a90c1

Files .pth, .pt and .pb are loaded, and must hold the tensors of their kind, without NaN. Of other files the sha256 is
printed, and compared where --sha256 is given. Ends with code 1 where a file is missing, damaged or another one.
"""

_LOADED: Final = (".pth", ".pt", ".pb")
_MARKS: Final = {
    "lpips": {"features.0.weight"},
    "dinov2": {"cls_token", "pos_embed", "mask_token"},
    "clip": {"logit_scale", "text_projection", "visual.conv1.weight"},
    "aesthetic": {f"layers.{layer}.{part}" for layer in (0, 2, 4, 6, 7) for part in ("weight", "bias")},
}
"""Kind -> tensors that the file of this kind has, and no other."""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "verify-weights",
        help="check the hashes of weight files",
        description="Check files of weights before a number is computed with them.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of weights, or folders of safetensors")
    parser.add_argument(
        "--sha256", type=_hexadecimal, metavar="HEX", help="what one file must have: its first 8 or more digits"
    )
    parser.add_argument("--kind", choices=("inception", *_MARKS), help="what the files must hold (what they look like)")
    parser.set_defaults(run=_verify)


def _hexadecimal(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{8,64}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no beginning of a sha256: give 8 to 64 hexadecimal digits")
    return text.lower()


def _verify(options: argparse.Namespace) -> int:
    files = [one for name in options.files for one in _files(Path(name).expanduser())]
    if options.sha256 is not None and len(files) != 1:
        raise ValueError(f"--sha256 is that of one file, {len(files)} are given")
    lines = [_verified(path, options.sha256, options.kind) for path in files]
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


def _verified(path: Path, expected: str | None, kind: str | None) -> tuple[bool, str]:
    from lightning_gen.metrics.protocol import file_sha256

    if not path.is_file():
        return False, f"{path}: there is no such file"
    if kind is not None and path.suffix == ".safetensors":
        raise ValueError(f"{path}: --kind is for torch files; of safetensors the sha256 is checked, and that they open")
    if kind == "inception":
        return _inception(path, expected)
    tensors: Mapping[str, Any] = {}
    problem = ""
    if path.suffix in _LOADED or kind is not None:
        try:
            tensors = _tensors(path)
        except (ValueError, OSError) as error:
            problem = str(error)
        found = next((name for name, marks in _MARKS.items() if marks <= tensors.keys()), None)
        if kind is None and found is None:
            return _inception(path, expected)
        kind = kind or found
    elif path.suffix == ".safetensors":
        problem = _damage(path)
    digest = file_sha256(path)
    if expected is not None and not digest.startswith(expected):
        return False, f"{digest}  {path.name}: expected {expected}: another file, or one that was cut off"
    if not problem and kind is not None:
        problem = _other_kind(path, kind, tensors) or _not_finite(tensors)
    state = " and ".join(filter(None, (kind, "as expected" if expected else "readable")))
    return not problem, f"{digest}  {path.name}: {problem or state}"


def _inception(path: Path, expected: str | None) -> tuple[bool, str]:
    from lightning_gen.metrics.extraction.inception_weights import verify_inception_weights

    found = verify_inception_weights(path, expected)
    kind = {True: "the published file", False: "not the published file", None: "no published sha256 is known"}
    state = found.problem or f"Inception ({found.layout}), {kind[found.published]}; gives {', '.join(found.features)}"
    return found.usable, f"{found.sha256 or '-'}  {path.name}: {state}"


def _tensors(path: Path) -> Mapping[str, Any]:
    """What a torch file holds; nothing for TorchScript and TensorFlow graphs, which are other things."""
    from lightning_gen.training.safe_reading import load_plain

    is_archive = zipfile.is_zipfile(path)
    if path.suffix == ".pb":
        return {}
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return {}
    content = load_plain(path, mmap=is_archive)  # files of old releases cannot be mapped
    inner = content.get("state_dict", content)
    return inner if isinstance(inner, Mapping) else {}


def _damage(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            return ""
    except (SafetensorError, OSError):
        return "damaged or cut off: copy it again"


def _other_kind(path: Path, kind: str, tensors: Mapping[str, Any]) -> str:
    from lightning_gen.backbones.weights import MissingWeightsError
    from lightning_gen.metrics.extraction.dinov2 import load_dinov2
    from lightning_gen.metrics.lpips import LPIPS, LPIPSNet

    if missing := sorted(_MARKS[kind] - tensors.keys()):
        return f"does not hold what {kind} needs, such as {missing[0]}"
    if kind == "dinov2":
        try:
            load_dinov2(path)
        except MissingWeightsError as error:
            return str(error)
    if kind != "lpips":
        return ""
    nets: tuple[LPIPSNet, ...] = ("alex", "vgg", "squeeze")
    for net in nets:
        try:
            LPIPS(str(path), net)
        except ValueError:
            continue
        return ""
    return "is the trunk of none of alex, vgg and squeeze"


def _not_finite(tensors: Mapping[str, Any]) -> str:
    import torch

    bad = [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    return f"{bad[0]} holds NaN or infinity ({len(bad)} tensors in all): copy it again" if bad else ""
