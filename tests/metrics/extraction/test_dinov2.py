"""DINOv2's two layouts, its positions and its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.extraction.dinov2 import dinov2_pixels, load_dinov2, resample_positions
from lightning_gen.metrics.extractors import DINOv2Extractor
from tests.harness.tiny_dinov2 import WIDTH, random_dinov2, save_torch_hub, save_transformers
from tests.harness.tiny_dinov3 import save_transformers as save_dinov3

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 56), (300, 260), (224, 224)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformers(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_torch_hub(tmp_path_factory.mktemp("hub") / "dinov2_vits14_pretrain.pth")


@pytest.mark.parametrize("positions", ["torch_hub", "transformers"])
def test_both_layouts_give_the_same_features(positions: str, folder: Path, file: Path) -> None:
    first = DINOv2Extractor(str(folder), positions=positions)  # type: ignore[arg-type]
    second = DINOv2Extractor(file, positions=positions)  # type: ignore[arg-type]
    found = first(pictures())["pool"]
    assert found.shape == (3, WIDTH) and found.dtype == torch.float32
    assert torch.allclose(found, second(pictures())["pool"], rtol=1e-4, atol=1e-4)
    assert first.name == second.name
    assert first.name == {"torch_hub": "dinov2-128d", "transformers": "dinov2-128d-transformers"}[positions]


def test_with_positions_of_transformers_it_is_transformers_own_answer(folder: Path) -> None:
    extractor = DINOv2Extractor(str(folder), positions="transformers")
    with torch.no_grad():
        wanted = random_dinov2()(pixel_values=dinov2_pixels(pictures())).pooler_output
    assert torch.allclose(extractor(pictures())["pool"], wanted, rtol=1e-4, atol=1e-5)
    other = DINOv2Extractor(str(folder))(pictures())["pool"]
    assert float((other - wanted).abs().max()) > 1e-2


def cubic(distance: float) -> float:
    """The kernel of torch's bicubic interpolation."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize(("rule", "step"), [("torch_hub", 37 / 16.1), ("transformers", 37 / 16)])
def test_positions_are_sampled_where_the_published_code_looks(rule: str, step: float) -> None:
    values = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for grid in (values.expand(37, 37), values[:, None].expand(37, 37)):
        learned = torch.cat([torch.full((1, 1, 1), -5.0).double(), grid.reshape(1, 37 * 37, 1)], 1)
        found = resample_positions(learned, rule)[0, :, 0]  # type: ignore[arg-type]
        assert found.shape == (257,) and float(found[0]) == -5
        square = found[1:].reshape(16, 16)
        line = square[7] if torch.equal(grid[0], values) else square[:, 7]
        for i in range(16):
            centre = (i + 0.5) * step - 0.5
            taps = [j for j in range(-2, 39) if abs(j - centre) < 2]
            wanted = sum(cubic(j - centre) * float(values[min(max(j, 0), 36)]) for j in taps)
            assert float(line[i]) == pytest.approx(wanted, abs=1e-9)


def test_positions_that_do_not_fit_are_refused() -> None:
    assert resample_positions(torch.zeros(1, 257, 4), "torch_hub").shape == (1, 257, 4)
    with pytest.raises(ValueError, match="no square"):
        resample_positions(torch.zeros(1, 14, 4), "torch_hub")
    with pytest.raises(ValueError, match="unknown positions 'timm'"):
        resample_positions(torch.zeros(1, 17, 4), "timm")  # type: ignore[arg-type]


def test_pictures_are_resized_by_pillow_in_8_bits() -> None:
    found = dinov2_pixels(pictures())
    for image, pixels in zip(pictures(), found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        small = torch.from_numpy(np.array(picture.resize((224, 224), Image.Resampling.BICUBIC)))
        assert torch.allclose(pixels * STD + MEAN, small.permute(2, 0, 1).float() / 255, atol=1e-6)


def test_what_is_not_dinov2_is_refused(folder: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"no file .*nothing\.pth.*dinov2_vitl14_pretrain\.pth"):
        load_dinov2(tmp_path / "nothing.pth")
    with pytest.raises(MissingWeightsError, match="'dinov3_vit', not 'dinov2'"):
        load_dinov2(save_dinov3(tmp_path / "dinov3"))
    state = torch.load(file, weights_only=True)
    for change, message in (
        ({"register_tokens": torch.zeros(1, 4, WIDTH)}, "network with registers"),
        ({"blocks.0.mlp.w12.weight": torch.zeros(1)}, "ViT-g is read from a folder"),
        ({"blocks.0.norm1.weight": torch.zeros(3)}, "size mismatch|Error"),
    ):
        torch.save(state | change, tmp_path / "wrong.pth")
        with pytest.raises(MissingWeightsError, match=message):
            load_dinov2(tmp_path / "wrong.pth")
    del state["mask_token"]
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(MissingWeightsError, match="lacks cls_token, pos_embed or mask_token"):
        load_dinov2(tmp_path / "wrong.pth")


def test_a_folder_whose_weights_lack_something_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(MissingWeightsError, match=r"lacks 1 tensors, such as layernorm\.weight"):
        load_dinov2(tmp_path)
