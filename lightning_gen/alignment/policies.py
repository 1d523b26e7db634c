"""Text-to-image models as policies: by name, from a folder, from a pipeline, or as they are; and what they need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.lora_files import write_adapter
from lightning_gen.backbones.lora_targets import LORA_TARGETS, LoRATargets
from lightning_gen.backbones.lora_weights import AdapterWeights
from lightning_gen.backbones.pipelines.description import described_networks
from lightning_gen.backbones.pipelines.folder import find_pipeline
from lightning_gen.backbones.shipped import SHIPPED, shipped_or_given
from lightning_gen.backbones.weights import MissingWeightsError, find_weights, stored_shapes
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.interfaces import TextToImage
from lightning_gen.training.needs import ModelNeeds, WeightNeed
from lightning_gen.training.strategies import prepare

__all__ = [
    "PipelinePolicy",
    "encode_run",
    "open_policy",
    "policy_needs",
    "prepare_policy",
    "save_adapter",
    "warn_of_double_guidance",
]

_METHODS = ("network", "latent_shape", "encode_prompts", "velocity", "latents_to_images", "times", "from_noise")
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_WHAT: Final = "the policy"


@dataclasses.dataclass(frozen=True)
class PipelinePolicy:
    """A pipeline of diffusers, named with how it is to be used; nothing is read before training begins.

    What a configuration trains is named by this record, or by a string; ``DiffusersTextToImage`` is the model that it
    becomes.

    Attributes:
        pipeline: folder or hub id.
        canvas: height and width of pictures in pixels; None = the size the model was made for.
        text_length: tokens of a prompt for T5; None = the pipeline's own. Published reinforcement learning: 128.
        clip_length: tokens of a prompt for CLIP; None = 77, which is also the most.
        prompt_cache: folder of encoded prompts; None = none are kept, and every micro-batch encodes its prompts anew,
            in sampling and in learning.
        embedded_guidance: strength of guidance given to networks that take it as an input (FLUX.1 dev, FLUX.2 dev);
            None = the pipeline's own, 3.5 and 4. See :func:`warn_of_double_guidance`.
        dtype: of the frozen weights, network, text encoders and auto-encoder alike.
        text_offload: text encoders wait in host memory while they have nothing to encode.
        encode_first: training by rewards encodes all its prompts before it begins and then forgets the text encoders.
            Every prompt is then on disk: 1.7 MB each for Stable Diffusion 3.5 with 128 tokens of T5.
        vae_slicing: decode picture by picture, for less memory.
        vae_tiling: decode large pictures in overlapping tiles: bounded memory, slightly other numbers.
        is_distilled: whether the model was distilled to few steps; None = what its files and its name say.
        revision: branch, tag or commit of the hub repository.

    Raises:
        ValueError: ``text_offload`` or ``encode_first`` without a cache: the encoders would come and go with every
            micro-batch, or be missed.
    """

    pipeline: str
    canvas: tuple[int, int] | None = None
    text_length: int | None = None
    clip_length: int | None = None
    prompt_cache: str | None = None
    embedded_guidance: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    text_offload: bool = False
    encode_first: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    is_distilled: bool | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.text_offload and self.prompt_cache is None:
            raise ValueError(
                "policy.text_offload without policy.prompt_cache would move the text encoders to the device and back "
                "for every micro-batch: name a folder for encoded prompts"
            )
        if self.encode_first and self.prompt_cache is None:
            raise ValueError("policy.encode_first without policy.prompt_cache: name a folder for encoded prompts")

    def load(self) -> nn.Module:
        """Read the pipeline.

        Returns:
            A ``DiffusersTextToImage``.

        Raises:
            MissingWeightsError: it is not there, or lacks a part.
        """
        from lightning_gen.backbones.text_to_image import DiffusersTextToImage

        return DiffusersTextToImage(
            self.pipeline,
            self.canvas,
            self.text_length,
            self.clip_length,
            prompt_cache=self.prompt_cache,
            embedded_guidance=self.embedded_guidance,
            network_dtype=self.dtype,
            text_dtype=self.dtype,
            text_offload=self.text_offload,
            vae_dtype=self.dtype,
            vae_slicing=self.vae_slicing,
            vae_tiling=self.vae_tiling,
            is_distilled=self.is_distilled,
            revision=self.revision,
        )

    def needs(self, lora: LoRASettings | None) -> ModelNeeds:
        """Count the pipeline by its config files, and look whether its weights are here; nothing is read or fetched.

        Args:
            lora: shape of the trained adapter; None = the network itself is trained.

        Returns:
            Parameters that are trained, of the network and of what stays beside it on the device. Zeros where not even
            the config files are here.
        """
        folder, problem = find_pipeline(self.pipeline, self.revision)
        networks: dict[str, nn.Module] = {}
        place = folder or Path(self.pipeline).expanduser()
        if (place / "model_index.json").is_file():
            try:
                networks = described_networks(place)
            except MissingWeightsError as error:
                folder, problem = None, str(error)
        network = networks.get("transformer", networks.get("unet"))
        beside = sum(_size(part) for name, part in networks.items() if part is not network and self._stays(name))
        hint = f"{problem}. Give the folder of a whole pipeline, or fetch it from the hub (--preflight false)"
        need = WeightNeed(f"{_WHAT}'s pipeline", self.pipeline, folder is not None, "" if folder is not None else hint)
        if network is None:
            return ModelNeeds(0, weights=(need,))
        frozen = _size(network) + beside
        trained = _size(network) if lora is None else AdapterBank(network, lora).num_parameters("default")
        return ModelNeeds(trained, frozen, weights=(need,), frozen_bytes=frozen * _BYTES[self.dtype])

    def _stays(self, part: str) -> bool:
        return not (self.text_offload and part.startswith("text_encoder"))


def open_policy(source: str | PipelinePolicy | nn.Module) -> TextToImage:
    """Load the model that is to be trained.

    Args:
        source: name of shipped weights of this package or a folder that ``save_pretrained`` wrote, a folder of a
            diffusers pipeline (it has a ``model_index.json``) or the hub id of one that lies in the cache, a pipeline
            with how it is used, or a model.

    Returns:
        The model, frozen and in eval mode; it is a module.

    Raises:
        MissingWeightsError: there is nothing of that name.
        TypeError: a module that is no text-to-image model.
    """
    pipeline = _pipeline(source)
    model = _own(cast(str | nn.Module, source)) if pipeline is None else pipeline.load()
    if missing := [name for name in _METHODS if not hasattr(model, name)]:
        raise TypeError(f"{type(model).__name__} is no text-to-image model: it has no {', '.join(missing)}")
    return cast(TextToImage, model.requires_grad_(False).eval())


def prepare_policy(
    policy: TextToImage, device_mesh: DeviceMesh | None, seed: int, activation_checkpointing: bool = False
) -> None:
    """Checkpoint and shard a policy's network, after the adapters are in it.

    Args:
        policy: with its weights.
        device_mesh: Lightning's; None = not sharded.
        seed: of the run.
        activation_checkpointing: compute the inside of its blocks again in the backward pass.
    """
    if device_mesh is None and not activation_checkpointing:
        return
    prepare(policy.network, device_mesh=device_mesh, seed=seed, activation_checkpointing=activation_checkpointing)
    if device_mesh is not None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        # Methods besides forward by which data enter the network, where it has its own encoder of prompts.
        for door in getattr(policy, "doors", ()):
            if hasattr(policy.network, door):
                register_fsdp_forward_method(policy.network, door)


def encode_run(policy: TextToImage, data: object, trainer: pl.Trainer) -> None:
    """Encode all prompts of a run into the policy's cache, each process of a node its share, and free the encoders.

    Args:
        policy: a pipeline with a cache.
        data: whose prompts.
        trainer: of the run.

    Raises:
        ValueError: data whose prompts are not known before the run.
    """
    prompts: set[str] = set()
    if isinstance(data, PromptDataModule):
        prompts = {one.prompt for one in (*data.stored("train"), *data.stored("val"))}
    if not prompts:
        raise ValueError(
            "policy.encode_first needs prompts that are known before the run: a PromptDataModule with "
            "access: indexed; or leave it out"
        )
    model: Any = policy
    model.cache_prompts(sorted(prompts | {""})[trainer.local_rank :: trainer.num_devices])
    trainer.strategy.barrier("prompts are encoded")
    model.free_text_encoders()


def save_adapter(policy: TextToImage, weights: AdapterWeights, folder: str | Path) -> None:
    """Write an adapter as peft and this package read it and, where it adapts a pipeline, as diffusers does, too.

    Args:
        policy: that it adapts.
        weights: whole tensors; of several ranks one writes.
        folder: made if it does not exist.
    """
    write_adapter(weights, folder)
    family = getattr(policy, "family", None)
    if family is not None:
        write_adapter(weights, folder, "diffusers", family.network_folder)


def policy_needs(source: Any, lora: Any, whole: bool = False) -> ModelNeeds:
    """What a policy needs, before anything is built; adapters besides the trained one, which are as small, not counted.

    Args:
        source: of :func:`open_policy`, as parsed from a config: a record may be a mapping.
        lora: ``LoRASettings``, the mapping of one, or None for the usual ones.
        whole: the network itself is trained, without adapters; what runs forward is then a frozen copy of it and all
            that stays beside it.

    Returns:
        Parameters and weights; zeros for what cannot be counted, such as a model of another package.
    """
    settings = lora if isinstance(lora, LoRASettings) else LoRASettings(**dict(lora or {}))
    trained = None if whole else settings
    pipeline = _pipeline(source)
    if pipeline is not None:
        return pipeline.needs(trained)
    return _own_needs(source, trained) if isinstance(source, str) else ModelNeeds(0)


def warn_of_double_guidance(policy: TextToImage, scale: float) -> None:
    """Warn where a network that takes the strength of guidance as an input is guided with the empty prompt as well.

    Args:
        policy: any.
        scale: of the guidance with the empty prompt, in rollouts or in evaluation; 1 = none.
    """
    if scale != 1.0 and getattr(policy, "embeds_guidance", False):
        rank_zero_warn(
            f"the policy was distilled to be guided by a number that its network takes as an input, and guidance of "
            f"{scale:g} with the empty prompt comes on top, at twice the passes: set rollout.guidance and "
            "evaluation.guidance to 1, and policy.embedded_guidance to the strength you want"
        )


def _pipeline(source: Any) -> PipelinePolicy | None:
    """The pipeline that a source means; None = something else."""
    if isinstance(source, str) and source not in SHIPPED and _is_pipeline(source):
        return PipelinePolicy(source, dtype="float32")
    if isinstance(source, Mapping) and "pipeline" in source:
        return PipelinePolicy(**source)
    return source if isinstance(source, PipelinePolicy) else None


def _is_pipeline(source: str) -> bool:
    """Whether it is a pipeline's folder, or the hub id of a pipeline that was fetched before."""
    return (Path(source).expanduser() / "model_index.json").is_file() or find_pipeline(source)[0] is not None


