"""Learned scores of pictures: PickScore, HPSv2.1, CLIPScore and LAION's aesthetic score, from local weights or the hub.

A scorer is called like a reward (``interfaces.Reward``) and can be one. ``preference_score.py`` averages scores over
pictures and ranks, ``win_rate.py`` compares two models by them.

Shape letters: B images, H and W height and width, D width of a CLIP embedding.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import FrozenModule, full_float32, ordinary_construction
from lightning_gen.metrics.extraction.clip import CLIPModel, load_clip
from lightning_gen.metrics.extraction.clip_pixels import ClipImages
from lightning_gen.metrics.preference_score import PreferenceScore
from lightning_gen.metrics.protocol import Measurement, Protocol, file_sha256
from lightning_gen.training.safe_reading import load_plain

__all__ = ["PICKSCORE_DIVISOR", "AestheticScore", "CLIPScore", "HPSv21", "PickScore", "PreferenceScorer"]

PICKSCORE_DIVISOR: Final = 26.0
"""Flow-GRPO and DiffusionNFT divide PickScore by it, so that rewards lie near 1; their tables are not divided.

Source: repositories yifan123/flow_grpo and NVlabs/DiffusionNFT.
"""

_OPENAI_L14: Final = "openai/clip-vit-large-patch14"
_HEAD_LAYERS: Final = (0, 2, 4, 6, 7)  # the published file counts the dropout layers in between


class PreferenceScorer(nn.Module, ABC):
    """A frozen model that scores pictures, with or without their prompts; higher is better.

    It has no parameters, see ``FrozenModule``; ``.to(device)`` moves it. Scores are float32 without autocast and TF32.
    Float pictures are scored as they are and receive gradients where they ask for them; published numbers come from
    stored pictures, so give uint8 to reproduce them.

    Args:
        clip: the CLIP that it looks through, or a source of ``load_clip``. One CLIP may serve several scorers.
    """

    name: ClassVar[str]
    """What is measured; the first part of the protocol's id."""

    def __init__(self, clip: CLIPModel | str) -> None:
        super().__init__()
        self.clip = load_clip(clip) if isinstance(clip, str) else clip

    @abstractmethod
    def score(self, images: ClipImages, prompts: Sequence[str]) -> Tensor:
        """Score a batch; the scorer itself is called, which checks that numbers agree.

        Args:
            images: B pictures, uint8 or float in [0, 1].
            prompts: B texts.

        Returns:
            float32, (B,).
        """

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights."""
        return self.clip.fingerprint

    @property
    def variant(self) -> str:
        """What tells this score from the usual one of its name, as a word for the protocol's id; empty = nothing."""
        return ""

    @property
    def protocol(self) -> Protocol:
        """Name, network, variant and weights of the score."""
        method = "-".join(filter(None, (self.clip.architecture, self.variant)))
        return Protocol(self.name, method, details={"weights": self.fingerprint, "source": self.clip.source})

    def forward(
        self, images: ClipImages, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Score a batch.

        Args:
            images: B pictures: float in [0, 1] or uint8, (B, 3, H, W), or a list of (3, H, W) of any sizes.
            prompts: B texts.
            metadata: what prompts ask for; not used.

        Returns:
            float32, (B,), on the network's device.

        Raises:
            ValueError: numbers of images and prompts differ, or pictures of another shape, type or range.
        """
        if isinstance(prompts, str) or len(images) != len(prompts):
            raise ValueError(f"need one prompt per image: got {len(images)} images and prompts {prompts!r:.80}")
        return self.score(images, prompts)

    def measure(self, images: Iterable[Tensor], prompts: Sequence[str], batch_size: int = 32) -> list[Measurement]:
        """Score a whole set on this process.

        Args:
            images: N pictures (3, H, W), uint8 or float in [0, 1]; read ``batch_size`` at a time.
            prompts: the text of each picture. Pictures with equal texts count as samples of one prompt.
            batch_size: pictures that are scored together.

        Returns:
            Mean and median with their uncertainty; see ``PreferenceScore``.

        Raises:
            ValueError: numbers of images and prompts differ, or pictures of another shape, type or range.
        """
        numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        metric = PreferenceScore(self.protocol)
        pictures, start = iter(images), 0
        with torch.no_grad():
            while batch := list(itertools.islice(pictures, batch_size)):
                texts = prompts[start : start + len(batch)]
                ids = [numbers[text] for text in texts]
                metric.update(self(batch, texts), ids, range(start, start + len(batch)))
                start += len(batch)
        if start != len(prompts):
            raise ValueError(f"need one prompt per image: got {start} images and {len(prompts)} prompts")
        return metric.measurements()


class PickScore(PreferenceScorer):
    """PickScore: a CLIP ViT-H/14 that was trained on choices between two pictures of one prompt.

    score = exp(logit_scale) cos(image, text), about 17 to 24 with the published weights

    Args:
        clip: the published weights, their local copy (layout of transformers), or a loaded CLIP.
        divide: divide by ``PICKSCORE_DIVISOR``, as rewards of Flow-GRPO and DiffusionNFT do.

    Source: arXiv:2305.01569 section 3; repository yuvalkirstain/PickScore.
    """

    name = "pickscore"

    def __init__(self, clip: CLIPModel | str = "yuvalkirstain/PickScore_v1", divide: bool = False) -> None:
        super().__init__(clip)
        self.divide = divide

    @property
    def variant(self) -> str:
        """``over-26`` where scores are divided."""
        return f"over-{PICKSCORE_DIVISOR:.0f}" if self.divide else ""

    def score(self, images: ClipImages, prompts: Sequence[str]) -> Tensor:
        """See :meth:`PreferenceScorer.score`."""
        scores = self.clip.logit_scale * _cosine(self.clip, images, prompts)
        return scores / PICKSCORE_DIVISOR if self.divide else scores


class HPSv21(PreferenceScorer):
    """Human Preference Score v2.1: the cosine under a fine-tuned open_clip ViT-H-14.

    score = cos(image, text), about 0.2 to 0.35 with the published weights; tables show 100 times that.

    The weights are published as ``HPS_v2.1_compressed.pt`` of repository ``xswu/HPSv2``, a torch file with the weights
    under ``state_dict`` and no configuration. Fetch it yourself: torch files are read from local paths only, and
    without running code. How the published code treats pictures that are not square was not checked; here the middle is
    seen.

    Args:
        clip: path of the published file, a folder in the layout of open_clip, or a loaded CLIP.

    Source: arXiv:2306.09341; repository tgxs002/HPSv2.
    """

    name = "hpsv2.1"

    def __init__(self, clip: CLIPModel | str) -> None:
        super().__init__(load_clip(clip, "ViT-H-14") if isinstance(clip, str) else clip)

    def score(self, images: ClipImages, prompts: Sequence[str]) -> Tensor:
        """See :meth:`PreferenceScorer.score`."""
        return _cosine(self.clip, images, prompts)


class CLIPScore(PreferenceScorer):
    """CLIPScore: how well a picture fits its text.

    score = factor cos(image, text), or factor max(cos(image, text), 0) if ``clamp``

    Published numbers differ by the factor: 1 in papers that print about 0.3 (and in rewards), 100 in torchmetrics, 2.5
    (with ``clamp``, ViT-B/32 and the prefix ``"A photo depicts "``) in the paper that gave the name.

    Args:
        clip: ViT-L/14 of OpenAI, another source of ``load_clip``, or a loaded CLIP.
        factor: what the cosine is multiplied by.
        clamp: count negative cosines as 0.
        prefix: put before every prompt.

    Source: arXiv:2104.08718 section 3.
    """

    name = "clipscore"

    def __init__(
        self, clip: CLIPModel | str = _OPENAI_L14, factor: float = 1.0, clamp: bool = False, prefix: str = ""
    ) -> None:
        super().__init__(clip)
        self.factor = factor
        self.clamp = clamp
        self.prefix = prefix

    @property
    def variant(self) -> str:
        """``x2.5-positive-prefixed`` and parts of it; empty for the plain cosine."""
        parts = (
            "" if self.factor == 1 else f"x{self.factor:g}",
            "positive" if self.clamp else "",
            "prefixed" if self.prefix else "",
        )
        return "-".join(filter(None, parts))

    def score(self, images: ClipImages, prompts: Sequence[str]) -> Tensor:
        """See :meth:`PreferenceScorer.score`."""
        cosine = _cosine(self.clip, images, [self.prefix + prompt for prompt in prompts])
        return self.factor * (cosine.clamp(min=0) if self.clamp else cosine)


class AestheticScore(PreferenceScorer):
    """LAION's aesthetic predictor v2: a stack of linear layers on CLIP's unit vector of the picture; about 1 to 10.

    score = W5 (W4 (W3 (W2 (W1 e + b1) + b2) + b3) + b4) + b5,  widths 768, 1024, 128, 64, 16, 1; no activations

    Prompts do not matter.

    Args:
        head: path of ``sac+logos+ava1-l14-linearMSE.pth``, or of the same tensors as safetensors (``layers.0.weight``
            and so on; the published file counts dropout layers, so that the layers are 0, 2, 4, 6 and 7).
        clip: ViT-L/14 of OpenAI, on whose embeddings the head was trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another network, or one for embeddings of another width.

    Source: repository christophschuhmann/improved-aesthetic-predictor.
    """

    name = "aesthetic"

    def __init__(self, head: str, clip: CLIPModel | str = _OPENAI_L14) -> None:
        super().__init__(clip)
        self.head = FrozenModule(_read_head(Path(head).expanduser()))
        self._head_fingerprint = file_sha256(Path(head).expanduser())

    @property
    def fingerprint(self) -> str:
        """sha256 of the sha256 of the CLIP and of the head."""
        return hashlib.sha256(f"{self.clip.fingerprint}{self._head_fingerprint}".encode()).hexdigest()

    def score(self, images: ClipImages, prompts: Sequence[str]) -> Tensor:
        """See :meth:`PreferenceScorer.score`."""
        embeddings = self.clip.embed_images(images).to(self.head.device)
        width = next(self.head.network.parameters()).shape[1]
        if embeddings.shape[1] != width:
            raise ValueError(
                f"the aesthetic head reads embeddings of width {width}, this CLIP ({self.clip.source}) has "
                f"{embeddings.shape[1]}: the published head belongs to {_OPENAI_L14}"
            )
        with full_float32(self.head.device):
            scores: Tensor = self.head.network(embeddings)[:, 0]
        return scores


def _cosine(clip: CLIPModel, images: ClipImages, prompts: Sequence[str]) -> Tensor:
    return (clip.embed_images(images) * clip.embed_texts(prompts)).sum(-1)


def _read_head(path: Path) -> nn.Sequential:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: dict[str, Tensor] = load_file(path)
    else:
        state = load_plain(path, mmap=False)
    names = {f"layers.{layer}.{kind}" for layer in _HEAD_LAYERS for kind in ("weight", "bias")}
    if set(state) != names:
        wrong = ", ".join(sorted(set(state) ^ names)[:3])
        raise ValueError(f"{path} is not LAION's aesthetic head: {wrong} should not differ from its list of tensors")
    weights = [state[f"layers.{layer}.weight"] for layer in _HEAD_LAYERS]
    with ordinary_construction():
        layers = [nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights]
    for layer, number in zip(layers, _HEAD_LAYERS, strict=True):
        layer.load_state_dict({kind: state[f"layers.{number}.{kind}"] for kind in ("weight", "bias")})
    widths = [weight.shape[0] for weight in weights]
    if [weight.shape[1] for weight in weights[1:]] != widths[:-1] or widths[-1] != 1:
        raise ValueError(f"{path}: layers of widths {widths} do not end in one number or do not follow each other")
    return nn.Sequential(*layers)
