"""Generators under a real Trainer: class-conditional and text-conditional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.generators.dit.module import LatentDiffusion
from lightning_gen.generators.dit.text_module import TextLatentDiffusion, TextSize
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.generators.geneval_validation import GenEvalValidation
from lightning_gen.generators.spaces import PixelSpace
from lightning_gen.interfaces import Detections, TextToImage
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.shapes.benchmark import ShapesPrompts
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.shapes.tokenizer import ShapesTokenizer
from lightning_gen.shapes.vocabulary import KINDS
from lightning_gen.training.optim import AdamW
from tests.harness import TrainingChecks, fit

FAST = AdamW(learning_rate=3e-3)
SHORT = Sampling(steps=2, solver="euler")


def scenes() -> ShapesDataModule:
    return ShapesDataModule(global_batch_size=4, samples=32, val_samples=4, tags=["colors", "two_object"])


def by_class(**settings: Any) -> LatentDiffusion:
    given = {"variant": "w24_d2_h2", "num_classes": 8, "layer_scale": 0.5, "optimizer": FAST, "sampling": SHORT}
    return LatentDiffusion(PixelSpace(8), **{**given, **settings})


def by_text(**settings: Any) -> TextLatentDiffusion:
    given = {"variant": "w24_d2_h2", "text": TextSize(16, 2, 2), "optimizer": FAST, "sampling": SHORT}
    return TextLatentDiffusion(PixelSpace(8), ShapesTokenizer(), **{**given, **settings})


def ready(model: Any) -> Any:
    model.configure_model()
    return model.eval()


class TestLatentDiffusion(TrainingChecks):
    def module(self) -> LightningModule:
        return by_class()

    def data(self) -> LightningDataModule:
        return scenes()

    def config(self) -> dict[str, Any]:
        space = {"class_path": "lightning_gen.generators.spaces.PixelSpace", "init_args": {"patch": 8}}
        arguments = {"space": space, "variant": "w24_d2_h2", "num_classes": 8}
        return {"class_path": "lightning_gen.generators.dit.module.LatentDiffusion", "init_args": arguments}


class TestTextLatentDiffusion(TrainingChecks):
    def module(self) -> LightningModule:
        return by_text()

    def data(self) -> LightningDataModule:
        return scenes()

    def config(self) -> dict[str, Any]:
        space = {"class_path": "lightning_gen.generators.spaces.PixelSpace", "init_args": {"patch": 8}}
        tokenizer = {"class_path": "lightning_gen.shapes.tokenizer.ShapesTokenizer"}
        arguments = {"space": space, "tokenizer": tokenizer, "variant": "w24_d2_h2"}
        return {"class_path": "lightning_gen.generators.dit.text_module.TextLatentDiffusion", "init_args": arguments}


def first_batch() -> ImageBatch:
    source = scenes()
    source.setup("validate")
    return next(iter(source.val_dataloader()))


@pytest.mark.parametrize("make", [by_class, by_text])
def test_hidden_conditions_do_not_reach_the_loss(make: Any) -> None:
    model, batch = ready(make()), first_batch()
    latents = model.space.encode(batch)
    time = torch.full((len(batch),), 0.5)
    none = torch.zeros(len(batch), dtype=torch.bool)
    told = model.velocity_of(latents, time, model.condition(batch, none))
    untold = model.velocity_of(latents, time, model.condition(batch, ~none))
    other = ImageBatch(
        batch.images, batch.label.flip(0), batch.index, batch.valid, batch.original_size, batch.key, 0,
        batch.caption[::-1],
    )  # fmt: skip
    assert torch.equal(untold, model.velocity_of(latents, time, model.condition(other, ~none)))
    assert not torch.allclose(told, untold)
    assert not torch.allclose(told, model.velocity_of(latents, time, model.condition(other, none)))


def test_the_loss_of_a_perfect_network_is_nought() -> None:
    model, batch = ready(by_text()), first_batch()
    clean = model.space.encode(batch).values

    class Oracle(nn.Module):
        text_encoder = None

        def encode_words(self, words: Tensor, mask: Tensor) -> None:
            return None

        def forward(self, tokens: Any, time: Tensor, condition: Any) -> Tensor:
            return clean

    model.network = Oracle()
    # Below t = 0.05 the divisor is held, so not even the truth is without loss there.
    assert float(model._loss(batch, "train", 0.1)) < 1e-3


def test_pictures_depend_on_their_number_and_the_seed_alone() -> None:
    model = ready(by_text())
    prompts = ["a photo of a red circle", "a photo of two stars", ""]
    together = model.make(prompts)
    alone = model.make(prompts[1:2], index=torch.tensor([1]))
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.make(prompts[1:2]), alone, atol=1e-3)
    assert not torch.allclose(model.make(prompts, seed=5), together, atol=1e-3)


def test_it_is_a_text_to_image_model() -> None:
    model: TextToImage = ready(by_text())
    text = model.encode_prompts(["a photo of a red circle", ""])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = model.images_to_latents(images)
    torch.testing.assert_close(model.latents_to_images(latents), images)
    assert model.velocity(latents, torch.tensor([0.3, 0.7]), text).shape == latents.shape
    grid = model.times(4)
    assert grid.shape == (5,) and float(grid[0]) == 1 and float(grid[-1]) == 0


def test_guidance_walks_away_from_the_empty_prompt() -> None:
    model = ready(by_text())
    prompts = ["a photo of a red circle"]
    plain = model.make(prompts, sampling=Sampling(steps=1, solver="euler"))
    strong = model.make(prompts, sampling=Sampling(steps=1, solver="euler", guidance=2.0))
    nothing = model.make([""], sampling=Sampling(steps=1, solver="euler"))
    inside = (plain.abs() < 1) & (strong.abs() < 1) & (nothing.abs() < 1)
    torch.testing.assert_close(strong[inside], (2 * plain - nothing)[inside], atol=1e-5, rtol=1e-4)


class Exact:
    """Finds in every picture a circle, and nothing else."""

    name, fingerprint = "one-circle", "none"

    def __call__(self, images: Tensor, classes: Any) -> list[Detections]:
        box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
        return [Detections(box, torch.ones(1), ("circle",)) for _ in images]


class Colours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_validation_scores_prompts_and_distances(tmp_path: Path) -> None:
    geneval = GenEvalValidation(
        ShapesPrompts(), Exact(), KINDS, colors=lambda *given: ["red"] * len(given[1]), every=20
    )
    model = by_text(geneval=geneval, extractors=[ModuleExtractor(Colours(), "colours")])
    trainer = fit(model, scenes(), tmp_path, max_steps=2, limit_val_batches=1.0, val_check_interval=2)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    circles = [prompt for prompt in geneval.prompts if prompt.tag == "single_object"]
    share = sum(prompt.include[0].name == "circle" for prompt in circles) / len(circles)
    assert found["val/geneval_single_object"] == pytest.approx(share) and share > 0
    assert found["val/geneval_counting"] == found["val/geneval_position"] == 0
    assert found["val/gfid@4/colours"] >= 0 and found["val/loss"] > 0
    source = scenes()
    source.setup("validate")
    tested = trainer.test(model, source.val_dataloader(), verbose=False)[0]
    assert set(tested) == {name.replace("val/", "test/") for name in found if name.startswith("val/")}
    assert tested["test/gfid@4/colours"] == pytest.approx(found["val/gfid@4/colours"], rel=1e-5, abs=1e-7)


def test_prediction_is_a_folder_that_geneval_reads(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    from lightning_gen.data.prompts import PromptDataModule
    from lightning_gen.metrics.compositional.geneval_folder import evaluate_geneval
    from lightning_gen.shapes.benchmark import benchmark_prompts

    records = benchmark_prompts()[::60]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    model = by_text(pictures_per_prompt=2)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.predict(model, PromptDataModule(predict=str(prompts), global_batch_size=4))
    folder = tmp_path / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:05d}" for number in range(len(records))]
    report = evaluate_geneval(
        folder, Exact(), lambda *given: ["red"] * len(given[1]), classes=KINDS, samples_per_prompt=2
    )
    assert len(report.results) == 2 * len(records)
    again = ready(by_text()).make([records[3]["prompt"]], index=torch.tensor([7]))
    stored = torch.from_numpy(np.array(Image.open(folder / "00003" / "samples" / "0001.png"))).permute(2, 0, 1)
    assert int((signed_to_uint8(again[0]).int() - stored.int()).abs().max()) <= 1


@pytest.mark.parametrize("make", [by_class, by_text])
def test_pictures_of_conditions_are_written_too(make: Any, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    from lightning_gen.data.writing import list_pictures

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    source = scenes()
    trainer.predict(make(), source, return_predictions=False)
    batch, folder = first_batch(), tmp_path / "predictions"
    assert len(list_pictures(folder)) == len(batch) == 4
    for number, label, key in zip(batch.index.tolist(), batch.label.tolist(), batch.key, strict=True):
        record = json.loads((folder / f"{number:05d}" / "metadata.jsonl").read_text())
        assert record["label"] == label and record["key"] == key


def test_weights_go_out_and_come_back(tmp_path: Path) -> None:
    model = ready(by_text())
    model.save_pretrained(tmp_path)
    other = by_text(seed=7).load_network(tmp_path)
    assert torch.equal(model.make(["a photo of a star"], seed=0), other.eval().make(["a photo of a star"], seed=0))
    with pytest.raises(ValueError, match="other settings: prediction differ"):
        by_text(prediction="velocity").load_network(tmp_path)


def test_bad_input_is_named() -> None:
    model = ready(by_text())
    with pytest.raises(ValueError, match="'dragon'"):
        model.make(["a photo of a red dragon"])
    with pytest.raises(ValueError, match="33 x 32 is not made of patches of 8"):
        by_text(canvas=(33, 32))
    with pytest.raises(ValueError, match="either a tokenizer"):
        TextLatentDiffusion(PixelSpace(8))
    classes = ready(by_class(num_classes=2))
    with pytest.raises(ValueError, match="out of range"):
        classes.generate(torch.tensor([5]), torch.tensor([2]), [(32, 32)], torch.tensor([0]))
    with pytest.raises(ValueError, match="patches of 4 pixels"):
        from lightning_gen.nn.tokens import patchify

        model.space.encode_images(patchify(torch.zeros(1, 3, 32, 32), 4))
