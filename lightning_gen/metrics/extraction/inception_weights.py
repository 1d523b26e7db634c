"""The published weights of Inception, read from a file on this machine and checked before they are used.

Three files hold the same network. Two are state dicts that differ in their name only, with a sha256 that begins with
6726825d. The third, ``inception-2015-12-05.pt``, is a TorchScript module, see :mod:`.inception_script`.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.extraction.feature_extractor import state_fingerprint
from lightning_gen.metrics.extraction.inception import NUM_CLASSES, NUM_POOL, NUM_SPATIAL, InceptionV3
from lightning_gen.metrics.extraction.inception_script import ScriptedInception, probe_pictures
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.training.safe_reading import load_plain

__all__ = [
    "PUBLISHED_FILES",
    "InceptionWeights",
    "VerifiedWeights",
    "load_inception",
    "verify_inception_weights",
]

Layout = Literal["state dict", "torchscript"]

_PUBLISHED: Final = "6726825d"
PUBLISHED_FILES: Final = {
    f"pt_inception-2015-12-05-{_PUBLISHED}.pth": "release fid_weights of mseitzer/pytorch-fid",
    f"weights-inception-2015-12-05-{_PUBLISHED}.pth": "release v0.2.0 of toshas/torch-fidelity",
    "inception-2015-12-05.pt": "the metrics folder of NVlabs' StyleGAN2-ADA, also used by clean-fid",
}
"""Name of a file -> where it is published."""

_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class InceptionWeights:
    """A network that is ready to run, and which weights it has.

    Attributes:
        network: float (B, 3, 299, 299) in [-1, 1] -> features by name; float32, on the CPU, in eval mode.
        sizes: name of a feature -> D. A TorchScript file has no ``spatial``, so sFID needs one of the state dicts.
        layout: how the file is written.
        sha256: of the file.
        fingerprint: of the weights themselves; both state dicts have the same.
        published: whether the sha256 is the published one; None where no published value is known (TorchScript).
    """

    network: nn.Module
    sizes: dict[str, int]
    layout: Layout
    sha256: str
    fingerprint: str
    published: bool | None


@dataclasses.dataclass(frozen=True)
class VerifiedWeights:
    """What a check of a file found.

    Attributes:
        path: the file.
        problem: what is wrong and what to do; empty if the file can be used.
        layout: how the file is written; None if it could not be loaded.
        sha256: of the file; empty if there is none.
        published: whether the sha256 is the published one; None where no published value is known (TorchScript).
        fingerprint: of the weights; empty if they could not be loaded.
        features: names of the features it gives.
    """

    path: str
    problem: str = ""
    layout: Layout | None = None
    sha256: str = ""
    published: bool | None = None
    fingerprint: str = ""
    features: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether numbers can be computed with the file."""
        return not self.problem


def load_inception(weights: str | Path, expected_sha256: str | None = None) -> InceptionWeights:
    """Read Inception from a file; nothing is ever fetched.

    Args:
        weights: one of the published files, see ``PUBLISHED_FILES``, or another of the same network.
        expected_sha256: the first 8 or more hexadecimal digits of the file's sha256, or ``"any"`` to take the file
            unchecked. Default: a state dict must be the published one; of the TorchScript file no published sha256 is
            known, so it only has to behave like Inception.

    Returns:
        The network and where it came from.

    Raises:
        MissingWeightsError: no such file, another sha256, or a file that does not hold this network.
        ValueError: ``expected_sha256`` is not a sha256.
    """
    path = Path(weights).expanduser()
    if path.is_dir() or not path.exists():
        raise MissingWeightsError(_absent(path))
    sha256 = file_sha256(path)
    layout: Layout = "torchscript" if _is_script(path) else "state dict"
    _check_hash(path, sha256, layout, expected_sha256)
    if layout == "torchscript":
        try:
            scripted = ScriptedInception(path)
        except ValueError as error:
            raise MissingWeightsError(f"{path} is TorchScript, but {error}. Give one of: {_published()}") from None
        return InceptionWeights(scripted, {"pool": NUM_POOL, "logits": NUM_CLASSES}, layout, sha256, sha256, None)
    with ordinary_construction():
        with torch.device("meta"):
            network = InceptionV3()
        network.load_state_dict(_checked_state(path, _read_state(path), network.state_dict()), assign=True)
    network.eval().requires_grad_(False)
    sizes = {"pool": NUM_POOL, "spatial": NUM_SPATIAL, "logits": NUM_CLASSES}
    published = sha256.startswith(_PUBLISHED)
    return InceptionWeights(network, sizes, layout, sha256, state_fingerprint(network), published)


