"""Which prompts a reward says it is for, and what is done about the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

__all__ = ["AppliesEverywhere", "SaysWhereItApplies", "check_batch", "read_metadata", "why_inapplicable"]


class SaysWhereItApplies(Protocol):
    """A reward that says which prompts it is for; called with others, it gives NaN.

    What a configuration names as a reward has this method. It has no ``__call__`` here: the command line's parser takes
    a Protocol with one that returns a class for a wish to have an object of that class, here a tensor.
    """

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Say why the reward does not apply.

        Args:
            prompt: a text.
            metadata: what stands beside it.

        Returns:
            The reason, for instance ``the metadata lack "include"``; None where it applies.
        """
        ...


class AppliesEverywhere:
    """For rewards that are for all prompts."""

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """See :class:`SaysWhereItApplies`; always None."""
        return None


def why_inapplicable(reward: object, needs: Sequence[str], prompt: str, metadata: Mapping[str, Any]) -> str | None:
    """Ask a reward, after the keys that its entry names.

    Args:
        reward: any; one that does not speak of it applies everywhere.
        needs: keys that the metadata must have.
        prompt: a text.
        metadata: what stands beside it.

    Returns:
        The reason, or None.
    """
    missing = [key for key in needs if key not in metadata]
    if missing:
        return f'the metadata lack "{missing[0]}", they have: {", ".join(metadata) or "nothing"}'
    declared: Callable[[str, Mapping[str, Any]], str | None] | None = getattr(reward, "inapplicable", None)
    return None if declared is None else declared(prompt, metadata)


def read_metadata(texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The metadata of a ``PromptBatch`` as rewards want them.

    Args:
        texts: JSON objects; an empty text is an object without keys.

    Returns:
        One mapping per text.

    Raises:
        ValueError: a text that is no JSON object.
    """
    records: list[Mapping[str, Any]] = []
    for number, text in enumerate(texts):
        try:
            record = json.loads(text) if text else {}
        except ValueError as error:
            raise ValueError(f"row {number}: the metadata are no JSON ({error}): {text[:80]!r}") from None
        if not isinstance(record, dict):
            raise ValueError(f"row {number}: the metadata must be a JSON object, got {text[:80]!r}")
        records.append(record)
    return records


def check_batch(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what does not belong together.

    Args:
        images: float, (B, 3, H, W).
        prompts: B texts.
        metadata: B records.

    Raises:
        ValueError: another shape or kind, or other numbers of them.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"rewards need float images (B, 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}")
    if isinstance(prompts, str) or not len(images) == len(prompts) == len(metadata):
        raise ValueError(
            f"need one prompt and one record of metadata per image: got {len(images)} images, prompts "
            f"{prompts!r:.60} and {len(metadata)} records"
        )
