"""Text-conditional flow matching: prompts in, pictures out.

t = 0 is clean, t = 1 is noise. Shape letters: B images, L tokens, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from lightning_gen.backbones.text import FrozenTextEncoder
from lightning_gen.data.batches import ImageBatch, PromptBatch
from lightning_gen.flow.schedules import linear_grid, shifted
from lightning_gen.generators.dit.flow_matching import FlowMatching
from lightning_gen.generators.dit.pixel_network import PixelTextDiT, Stem
from lightning_gen.generators.dit.pretrained import USAGE, built, named, read_folder
from lightning_gen.generators.dit.text_network import TextDiT, WordEncoder
from lightning_gen.generators.dit.training import Building, Learning, Prediction, Sampling, TimeSampling
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.generators.geneval_validation import GenEvalValidation
from lightning_gen.generators.spaces import LatentSpace, PixelSpace
from lightning_gen.generators.writing import Generated
from lightning_gen.interfaces import Conditioning
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.nn.tokens import Tokens, patchify
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.weights import load_matching

__all__ = ["TextLatentDiffusion", "TextSize", "WordTokenizer"]

_OPTIMIZER = AdamW(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
_SCHEDULE = WarmupCosine(warmup_fraction=0.01, final_learning_rate=1e-5, start_learning_rate=0.0)


@dataclasses.dataclass(frozen=True)
class TextSize:
    """Size of a text encoder that is trained along.

    Attributes:
        width: of its states.
        depth: number of blocks.
        heads: number of heads; width / heads is a multiple of 4.
    """

    width: int = 96
    depth: int = 2
    heads: int = 3


class WordTokenizer(Protocol):
    """Turns prompts into numbers."""

    @property
    def vocabulary_size(self) -> int:
        """Number of different numbers, padding (0) included."""
        ...

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers, int64, (B, T), and their mask, bool, True = a word."""
        ...


