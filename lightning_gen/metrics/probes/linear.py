"""Linear probe: how well a linear map reads classes from frozen features.

Features are computed once and kept (:class:`LabelledFeatures`); the probe then sees no image and needs no GPU.

Shape letters: B rows of a batch, N samples, D features, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.metrics.intervals import wilson_interval
from lightning_gen.metrics.labelled_features import FeatureTable
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.training.randomness import torch_generator

__all__ = ["LinearProbe", "LinearProbeHead", "LinearProbeResult"]


class LinearProbeHead(nn.Module):
    """Scores of classes from features.

    s = W bn(f / |f|) + b;  bn has no weights of its own, eps 1e-6

    Args:
        features: D.
        num_classes: K.
        seed: of W, normal with deviation 0.01; b starts at 0.

    Source: arXiv:2605.05646 and its released probe; the initial values are those of arXiv:2111.06377, ours to choose.
    """

    def __init__(self, features: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, eps=1e-6, affine=False)
        # torch draws initial values of its own, which are not the process's business.
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(features, num_classes)
        generator = torch_generator(seed, "linear probe weights")
        with torch.no_grad():
            self.linear.weight.copy_(0.01 * torch.randn(self.linear.weight.shape, generator=generator))
            self.linear.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Score.

        Args:
            features: float, (B, D), of any length.

        Returns:
            (B, K).
        """
        scores: Tensor = self.linear(self.norm(F.normalize(features, dim=1)))
        return scores


@dataclasses.dataclass(frozen=True)
class LinearProbeResult:
    """What a probe reached.

    Attributes:
        best: the highest of the accuracies on the validation samples, as published numbers are. It is chosen on the
            samples that it is quoted for, so it is too high.
        best_epoch: when, counted from 1.
        last: the accuracy after the last epoch.
        history: epoch -> accuracy.
        samples: validation samples.
        head: after the last epoch, in eval mode.
    """

    best: float
    best_epoch: int
    last: float
    history: dict[int, float]
    samples: int
    head: LinearProbeHead


class LinearProbe:
    """Trains a :class:`LinearProbeHead` on kept features by SGD with Nesterov's momentum and a cosine schedule.

    Equal tables give equal results, so every rank may fit by itself on the gathered features.

    Args:
        num_classes: K.
        learning_rate: at the start; falls to 0 along a cosine, step by step. The published script has 0.1 on its
            command line and 0.3 in its function.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: rows of a step; what is left at the end of an epoch is passed over, as is usual where a batch is
            normalised. Fewer samples than this make one batch.
        epochs: passes over the features.
        validate_every: epochs between two validations; the last epoch is always one.
        seed: of the weights and of the order.

    Raises:
        ValueError: a number below what makes sense.

    Source: arXiv:2605.05646 and its released linear_probe.py.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        batch_size: int = 4096,
        epochs: int = 100,
        validate_every: int = 5,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("num_classes", num_classes, 2),
            ("batch_size", batch_size, 2),
            ("epochs", epochs, 1),
            ("validate_every", validate_every, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.num_classes, self.learning_rate, self.momentum = num_classes, learning_rate, momentum
        self.weight_decay, self.batch_size, self.epochs = weight_decay, batch_size, epochs
        self.validate_every, self.seed = validate_every, seed

    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(self, train: FeatureTable, validation: FeatureTable) -> LinearProbeResult:
        """Train and validate; also inside a test loop, where gradients are off.

        Args:
            train: features with classes; samples without one are passed over.
            validation: others.

        Returns:
            Accuracies and the head, on the device of the features.

        Raises:
            ValueError: fewer than two samples with a class to train on or none to validate with, classes outside
                [0, K), or sides of different D.
        """
        rows, labels = self._checked(train, "train", least=2)
        other_rows, other_labels = self._checked(validation, "validation", least=1)
        if rows.shape[1] != other_rows.shape[1]:
            raise ValueError(f"{rows.shape[1]} features to train on, {other_rows.shape[1]} to validate with")
        head = LinearProbeHead(rows.shape[1], self.num_classes, self.seed).to(rows.device)
        optimiser = torch.optim.SGD(
            head.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
        steps = self.epochs * max(1, len(rows) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        history: dict[int, float] = {}
        for epoch in range(1, self.epochs + 1):
            head.train()
            for chosen in self._batches(epoch, len(rows)):
                loss = F.cross_entropy(head(rows[chosen.to(rows.device)]), labels[chosen.to(rows.device)])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
            if epoch % self.validate_every == 0 or epoch == self.epochs:
                history[epoch] = _accuracy(head, other_rows, other_labels, self.batch_size)
        best_epoch = max(history, key=lambda epoch: (history[epoch], -epoch))
        return LinearProbeResult(
            history[best_epoch], best_epoch, history[self.epochs], history, len(other_rows), head.eval()
        )

    def measurements(self, result: LinearProbeResult, name: str = "linear-probe") -> list[Measurement]:
        """Both accuracies with Wilson's intervals.

        Args:
            result: what ``fit`` gave.
            name: of the measurement; says which features.

        Returns:
            ``NAME-best/bn-sgd`` and ``NAME-last/bn-sgd``.
        """
        details: dict[str, Detail] = {
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "validate_every": self.validate_every,
            "best_epoch": result.best_epoch,
            "seed": self.seed,
            "interval": "wilson, 95 %",
        }
        notes = {"best": "chosen on the samples it is quoted for, as published numbers are", "last": ""}
        return [
            Measurement(
                value,
                Protocol(f"{name}-{which}", "bn-sgd", result.samples, None, details),
                interval=wilson_interval(round(value * result.samples), result.samples),
                note=notes[which],
            )
            for which, value in (("best", result.best), ("last", result.last))
        ]

    def _checked(self, table: FeatureTable, side: str, least: int) -> tuple[Tensor, Tensor]:
        known = table.with_class()
        if len(known.labels) < least:
            raise ValueError(f"{side}: {len(known.labels)} samples with a class, at least {least} are needed")
        lowest, highest = int(known.labels.min()), int(known.labels.max())
        if lowest < 0 or highest >= self.num_classes:
            wrong = highest if highest >= self.num_classes else lowest
            raise ValueError(f"{side}: class {wrong} is not in [0, {self.num_classes}): set num_classes")
        # Clones: what a test loop made in inference mode cannot take part in training.
        return known.features.float().clone(), known.labels.clone()

    def _batches(self, epoch: int, count: int) -> Iterator[Tensor]:
        order = torch.randperm(count, generator=torch_generator(self.seed, "linear probe order", epoch))
        size = min(self.batch_size, count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


@torch.no_grad()
def _accuracy(head: LinearProbeHead, features: Tensor, labels: Tensor, batch_size: int) -> float:
    head.eval()
    pairs = zip(torch.split(features, batch_size), torch.split(labels, batch_size), strict=True)
    return sum(int((head(rows).argmax(1) == truth).sum()) for rows, truth in pairs) / len(labels)
