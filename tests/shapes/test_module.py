"""Scenes stream without files; what every DataModule must do is tested in tests/data/test_kinds.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen import ShapesDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.shapes.detector import find_objects
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.layout import stands
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from tests.harness.training import fit


def batches(split: str = "train", plan: int = 0, **options: Any) -> list[Any]:
    made = ShapesDataModule(**{"samples": 96, "val_samples": 40, "global_batch_size": 16, **options})
    return list(made.train_loader(plan) if split == "train" else made.evaluation_loader("val"))


def test_pictures_show_their_captions_and_labels() -> None:
    for labels in ("kind", "pair"):
        for batch in batches(labels=labels, tags=["single_object", "colors"]):
            assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.float32, (16, 3, 32, 32))
            assert -1 <= float(batch.images.min()) < float(batch.images.max()) <= 1
            read = find_objects((batch.images + 1) / 2)
            for caption, label, (found,) in zip(batch.caption, batch.label.tolist(), read, strict=True):
                (phrase,) = parse_prompt(caption).phrases
                assert (found.kind, phrase.color or found.color) == (phrase.kind, found.color)
                pair = list(COLORS).index(found.color) * len(KINDS)
                assert label == (pair if labels == "pair" else 0) + KINDS.index(found.kind)


def test_a_sample_is_a_pure_function_of_seed_split_and_number() -> None:
    def by_index(found: list[Any]) -> dict[int, tuple[str, bytes]]:
        return {
            index: (caption, image.numpy().tobytes())
            for batch in found
            for index, caption, image in zip(batch.index.tolist(), batch.caption, batch.images, strict=True)
        }

    first = by_index(batches())
    assert len(first) == len({picture for _, picture in first.values()}) == 96
    assert by_index(batches(plan=1)) == first == by_index(batches(global_batch_size=8))
    assert not {picture for _, picture in first.values()} & {p for _, p in by_index(batches(seed=1)).values()}
    validation = by_index(batches("val"))
    assert len(validation) == 40
    assert not {picture for _, picture in first.values()} & {picture for _, picture in validation.values()}
    longer = by_index(batches(samples=112))
    assert all(longer[index] == sample for index, sample in first.items())


def test_every_size_comes_equally_often_and_captions_still_hold() -> None:
    sizes = [(32, 32), (32, 64), (64, 64), (48, 32)]
    found = batches(size=sizes, samples=256, tags=["position"])
    shapes = [tuple(batch.images.shape[2:]) for batch in found]
    assert {size: shapes.count(size) for size in sizes} == dict.fromkeys(sizes, 4)
    for batch in found:
        for caption, objects in zip(batch.caption, find_objects((batch.images + 1) / 2), strict=True):
            request = parse_prompt(caption)
            by_kind = {one.kind: one for one in objects}
            assert set(by_kind) == {phrase.kind for phrase in request.phrases}
            assert request.relation is not None
            assert stands(*(by_kind[phrase.kind] for phrase in request.phrases), request.relation)
    assert {tuple(batch.images.shape[2:]) for batch in batches("val", size=sizes)} == {(32, 32)}


def test_noise_and_jpeg_come_in_training_alone_and_differ_from_pass_to_pass() -> None:
    def ground(found: list[Any]) -> torch.Tensor:
        whole = torch.cat([batch.images for batch in found])[torch.cat([batch.index for batch in found]).argsort()]
        return whole[:, :, 0].std(-1).mean(1) * 127.5

    clean = batches()
    assert float(ground(clean).max()) == 0
    grain = ground(batches(noise_probability=0.5, noise=6.0))
    assert float((grain > 3).float().mean()) == pytest.approx(0.5, abs=0.15)
    assert float(grain[grain > 3].mean()) == pytest.approx(6.0, rel=0.15)
    assert not torch.equal(grain, ground(batches(plan=1, noise_probability=0.5, noise=6.0)))
    assert torch.equal(grain, ground(batches(noise_probability=0.5, noise=6.0)))
    assert float(ground(batches("val", noise_probability=1.0, jpeg_probability=1.0)).max()) == 0
    pressed = batches(jpeg_probability=1.0, jpeg_quality=60)
    assert all(not torch.equal(a.images, b.images) for a, b in zip(clean, pressed, strict=True))


def test_mixtures_and_tags_are_those_that_were_asked_for() -> None:
    for tags in (["word"], ["counting", "position"]):
        found = {parse_prompt(caption).tag for batch in batches(tags=tags) for caption in batch.caption}
        assert found == set(tags)
    words = batches(tags=["word"])
    assert {int(label) for batch in words for label in batch.label} == {-1}
    from lightning_gen.shapes.mixture import RARE

    rare = {
        train: sum(
            (phrase.color, phrase.kind) in RARE
            for batch in batches(train=train, samples=1600, tags=["colors"])
            for caption in batch.caption
            for phrase in parse_prompt(caption).phrases
        )
        for train in ("skewed", "even")
    }
    assert rare["skewed"] < 20 < 180 < rare["even"] < 300


def test_it_trains_under_the_trainer_and_needs_no_disk(tmp_path: Path) -> None:
    from tests.data.kind_jobs import KeyRecorder

    module, data = KeyRecorder(), ShapesDataModule(samples=64, val=None, global_batch_size=16)
    fit(module, data, tmp_path, max_steps=4)
    assert [len(step) for step, _ in module.seen] == [16] * 4
    assert sorted(index for step, _ in module.seen for index in step) == list(range(64))


def test_what_makes_no_sense_is_refused() -> None:
    for options, message in (
        ({"size": 16}, "data.size: sides are at least 32"),
        ({"size": [(32, 16)]}, "data.size: sides are at least 32"),
        ({"size": []}, "data.size"),
        ({"samples": 0}, "must be at least 1"),
        ({"tags": ["colors", "dance"]}, "data.tags: dance unknown"),
        ({"labels": "size"}, "data.labels is 'kind' or 'pair'"),
        ({"noise_probability": 2.0}, r"data.noise_probability lies in \[0, 1\]"),
        ({"jpeg_quality": 0}, "data.jpeg_quality"),
    ):
        with pytest.raises(ValueError, match=message):
            ShapesDataModule(**options)
    with pytest.raises(DataError, match="no mixture 'odd', choose skewed or even"):
        ShapesDataModule("odd").train_loader()
    (line,) = ShapesDataModule.needs({"train": "odd"}).missing
    assert "no mixture 'odd'" in line
    needs = ShapesDataModule.needs({"size": [[32, 64]], "global_batch_size": 8})
    assert (needs.tokens_per_global_batch, needs.global_batch_size, needs.missing) == (8 * 2048, 8, ())
