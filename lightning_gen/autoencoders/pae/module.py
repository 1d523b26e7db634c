"""PAE in training: the algorithm, the two optimisers, what it is measured by. Its use stands in ``codec.py``.

Shape letters: B images, N tokens, d latent channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gen.autoencoders.accumulation import Part, check_accumulate, ranks_wait, split_step
from lightning_gen.autoencoders.pae.adversary import Draws, Heard, build_discriminator, critic_loss, hear, stay_silent
from lightning_gen.autoencoders.pae.codec import Building, PAECodec, as_pictures, encoder_of, needs_of_network
from lightning_gen.autoencoders.pae.discriminator import FeatureDiscriminator
from lightning_gen.autoencoders.pae.network import Decoded, PAENetwork
from lightning_gen.autoencoders.pae.objective import (
    cascade,
    kl_to_normal,
    perturbed,
    semantic_consistency,
    structure_regularity,
    tangent_direction,
    vision_foundation_loss,
)
from lightning_gen.autoencoders.pae.prior import UNTRAINED, Prior, grid_of, load_refined, look, require_prior
from lightning_gen.autoencoders.pae.settings import Adversary, Cascade, LossWeights, Semantics, Structure
from lightning_gen.autoencoders.pae.variants import PAEShape
from lightning_gen.autoencoders.reconstruction_metrics import ReconstructionMetrics
from lightning_gen.autoencoders.reconstructions import Reconstructions, ReconstructionWriter
from lightning_gen.backbones.frozen import FrozenModule
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.data.batches import ImageBatch
from lightning_gen.interfaces import Pictures
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.nn.adversarial import adaptive_weight, balancing_weight, gradient_at
from lightning_gen.nn.latent_maps import fill_up
from lightning_gen.nn.tokens import Tokens, unpatchify
from lightning_gen.training.needs import ModelNeeds, WeightNeed
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["PAE"]

_RAE_OPTIMIZER = AdamW(learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
_RAE_SCHEDULE = WarmupCosine(warmup_fraction=0.04, final_learning_rate=2e-5, start_learning_rate=0.0)
_LARGEST_VF = 1e8


class _Balance(NamedTuple):
    """Adaptive weights of a whole step; None = the step is one part, which finds them itself."""

    adversarial: Tensor | None = None
    vf: Tensor | None = None
    heard: Sequence[Heard] = ()


class PAE(PAECodec):
    """Prior-aligned auto-encoder: a frozen vision prior, a few channels on a sphere, a decoder of pixels.

    z = P(DAM(x, H));  x_r, x_m, x_l = D(z), D(z_m), D(z_l)
    L = L_1 + LPIPS + 0.5 GAN + 0.2 SSR + 0.5 MCR + 1.0 SCR

    It steps its own optimisers, so the trainer's ``gradient_clip_val`` and ``accumulate_grad_batches`` stay at their
    defaults; ``gradient_clip`` and ``accumulate`` are here.

    Plain, KL and VF auto-encoders of the same architecture, which the paper compares with, are settings: all three
    weights of ``losses`` at 0; with them ``shape.latent: kl`` and ``losses.kl: 1e-6``; with them ``losses.vf: 0.1``.

    Args:
        encoder: the frozen prior.
        shape: sizes and choices of the networks.
        refined: folder or checkpoint of stage 0 (``PAERefine``) whose projector makes the target of SSR and SCR;
            ``untrained`` = a random projector; None only where neither loss is on.
        losses: weights.
        structure: how SSR compares Grams.
        cascade: how MCR moves latents and what it compares.
        semantics: which terms SCR has.
        lpips_vgg: path of torchvision's VGG16 weights for LPIPS in the losses; needed where ``losses.lpips`` > 0. MCR
            then has its LPIPS terms too.
        adversary: the discriminator and when it acts; needed where ``losses.adversarial`` > 0.
        optimizer: AdamW of the auto-encoder; not stated, RAE's.
        schedule: warm-up and cosine; the same.
        gradient_clip: largest gradient norm of either optimiser; None = off. (Lightning's own clipping does not work
            with two optimisers.)
        accumulate: parts in which the pictures of a step are gone through, for less memory; the step is the same as
            with one part where ``adversary.group`` divides the parts. ``data.global_batch_size`` counts the whole step.
            With an adaptive weight the parts are decoded once more.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        compile_blocks: torch.compile every block.
        init_from: start from these weights (folder or checkpoint); tensors that do not fit are reported and left at
            their start. Another thing than ``ckpt_path``, which resumes a run.
        extractors: networks for rFID and rFDD in validation and test.
        lpips: the learned distance in validation and test; None = not measured.
        seed: seed of the initial weights and of every keyed draw.

    Raises:
        ValueError: settings that exclude each other.

    Source: arXiv:2605.07915.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        shape: PAEShape = PAEShape(),  # noqa: B008 (frozen)
        refined: str | None = None,
        losses: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        structure: Structure = Structure(),  # noqa: B008 (frozen)
        cascade: Cascade = Cascade(),  # noqa: B008 (frozen)
        semantics: Semantics = Semantics(),  # noqa: B008 (frozen)
        lpips_vgg: str | None = None,
        adversary: Adversary | None = None,
        optimizer: AdamW = _RAE_OPTIMIZER,
        schedule: WarmupCosine = _RAE_SCHEDULE,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
        extractors: Sequence[FeatureExtractor] = (),
        lpips: LPIPS | None = None,
        seed: int = 0,
    ) -> None:
        if gradient_clip is not None and gradient_clip <= 0:
            raise ValueError(f"gradient_clip is a norm above 0, or null for none; got {gradient_clip}")
        building = Building(activation_checkpointing, compile_blocks, init_from, seed)
        super().__init__(encoder, shape, losses.vf > 0, building)
        self.automatic_optimization = False
        self.refined, self.losses = refined, losses
        self.structure, self.cascade, self.semantics = structure, cascade, semantics
        self.lpips_vgg, self.adversary = lpips_vgg, adversary
        self.optimizer, self.schedule, self.gradient_clip, self.seed = optimizer, schedule, gradient_clip, seed
        self.accumulate = check_accumulate(accumulate)
        self.discriminator: FeatureDiscriminator | None = None
        if losses.adversarial > 0 and adversary is not None:
            with torch.device("meta"):
                self.discriminator = build_discriminator(adversary)
        self.target: FrozenModule | None = None
        self.perceptual: LPIPS | None = None
        self.val_metrics = ReconstructionMetrics("val/", extractors, lpips)
        self.test_metrics = ReconstructionMetrics("test/", extractors, lpips)

    # ------------------------------------------------------------------ building

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs, counted on the meta device, where nothing is allocated.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters, activations and weights.
        """
        losses = LossWeights(**dict(init_args.get("losses") or {}))
        found = needs_of_network(init_args, lambda shape: PAENetwork(shape, losses.vf > 0))
        weights = list(found.weights)
        if losses.ssr > 0 or losses.scr > 0:
            source = init_args.get("refined")
            if source != UNTRAINED:
                weights.append(_file_need("refined prior (stage 0 of PAE)", source, "train and export pae_refine"))
        if losses.lpips > 0:
            weights.append(_file_need("VGG16 of torchvision", init_args.get("lpips_vgg"), "name it in lpips_vgg"))
        adversary = init_args.get("adversary")
        if losses.adversarial > 0 and adversary:
            need = encoder_of(dict(adversary)["encoder"]).need()
            weights += [] if need is None else [need]
        kept = found.activation_bytes_per_token / max(1, int(init_args.get("accumulate") or 1))
        return dataclasses.replace(found, activation_bytes_per_token=kept, weights=tuple(weights))

    def configure_model(self) -> None:
        """Shard, materialise and fill both networks; does nothing the second time."""
        super().configure_model()
        if self.discriminator is not None and next(self.discriminator.parameters()).device.type == "meta":
            self.prepare_network(self.discriminator, self.building.seed)

    def setup(self, stage: str) -> None:
        """Load what is frozen, and refuse what cannot work."""
        precision = str(self.trainer.precision)
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"trainer.precision {precision}: PAE steps two optimisers itself and keeps its latents in float32; use "
                "32-true or bf16-mixed"
            )
        if stage != "fit" and self.building.init_from is None and self.trainer.ckpt_path is None and not self._filled:
            rank_zero_warn(
                f"{stage.lower()} runs on random weights: name a checkpoint (--ckpt_path last) or weights "
                "(--model.init_from ...)"
            )
        if stage == "fit" and self.losses.vf > 0 and self.device_mesh is not None:
            raise ValueError(
                "losses.vf asks a sharded layer for its gradient: use trainer.strategy ddp, or set it to 0"
            )
        if stage == "fit":
            self._load_targets()
        require_prior(self.encoder, self.shape)

    def _load_targets(self) -> None:
        _require_sense(self.shape, self.losses)
        if (self.losses.ssr > 0 or self.losses.scr > 0) and self.target is None:
            self.target = load_refined(self.refined, self.shape, self.encoder, self.seed)
        if self.losses.lpips > 0 and self.perceptual is None:
            if self.lpips_vgg is None:
                raise ValueError(
                    "losses.lpips needs VGG16: name torchvision's file (vgg16-397923af.pth) in "
                    "model.init_args.lpips_vgg, or set losses.lpips to 0"
                )
            self.perceptual = LPIPS(self.lpips_vgg, net="vgg")
        if self.losses.adversarial > 0 and self.adversary is None:
            raise ValueError(
                "losses.adversarial needs a discriminator: describe it in model.init_args.adversary, or set 0"
            )

    def on_fit_start(self) -> None:
        """From here on the weights are no longer random."""
        self._filled = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW of the auto-encoder, and that of the discriminator where there is one."""
        total = int(self.trainer.estimated_stepping_batches)
        first = self.optimizer.build(self.network)
        chosen: list[Any] = [{"optimizer": first, "lr_scheduler": self.schedule.build(first, total)}]
        if self.discriminator is not None and self.adversary is not None:
            second = self.adversary.optimizer.build(self.discriminator)
            steps = max(1, total - self.adversary.discriminator_start)
            chosen.append({"optimizer": second, "lr_scheduler": self.adversary.schedule.build(second, steps)})
        return tuple(chosen)

    def configure_callbacks(self) -> list[pl.Callback]:
        """``predict`` writes what it reconstructs."""
        return [ReconstructionWriter()]

    # ------------------------------------------------------------------ training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step of the paper's algorithm.

        Args:
            batch: pictures of one size.
            batch_idx: not used: every draw is keyed by the samples.

        Returns:
            The auto-encoder's loss.

        Source: arXiv:2605.07915 sections 3.2 to 3.4, eqs. 2 to 6.
        """
        parts = split_step(batch, as_pictures(batch.images), self.accumulate)
        balance = self._balance(parts) if len(parts) > 1 else _Balance()
        iterated = [] if self.discriminator is None else self.discriminator.singular_vectors()
        for optimizer in self._optimizers():
            optimizer.zero_grad()
        seen: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            if self.discriminator is not None and number > 0:
                self.discriminator.rewind(iterated)
            loss, critic, found = self._losses_of(part, balance, number)
            with ranks_wait(self, number + 1 < len(parts)):
                self._backward(part.share * loss, None if critic is None else part.share * critic)
            for name, value in {**found, "loss": loss}.items():
                mean = part.share * value.detach()
                seen[name] = seen[name] + mean if name in seen else mean
        self._step()
        for name, value in seen.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return seen["loss"]

    def _losses_of(self, part: Part, balance: _Balance, number: int) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Loss of the auto-encoder, loss of the discriminator, and what is logged, of a part of a step."""
        prior, decoded = self._decoded(part, moved=True)
        found = self.loss_terms(decoded, part.images, prior)
        weighted = self._weighted(found)
        loss = torch.stack(list(weighted.values())).sum()
        if decoded.aligned is not None:
            found["vf"], weight = vision_foundation_loss(decoded.aligned, prior.features), balance.vf
            if weight is None:
                last = self.network.projector.convolution.weight
                weight = adaptive_weight(_reconstruction(weighted), found["vf"], last, _LARGEST_VF)
            loss = loss + self.losses.vf * weight * found["vf"]
        made = _signed(decoded, part.images)
        if self._hears():
            heard = balance.heard[number] if balance.heard else self._hear(made, part.batch)
            judged, weight = heard.loss(made), balance.adversarial
            if weight is None:
                assert self.adversary is not None
                maximum = self.adversary.maximum
                weight = adaptive_weight(_reconstruction(weighted), judged, decoded.last_layer, maximum)
            loss = loss + self.losses.adversarial * weight * judged
            found |= {"adversarial": heard.value, "adversarial_weight": weight}
        critic = self._criticism(made, part)
        if critic is not None and self._criticises():
            found["discriminator"] = critic
        return loss, critic, found

    def _decoded(self, part: Part, moved: bool) -> tuple[Prior, Decoded]:
        """A pass through the network, with or without latents that MCR moves."""
        images, patch = part.images, self.shape.patch
        prior = look(self.encoder, fill_up(images, patch), grid_of(images, patch))
        perturb = self._perturb(part.batch) if moved else None
        noise = self._noise(part.batch, prior)
        decoded: Decoded = self.network(prior.pixels, prior.features, prior.grid, perturb, noise)
        return prior, decoded

    def _balance(self, parts: Sequence[Part]) -> _Balance:
        """Adaptive weights of a step in parts: lengths of gradients that are summed over the parts first."""
        if not self._hears() and self.losses.vf == 0:
            return _Balance()
        iterated = [] if self.discriminator is None else self.discriminator.singular_vectors()
        sums: dict[str, Tensor] = {}
        heard: list[Heard] = []
        for number, part in enumerate(parts):
            prior, decoded = self._decoded(part, moved=False)
            whole = _reconstruction(self._weighted(self.loss_terms(decoded, part.images, prior)))
            pairs: dict[str, tuple[Tensor, Tensor]] = {}
            if decoded.aligned is not None:
                last = self.network.projector.convolution.weight
                pairs |= {"before vf": (whole, last)}
                pairs |= {"vf": (vision_foundation_loss(decoded.aligned, prior.features), last)}
            if self.discriminator is not None and self._hears():
                if number > 0:
                    self.discriminator.rewind(iterated)
                made = _signed(decoded, part.images)
                heard.append(self._hear(made, part.batch))
                pairs |= {"before adversarial": (whole, decoded.last_layer)}
                pairs |= {"adversarial": (heard[-1].loss(made), decoded.last_layer)}
            for name, (loss, layer) in pairs.items():
                gradient = part.share * gradient_at(loss, layer)
                sums[name] = sums[name] + gradient if name in sums else gradient
        largest = {"vf": _LARGEST_VF, "adversarial": self.adversary.maximum if self.adversary is not None else 0.0}
        found = {
            name: balancing_weight(sums[f"before {name}"], sums[name], most)
            for name, most in largest.items()
            if name in sums
        }
        return _Balance(found.get("adversarial"), found.get("vf"), heard)

    def loss_terms(self, decoded: Decoded, images: Tensor, prior: Prior) -> dict[str, Tensor]:
        """The terms with fixed weights, unweighted; override it to add, change or leave out some.

        Args:
            decoded: latents and pictures of the pass.
            images: originals, (B, 3, H, W) in [-1, 1].
            prior: what is frozen.

        Returns:
            Scalars by name. ``losses`` holds the factors, 1 for a name that it does not have.

        Source: arXiv:2605.07915 eqs. 2 to 6.
        """
        made = decoded.images[0][..., : images.shape[-2], : images.shape[-1]]
        terms = {"l1": (made - (images + 1) / 2).abs().mean()}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(2 * made - 1, images).mean()
        if self.target is not None:
            with torch.no_grad():
                target = self.target.network(prior.features, prior.grid)
            if self.losses.ssr > 0:
                options = (self.structure.gram_norm, self.structure.reduction)
                terms["ssr"] = structure_regularity(decoded.latents, target, *options)
            if self.losses.scr > 0:
                chosen = (self.semantics.pooled, self.semantics.tokens)
                terms["scr"] = semantic_consistency(decoded.latents, target, *chosen)
        if self._turns():
            terms["mcr"] = cascade(decoded.images, self.perceptual, self.cascade.chained)
        if self.shape.latent == "kl":
            terms["kl"] = kl_to_normal(*decoded.codes.chunk(2, dim=-1))
        return terms

    def _weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: float(getattr(self.losses, name, 1.0)) * term for name, term in terms.items()}

    def _turns(self) -> bool:
        """Whether MCR acts in this step."""
        return self.losses.mcr > 0 and self.global_step >= self.cascade.start

    def _hears(self) -> bool:
        """Whether the auto-encoder listens to the discriminator in this step."""
        adversary = None if self.discriminator is None else self.adversary
        return adversary is not None and self.global_step >= adversary.generator_start

    def _criticises(self) -> bool:
        """Whether the discriminator learns in this step."""
        adversary = None if self.discriminator is None else self.adversary
        return adversary is not None and self.global_step >= adversary.discriminator_start

    def _hear(self, made: Tensor, batch: ImageBatch) -> Heard:
        assert self.discriminator is not None and self.adversary is not None
        return hear(self.discriminator, self.adversary, made, Draws(self.seed, batch.epoch, batch.index))

    def _criticism(self, made: Tensor, part: Part) -> Tensor | None:
        """The discriminator's loss, 0 before it begins; None = there is none."""
        if self.discriminator is None or self.adversary is None:
            return None
        if not self._criticises():
            return stay_silent(self.discriminator, part.images)
        draws = Draws(self.seed, part.batch.epoch, part.batch.index)
        return critic_loss(self.discriminator, self.adversary, part.images, made, draws)

    def _optimizers(self) -> list[Any]:
        found: Any = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _backward(self, loss: Tensor, critic: Tensor | None) -> None:
        # The two losses share no weight. DDP wants every weight in each pass; FSDP2 wants one network per pass, since
        # two may gather in another order on each rank.
        losses = [loss] if critic is None else [loss, critic]
        for one in losses if self.device_mesh is not None else [torch.stack(losses).sum()]:
            self.manual_backward(one)

    def _step(self) -> None:
        """Clip, and step both optimisers."""
        schedulers: Any = self.lr_schedulers()
        schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
        # Asked before the first optimiser moves the count on.
        learning = self._criticises()
        for number, (optimizer, scheduler) in enumerate(zip(self._optimizers(), schedulers, strict=True)):
            if number == 1 and not learning:
                continue
            if self.gradient_clip is not None:
                self.clip_gradients(optimizer, self.gradient_clip, "norm")
            # Only the first counts as a step of the run; Lightning would count both.
            (optimizer if number == 0 else optimizer.optimizer).step()
            scheduler.step()

    def _perturb(self, batch: ImageBatch) -> Any:
        """How MCR moves the latents of this batch; None = it does not."""
        if not self._turns():
            return None
        choice, axis = self.cascade, self.shape.norm_axis
        purposes = ["mcr"] if choice.shared_direction else [f"mcr {number}" for number in range(len(choice.angles))]
        jitter = None
        if choice.jitter > 0:
            jitter = 1 - choice.jitter * uniform(self.seed, "mcr angle", batch.epoch, batch.index, ())

        def perturb(z: Tensor) -> Tensor:
            start = z.detach() if choice.detach_latent else z
            noises = [normal(self.seed, name, batch.epoch, batch.index, tuple(z.shape[1:])).to(z) for name in purposes]
            directions = [tangent_direction(noise, z, choice.tangent, axis) for noise in noises]
            if choice.shared_direction:
                return perturbed(start, directions[0], choice.angles, choice.renorm, axis, jitter)
            parts = zip(directions, choice.angles, strict=True)
            return torch.cat([perturbed(start, way, [angle], choice.renorm, axis, jitter) for way, angle in parts])

        return perturb

    def _noise(self, batch: ImageBatch, prior: Prior) -> Tensor | None:
        if self.shape.latent != "kl":
            return None
        shape = (prior.grid[0] * prior.grid[1], self.shape.channels)
        return normal(self.seed, "posterior", batch.epoch, batch.index, shape)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image of the batch, and features for the distances.

        Args:
            batch: pictures.
            batch_idx: not used.
        """
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Distances over the whole set."""
        self.val_metrics.log_distances(self)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image of the batch, and features for the distances.

        Args:
            batch: pictures.
            batch_idx: not used.
        """
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Distances over the whole set."""
        self.test_metrics.log_distances(self)

    def _evaluate(self, batch: ImageBatch, metrics: ReconstructionMetrics) -> None:
        images = batch.images
        metrics.update(list(self.decode(self.encode(images))), _pictures(images), batch.valid, batch.index)
        metrics.log(self, len(batch))

    @torch.no_grad()
    def pictures(self, batch: ImageBatch) -> list[Pictures]:
        """Originals, reconstructions and, where MCR is on, decodings of moved latents, for the sample grid.

        Args:
            batch: pictures.

        Returns:
            Rows of pictures.
        """
        images = batch.images
        latents = self.encode(images)
        rows = [Pictures("original", _pictures(images)), Pictures("reconstruction", list(self.decode(latents)))]
        perturb = self._perturb(batch)
        if perturb is not None and bool(latents.mask.all()):
            for angle, moved in zip(self.cascade.angles, perturb(latents.values), strict=True):
                turned = list(self.decode(latents.with_values(moved)))
                rows.append(Pictures(f"latent turned by {angle:g} degrees", turned))
        return rows

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Reconstructions:
        """Reconstruct pictures; ``ReconstructionWriter`` puts them on disk.

        Args:
            batch: pictures.
            batch_idx: not used.

        Returns:
            Originals, latents and reconstructions.
        """
        latents = self.encode(batch.images)
        return Reconstructions(batch.key, batch.valid, _pictures(batch.images), latents, list(self.decode(latents)))

    def flops_per_step(self, batch: ImageBatch) -> float:
        """Model operations of one training step: modulator once, decoder as often as it decodes, the prior forward.

        Args:
            batch: pictures.

        Returns:
            Floating-point operations of the matrix products with weights; those of attention scores are left out.
        """
        images = as_pictures(batch.images)
        rows, cols = grid_of(images, self.shape.patch)
        decodings = 1 + (len(self.cascade.angles) if self._turns() else 0)
        network: Any = self.network
        halves = [
            sum(p.numel() for part in parts for p in part.parameters())
            for parts in ((network.modulator, network.projector), (network.deprojector, network.decoder))
        ]
        per_token = 6 * (halves[0] + decodings * halves[1]) + 2 * self.encoder.num_parameters
        return float(per_token * rows * cols * len(images))