class TextLatentDiffusion(FlowMatching):
    """Text-conditional flow matching; it is a ``TextToImage`` for post-training and guidance.

    Args:
        space: ``PixelSpace`` or ``AutoencoderSpace``.
        tokenizer: turns prompts into numbers for an encoder that is trained along.
        encoder: a frozen text encoder in its place; give one of the two.
        variant: size by name, ``w160_d6_h5``, ``L``, see ``variants.dit_shape``.
        stem: convolutions around the transformer, see ``PixelTextDiT``, for pixels.
        text: size of the encoder that is trained along.
        canvas: height and width of pictures that are made without an example, in pixels.
        pictures_per_prompt: that ``predict`` makes.
        geneval: scores the model in every validation.
        extractors: networks for gFID in validation, see ``FlowMatching``.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.
        prediction: what the network's output means.
        times: at which times it is trained.
        drop_rate: share of the prompts that are replaced by the empty one.
        sampling: how pictures are made.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        init_from: start from these weights: a folder that ``save_pretrained`` or `lightning export` wrote, or the name
            of shipped ones (``shapes_base``). They must mean and fit what is built here. Another thing than
            ``ckpt_path``, which resumes a run.
        seed: seed of the initial weights and of every keyed draw.

    Raises:
        ValueError: neither or both of ``tokenizer`` and ``encoder``, or a canvas that is not made of whole patches.
    """

    doors = ("encode_words",)

    def __init__(
        self,
        space: LatentSpace,
        tokenizer: WordTokenizer | None = None,
        encoder: FrozenTextEncoder | None = None,
        variant: str = "w160_d6_h5",
        stem: Stem | None = None,
        text: TextSize = TextSize(),  # noqa: B008 (frozen)
        canvas: tuple[int, int] = (32, 32),
        pictures_per_prompt: int = 1,
        geneval: GenEvalValidation | None = None,
        extractors: Sequence[FeatureExtractor] = (),
        layer_scale: float = 0.1,
        rope_theta: float = 100.0,
        prediction: Prediction = "clean",
        times: TimeSampling = TimeSampling(shift=3.0),  # noqa: B008 (frozen)
        drop_rate: float = 0.1,
        sampling: Sampling = Sampling(steps=25, shift=3.0),  # noqa: B008 (frozen)
        optimizer: AdamW = _OPTIMIZER,
        schedule: WarmupCosine = _SCHEDULE,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        if (tokenizer is None) == (encoder is None):
            raise ValueError("give either a tokenizer, for a text encoder that is trained along, or a frozen encoder")
        if stem is not None and not isinstance(space, PixelSpace):
            raise ValueError("a stem of convolutions is for pixels: set it to null in the latents of an auto-encoder")
        if canvas[0] % space.patch or canvas[1] % space.patch or min(canvas) < space.patch:
            raise ValueError(f"a canvas of {canvas[0]} x {canvas[1]} is not made of patches of {space.patch} pixels")
        with torch.device("meta"):
            words = None
            if tokenizer is not None:
                words = WordEncoder(tokenizer.vocabulary_size, text.width, text.depth, text.heads, layer_scale)
            width, pooled = (text.width, text.width) if encoder is None else (encoder.width, encoder.pooled_width)
            rest = {"layer_scale": layer_scale, "rope_theta": rope_theta}
            network: nn.Module = (
                TextDiT(variant, space.channels, width, pooled, words, **rest)
                if stem is None
                else PixelTextDiT(variant, space.patch, stem, width, pooled, words, **rest)
            )
        learning = Learning(prediction, times, drop_rate, optimizer, schedule)
        building = Building(activation_checkpointing, compile_blocks, seed)
        super().__init__(space, network, learning, building, sampling, extractors)
        self.tokenizer, self.encoder, self.canvas, self.geneval = tokenizer, encoder, canvas, geneval
        self.pictures_per_prompt, self.init_from = pictures_per_prompt, init_from
        self.save_hyperparameters(
            {
                "variant": variant,
                "channels": space.channels,
                "patch": space.patch,
                "stem": None if stem is None else stem.settings(),
                "text": [width, text.depth, text.heads] if encoder is None else [width],
                "rope_theta": rope_theta,
                "prediction": prediction,
            },
            logger=False,
        )

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is built.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters of the blocks, which are nearly all.
        """
        shape, text = (
            dit_shape(init_args.get("variant", "w160_d6_h5")),
            int((init_args.get("text") or {}).get("width", 96)),
        )
        block = shape.block_parameters + 2 * shape.width * text
        return ModelNeeds(trainable=shape.depth * block, largest_block=block)

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if not self.on_meta:
            return
        super().configure_model()
        if self.init_from is not None:
            load_matching(self.network, self.fitting_weights(self.init_from), self.init_from)

    # ------------------------------------------------------------------ weights

    def usage(self) -> dict[str, Any]:
        """Space, tokenizer, canvas and sampling, as far as they can be named; ``from_pretrained`` builds them."""
        return {
            "space": named(self.space),
            "tokenizer": named(self.tokenizer),
            "canvas": list(self.canvas),
            "sampling": dataclasses.asdict(self.sampling),
        }

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "shapes_base",
        space: LatentSpace | None = None,
        tokenizer: WordTokenizer | None = None,
        encoder: FrozenTextEncoder | None = None,
    ) -> Self:
        """A model ready to make pictures, in eval mode, gradients off.

        Args:
            source: folder that ``save_pretrained`` or `lightning export` wrote, hub id, or the name of shipped weights.
            space: where it works; None = as the folder says, for spaces that need no files of their own.
            tokenizer: turns prompts into numbers; None = as the folder says.
            encoder: the frozen text encoder that the weights were trained with, where they were.

        Returns:
            The model on the CPU, in float32, whatever precision the weights are stored in.

        Raises:
            MissingWeightsError: the files are absent or damaged, or the weights are no safetensors.
            ValueError: they belong to another kind of module, or their ``config.json`` does not describe them.
        """
        config, state, folder = read_folder(source)
        if config.get("kind") != cls.__name__:
            raise ValueError(f"{folder} holds {config.get('kind')!r}, not a {cls.__name__}")
        if encoder is None and len(config.get("text", ())) == 1:
            raise ValueError(f"the weights in {folder} were trained with a frozen text encoder: give it (encoder=...)")
        usage = config.get(USAGE) or {}
        space = space or built(usage.get("space"), "space", folder)
        if tokenizer is None and encoder is None:
            tokenizer = built(usage.get("tokenizer"), "tokenizer", folder)
        try:
            model = cls(
                space,
                tokenizer,
                encoder,
                variant=config["variant"],
                stem=None if config["stem"] is None else _stem(**config["stem"]),
                text=TextSize(*config["text"]) if encoder is None else TextSize(),
                canvas=tuple(usage["canvas"]),
                rope_theta=config["rope_theta"],
                prediction=config["prediction"],
                sampling=Sampling(**usage["sampling"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}/config.json does not describe a {cls.__name__}: {error!r}") from None
        return model.load_network(source).requires_grad_(False).eval()

    # ------------------------------------------------------------------ training

    def condition(self, batch: ImageBatch, dropped: Tensor) -> Conditioning:
        """Encoded captions, the empty one where they are dropped.

        Args:
            batch: its captions.
            dropped: bool, (B,).

        Returns:
            B encoded prompts.
        """
        pairs = zip(batch.caption, dropped.tolist(), strict=True)
        return self.encode_prompts(["" if gone else caption for caption, gone in pairs])

    def log_scores(self, prefix: str) -> None:
        """Distances over the whole set, and the score of GenEval's prompts.

        Args:
            prefix: ``val`` or ``test``.
        """
        super().log_scores(prefix)
        if self.geneval is not None and not self.trainer.sanity_checking:
            found = self.geneval.run(self.make, self.trainer.global_rank, self.trainer.world_size)
            self.log_dict({f"{prefix}/geneval_{name}": value for name, value in found.items()})

    # ------------------------------------------------------------------ TextToImage

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Tokens and channels of a picture of the module's canvas."""
        height, width = self.canvas
        return (height // self.space.patch) * (width // self.space.patch), self.space.channels

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts.

        Args:
            prompts: B texts; the empty text is the unconditional prompt.

        Returns:
            Their conditioning.

        Raises:
            ValueError: a word that the tokenizer does not know.
        """
        if self.tokenizer is None:
            assert self.encoder is not None
            encoded: Conditioning = self.encoder(prompts)
            return encoded
        words, mask = (part.to(self.device) for part in self.tokenizer(prompts))
        network: Any = self.network
        trained: Conditioning = network.encode_words(words, mask)
        return trained

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = eps - x_0 on the module's canvas.

        Args:
            x_t: latents at time t, float, (B, L, C), tokens row by row.
            t: time, float, (B,), 0 = clean, 1 = noise.
            conditioning: encoded prompts, B of them.

        Returns:
            (B, L, C).
        """
        return self.velocity_of(self._laid_out(x_t), t, conditioning)

    def latents_to_images(self, latents: Tensor) -> Tensor:
        """Decode clean latents.

        Args:
            latents: float, (B, L, C).

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        return torch.stack(self.space.decode(self._laid_out(latents)))

    def images_to_latents(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], of the canvas's size.

        Returns:
            Clean latents, (B, L, C).
        """
        return self.space.encode_images(images).values

    def times(self, steps: int) -> Tensor:
        """The sampling grid of the module's own settings.

        Args:
            steps: number of solver steps, >= 1.

        Returns:
            (steps + 1,) times falling from 1 to 0.
        """
        return shifted(linear_grid(steps, 1.0), self.sampling.shift)

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        """The state at the first time, which is 1: the noise.

        Args:
            noise: float, (B, L, C).
            steps: not used.

        Returns:
            The noise.
        """
        return noise

    def _laid_out(self, values: Tensor) -> Tokens:
        canvas = torch.zeros(len(values), 1, *self.canvas, device=values.device)
        return patchify(canvas, self.space.patch).with_values(values)

    # ------------------------------------------------------------------ use

    def predict_step(self, batch: ImageBatch | PromptBatch, batch_idx: int) -> Generated:
        """Make pictures for prompts; ``GeneratedWriter`` puts them on disk.

        Args:
            batch: prompts, or pictures with captions, of whose pixels only the sizes are used.
            batch_idx: not used.

        Returns:
            ``pictures`` pictures per prompt: picture p of prompt n has the number n pictures + p.
        """
        if isinstance(batch, ImageBatch):
            return super().predict_step(batch, batch_idx)
        prompts = [prompt for prompt in batch.prompt for _ in range(self.pictures_per_prompt)]
        first = batch.index[:, None] * self.pictures_per_prompt
        index = (first + torch.arange(self.pictures_per_prompt, device=first.device)).flatten()
        images = self.make(prompts, index)
        return Generated(
            batch.prompt, batch.metadata, batch.index.tolist(), batch.valid, images, self.pictures_per_prompt
        )

    @torch.no_grad()
    def make(
        self,
        prompts: Sequence[str],
        index: Tensor | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Make a picture for every prompt.

        Args:
            prompts: B texts.
            index: int64, (B,), numbers of the pictures, which decide their noise; None = 0, 1, ...
            sampling: None = the module's.
            seed: None = the module's.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        index = torch.arange(len(prompts)) if index is None else index
        condition, nothing = self.encode_prompts(prompts), self.encode_prompts([""] * len(prompts))
        sizes = [self.canvas] * len(prompts)
        return torch.stack(self.generate(condition, nothing, sizes, index, sampling, seed))


def _stem(channels: Sequence[int], depths: Sequence[int], fold: int) -> Stem:
    """From JSON, whose lists are not tuples."""
    return Stem(tuple(channels), tuple(depths), fold)
