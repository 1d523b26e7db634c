"""Flow matching on pixels or latents in training, whatever the condition is.

t = 0 is clean, t = 1 is noise. Shape letters: B images, L tokens, C channels.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.flow.guidance import guided
from lightning_gen.flow.solvers import Velocity
from lightning_gen.generators.dit.objective import direction_loss, flow_matching_loss, noised_tokens, token_times
from lightning_gen.generators.dit.pretrained import USAGE, read_folder, write_folder
from lightning_gen.generators.dit.sampler import latent_noise, step_noise
from lightning_gen.generators.dit.training import Building, Learning, Sampling, as_velocity
from lightning_gen.generators.spaces import LatentSpace
from lightning_gen.generators.writing import Generated, GeneratedWriter
from lightning_gen.interfaces import Pictures
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.features import ImageGenerationMetrics
from lightning_gen.nn.tokens import Tokens
from lightning_gen.training.meta_module import MetaModule
from lightning_gen.training.randomness import normal, uniform
from lightning_gen.training.weights import require_fit

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["FlowMatching"]


class FlowMatching(MetaModule):
    """The algorithm that all generators of this room share; what the condition is, a subclass says.

    L = mean (v(z_t, t, condition) - (eps - z))^2 + w (1 - cos(v, eps - z)),  z_t = (1 - t) z + t eps,  w mostly 0

    Args:
        space: pixels or latents.
        network: on the meta device.
        learning: what is learned, and how.
        building: how the network is made ready.
        sampling: how pictures are made in validation and prediction.
        extractors: networks for gFID in validation; for each, a picture is made for every validation picture.
    """

    doors: ClassVar[tuple[str, ...]] = ()
    """Methods of the network besides ``forward`` by which data enter it."""

    def __init__(
        self,
        space: LatentSpace,
        network: nn.Module,
        learning: Learning,
        building: Building,
        sampling: Sampling,
        extractors: Sequence[FeatureExtractor],
    ) -> None:
        super().__init__()
        self.space, self.network, self.sampling = space, network, sampling
        self.learning, self.building, self.seed = learning, building, building.seed
        self._distances = nn.ModuleList(ImageGenerationMetrics(one, metrics=("gfid",)) for one in extractors)

    @abstractmethod
    def condition(self, batch: ImageBatch, dropped: Tensor) -> Any:
        """What the network is told about the images.

        Args:
            batch: labels or captions.
            dropped: bool, (B,), True = the image is trained without its condition.

        Returns:
            Whatever the network takes.
        """

    # ------------------------------------------------------------------ building

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if self.on_meta:
            self.prepare_network(
                self.network,
                self.seed,
                doors=self.doors,
                activation_checkpointing=self.building.activation_checkpointing,
                compile_blocks=self.building.compile_blocks,
            )

    def setup(self, stage: str) -> None:
        """Move the auto-encoder to the device of the run."""
        self.space.to(self.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up cosine, stepped with the optimiser."""
        optimizer = self.learning.optimizer.build(self.network)
        scheduler = self.learning.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------ training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step of flow matching.

        Args:
            batch: images with labels or captions.
            batch_idx: not used: every draw is keyed by the samples.

        Returns:
            The loss.

        Source: arXiv:2605.05331 (generator), arXiv:2210.02747.
        """
        loss = self._loss(batch, "train", self.learning.drop_rate)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """The same loss with every condition, at the same noise and times in every validation.

        Args:
            batch: images with labels or captions.
            batch_idx: not used.
        """
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Scores over the whole set."""
        self.log_scores("val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """As :meth:`validation_step`, on the test set.

        Args:
            batch: images with labels or captions.
            batch_idx: not used.
        """
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Scores over the whole set."""
        self.log_scores("test")

    def _evaluate(self, batch: ImageBatch, prefix: str) -> None:
        self.log(f"{prefix}/loss", self._loss(batch, "validation", 0.0), prog_bar=True, batch_size=len(batch))
        if self.distances:
            real, made = ([signed_to_uint8(image) for image in row.images] for row in self.pictures(batch))
            for metric in self.distances:
                metric.update(real, True, batch.valid, batch.index)
                metric.update(made, False, batch.valid, batch.index)

    def log_scores(self, prefix: str) -> None:
        """Log distances over the whole set, named by their protocol ids, and begin anew.

        Args:
            prefix: ``val`` or ``test``.
        """
        for metric in self.distances:
            # The two batches of the sanity check say nothing about a distance.
            if not self.trainer.sanity_checking:
                self.log_dict({f"{prefix}/{name}": value for name, value in metric.compute().items()})
            metric.reset()

    @property
    def distances(self) -> list[ImageGenerationMetrics]:
        """One per extractor."""
        return cast(list[ImageGenerationMetrics], list(self._distances))

    def _loss(self, batch: ImageBatch, purpose: str, drop_rate: float) -> Tensor:
        latents = self.space.encode(batch)
        time = self.learning.times.draw(self.seed, f"{purpose} time", batch.epoch, batch.index)
        shape = tuple(latents.values.shape[1:])
        eps = normal(self.seed, f"{purpose} noise", batch.epoch, batch.index, shape).to(latents.values.dtype)
        dropped = uniform(self.seed, f"{purpose} drop", batch.epoch, batch.index, ()) < drop_rate
        x_t, target = noised_tokens(latents, eps, time)
        velocity = self.velocity_of(x_t, time, self.condition(batch, dropped))
        loss = flow_matching_loss(velocity, target, latents)
        if self.learning.direction_weight:
            loss = loss + self.learning.direction_weight * direction_loss(velocity, target, latents)
        return loss

    def velocity_of(self, x_t: Tokens, time: Tensor, condition: Any) -> Tensor:
        """What the network says about the velocity.

        Args:
            x_t: noised latents, values (B, L, C).
            time: t, (B,).
            condition: see :meth:`condition`.

        Returns:
            v, (B, L, C).
        """
        output: Tensor = self.network(x_t, time, condition)
        return as_velocity(output, x_t.values, token_times(x_t, time), self.learning.prediction)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def generate(
        self,
        condition: Any,
        nothing: Any,
        sizes: Sequence[tuple[int, int]],
        index: Tensor,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Tensor]:
        """Make pictures.

        Args:
            condition: of B pictures.
            nothing: the same without the conditions, for guidance.
            sizes: height and width of each in pixels, multiples of the patch.
            index: int64, (B,), numbers of the pictures: the noise depends on (seed, number) alone.
            sampling: None = the module's.
            seed: None = the module's.

        Returns:
            B pictures (3, H, W) in [-1, 1].

        Raises:
            ValueError: a canvas whose sides are no multiples of the patch.
        """
        odd = [size for size in sizes if size[0] % self.space.patch or size[1] % self.space.patch]
        if odd:
            raise ValueError(f"a canvas of {odd[0][0]} x {odd[0][1]} is not made of patches of {self.space.patch}")
        how = sampling or self.sampling
        seed = self.seed if seed is None else seed
        index = index.to(self.device)
        noise = latent_noise(sizes, self.space.patch, self.space.channels, seed, index)
        field = guided(self._field(noise, condition), self._field(noise, nothing), how.strength(), noise.image)
        solve = how.solve(step_noise(noise, seed, index))
        latents = noise.with_values(solve(field, noise.values, how.times()))
        return self.space.decode(latents.with_values(latents.values.masked_fill(~latents.mask[..., None], 0.0)))

    def _field(self, tokens: Tokens, condition: Any) -> Velocity:
        def velocity(x: Tensor, t: float) -> Tensor:
            time = torch.full((tokens.num_images,), t, device=x.device, dtype=torch.float32)
            return self.velocity_of(tokens.with_values(x), time, condition)

        return velocity

    @torch.no_grad()
    def pictures(self, batch: ImageBatch) -> list[Pictures]:
        """Originals above pictures that were made for the same conditions, for the sample grid.

        Args:
            batch: images with labels or captions.

        Returns:
            Two rows.
        """
        latents = self.space.encode(batch)
        none = torch.zeros(len(batch), dtype=torch.bool, device=batch.index.device)
        made = self.generate(self.condition(batch, none), self.condition(batch, ~none), _sizes(latents), batch.index)
        return [Pictures("original", self.space.decode(latents)), Pictures("generated", made)]

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Generated:
        """Make a picture for every condition of a batch; ``GeneratedWriter`` puts them on disk.

        Args:
            batch: images with labels or captions; of the images only the size is used.
            batch_idx: not used.

        Returns:
            B pictures with their labels and captions, numbered as the images are.
        """
        none = torch.zeros(len(batch), dtype=torch.bool, device=batch.index.device)
        sizes = _sizes(self.space.encode(batch))
        made = self.generate(self.condition(batch, none), self.condition(batch, ~none), sizes, batch.index)
        captions = batch.caption or ("",) * len(batch)
        told = zip(captions, batch.label.tolist(), batch.key, strict=True)
        about = tuple(json.dumps({"prompt": text, "label": label, "key": key}) for text, label, key in told)
        return Generated(captions, about, batch.index.tolist(), batch.valid, made, 1)

    def configure_callbacks(self) -> list[pl.Callback]:
        """``predict`` writes what it makes."""
        return [GeneratedWriter()]

    # ------------------------------------------------------------------ weights

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as safetensors with a ``config.json``.

        Args:
            folder: made if it does not exist.
        """
        usage = self.usage()
        write_folder(Path(folder), self.settings() | ({USAGE: usage} if usage else {}), self.network.state_dict())

    def settings(self) -> dict[str, Any]:
        """What the weights mean, plain JSON values."""
        return {"kind": type(self).__name__, **{key: value for key, value in self.hparams.items() if key[0] != "_"}}

    def usage(self) -> dict[str, Any]:
        """How the weights are used, plain JSON values; other weights of the same settings may be used otherwise."""
        return {}

    def load_network(self, folder: str | Path) -> Self:
        """Fill the network with weights that :meth:`save_pretrained` wrote.

        Args:
            folder: theirs, or the name of shipped weights.

        Returns:
            The module.

        Raises:
            MissingWeightsError: the files are absent or damaged.
            ValueError: they belong to another kind of module or other settings, or do not fit the network.
        """
        self.network.load_state_dict(self.fitting_weights(folder), assign=True)
        return self

    def fitting_weights(self, folder: str | Path) -> dict[str, Tensor]:
        """Read weights that mean what this module takes them for.

        Args:
            folder: see :meth:`load_network`.

        Returns:
            Tensors of the whole network, by name.

        Raises:
            MissingWeightsError: the files are absent or damaged.
            ValueError: they belong to another kind of module or other settings, or do not fit the network.
        """
        config, state, place = read_folder(folder)
        given, own = {key: value for key, value in config.items() if key != USAGE}, self.settings()
        if given != own:
            wrong = sorted(key for key in given | own if given.get(key) != own.get(key))
            raise ValueError(f"the weights in {place} belong to other settings: {', '.join(wrong)} differ")
        require_fit(self.network, state, str(place))
        return state


def _sizes(latents: Tokens) -> list[tuple[int, int]]:
    """Height and width of the canvases, whole patches."""
    grid = latents.grid * latents.patch
    return [(int(height), int(width)) for height, width in grid.tolist()]
