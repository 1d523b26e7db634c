"""The segmentation probe and mIoU against hand calculations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gen.metrics.probes import (
    MeanIntersectionOverUnion,
    SegmentationBatch,
    SegmentationHead,
    SegmentationProbe,
    SegmentationTest,
)
from lightning_gen.metrics.probes.segmentation import segmentation_loss
from tests.harness.metric_jobs_manifold import train_segmentation
from tests.harness.processes import two_processes


def test_miou_is_what_a_hand_calculation_gives() -> None:
    truth = torch.tensor([[[1, 1, 2], [2, 0, 0]], [[1, 3, 3], [3, 3, 0]]])
    guess = torch.tensor([[[1, 2, 2], [2, 1, 3]], [[1, 1, 3], [3, 3, 3]]])
    metric = MeanIntersectionOverUnion(4)
    metric.update(guess, truth, torch.arange(2))
    # class 1: 2 hits, 3 guessed and 3 true where it counts: union 4. class 2: 2, union 3. class 3: 3, union 4.
    assert metric.per_class().tolist() == pytest.approx([2 / 4, 2 / 3, 3 / 4, float("nan")], nan_ok=True)
    expected = (2 / 4 + 2 / 3 + 3 / 4) / 3
    assert float(metric.compute()) == pytest.approx(expected)
    metric.update(guess[:1], truth[:1], torch.tensor([0]))
    metric.update(guess[:1], truth[:1], torch.tensor([7]), torch.tensor([False]))
    assert float(metric.compute()) == pytest.approx(expected)
    [found] = metric.measurements()
    assert found.value == pytest.approx(expected) and found.protocol.count == 2
    assert found.protocol.details["classes_seen"] == 3 and found.interval is not None


def test_classes_that_do_not_exist_are_refused() -> None:
    metric = MeanIntersectionOverUnion(2)
    one = torch.ones(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="true classes from 3 to 3, expected 1 to 2"):
        metric.update(one, 3 * one, torch.tensor([0]))
    with pytest.raises(ValueError, match="predicted classes from 0"):
        metric.update(0 * one, one, torch.tensor([0]))
    with pytest.raises(ValueError, match="against a map of"):
        metric.update(one, one[:, :1], torch.tensor([0]))


def test_the_loss_passes_over_pixels_without_a_class() -> None:
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    segments = torch.tensor([[[0, 1], [3, 0]]])
    chosen = scores.log_softmax(1)
    expected = -(chosen[0, 0, 0, 1] + chosen[0, 2, 1, 0]) / 2
    loss = segmentation_loss(scores, segments)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.autograd.backward(loss)
    assert scores.grad is not None and not scores.grad[0, :, 0, 0].any() and scores.grad[0, :, 0, 1].any()
    assert float(segmentation_loss(scores.detach(), 0 * segments)) == 0


def test_the_head_is_a_normalisation_one_linear_map_and_bilinear_upsampling() -> None:
    head = SegmentationHead(2, 3)
    assert isinstance(head.norm, nn.SyncBatchNorm) and head.classify.kernel_size == (1, 1)
    head.eval()
    with torch.no_grad():
        head.classify.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]])[..., None, None])
        head.classify.bias.zero_()
    dense = torch.zeros(1, 2, 1, 2)
    dense[0, 0, 0, 1] = 4.0
    row = head(dense, (1, 4))[0, 0, 0]
    assert torch.allclose(row, torch.tensor([0.0, 1, 3, 4]), atol=1e-3)


def batches(count: int = 4) -> list[SegmentationBatch]:
    """Images whose channel tells the class; the last column is ignored."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        cells = torch.randint(0, 3, (2, 4, 4), generator=generator)
        images = torch.eye(3)[cells].permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 4, 4, generator=generator)
        segments = (cells + 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        segments[..., -1] = 0
        found.append(SegmentationBatch(images, segments, torch.arange(2) + 2 * number))
    return found


def test_what_features_show_is_learnt_and_the_features_stay() -> None:
    probe = SegmentationProbe(lambda images: images, 3, 3, learning_rate=0.1, steps=60)
    before = float(probe.evaluate(batches()).compute())
    with torch.inference_mode():
        losses = probe.fit(batches())
    metric = probe.evaluate(batches())
    # Soft borders between cells of 2 pixels remain.
    assert len(losses) == 60 and losses[-1] < losses[0] / 2 and float(metric.compute()) > max(0.7, before)
    assert metric.num_samples == 8
    again = SegmentationProbe(lambda images: images, 3, 3, learning_rate=0.1, steps=60)
    state = torch.get_rng_state()
    assert again.fit(batches()) == losses and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="no batch"):
        again.fit([])
    with pytest.raises(ValueError, match=r"takes \(B, 5, h, w\)"):
        SegmentationProbe(lambda images: images, 5, 3).fit(batches())


def test_two_ranks_end_with_the_same_head() -> None:
    first, second = two_processes(train_segmentation)
    assert len(first) == len(second) > 4
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


class Cells:
    """Pictures whose colour tells the class of every pixel; remembers what was asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(index)
        cells = torch.randint(0, 3, (size, size), generator=torch.Generator().manual_seed(index))
        return torch.eye(3)[cells].permute(2, 0, 1) * 2 - 1, cells + 1


def segmentation_test(trained_on: Cells, measured_on: Cells, **changed: Any) -> SegmentationTest:
    return SegmentationTest(
        trained_on,
        measured_on,
        **({"num_classes": 3, "size": 4, "batch_size": 2, "steps": 40, "learning_rate": 0.1} | changed),
    )


def test_the_whole_probe_learns_from_one_set_and_counts_the_other_once() -> None:
    first, second = Cells(5), Cells(3)
    metric = segmentation_test(first, second).run(lambda images: images, 3)
    assert float(metric.compute()) > 0.95 and metric.num_samples == 3
    # 40 steps of 2 are 16 passes over 5 pictures without a seam, each in another order.
    assert len(first.asked) >= 80
    passes = [first.asked[start : start + 5] for start in range(0, 80, 5)]
    assert all(sorted(one) == list(range(5)) for one in passes) and len({tuple(one) for one in passes}) > 5
    assert sorted(set(second.asked)) == [0, 1, 2]


def test_processes_share_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [batch.index.tolist() for batch in segmentation_test(Cells(7), Cells(7), batch_size=4)._measuring()]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(
            "lightning_gen.metrics.probes.segmentation_test._rank_and_world", lambda rank=rank: (rank, 2)
        )
        probe = segmentation_test(Cells(7), Cells(7))
        shares.append([batch.index.tolist() for batch in probe._measuring()])
        training = probe._training()
        shares.append([next(training).index.tolist() for _ in range(7)])
    assert [sorted(a + b) for a, b in zip(shares[0], shares[2], strict=True)] == [sorted(one) for one in alone]
    together = sorted(number for share in (shares[1], shares[3]) for batch in share for number in batch)
    assert together == sorted(list(range(7)) * 4)


def test_a_probe_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="measured_on has no picture"):
        segmentation_test(Cells(1), Cells(0))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        segmentation_test(Cells(1), Cells(1), steps=0)
