"""What a model and a data set need, as plain numbers: the records that ``needs`` classmethods return.

``needs(cls, init_args)`` receives the parsed arguments of its class and builds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["DataNeeds", "ModelNeeds", "WeightNeed", "add_needs"]


@dataclass(frozen=True)
class WeightNeed:
    """A file of published weights that the run reads.

    Args:
        what: what the weights are, for instance ``"DINOv3 ViT-S/16"``.
        source: local path or hub id they are taken from.
        found: whether they can be read here without asking anybody.
        hint: what to do when they are not found.
    """

    what: str
    source: str
    found: bool
    hint: str


@dataclass(frozen=True)
class ModelNeeds:
    """What a model needs, counted without building it.

    Args:
        trainable: number of trainable parameters.
        frozen: number of parameters that only run forward.
        largest_block: parameters of the largest block that is gathered at once when the model is sharded.
        activation_bytes_per_token: bytes kept for the backward pass per token of the batch, in 32-bit; halved here
            when the run computes in 16 bits.
        weights: published weights the model reads.
        float8: whether its blocks multiply in float8.
        use_bytes_per_token: bytes that one token takes at the peak of a pass without gradients, in 32-bit; 0 = memory
            does not grow with the picture, or nothing is known.
        frozen_bytes: what the frozen parameters take where they keep a format of their own; None = the format of the
            trained ones.
    """

    trainable: int
    frozen: int = 0
    largest_block: int = 0
    activation_bytes_per_token: float = 0.0
    weights: tuple[WeightNeed, ...] = ()
    float8: bool = False
    use_bytes_per_token: float = 0.0
    frozen_bytes: int | None = None


@dataclass(frozen=True)
class DataNeeds:
    """What a DataModule needs and will send.

    Args:
        tokens_per_global_batch: tokens of one micro-batch over all ranks, in the largest stage.
        global_batch_size: images of that micro-batch.
        missing: one sentence per missing manifest or shard: which one, and how to make it.
        use_tokens: tokens of the largest batch that one rank validates, tests or predicts on; 0 = not known.
        largest: which picture is in that batch, and its size, for people.
    """

    tokens_per_global_batch: int
    global_batch_size: int
    missing: tuple[str, ...] = ()
    use_tokens: int = 0
    largest: str = ""


def add_needs(parts: Iterable[ModelNeeds]) -> ModelNeeds:
    """What several models need together, such as a policy and the networks that judge it.

    Args:
        parts: of which at most one has float8 products, activations or sharded blocks; of frozen parameters whose
            bytes are not given, 4 bytes are counted.

    Returns:
        Their sum; weights that several need are named once.
    """
    every = list(parts)
    return ModelNeeds(
        trainable=sum(part.trainable for part in every),
        frozen=sum(part.frozen for part in every),
        largest_block=max((part.largest_block for part in every), default=0),
        activation_bytes_per_token=sum(part.activation_bytes_per_token for part in every),
        weights=tuple(dict.fromkeys(weight for part in every for weight in part.weights)),
        float8=any(part.float8 for part in every),
        use_bytes_per_token=sum(part.use_bytes_per_token for part in every),
        frozen_bytes=sum(4 * part.frozen if part.frozen_bytes is None else part.frozen_bytes for part in every),
    )
