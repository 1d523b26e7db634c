"""From a trained tokenizer to the quality of a generator on its latents, and to measures of its latent space.

What the claims of a tokenizer for generation have in common: the statistics of its latents, a class-conditional
generator on them at a fixed budget, the Frechet distance of its pictures, and SSC, LPC, GSQ and effective rank.

Shape letters: B images, L tokens, C channels, H and W height and width in pixels, h and w those of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.data.latents.statistics import ChannelMoments
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.generators.dit.module import LatentDiffusion
from lightning_gen.generators.dit.training import Sampling, TimeSampling
from lightning_gen.generators.spaces import LatentSpace
from lightning_gen.interfaces import Autoencoder
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.frechet import FrechetReference, Gaussian, Moments
from lightning_gen.metrics.manifold.continuity import LPC
from lightning_gen.metrics.manifold.measures import ManifoldMeasures
from lightning_gen.metrics.manifold.structure import SSC
from lightning_gen.nn.tokens import Tokens, patchify, unpack
from lightning_gen.shapes.detector import find_objects
from lightning_gen.shapes.encoder import ShapesEncoder, ShapesFeatures
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.shapes.segments import ShapesSegments
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from lightning_gen.training.optim import AdamW, WarmupCosine

__all__ = [
    "CLASSES",
    "DECODED",
    "SIZE",
    "EncoderDistance",
    "Judge",
    "RememberedLatents",
    "diagnostics",
    "generator_of",
    "latent_statistics",
    "looked_at",
    "made_pictures",
    "right_pictures",
    "single_objects",
]

SIZE: Final = 32
"""Edge of the pictures in pixels."""
CLASSES: Final = len(COLORS) * len(KINDS)
"""Pairs of colour and kind: the class of a picture that shows one object."""
DECODED: Final = 4
"""LPC, which decodes nine times, and SSC look at one picture of so many."""
_AT_ONCE: Final = 64


def single_objects(count: int, batch: int, seed: int, train: int = 1 << 17) -> ShapesDataModule:
    """Pictures of one object on one of four grounds, all 80 pairs of colour and kind equally frequent.

    Args:
        count: pictures to measure on.
        batch: pictures of a training step.
        seed: of the scenes.
        train: training scenes of a pass.

    Returns:
        The data.
    """
    return ShapesDataModule(
        train="even",
        val="even",
        size=SIZE,
        tags=["single_object", "colors"],
        labels="pair",
        global_batch_size=batch,
        samples=train,
        val_samples=count,
        val_batch_size=_AT_ONCE,
        seed=seed,
    )


def looked_at(data: ShapesDataModule) -> Iterator[tuple[ImageBatch, Tensor]]:
    """The pictures to measure on, once.

    Args:
        data: any.

    Yields:
        Batches, and their pictures (B, 3, H, W) in [-1, 1].
    """
    data.setup("validate")
    for batch in data.evaluation_loader("val"):
        assert isinstance(batch.images, Tensor), "this module gives pictures of one size"
        yield batch, batch.images


# ------------------------------------------------------------------ generator


@torch.no_grad()
def latent_statistics(tokenizer: torch.nn.Module, data: ShapesDataModule, folder: Path) -> Path:
    """Mean and standard deviation per channel, as `lightning data cache-latents` would write them.

    Args:
        tokenizer: an auto-encoder with its weights.
        data: its pictures to measure on are encoded.
        folder: gets latents.json; made if it does not exist.

    Returns:
        The file.

    Raises:
        DataError: a channel is constant.
    """
    moments, patch, samples = None, 0, 0
    encode: Callable[[Tensor], Tokens] = tokenizer.encode  # type: ignore[assignment]
    for batch, images in looked_at(data):
        latents = unpack(encode(images))
        real = latents.values[batch.valid][latents.mask[batch.valid]]
        found = ChannelMoments.of(real.double().cpu().numpy())
        moments = found if moments is None else moments.merged(found)
        patch, samples = latents.patch, samples + int(batch.valid.sum())
    assert moments is not None, "a plan of evaluation has at least one batch"
    record = LatentRecord(
        autoencoder=type(tokenizer).__name__,
        name="trained for a claim",
        sha256=weights_sha256(tokenizer),
        patch=patch,
        channels=len(moments.mean),
        dtype="float32",
        tokens=None,
        resolution=SIZE,
        mirrored=False,
        source="single objects of the embedded world",
        samples=samples,
        num_tokens=moments.count,
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
    )
    record.require_spread()
    folder.mkdir(parents=True, exist_ok=True)
    return record.write(folder)


class RememberedLatents(LatentSpace):
    """Encodes a training picture when it is asked for first, and then knows its latent.

    Picture n of a seed is the same in every pass, so that its number is enough to know it by.

    Args:
        space: encodes and decodes.
    """

    def __init__(self, space: LatentSpace) -> None:
        self.space, self.patch, self.channels = space, space.patch, space.channels
        self.known: dict[int, Tensor] = {}

    def encode(self, batch: ImageBatch) -> Tokens:
        """Latents of a training batch.

        Args:
            batch: pictures (B, 3, H, W) of one size.

        Returns:
            Unpacked tokens, values (B, L, C).
        """
        images, numbers = batch.images, batch.index.tolist()
        assert isinstance(images, Tensor), "pictures of one size"
        new = [row for row, number in enumerate(numbers) if number not in self.known]
        if new:
            values = self.space.encode_images(images[new]).values
            self.known |= {numbers[row]: value for row, value in zip(new, values, strict=True)}
        canvas = patchify(images[:, :1], self.patch)
        return canvas.with_values(torch.stack([self.known[number] for number in numbers]))

    def encode_images(self, images: Tensor | Tokens) -> Tokens:
        """See ``LatentSpace``; nothing is remembered."""
        return self.space.encode_images(images)

    def decode(self, latents: Tokens) -> list[Tensor]:
        """See ``LatentSpace``."""
        return self.space.decode(latents)

    def to(self, device: torch.device | str) -> None:
        """See ``LatentSpace``."""
        self.space.to(device)


def generator_of(space: LatentSpace, variant: str, seed: int) -> LatentDiffusion:
    """PAE's generator at a small size: LightningDiT, without guidance, so that nothing is tuned on the result.

    Args:
        space: of the tokenizer.
        variant: size.
        seed: of weights and draws.

    Returns:
        The model, without weights yet.
    """
    return LatentDiffusion(
        RememberedLatents(space),
        variant,
        num_classes=CLASSES,
        rope_theta=100.0,
        # The paper's shifts, 0.7 and 0.4 in a time that runs the other way.
        times=TimeSampling("logit_normal", shift=1 / 0.7),
        direction_weight=1.0,
        sampling=Sampling(steps=25, solver="euler", shift=2.5, start=1.0),
        optimizer=AdamW(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        # The paper averages weights at a constant rate; in a short run a rate that falls to 0 does the same.
        schedule=WarmupCosine(0.05, 1e-5, 0.0),
        seed=seed,
    )


@torch.no_grad()
def made_pictures(model: LatentDiffusion, labels: Tensor) -> Tensor:
    """One picture per label; picture n starts from noise of its own number.

    Args:
        model: trained, in eval mode.
        labels: int64, (N,).

    Returns:
        (N, 3, H, W) in [-1, 1].
    """
    made: list[Tensor] = []
    for index in torch.arange(len(labels)).split(_AT_ONCE):
        none = torch.full_like(index, CLASSES)
        made += model.generate(labels[index], none, [(SIZE, SIZE)] * len(index), index)
    return torch.stack(made)


# ------------------------------------------------------------------ judging


class Judge:
    """Frechet distances to real pictures, in the features of the embedded world's own encoder.

    Args:
        weights: of the encoder: folder or shipped name.
        data: its pictures to measure on are the reference.
    """

    def __init__(self, weights: str, data: ShapesDataModule) -> None:
        self.extractor = ModuleExtractor(ShapesFeatures(weights), "shapes-encoder")
        rows = [self._rows(images[batch.valid]) for batch, images in looked_at(data)]
        self.reference = FrechetReference(_gaussian(torch.cat(rows)))

    def distance(self, images: Tensor) -> float:
        """How far pictures are from real ones.

        Args:
            images: (N, 3, H, W) in [-1, 1].

        Returns:
            The Frechet distance.
        """
        rows = torch.cat([self._rows(part) for part in images.split(_AT_ONCE)])
        return self.reference.distance_of_any(_gaussian(rows))

    def _rows(self, images: Tensor) -> Tensor:
        rows: Tensor = self.extractor(signed_to_uint8(images))["pool"]
        return rows


def _gaussian(rows: Tensor) -> Gaussian:
    moments = Moments(rows.shape[1], rows[0])
    moments.add(rows)
    return moments.gaussian()


def right_pictures(images: Tensor, labels: Tensor) -> float:
    """The share of pictures that show what they were asked for, by the exact detector, which knows no network.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        labels: pairs of colour and kind, (N,).

    Returns:
        Share with exactly one object, of that colour and kind.
    """
    found = find_objects((images + 1) / 2)
    colors = list(COLORS)
    pairs = [
        colors.index(objects[0].color) * len(KINDS) + KINDS.index(objects[0].kind) if len(objects) == 1 else -1
        for objects in found
    ]
    return float((torch.tensor(pairs) == labels).double().mean())


class EncoderDistance:
    """A perceptual distance for the embedded world, in the place of LPIPS, whose networks know photographs.

    d = mean over maps of mean over places of |f_x - f_y|^2, f of unit length at every place

    Args:
        weights: of the encoder: folder or shipped name.

    Source: arXiv:1801.03924 eq. 1, with the maps of ShapesEncoder; deviates: all channels weigh the same.
    """

    def __init__(self, weights: str) -> None:
        self.encoder = ShapesEncoder.from_pretrained(weights)

    @torch.no_grad()
    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compare pairs.

        Args:
            prediction: (B, 3, H, W) in [-1, 1].
            target: the same shape.

        Returns:
            (B,).
        """
        pairs = zip(self.encoder.features(prediction), self.encoder.features(target), strict=True)
        apart = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2)) for x, y in pairs]
        return torch.stack(apart).mean(0)


