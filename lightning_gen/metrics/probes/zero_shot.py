"""Zero-shot classification: the class whose name, put into sentences, lies nearest to the image.

Shape letters: B images, K classes, T templates, D features.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import wilson_interval
from lightning_gen.metrics.labelled_features import check_valid
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["TextEncoder", "ZeroShot", "class_embeddings", "openai_templates"]

TextEncoder = Callable[[Sequence[str]], Tensor]
"""Texts -> float, (number of texts, D), of any length."""


def openai_templates() -> tuple[str, ...]:
    """The 80 sentences that CLIP's authors wrote for ImageNet; ``{}`` stands for the name of a class.

    Returns:
        80 texts.

    Source: arXiv:2103.00020, section 3.1.4 and the notebook of github.com/openai/CLIP.
    """
    place = importlib.resources.files("lightning_gen.metrics.probes") / "openai_templates.txt"
    return tuple(place.read_text(encoding="utf-8").splitlines())


@torch.no_grad()
def class_embeddings(
    encoder: TextEncoder,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    normalise_each: bool = True,
) -> Tensor:
    """One direction per class.

    w_k = normalise( (1/T) sum_t n(e(template_t(name_k))) ),  n = normalise, or nothing without ``normalise_each``

    Args:
        encoder: e, of texts. It is asked class by class.
        class_names: K names.
        templates: T sentences with one ``{}``; None = :func:`openai_templates`.
        normalise_each: whether sentences have length 1 before they are averaged, as CLIP's code has it.

    Returns:
        float, (K, D), length 1.

    Raises:
        ValueError: no class, a name twice, a template without ``{}``, or an encoder that gives other shapes.
    """
    templates = openai_templates() if templates is None else templates
    if len(class_names) < 2 or len(set(class_names)) != len(class_names):
        raise ValueError(f"zero-shot classes need at least 2 different names, got {len(class_names)}")
    if without := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"template {without[0]!r} must hold one {{}} for the name of the class")
    if not templates:
        raise ValueError("zero-shot classification needs at least 1 template")
    rows = []
    for name in class_names:
        # Not str.format: a name may hold braces itself.
        texts = [template.replace("{}", name) for template in templates]
        found = encoder(texts)
        if found.ndim != 2 or len(found) != len(texts):
            raise ValueError(f"the text encoder gave {tuple(found.shape)} for {len(texts)} texts, expected (T, D)")
        rows.append((F.normalize(found.float(), dim=1) if normalise_each else found.float()).mean(0))
    return F.normalize(torch.stack(rows), dim=1)


class ZeroShot(CountedOnce):
    """Share of images whose nearest class is theirs; an image counts once, whatever ranks and batches there are.

    Args:
        classes: float, (K, D), see :func:`class_embeddings`.
    """

    columns = ("correct",)
    classes: Tensor

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        if classes.ndim != 2:
            raise ValueError(f"class embeddings are (K, D), got {tuple(classes.shape)}")
        self.register_buffer("classes", F.normalize(classes.detach(), dim=1), persistent=False)

    def update(self, embeddings: Tensor, labels: Tensor, index: Tensor, valid: Tensor | None = None) -> None:
        """Count images.

        Args:
            embeddings: of B images, float, (B, D), of any length.
            labels: whole numbers, (B,), in [0, K).
            index: whole numbers, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: shapes that do not belong together, a label outside [0, K), or an embedding that is not finite.
        """
        if embeddings.shape != (len(labels), self.classes.shape[1]) or labels.shape != index.shape:
            raise ValueError(
                f"embeddings {tuple(embeddings.shape)}, labels {tuple(labels.shape)} and numbers {tuple(index.shape)}: "
                f"expected (B, {self.classes.shape[1]}), (B,) and (B,)"
            )
        mask = check_valid(valid, len(labels)).to(embeddings.device)
        rows, truth = embeddings.detach()[mask], labels.to(embeddings.device)[mask]
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("an image embedding is NaN or infinite: look at the network that made it")
        if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < len(self.classes):
            raise ValueError(f"labels from {int(truth.min())} to {int(truth.max())}, of {len(self.classes)} classes")
        # The length of an embedding changes no argmax.
        guess = (rows.float() @ self.classes.to(rows.device).float().T).argmax(1)
        numbers = index.to(embeddings.device)[mask]
        self.count(numbers, torch.zeros_like(numbers), (guess == truth).double())

    def compute(self) -> Tensor:
        """Top-1 accuracy over the images of all ranks.

        Returns:
            float64 scalar; NaN where nothing was counted.
        """
        return self.table()[:, 2].mean()

    def measurements(self, name: str = "zero-shot", encoder: str = "text") -> list[Measurement]:
        """The accuracy with Wilson's interval.

        Args:
            name: of the measurement.
            encoder: which text encoder made the classes, without a slash.

        Returns:
            ``NAME/ENCODER``, over the images of all ranks.

        Raises:
            ValueError: nothing was counted.
        """
        with self.on_all_ranks():
            correct = self.table()[:, 2]
        passed, total = int(correct.sum()), len(correct)
        details: dict[str, Detail] = {"classes": len(self.classes), "interval": "wilson, 95 %"}
        interval = wilson_interval(passed, total)
        return [Measurement(passed / total, Protocol(name, encoder, total, None, details), interval=interval)]
