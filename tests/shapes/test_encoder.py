"""The encoder of the embedded world: its targets, its training, its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.shapes.encoder import ShapesEncoder, ShapesEncoderTraining, readings
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from tests.harness import Recorder, fit


def test_targets_say_what_is_there_and_where() -> None:
    scene = Scene((SceneObject("star", "red", 0.3, 0.7, 0.18), SceneObject("moon", "blue", 0.7, 0.3, 0.18)))
    found = readings(render(scene, (64, 64))[None].float() / 255)
    star = list(COLORS).index("red") * 8 + KINDS.index("star")
    moon = list(COLORS).index("blue") * 8 + KINDS.index("moon")
    assert found.pairs[0].nonzero().flatten().tolist() == sorted([star, moon]) and int(found.number) == 2
    assert found.kinds[0, KINDS.index("star")].nonzero().tolist() == [[2, 1]]
    assert found.colors[0, list(COLORS).index("blue")].nonzero().tolist() == [[1, 2]]
    assert float(found.kinds.sum()) == float(found.colors.sum()) == 2


def test_it_learns_from_few_pictures(tmp_path: Path) -> None:
    recorder = Recorder()
    data = ShapesDataModule(train="even", val="even", global_batch_size=16, samples=16, val_samples=16)
    fit(ShapesEncoderTraining(width=16), data, tmp_path, max_steps=30, callbacks=(recorder,))
    assert recorder.losses[-1] < 0.5 * recorder.losses[0]


def test_files_bring_the_features_back_at_any_size(tmp_path: Path) -> None:
    module = ShapesEncoderTraining(width=16, seed=3)
    module.configure_model()
    module.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 48, 32) * 2 - 1
    encoder = ShapesEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(encoder(images), module.encoder(images))
    assert encoder(images).shape == (2, 64) and not any(p.requires_grad for p in encoder.parameters())
    (tmp_path / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="'other', not a ShapesEncoder"):
        ShapesEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "ShapesEncoder"}')
    with pytest.raises(ValueError, match="does not say the width"):
        ShapesEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "ShapesEncoder", "width": 24}')
    with pytest.raises(ValueError, match="does not fit ShapesEncoder: .*has shape"):
        ShapesEncoder.from_pretrained(tmp_path)
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        ShapesEncoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"at least 32 pixels, got \(31, 64\)"):
        encoder(torch.zeros(1, 3, 31, 64))


def test_a_configuration_names_it_as_an_extractor(tmp_path: Path) -> None:
    module = ShapesEncoderTraining(width=16, seed=3)
    module.configure_model()
    module.save_pretrained(tmp_path)
    network = {
        "class_path": "lightning_gen.shapes.encoder.ShapesFeatures",
        "init_args": {"weights": str(tmp_path)},
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FeatureExtractor, "extractor")
    found = parser.instantiate(
        parser.parse_object(
            {
                "extractor": {
                    "class_path": "lightning_gen.metrics.extractors.ModuleExtractor",
                    "init_args": {"network": network, "name": "shapes-encoder"},
                }
            }
        )
    ).extractor
    images = torch.randint(0, 256, (3, 3, 40, 64), dtype=torch.uint8)
    expected = module.encoder(images.float() / 127.5 - 1)
    torch.testing.assert_close(found(images)["pool"], expected, atol=1e-5, rtol=1e-4)
    assert not list(found.parameters()) or not any(one.requires_grad for one in found.parameters())


def test_size_on_disk() -> None:
    assert sum(p.numel() for p in ShapesEncoder().parameters()) * 4 < 4e6