def verify_inception_weights(weights: str | Path, expected_sha256: str | None = None) -> VerifiedWeights:
    """Check a file of weights completely: hash, names, shapes, and one picture through the network.

    Args:
        weights: as in :func:`load_inception`.
        expected_sha256: as in :func:`load_inception`.

    Returns:
        A report; a file that cannot be used is a report as well, not an exception.
    """
    path = Path(weights).expanduser()
    sha256 = file_sha256(path) if path.is_file() else ""
    try:
        loaded = load_inception(path, expected_sha256)
        with torch.no_grad():
            features = loaded.network(probe_pictures(1))
    except MissingWeightsError as error:
        return VerifiedWeights(str(path), str(error), sha256=sha256)
    bad = [name for name, feature in features.items() if not torch.isfinite(feature).all()]
    problem = f"{path}: {' and '.join(bad)} of a picture are NaN or infinite: copy the file again" if bad else ""
    return VerifiedWeights(
        str(path), problem, loaded.layout, sha256, loaded.published, loaded.fingerprint, (*loaded.sizes,)
    )


def _is_script(path: Path) -> bool:
    """TorchScript archives hold code, zipped state dicts do not, old state dicts are no archives."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.match(r"[^/]+/code/", name) for name in archive.namelist())


def _check_hash(path: Path, sha256: str, layout: Layout, expected: str | None) -> None:
    if expected == "any" or (expected is None and layout == "torchscript"):
        return
    wanted = (expected or _PUBLISHED).lower()
    if not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
        raise ValueError(f"expected_sha256 is 8 to 64 hexadecimal digits or 'any', got {expected!r}")
    if not sha256.startswith(wanted):
        raise MissingWeightsError(
            f"{path}: sha256 {sha256}, expected {wanted}... It is not the published Inception, or it was cut off "
            f"while it was copied. Numbers from other weights compare with nothing published; to use this file all "
            f"the same, set expected_sha256 to {sha256[:16]!r} (or 'any')"
        )


def _read_state(path: Path) -> dict[str, Any]:
    if path.suffix == ".pb":
        raise MissingWeightsError(
            f"{path}: a TensorFlow graph is not read. The same weights are published for torch: {_published()}"
        )
    try:
        # Only zipped files can be left on the disk until they are used.
        return load_plain(path, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or foreign pickle raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingWeightsError(f"not a file of weights: {reason[:300]}. Give one of: {_published()}") from None


def _checked_state(path: Path, state: dict[str, Any], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network, after a comparison of names, shapes and types with what it has."""
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise MissingWeightsError(f"{path} is not a state dict of tensors. Give one of: {_published()}")
    needed = {name for name in wanted if not name.endswith(_COUNTER)}
    if "fc.weight" in state and state["fc.weight"].shape[0] == 1000:
        raise MissingWeightsError(
            f"{path} holds an Inception with 1000 classes, such as torchvision's: another network with other features. "
            f"Give one of: {_published()}"
        )
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    inexact = [name for name in needed & state.keys() if state[name].dtype not in (torch.float32, torch.float64)]
    problems = {"lacks": needed - state.keys(), "holds beyond the network": state.keys() - wanted.keys()}
    problems |= {"has other shapes:": set(misshaped), "is less exact than float32:": set(inexact)}
    for problem, names in problems.items():
        if names:
            raise MissingWeightsError(
                f"{path} {problem} {', '.join(sorted(map(str, names))[:3])} ({len(names)} tensors in all). "
                f"Give one of: {_published()}"
            )
    # Old files lack the counters of batches; they play no part in eval mode, and fingerprints must not see them.
    counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted.keys() - needed}
    return {name: counters[name] if name in counters else state[name].float() for name in wanted}


def _absent(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; give the file with Inception's weights: {_published()}"
    return (
        f"there is no file {path}. Inception's weights are not fetched by themselves: copy one of these files to this "
        f"machine and give its path: {_published()}"
    )


def _published() -> str:
    return "; ".join(f"{name} ({where})" for name, where in PUBLISHED_FILES.items())