def _own(source: str | nn.Module) -> nn.Module:
    if isinstance(source, nn.Module):
        return source
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion

    return TextLatentDiffusion.from_pretrained(source)


def _own_needs(source: str, lora: LoRASettings | None) -> ModelNeeds:
    try:
        folder, problem = find_weights(shipped_or_given(source))
    except MissingWeightsError as error:
        folder, problem = None, str(error)
    if folder is None:
        return ModelNeeds(0, weights=(WeightNeed(_WHAT, source, False, problem),))
    shapes = stored_shapes(sorted(folder.glob("model*.safetensors")))
    frozen = sum(math.prod(shape) for shape in shapes.values())
    if lora is None:
        trained = sum(math.prod(shape) for name, shape in shapes.items() if ".text_encoder." not in f".{name}")
    else:
        trained = sum(lora.rank * sum(shape) for shape in _adapted(shapes, lora))
    return ModelNeeds(trained, frozen, weights=(WeightNeed(_WHAT, source, True, ""),), frozen_bytes=4 * frozen)


def _adapted(shapes: Mapping[str, tuple[int, ...]], lora: LoRASettings) -> list[tuple[int, ...]]:
    targets = LORA_TARGETS["TextDiT"] if lora.targets is None else LoRATargets(lora.targets, lora.exclude)
    ends = tuple(f".{suffix}.weight" for suffix in targets.suffixes)
    return [
        shape
        for name, shape in shapes.items()
        if f".{name}".endswith(ends) and not any(f".{part}." in f".{name}" for part in targets.exclude)
    ]


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
