"""The parts of `tokenizers.py`, which says what they measure; that file cannot be imported by its name."""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning.pytorch as pl
import measure
import torch
from measure import Row, report, with_standard_options

from lightning_gen.autoencoders.muse.decoder import DCAEShape
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.muse.network import MuseShape
from lightning_gen.autoencoders.muse.stages import Stage
from lightning_gen.autoencoders.muse.teacher import ColorAffinity
from lightning_gen.autoencoders.muse.text import WordVectors
from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.settings import LossWeights
from lightning_gen.autoencoders.pae.variants import PAEShape
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.backbones.intern_vit import InternViTShape
from lightning_gen.backbones.patch_features import UntrainedPatches
from lightning_gen.data.batches import ImageBatch
from lightning_gen.shapes.module import ShapesDataModule

Compare = Callable[..., Row]  # measure.compare with repetitions and clock
PATCH, CHANNELS, LATENT_CHANNELS = 4, 8, 16
"""Pixels of a token; numbers of a latent token, and of MUSE's, which stands for 2 x 2 patches."""


class Sizes(NamedTuple):
    """What is run: edge of the pictures, pictures of a batch, width and depth of the transformers."""

    edge: int
    batch: int
    width: int
    depth: int

    @property
    def heads(self) -> int:
        """Attention heads of every transformer."""
        return max(2, self.width // 64)

    @property
    def half(self) -> str:
        """A transformer by its name."""
        return f"w{self.width}_d{self.depth}_h{self.heads}"


FULL = Sizes(edge=64, batch=8, width=256, depth=4)
QUICK = Sizes(edge=32, batch=2, width=32, depth=1)


def vitok_v2(sizes: Sizes, idea: bool) -> pl.LightningModule:
    """ViTok-v2; its idea in the loss is SSIM on tiles."""
    return ViTokV2(
        variant=f"{sizes.half}-{sizes.half}/1x{PATCH}x{CHANNELS}",
        layer_scale=0.1,
        layout="padded",
        ssim_weight=0.1 if idea else 0.0,
        dino_weight=0.0,
        tile_size=sizes.edge // 2,
    )


def muse(sizes: Sizes, idea: bool) -> pl.LightningModule:
    """MUSE in its last stage, in which everything learns; its idea is structure and semantics."""
    encoder = InternViTShape(sizes.width, sizes.depth, sizes.heads, 4 * sizes.width, PATCH, sizes.edge, layer_scale=1.0)
    decoder = DCAEShape(LATENT_CHANNELS, (16, 32, 64, 64), (1, 1, 1, 1), head_dim=16)
    steps = 1 << 20  # it never ends, and the discriminator never begins
    weights = {"structure_weight": 0.2, "semantic_weight": 0.1} if idea else {"structure_weight": 0.0}
    return Muse(
        MuseShape(encoder, decoder, sizes.width, sizes.depth, sizes.heads, LATENT_CHANNELS, text_width=64),
        stages=[Stage(3, steps, warmup_steps=1, perceptual_weight=0.0, discriminator_start=steps, **weights)],
        start="anything",
        encoder_source="random",
        teacher=ColorAffinity(2 * PATCH) if idea else None,
        text=WordVectors(64) if idea else None,
    )


def pae(sizes: Sizes, idea: bool) -> pl.LightningModule:
    """PAE; its idea is the three losses that align the latents with a prior."""
    prior = UntrainedPatches(PATCH, sizes.width)
    shape = PAEShape(
        channels=CHANNELS,
        prior_width=sizes.width,
        prior_heads=sizes.heads,
        prior_patch=PATCH,
        grid=sizes.edge // PATCH,
        patch=PATCH,
        modulator_depth=sizes.depth,
        decoder=sizes.half,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    off = {} if idea else {"ssr": 0.0, "mcr": 0.0, "scr": 0.0}
    return PAE(prior, shape, "untrained", LossWeights(lpips=0.0, adversarial=0.0, **off))


TOKENIZERS: dict[str, Callable[[Sizes, bool], pl.LightningModule]] = {"ViTok-v2": vitok_v2, "MUSE": muse, "PAE": pae}
IDEAS = {"ViTok-v2": "SSIM on tiles", "MUSE": "structure and semantics", "PAE": "SSR, MCR and SCR"}


def pictures(sizes: Sizes) -> ShapesDataModule:
    """Scenes with captions."""
    return ShapesDataModule(
        size=sizes.edge, samples=sizes.batch, val_samples=sizes.batch, global_batch_size=sizes.batch
    )


def one_batch(sizes: Sizes) -> ImageBatch:
    """The batch that everything is timed on."""
    data = pictures(sizes)
    data.setup("validate")
    return next(iter(data.evaluation_loader("val")))


def training_step(model: pl.LightningModule, sizes: Sizes) -> Callable[[], None]:
    """A whole training step as a function.

    The model goes through a first step under Lightning's Trainer, which makes and connects its optimisers; the steps
    after it leave out the loop around it and the logging.

    Args:
        model: without weights yet.
        sizes: of the pictures.

    Returns:
        The function.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=1,
            limit_val_batches=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=pictures(sizes))
    batch = one_batch(sizes)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]

    def step() -> None:
        if not model.automatic_optimization:
            model.training_step(batch, 0)
            return
        (optimizer,) = trainer.optimizers
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()

    return step


def ideas(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (a)."""
    for name, build in TOKENIZERS.items():
        full, bare = (training_step(build(sizes, idea), sizes) for idea in (True, False))
        yield compare(
            "a", f"{name}: training step against the same without {IDEAS[name]}", full, bare, items=sizes.batch
        )


def ready(name: str, sizes: Sizes) -> Any:
    """A tokenizer with random weights, for use."""
    model = TOKENIZERS[name](sizes, False)
    model.configure_model()
    return model.requires_grad_(False).eval()


def encoding(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (b)."""
    images = one_batch(sizes).images
    other = functools.partial(ready("ViTok-v2", sizes).encode, images)
    for name in ("MUSE", "PAE"):
        ours = functools.partial(ready(name, sizes).encode, images)
        yield compare("b", f"encode: {name} against ViTok-v2", _quietly(ours), _quietly(other), items=sizes.batch)


def decoding(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (c)."""
    images = one_batch(sizes).images
    sides = {}
    for name in TOKENIZERS:
        model = ready(name, sizes)
        with torch.inference_mode():
            sides[name] = _quietly(functools.partial(model.decode, model.encode(images)))
    for name in ("MUSE", "PAE"):
        case = f"decode: {name} against ViTok-v2"
        yield compare("c", case, sides[name], sides["ViTok-v2"], items=sizes.batch)


def _quietly(function: Callable[[], object]) -> Callable[[], object]:
    """Without gradients."""

    def inside() -> object:
        with torch.inference_mode():
            return function()

    return inside


PARTS = {"a": ideas, "b": encoding, "c": decoding}


def run(description: str | None) -> None:
    """Run the parts that were asked for.

    Args:
        description: for ``--help``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only these parts; default: all")
    options = with_standard_options(parser, "benchmarks/results/speed_tokenizers.json").parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # six trainers have nothing to say about one step
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    sizes, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    compare = functools.partial(measure.compare, repetitions=repetitions, clock=clock)
    settings = {"threads": options.threads, "repetitions": repetitions, "quick": options.quick, **sizes._asdict()}
    rows = []
    for part in options.part or sorted(PARTS):
        for row in PARTS[part](sizes, compare):
            print(f"{row.part} {row.case}: {row.ratio:.2f}", flush=True)
            rows.append(row)
    report(rows, options.out, settings, "images")