def diagnostics(
    tokenizer: Autoencoder, channels: int, weights: str, data: ShapesDataModule, seed: int
) -> dict[str, float]:
    """SSC, LPC, GSQ and effective rank of the latents as they come, by the paper's formulas.

    Args:
        tokenizer: in eval mode.
        channels: C.
        weights: of the encoder that LPC's distance is made of.
        data: GSQ and effective rank see its pictures to measure on, LPC some of them; SSC sees scenes of several
            objects.
        seed: of all draws.

    Returns:
        ``ssc``, ``lpc`` with its radii, ``gsq``, ``erank``.
    """
    some = max(2, data.val_samples // DECODED)
    lpc = LPC(EncoderDistance(weights), seed=seed)
    measures = ManifoldMeasures(channels, lpc, SSC(seed=seed), seed=seed, lpc_images=some)
    for batch, images in looked_at(data):
        measures.count(tokenizer, images, batch.index, batch.label, batch.valid)
    segmented = ShapesSegments(some, seed)
    for numbers in torch.arange(some).split(_AT_ONCE):
        pairs = [segmented.read(number, SIZE) for number in numbers.tolist()]
        pictures, maps = torch.stack([picture for picture, _ in pairs]), [one for _, one in pairs]
        measures.count_segments(tokenizer, pictures, maps, numbers)
    return {one.protocol.metric: one.value for one in measures.measurements()}
