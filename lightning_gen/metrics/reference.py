"""What samples are compared with: moments and features of a set of real pictures, and which network saw them.

Statistics of one network mean nothing to another one, so they carry its name and the sha256 of its weights, and a
comparison with another network is refused.

Shape letters: N pictures, D features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.index import replace_file
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.frechet import FrechetReference, Gaussian, Moments
from lightning_gen.metrics.image_sets import open_images
from lightning_gen.metrics.images import Images
from lightning_gen.metrics.npz_arrays import MAX_BYTES, read_npz, write_npz
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.metrics.reference_inputs import card_of, checked_gaussian, pictures_of, real_numbers

__all__ = ["ADM", "ReferenceStatistics"]

ADM: Final = "adm"
"""Stands for every extractor whose name begins with it: reference files of the ADM evaluator name none."""

_BATCH: Final = 64
_ROWS: Final = 1024
_NPZ_MOMENTS: Final = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Moments and features of reference pictures.

    Attributes:
        gaussians: name of a feature -> its mean and covariance.
        extractor: name of the network; :data:`ADM` where a file of the ADM evaluator does not say.
        fingerprint: sha256 of the network's weights; None where a file does not say.
        source: sha256 of what the statistics come from: the file, the pictures, or the statistics themselves.
        features: name of a feature -> float, (N, D), for metrics that need more than moments. Files of the ADM
            evaluator have 10,000 pictures for this purpose, and moments of the whole training set.
    """

    gaussians: Mapping[str, Gaussian]
    extractor: str
    fingerprint: str | None
    source: str
    features: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_features(
        cls, features: Mapping[str, Tensor], extractor: str, fingerprint: str | None, source: str | None = None
    ) -> ReferenceStatistics:
        """Statistics of features; the features are kept.

        Args:
            features: name -> float, (N, D).
            extractor: name of the network.
            fingerprint: sha256 of its weights.
            source: sha256 of the pictures; None = of the moments.

        Returns:
            The statistics.
        """
        gaussians = {}
        for name, rows in features.items():
            moments = Moments(rows.shape[1], rows[:_ROWS].double().mean(0), rows.device)
            for start in range(0, len(rows), _ROWS):
                moments.add(rows[start : start + _ROWS])
            gaussians[name] = moments.gaussian()
        return cls(gaussians, extractor, fingerprint, source or cls.digest(gaussians), dict(features))

    @classmethod
    def from_images(
        cls,
        batches: Iterable[Images],
        extractor: FeatureExtractor,
        keep: Sequence[str] = (),
        source: str | None = None,
    ) -> ReferenceStatistics:
        """Statistics of pictures, seen once.

        Args:
            batches: uint8 pictures, such as ``open_images(FOLDER).batches(64)``.
            extractor: the network.
            keep: names of features that are kept, for KID, CMMD, precision and recall.
            source: sha256 of the pictures, such as ``ImageSet.fingerprint``; None = of the moments.

        Returns:
            The statistics, on the network's device.

        Raises:
            ValueError: fewer than two pictures, or the extractor has no such feature.
        """
        _check_names(keep, extractor)
        moments: dict[str, Moments] = {}
        kept: dict[str, list[Tensor]] = {name: [] for name in keep}
        for features in _joined(batches, extractor):
            for name, rows in features.items():
                if name not in moments:
                    moments[name] = Moments(rows.shape[1], rows.double().mean(0), rows.device)
                moments[name].add(rows)
            for name, list_ in kept.items():
                list_.append(features[name])
        if not moments:
            raise ValueError("there are no reference pictures")
        gaussians = {name: one.gaussian() for name, one in moments.items()}
        features = {name: torch.cat(rows) for name, rows in kept.items()}
        return cls(gaussians, extractor.name, extractor.fingerprint, source or cls.digest(gaussians), features)

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[ImageBatch],
        extractor: FeatureExtractor,
        keep: Sequence[str] = (),
        source: str | None = None,
    ) -> ReferenceStatistics:
        """Statistics of the pictures of a DataModule, as it prepares them: resized, cropped, without augmentation.

        ``datamodule.setup("validate")``, then ``from_batches(datamodule.val_dataloader(), extractor)``. Only pictures
        with ``valid`` count, and one that the loader repeats (by its ``index``) counts once. In a single process: the
        loader of one rank of several sees its share alone.

        Args:
            batches: with pixels in [-1, 1], as patch vectors of any sizes or (B, 3, H, W).
            extractor: the network.
            keep: names of features that are kept, for KID, CMMD, precision and recall.
            source: sha256 of the data, such as the manifest's fingerprint; None = of the moments.

        Returns:
            The statistics, on the network's device.

        Raises:
            ValueError: latents instead of pixels, fewer than two pictures, or the extractor has no such feature.
        """
        return cls.from_images(pictures_of(batches), extractor, keep, source)

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        extractor: FeatureExtractor | None = None,
        assume_extractor: str | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> ReferenceStatistics:
        """Statistics from a file of the ADM evaluator, or one that :meth:`save` wrote.

        Args:
            path: npz with ``mu`` and ``sigma``, and optionally ``mu_s`` and ``sigma_s`` (spatial features).
            extractor: sees the pictures ``arr_0`` of the file, if it has any, for metrics that need features.
            assume_extractor: name of the network the statistics come from, where the file does not say and it is not
                the one of the ADM evaluator.
            max_bytes: largest size of the arrays in memory; ``arr_0`` is read picture by picture and does not count.

        Returns:
            The statistics, on the CPU.

        Raises:
            FileNotFoundError: no such file.
            DataError: not an npz, a key is missing, an array is pickled, too large, or of the wrong shape.
            ValueError: the extractor is not the one of the statistics.
        """
        arrays, names = read_npz(path, skip=("arr_0",), max_bytes=max_bytes, needed=("mu", "sigma"))
        card = card_of(path, arrays["card"]) if "card" in arrays else {}
        gaussians = {}
        for name, keys in _NPZ_MOMENTS.items():
            if keys[0] in arrays and keys[1] in arrays:
                mean, covariance = (torch.from_numpy(real_numbers(path, key, arrays[key])).double() for key in keys)
                gaussians[name] = checked_gaussian(path, keys, mean, covariance, card.get("counts", {}).get(name))
        features = {
            key.removeprefix("features_"): torch.from_numpy(real_numbers(path, key, array, dimensions=2))
            for key, array in arrays.items()
            if key.startswith("features_")
        }
        statistics = cls(
            gaussians,
            card.get("extractor", assume_extractor or ADM),
            card.get("fingerprint"),
            card.get("source") or file_sha256(path),
            features,
        )
        if extractor is None:
            return statistics
        statistics.check(extractor)
        if "arr_0" not in names:
            return statistics
        seen = cls.from_images(open_images(path).batches(_BATCH), extractor, keep=("pool",))
        return dataclasses.replace(statistics, features={name: rows.cpu() for name, rows in seen.features.items()})

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Read what :meth:`save` wrote.

        Args:
            path: ``.safetensors`` or ``.npz``.

        Returns:
            The statistics, on the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file.
        """
        path = Path(path)
        if path.suffix == ".npz":
            return cls.from_npz(path)
        _check_suffix(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return cls.from_bytes(path.read_bytes(), str(path))

    def save(self, path: str | Path) -> None:
        """Write the statistics; both kinds of file hold everything.

        Args:
            path: ``.safetensors``, or ``.npz`` whose ``mu`` and ``sigma`` (float64) the ADM evaluator and clean-fid
                read too; an npz keeps moments of ``pool`` and ``spatial`` only.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        _check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            replace_file(path, self.to_bytes())
            return
        arrays = {f"features_{name}": rows.cpu().numpy() for name, rows in self.features.items()}
        for name, keys in _NPZ_MOMENTS.items():
            if name in self.gaussians:
                one = self.gaussians[name]
                arrays |= {keys[0]: one.mean.cpu().numpy(), keys[1]: one.covariance.cpu().numpy()}
        write_npz(path, arrays, card=json.dumps(self._card()))

    def to_bytes(self) -> bytes:
        """Everything in the safetensors format."""
        from safetensors.torch import save

        tensors = {f"features.{name}": rows.cpu().contiguous() for name, rows in self.features.items()}
        for name, one in self.gaussians.items():
            tensors[f"mean.{name}"] = one.mean.cpu().contiguous()
            tensors[f"covariance.{name}"] = one.covariance.cpu().contiguous()
        return save(tensors, metadata={"card": json.dumps(self._card())})

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "the statistics") -> ReferenceStatistics:
        """Read what :meth:`to_bytes` returned.

        Args:
            content: the bytes.
            where: what to call them in a message.

        Returns:
            The statistics, on the CPU.

        Raises:
            ValueError: bytes of something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
            size = int.from_bytes(content[:8], "little")
            card = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["card"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{where}: no reference statistics of this package ({error})") from None
        gaussians = {
            name: checked_gaussian(where, keys, tensors[keys[0]], tensors[keys[1]], count)
            for name, count in card["counts"].items()
            if (keys := (f"mean.{name}", f"covariance.{name}"))
        }
        features = {key.removeprefix("features."): rows for key, rows in tensors.items() if key.startswith("features.")}
        return cls(gaussians, card["extractor"], card["fingerprint"], card["source"], features)

    def check(self, extractor: FeatureExtractor) -> None:
        """Refuse an extractor whose features do not compare with these.

        Args:
            extractor: the network that will see the samples.

        Raises:
            ValueError: another network, other weights, or other sizes; names both.
        """
        known = self.fingerprint is not None
        same = extractor.name == self.extractor or (self.extractor == ADM and extractor.name.startswith(ADM))
        if not same or (known and extractor.fingerprint != self.fingerprint):
            ours = self.extractor + (f" (weights {str(self.fingerprint)[:12]})" if known else "")
            raise ValueError(
                f"the reference comes from extractor {ours}, the samples would go through {extractor.name} (weights "
                f"{extractor.fingerprint[:12]}): their features do not compare. Compute the reference with this "
                f"extractor" + ("" if known else f", or say assume_extractor={extractor.name!r} if you know better")
            )
        for name, one in self.gaussians.items():
            if extractor.sizes.get(name, len(one.mean)) != len(one.mean):
                raise ValueError(
                    f"the reference has {len(one.mean)} values of {name!r}, {extractor.name} {extractor.sizes[name]}"
                )

    def frechet(self, feature: str, device: torch.device | str = "cpu") -> FrechetReference:
        """The side of a Frechet distance that stays the same.

        Args:
            feature: name of the feature.
            device: where to compute.

        Returns:
            Moments that remember their factorisation.

        Raises:
            ValueError: there are no moments of this feature.
        """
        if feature not in self.gaussians:
            raise ValueError(f"the reference has moments of {', '.join(sorted(self.gaussians))}, not of {feature!r}")
        return FrechetReference(self.gaussians[feature].to(device))

    @staticmethod
    def digest(gaussians: Mapping[str, Gaussian]) -> str:
        """sha256 of moments, for statistics whose pictures have none.

        Args:
            gaussians: name of a feature -> its moments.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for name, one in sorted(gaussians.items()):
            digest.update(f"{name} {one.count}\n".encode())
            for tensor in (one.mean, one.covariance):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _card(self) -> dict[str, object]:
        return {
            "extractor": self.extractor,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "counts": {name: one.count for name, one in self.gaussians.items()},
        }


def _joined(batches: Iterable[Images], extractor: FeatureExtractor) -> Iterable[dict[str, Tensor]]:
    """Features of all pictures in blocks that are large enough to be summed fast."""
    waiting: list[dict[str, Tensor]] = []
    for images in batches:
        if len(images):
            waiting.append(extractor(images))
        if sum(len(features["pool"]) for features in waiting) >= _ROWS:
            yield {name: torch.cat([features[name] for features in waiting]) for name in waiting[0]}
            waiting = []
    if waiting:
        yield {name: torch.cat([features[name] for features in waiting]) for name in waiting[0]}


def _check_names(names: Sequence[str], extractor: FeatureExtractor) -> None:
    for name in names:
        if name not in extractor.sizes:
            raise ValueError(f"{extractor.name} has the features {', '.join(extractor.sizes)}, not {name!r}")


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: reference statistics are files that end in .safetensors or .npz")
