"""MUSE in training: the three-stage curriculum, its losses, and its routing. Its use stands in ``codec.py``, what it is
measured by in ``evaluation.py``.

Shape letters: B images, H and W height and width in pixels, E width of the text embedding.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_gen.autoencoders.accumulation import Part, check_accumulate, ranks_wait, split_step
from lightning_gen.autoencoders.muse.codec import RANDOM, Building, imagenet_pixels
from lightning_gen.autoencoders.muse.convert import Settings, revive_shape
from lightning_gen.autoencoders.muse.curriculum import (
    learning_rate_factors,
    parameter_groups,
    require_predecessor,
    revive_stages,
)
from lightning_gen.autoencoders.muse.discriminator import PatchDiscriminator
from lightning_gen.autoencoders.muse.evaluation import Measured, MuseEvaluation
from lightning_gen.autoencoders.muse.network import Layers, MuseNetwork, MuseOutput, MuseShape, Routing
from lightning_gen.autoencoders.muse.objective import (
    Contrast,
    Heads,
    Psi,
    contrast_of_step,
    contrastive_loss,
    generator_objective,
    reconstruction_loss,
    resize_attention,
    structure_loss,
    unit_range,
)
from lightning_gen.autoencoders.muse.perceptual import PerceptualLoss
from lightning_gen.autoencoders.muse.stages import PAPER_STAGES, Stage, locate_stage
from lightning_gen.autoencoders.muse.teacher import StructureTeacher
from lightning_gen.autoencoders.muse.text import TextTower
from lightning_gen.data.batches import ImageBatch
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.metrics.probes.linear import LinearProbe
from lightning_gen.metrics.probes.segmentation_test import SegmentationTest
from lightning_gen.nn.adversarial import LeCam, generator_loss, hinge_discriminator_loss
from lightning_gen.nn.ranks import mean_over_ranks
from lightning_gen.training.classes import class_named
from lightning_gen.training.ema import EMA
from lightning_gen.training.initialisation import local
from lightning_gen.training.needs import ModelNeeds, WeightNeed
from lightning_gen.training.optim import AdamW
from lightning_gen.training.strategies import prepare

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["Muse"]

_LARGEST_LOG_TEMPERATURE = math.log(100.0)


class Muse(MuseEvaluation):
    """A continuous tokenizer whose attention learns structure, whose exported values learn meaning.

    total = L_rec + w_perc L_perc + w_g L_G + w_topo L_topo + w_itc L_itc

    It steps its own optimisers (generator, and discriminator where a stage uses it), so the trainer's
    ``gradient_clip_val`` and ``accumulate_grad_batches`` stay at their defaults; ``clip`` and ``accumulate`` are here.
    ``trainer.max_steps`` counts steps of the generator.

    Args:
        shape: sizes of the network.
        routing: where gradients stop: ``strict`` (structure reaches queries and keys alone, semantics their own values
            alone), ``official`` (the published code), ``joint`` (nowhere).
        topo_layers: blocks whose attention is supervised; published code: ``last``.
        topo_heads: ``per_head`` or the ``mean`` of the heads; published code: ``mean``.
        itc_layers: blocks whose exported values meet the text.
        psi: resize of the teacher's map; ``official_transposed`` repeats the published code's transpose.
        gather_negatives: the contrast sees the batches of all ranks; published code: False.
        clamp_logit_scale: keep the learned temperature at 100 or below; published code: False.
        stages: of the curriculum, one after another; see ``Stage``.
        start: what the weights at the start of a stage 2 or 3 must be: ``previous_stage``, or ``anything``.
        encoder_source: folder or hub id of InternViT or InternVL weights; ``random`` to mean it.
        decoder_source: folder or hub id of DC-AE weights; None or ``random`` = random.
        teacher: gives the attention map that structure follows.
        text: embeds captions.
        perceptual: LPIPS and classifier logits.
        discriminator_width: channels of its first stage.
        lecam_weight: of the LeCam regulariser.
        betas: of AdamW.
        weight_decay: of AdamW, on matrices that are no norms or embeddings.
        eight_bit: keep AdamW's moments in 8 bits (bitsandbytes, CUDA).
        clip: largest norm of the gradients of the generator and of the discriminator.
        accumulate: parts in which the pictures of a step are gone through, for less memory; the step is the same as
            with one part: the contrast and LeCam see all of them, for which encoder, blocks and discriminator run once
            more. ``data.global_batch_size`` counts the whole step.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        compile_blocks: torch.compile every block.
        init_from: start from these weights: a checkpoint of the previous stage (its average, if it holds one), an
            exported folder, or published weights.
        extractors: networks for rFID in validation and test.
        lpips: the learned distance in validation and test; None = not measured.
        linear_probe: measured in ``test``: trains a linear map on F_sem; None = not measured.
        probe_data: a data module whose *validation* pictures train the probe (name the training set in its ``val``).
        class_names: names of the classes for zero-shot classification in ``test``; empty = not measured.
        segmentation: measured in ``test``: trains a segmentation probe on the last block's stream, for instance on
            ``ADE20KShards``; None = not measured.
        seed: seed of the initial weights.

    Raises:
        ValueError: settings that exclude each other.

    Source: arXiv:2605.05646.
    """

    def __init__(
        self,
        shape: MuseShape = MuseShape(),  # noqa: B008 (frozen)
        routing: Routing = "strict",
        topo_layers: Layers = "all",
        topo_heads: Heads = "per_head",
        itc_layers: Layers = "last",
        psi: Psi = "correct",
        gather_negatives: bool = True,
        clamp_logit_scale: bool = True,
        stages: Sequence[Stage] = PAPER_STAGES[:1],
        start: Literal["previous_stage", "anything"] = "previous_stage",
        encoder_source: str | None = None,
        decoder_source: str | None = None,
        teacher: StructureTeacher | None = None,
        text: TextTower | None = None,
        perceptual: PerceptualLoss | None = None,
        discriminator_width: int = 128,
        lecam_weight: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        eight_bit: bool = False,
        clip: float = 1.0,
        accumulate: int = 1,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
        extractors: Sequence[FeatureExtractor] = (),
        lpips: LPIPS | None = None,
        linear_probe: LinearProbe | None = None,
        probe_data: pl.LightningDataModule | None = None,
        class_names: Sequence[str] = (),
        segmentation: SegmentationTest | None = None,
        seed: int = 0,
    ) -> None:
        stages, shape = revive_stages(stages), revive_shape(shape)
        building = Building(encoder_source, decoder_source, init_from, activation_checkpointing, compile_blocks, seed)
        measured = Measured(extractors, lpips, linear_probe, probe_data, class_names, segmentation)
        super().__init__(Settings(shape, routing, topo_layers, itc_layers, stages[-1].kind), building, measured, text)
        self.automatic_optimization = False
        self.topo_heads, self.psi = topo_heads, psi
        self.gather_negatives, self.clamp_logit_scale = gather_negatives, clamp_logit_scale
        self.stages, self.start = stages, start
        self.teacher, self.perceptual = teacher, perceptual
        self.lecam_weight, self.clip, self.accumulate = lecam_weight, clip, check_accumulate(accumulate)
        self.betas, self.weight_decay, self.eight_bit = tuple(betas), weight_decay, eight_bit
        self._remember(discriminator_width)
        self.discriminator: PatchDiscriminator | None = None
        if any(stage.uses_discriminator for stage in stages):
            with torch.device("meta"):
                self.discriminator = PatchDiscriminator(discriminator_width)
            # Its gradients are averaged where they are made: DDP waits for all parameters in every backward pass.
            self._ddp_params_and_buffers_to_ignore: list[str] = []
        self.lecam = LeCam() if self.discriminator is not None else None
        self._train_what_the_stages_train()

    def _remember(self, discriminator_width: int) -> None:
        # Plain values only: they must load with weights_only=True. What concerns one run stands in its config.
        settings = dataclasses.asdict(self.settings)
        settings.pop("stage")
        settings["stages"] = [dataclasses.asdict(stage) for stage in self.stages]
        settings["discriminator_width"] = discriminator_width
        self.save_hyperparameters(settings, logger=False)

    def _train_what_the_stages_train(self) -> None:
        """Parameters that no stage of this run trains want no gradient: optimiser, EMA and DDP then pass them over."""
        network = self.network
        network.encoder.requires_grad_(any(stage.trains_encoder for stage in self.stages))
        if not any(stage.trains_semantics for stage in self.stages):
            for part in (network.head, network.temperature, *(block.semantic for block in network.synergy)):
                part.requires_grad_(False)
        if not any(stage.structure_weight > 0 for stage in self.stages) and self.settings.routing != "joint":
            for block in network.synergy:
                for part in (block.query, block.key, block.query_norm, block.key_norm):
                    part.requires_grad_(False)

    # ------------------------------------------------------------------ building

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is allocated.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters and weights.
        """
        shape = revive_shape(init_args.get("shape") or {})
        stages = revive_stages(init_args.get("stages") or PAPER_STAGES[:1])
        with torch.device("meta"):
            network = MuseNetwork(shape)
        encoder = sum(p.numel() for p in network.encoder.parameters())
        rest = sum(p.numel() for p in network.parameters()) - encoder
        trains = any(stage.trains_encoder for stage in stages)
        found = [_need(init_args.get(name)) for name in ("teacher", "text", "perceptual")]
        return ModelNeeds(
            trainable=rest + (encoder if trains else 0),
            frozen=0 if trains else encoder,
            largest_block=max(sum(p.numel() for p in block.parameters()) for block in network.blocks()),
            weights=tuple(need for need in found if need is not None),
        )

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        return cls(settings.shape, settings.routing, settings.topo_layers, itc_layers=settings.itc_layers)

    def configure_model(self) -> None:
        """Shard, materialise and fill network and discriminator; does nothing the second time."""
        if not self.on_meta:
            return
        super().configure_model()
        if self.discriminator is not None:
            prepare(self.discriminator, device_mesh=self.device_mesh, seed=self.building.seed)
            names = [name for name, _ in self.named_parameters() if name.startswith("discriminator.")]
            self._ddp_params_and_buffers_to_ignore = names

    def setup(self, stage: str) -> None:
        """Load the frozen networks where training needs them, and refuse what cannot work."""
        if "16" in str(self.trainer.precision) and str(self.trainer.precision) != "bf16-mixed":
            raise ValueError(f"trainer.precision {self.trainer.precision}: use 32-true or bf16-mixed")
        if stage != "fit":
            return
        if self.trainer.ckpt_path is None:
            require_predecessor(self.stages[0], self.start, self.building.init_from)
            if self.building.init_from is None and self.building.encoder_source is None and not self._filled:
                raise ValueError(
                    "the encoder would start from random weights: set model.encoder_source to a folder or hub id of an "
                    f"InternViT (paper: OpenGVLab/InternVL3-1B), or to '{RANDOM}' to mean it"
                )
        self._require_frozen_networks()

    def _require_frozen_networks(self) -> None:
        wanted = {
            "teacher": (self.teacher, "structure_weight", any(s.structure_weight > 0 for s in self.stages)),
            "text": (self.text, "semantic_weight", any(s.trains_semantics for s in self.stages)),
            "perceptual": (self.perceptual, "perceptual_weight", any(s.perceptual_weight > 0 for s in self.stages)),
        }
        for name, (network, weight, is_wanted) in wanted.items():
            if is_wanted and network is None:
                raise ValueError(f"a stage has a {weight} above 0 but model.{name} is not set: name it, or set it to 0")
            if is_wanted and network is not None:
                network.load()

    def on_fit_start(self) -> None:
        """From here on the weights are no longer random."""
        self._filled = True

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        """AdamW of the generator and, where a stage uses it, of the discriminator, each with its schedule."""
        first = next((s for s in self.stages if s.trains_encoder), self.stages[-1])
        rates = (self.stages[0].learning_rate, first.learning_rate * first.encoder_learning_rate_factor)
        groups = parameter_groups(self.network, self.weight_decay, *rates)
        plan = AdamW(self.stages[0].learning_rate, (self.betas[0], self.betas[1]), self.weight_decay)
        plan = dataclasses.replace(plan, eight_bit=self.eight_bit)
        optimizers = [plan.build_groups(groups)]
        factors = [learning_rate_factors(self.stages, group["lr"], group["name"]) for group in groups]
        schedulers: list[Any] = [torch.optim.lr_scheduler.LambdaLR(optimizers[0], factors)]
        if self.discriminator is not None:
            rate = self.stages[-1].discriminator_learning_rate
            optimizers.append(dataclasses.replace(plan, learning_rate=rate).build(self.discriminator))
            factor = learning_rate_factors(self.stages, rate, "discriminator")
            schedulers.append(torch.optim.lr_scheduler.LambdaLR(optimizers[1], factor))
        return optimizers, schedulers

    # ------------------------------------------------------------------ training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step of the paper's algorithm.

        Args:
            batch: pictures of one size, with captions from stage 2 on.
            batch_idx: not used: nothing is drawn.

        Returns:
            The generator's loss.

        Source: arXiv:2605.05646 (training), code of its trainers.
        """
        stage, step = self._stage()
        parts = split_step(batch, self._pictures(batch), self.accumulate)
        contrast = self._contrast(parts, batch) if len(parts) > 1 and stage.trains_semantics else None
        is_adversarial = stage.uses_discriminator and step >= stage.discriminator_start
        optimizer = _several(self.optimizers())[0]
        optimizer.zero_grad()
        seen: dict[str, Tensor] = {}
        made: list[Tensor] = []
        for number, part in enumerate(parts):
            output = self._forward(part.images, stage)
            terms = self.loss_terms(output, part.images, part.batch, stage, contrast, part)
            if is_adversarial:
                terms["adversarial"] = self._adversarial(output.images)
                made.append(output.images.detach())
            loss = generator_objective(terms, _weights(stage))
            with ranks_wait(self, number + 1 < len(parts)):
                self.manual_backward(part.share * loss)
            for name, value in {**terms, "loss": loss}.items():
                mean = part.share * value.detach()
                seen[name] = seen[name] + mean if name in seen else mean
        self._step_generator(optimizer)
        if is_adversarial:
            seen["discriminator"] = self._step_discriminator(parts, made)
        self._step_schedules()
        for name, value in seen.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        self.log("train/stage", float(stage.kind), batch_size=len(batch))
        return seen["loss"]

    def loss_terms(
        self,
        output: MuseOutput,
        images: Tensor,
        batch: ImageBatch,
        stage: Stage,
        contrast: Contrast | None = None,
        part: Part | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss without the adversarial one, unweighted.

        Args:
            output: what the network made of the batch.
            images: (B, 3, H, W) in [-1, 1], as the network saw them.
            batch: its captions.
            stage: decides which terms there are.
            contrast: of the whole step, where the batch is a part of one; None = that of the batch.
            part: which part.

        Returns:
            Scalars by name: reconstruction, perceptual, structure, semantics.

        Source: arXiv:2605.05646 (losses).
        """
        terms = {"reconstruction": reconstruction_loss(output.images, images)}
        if stage.perceptual_weight > 0:
            assert self.perceptual is not None
            terms["perceptual"] = self.perceptual(output.images, images)
        if stage.structure_weight > 0:
            terms["structure"] = self._structure(output, images)
        if stage.trains_semantics:
            if contrast is not None and part is not None:
                terms["semantics"] = contrast.part(output.embeddings, output.temperature, part.rows, part.share)
            else:
                terms["semantics"] = self._semantics(output, batch)
        return terms

    def _structure(self, output: MuseOutput, images: Tensor) -> Tensor:
        assert self.teacher is not None
        found = self.teacher.attention(images)
        patch = self.settings.shape.patch
        target = resize_attention(
            found.values, found.grid, (images.shape[2] // patch, images.shape[3] // patch), self.psi
        )
        return structure_loss(target, output.attentions, self.topo_heads)

    def _contrast(self, parts: Sequence[Part], batch: ImageBatch) -> Contrast:
        """The contrast of a step in parts: a part alone does not know the captions of the others."""
        text = self._texts(batch)
        found: list[list[Tensor]] = []
        with torch.no_grad():
            for part in parts:
                embeddings, temperature = self.network.embed(imagenet_pixels(part.images))
                found.append(embeddings)
        layers = [torch.cat(layer) for layer in zip(*found, strict=True)]
        return contrast_of_step(layers, text.to(layers[0].dtype), temperature, self.gather_negatives)

    def _texts(self, batch: ImageBatch) -> Tensor:
        assert self.text is not None
        if len(batch.caption) != len(batch) or not any(batch.caption):
            raise ValueError(
                "the batch has no captions, which stages 2 and 3 contrast with the pictures: use a data module with "
                "captions (TextImageDataModule; files NAME.txt, or 'caption' in NAME.json, beside the pictures), or "
                f"set semantic_weight to 0 (keys {', '.join(batch.key[:3])})"
            )
        return self.text.embed(batch.caption, self.device)

    def _semantics(self, output: MuseOutput, batch: ImageBatch) -> Tensor:
        text = self._texts(batch)
        losses = [
            contrastive_loss(embedding, text.to(embedding.dtype), output.temperature, self.gather_negatives)
            for embedding in output.embeddings
        ]
        return torch.stack(losses).mean()

    def _forward(self, images: Tensor, stage: Stage) -> MuseOutput:
        output: MuseOutput = self.network(imagenet_pixels(images), stage.gradient_scale, stage.trains_encoder)
        return output

    def _adversarial(self, prediction: Tensor) -> Tensor:
        assert self.discriminator is not None
        sharded = any(type(p).__name__ == "DTensor" for p in self.discriminator.parameters())
        # FSDP fixes what wants a gradient when it first gathers; elsewhere its weight gradients need not be computed.
        self.discriminator.requires_grad_(sharded)
        loss = generator_loss(self.discriminator(unit_range(prediction)))
        self.discriminator.requires_grad_(True)
        return loss

    def _step_generator(self, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        optimizer.step()
        if self.clamp_logit_scale:
            local(self.network.temperature.log).clamp_(max=_LARGEST_LOG_TEMPERATURE)

    def _step_schedules(self) -> None:
        with warnings.catch_warnings():
            # The discriminator's goes on while it waits for its start: both count the steps of the run.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for scheduler in _several(self.lr_schedulers()):
                scheduler.step()

    def _step_discriminator(self, parts: Sequence[Part], made: Sequence[Tensor]) -> Tensor:
        """A step of the discriminator; gives its hinge loss."""
        assert self.discriminator is not None and self.lecam is not None
        # Not through Lightning's wrapper, which would count this as another step of the run.
        optimizer: Any = _several(self.optimizers(use_pl_optimizer=False))[1]
        optimizer.zero_grad()
        slopes = self._lecam_slopes(parts, made) if len(parts) > 1 else None
        total = made[0].new_zeros(())
        for part, fake in zip(parts, made, strict=True):
            of_real, of_fake = self._judged(part.images, fake)
            hinge = hinge_discriminator_loss(of_real, of_fake)
            if slopes is None:
                penalty = self.lecam(of_real, of_fake)
            else:
                penalty = slopes[0] * of_real.mean() + slopes[1] * of_fake.mean()
            (part.share * (hinge + self.lecam_weight * penalty)).backward()
            total = total + part.share * hinge.detach()
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
        torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total

    def _judged(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        assert self.discriminator is not None
        logits: Tensor = self.discriminator(torch.cat([unit_range(real), unit_range(fake)]))
        of_real, of_fake = logits.float().chunk(2)
        return of_real, of_fake

    @torch.no_grad()
    def _lecam_slopes(self, parts: Sequence[Part], made: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Derivatives of LeCam's penalty by the mean logits of a whole step, real and made: it squares these means."""
        assert self.lecam is not None
        means = torch.zeros(2, device=self.device)
        for part, fake in zip(parts, made, strict=True):
            logits = self._judged(part.images, fake)
            means = means + part.share * torch.stack([side.mean() for side in logits])
        with torch.enable_grad():
            leaves = [mean.requires_grad_() for mean in means.unbind()]
            return torch.autograd.grad(self.lecam(*leaves), leaves)

    def _stage(self) -> tuple[Stage, int]:
        """The stage of this step; on the first step of a later one, everything begins anew but the weights."""
        number, step = locate_stage(self.stages, self.trainer.global_step)
        if number > 0 and step == 0:
            self._begin_stage(number)
        self._reach(self.stages[number].kind)
        return self.stages[number], step

    def _reach(self, kind: int) -> None:
        """Exported weights name the stage that trained them last, not the last one of the plan."""
        if self.settings.stage != kind:
            self.settings = dataclasses.replace(self.settings, stage=kind)

    def _begin_stage(self, number: int) -> None:
        rank_zero_info(f"step {self.trainer.global_step}: stage {self.stages[number].kind} begins")
        for optimizer in _several(self.optimizers(use_pl_optimizer=False)):
            optimizer.state.clear()
        average = next((c for c in self.trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
        if average is None:
            return
        # The next stage starts from the average, as the published trainers do from one run to the next.
        parameters = [p for p in self.parameters() if p.requires_grad]
        with average.averaged(self):
            copies = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class and the stage, so that a checkpoint alone can be exported and continued."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        number, step = locate_stage(self.stages, self.trainer.global_step)
        finished = self.stages[number - 1] if step == 0 and number > 0 else self.stages[number]
        checkpoint["muse_stage"] = finished.kind

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model before a single tensor is copied, and take its stage over.

        Args:
            checkpoint: what is about to be loaded.

        Raises:
            ValueError: its sizes are others.
        """
        stored = checkpoint.get("hyper_parameters", {}).get("shape")
        if stored is not None and revive_shape(stored) != self.settings.shape:
            raise ValueError(
                f"the checkpoint holds a MUSE of other sizes ({revive_shape(stored)}) than the model's "
                f"({self.settings.shape}): set model.shape to the checkpoint's, or start from its weights "
                "with init_from"
            )
        if isinstance(checkpoint.get("muse_stage"), int):
            self._reach(checkpoint["muse_stage"])
        self._filled = True

    # ------------------------------------------------------------------ routing

    def routing_losses(self, batch: ImageBatch) -> Mapping[str, Tensor]:
        """The unweighted losses of a batch, each with its graph, for ``GradientRouting``.

        Args:
            batch: a training batch.

        Returns:
            ``rec``, and ``topo`` and ``itc`` where the stage has them; of a step in parts those of the first part.
        """
        number, _ = locate_stage(self.stages, self.trainer.global_step)
        stage, part = self.stages[number], split_step(batch, self._pictures(batch), self.accumulate)[0]
        terms = self.loss_terms(self._forward(part.images, stage), part.images, part.batch, stage)
        names = {"reconstruction": "rec", "structure": "topo", "semantics": "itc"}
        return {names[name]: term for name, term in terms.items() if name in names}

    def routing_groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Groups of parameters by their part in the blocks, the last block apart."""
        network = self.network
        groups: dict[str, list[nn.Parameter]] = {"encoder": list(network.encoder.parameters())}
        groups["adapter"] = list(network.adapter.parameters())
        for place, blocks in (("earlier", network.synergy[:-1]), ("last", network.synergy[-1:])):
            for name, parts in _PARTS.items():
                found = [p for block in blocks for part in parts for p in getattr(block, part).parameters()]
                if found:
                    groups[f"{name} {place}"] = found
        groups["latent"] = [*network.to_latent.parameters(), *network.decoder_adapter.parameters()]
        groups["decoder"] = list(network.decoder.parameters())
        groups["head"] = [*network.head.parameters(), *network.temperature.parameters()]
        return groups


_PARTS = {
    "q, k": ("query", "key", "query_norm", "key_norm"),
    "values": ("value", "out", "gate", "up", "down"),
    "norms": ("norm1", "norm2"),
    "semantic": ("semantic",),
}


def _weights(stage: Stage) -> dict[str, float]:
    return {
        "perceptual": stage.perceptual_weight,
        "structure": stage.structure_weight,
        "semantics": stage.semantic_weight,
        "adversarial": stage.discriminator_weight,
    }


def _several(found: Any) -> list[Any]:
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]


def _need(given: Any) -> WeightNeed | None:
    """Ask a teacher, tower or loss, which may still be its parsed configuration, for its weights."""
    if isinstance(given, Mapping):
        given = class_named(str(given["class_path"]), "class_path")(**(given.get("init_args") or {}))
    need: WeightNeed | None = None if given is None else given.need()
    return need