def _pictures(images: Tokens | Tensor) -> list[Tensor]:
    return unpatchify(images) if isinstance(images, Tokens) else list(images)


def _signed(decoded: Decoded, images: Tensor) -> Tensor:
    """The reconstructions, cut to the size of the originals, about [-1, 1]."""
    return 2 * decoded.images[0][..., : images.shape[-2], : images.shape[-1]] - 1


def _reconstruction(weighted: Mapping[str, Tensor]) -> Tensor:
    """What adaptive weights are measured against."""
    return torch.stack([weighted[name] for name in ("l1", "lpips") if name in weighted]).sum()


def _file_need(what: str, source: str | None, remedy: str) -> WeightNeed:
    found = source is not None and Path(source).expanduser().exists()
    return WeightNeed(
        what, source or "not named", found, "" if found else f"{source or 'nothing'} is not here: {remedy}"
    )


def _require_sense(shape: PAEShape, losses: LossWeights) -> None:
    if losses.mcr > 0 and shape.latent != "sphere":
        raise ValueError("MCR turns latents by angles, which needs shape.latent: sphere; set losses.mcr to 0")
    if losses.kl > 0 and shape.latent != "kl":
        raise ValueError(f"losses.kl is for shape.latent: kl, which is {shape.latent} here: set one of them")
    if (losses.ssr > 0 or losses.scr > 0) and shape.latent == "kl":
        raise ValueError("the target of SSR and SCR is a latent of stage 0, which has no Gaussian: set both to 0")
