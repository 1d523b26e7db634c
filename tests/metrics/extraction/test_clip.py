from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.extraction.clip import CLIPModel, load_clip
from lightning_gen.metrics.extraction.clip_pixels import CLIPPixels
from tests.harness.tiny_clip import CONTEXT, OPENAI_MEAN, OPENAI_STD, open_clip_config, write_tiny_clip

TEXTS = ["a red cat", "Two dogs, on a sofa!", "", "the  quick brown fox " * 40]
SIZES = [(40, 61), (32, 32), (90, 33), (47, 47), (20, 25)]


def smooth(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture of soft waves with one edge, uint8."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    phase = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) * 6
    channels = [torch.sin(p[0] + 9 * rows) + torch.cos(p[1] + 7 * columns + p[2] * rows) for p in phase]
    picture = torch.stack(channels) / 4 + 0.5
    picture[:, : height // 3, : width // 2] *= 0.4
    return (picture * 255).round().clamp(0, 255).to(torch.uint8)


def pictures() -> list[Tensor]:
    return [smooth(*size, seed=i) for i, size in enumerate(SIZES)]


def as_pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("clip")
    return {layout: write_tiny_clip(base / layout, layout) for layout in ("transformers", "open_clip")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, CLIPModel]:
    return {layout: load_clip(str(folder)) for layout, folder in folders.items()}


@pytest.fixture(params=["transformers", "open_clip"])
def clip(request: pytest.FixtureRequest, models: dict[str, CLIPModel]) -> CLIPModel:
    return models[request.param]


# ------------------------------------------------------------------ what the libraries give


def test_embeddings_are_those_of_transformers(folders: dict[str, Path], models: dict[str, CLIPModel]) -> None:
    from transformers import CLIPModel as Reference
    from transformers import CLIPProcessor

    reference = Reference.from_pretrained(folders["transformers"]).eval()
    processor = CLIPProcessor.from_pretrained(folders["transformers"])
    for picture in pictures():
        inputs = processor(
            text=TEXTS, images=as_pil(picture), return_tensors="pt", padding=True, truncation=True, max_length=CONTEXT
        )
        with torch.no_grad():
            out = reference(**inputs)
        clip = models["transformers"]
        torch.testing.assert_close(clip.embed_texts(TEXTS), out.text_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(clip.embed_images([picture]), out.image_embeds, rtol=0, atol=1e-2)
        logits = clip.logit_scale * clip.embed_images([picture]) @ clip.embed_texts(TEXTS).T
        torch.testing.assert_close(logits, out.logits_per_image, rtol=0, atol=0.5)


def test_embeddings_are_those_of_open_clip(folders: dict[str, Path], models: dict[str, CLIPModel]) -> None:
    import open_clip

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folders['open_clip']}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folders['open_clip']}")
    network.eval()
    clip = models["open_clip"]
    with torch.no_grad():
        texts = network.encode_text(tokenizer(TEXTS), normalize=True)
        torch.testing.assert_close(clip.embed_texts(TEXTS), texts, rtol=0, atol=1e-5)
        for picture in pictures():
            image = network.encode_image(preprocess(as_pil(picture))[None], normalize=True)
            torch.testing.assert_close(clip.embed_images([picture]), image, rtol=0, atol=2e-3)


def test_both_layouts_of_the_same_weights_agree(models: dict[str, CLIPModel]) -> None:
    ours, theirs = models["transformers"], models["open_clip"]
    square = [smooth(size, size, seed=size) for size in (32, 48, 57)]
    torch.testing.assert_close(ours.embed_images(square), theirs.embed_images(square), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.embed_texts(TEXTS), theirs.embed_texts(TEXTS), rtol=0, atol=1e-5)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale) == pytest.approx(float(np.exp(4.0)), rel=1e-6)


# ------------------------------------------------------------------ pixels


@pytest.mark.parametrize("size", [*SIZES, (33, 64), (300, 200)])
def test_pixels_differ_from_pil_by_less_than_a_twentieth_of_a_level(size: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    picture = smooth(*size)
    resized = CenterCrop(32)(Resize(32, interpolation=InterpolationMode.BICUBIC)(as_pil(picture)))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).double()
    levels = CLIPPixels(32, crop="round").square(picture[None])[0].double() * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    difference = (levels - expected).abs()
    assert difference.mean() < 0.05 and difference.max() < 2.01, (float(difference.mean()), float(difference.max()))


def test_pixels_of_a_photograph_are_those_of_pil() -> None:
    from skimage.data import astronaut
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    photograph = astronaut()[:, 60:460]
    resized = CenterCrop(224)(Resize(224, interpolation=InterpolationMode.BICUBIC)(Image.fromarray(photograph)))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None]
    difference = (CLIPPixels(224, crop="round").square(pixels)[0] - expected).abs() * 255
    assert difference.mean() < 0.001 and difference.max() < 1.01
    unrounded = (CLIPPixels(224, crop="round").square(pixels / 255)[0] - expected).abs() * 255
    assert 0.1 < unrounded.mean() < 0.3


def test_resizing_is_antialiased_and_bicubic() -> None:
    picture = smooth(160, 160)
    ours = CLIPPixels(32).square(picture[None])
    plain = F.interpolate(picture[None].float(), size=(32, 32), mode="bicubic") / 255
    linear = F.interpolate(picture[None].float(), size=(32, 32), mode="bilinear", antialias=True) / 255
    assert (ours - plain).abs().max() > 0.02 and (ours - linear).abs().max() > 0.005


def test_the_shorter_side_is_resized_and_the_middle_kept() -> None:
    picture = torch.zeros(3, 64, 200, dtype=torch.uint8)
    picture[:, :, 68:132] = 255
    assert CLIPPixels(32).square(picture[None]).mean() > 0.98  # at the two seams the white bleeds out
    assert CLIPPixels(32).square(picture.mT[None]).mean() > 0.98
    picture[:, :, 68:132] = 0
    assert CLIPPixels(32).square(picture[None]).max() == 0


@pytest.mark.parametrize("rest", [1, 3, 5])
def test_half_a_pixel_of_the_crop_goes_where_the_layout_sends_it(rest: int) -> None:
    ramp = torch.arange(32 + rest, dtype=torch.uint8).expand(1, 3, 32, 32 + rest)
    for crop, offset in (("floor", rest // 2), ("round", round(rest / 2))):
        left = CLIPPixels(32, crop=crop).square(ramp)[0, 0, 0, 0] * 255  # type: ignore[arg-type]
        assert int(left.round()) == offset


def test_mean_and_std_are_applied() -> None:
    white = CLIPPixels(32)(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor(OPENAI_MEAN)) / torch.tensor(OPENAI_STD)
    torch.testing.assert_close(white[0, :, 0, 0], expected)


def test_overshoot_is_clamped() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 30:] = 1.0
    square = CLIPPixels(40).square(picture)
    assert square.min() == 0 and square.max() == 1


def test_uint8_and_unit_floats_agree_up_to_rounding(clip: CLIPModel) -> None:
    for picture in pictures():
        levels = clip.pixels.square(picture[None]) * 255
        floats = clip.pixels.square(picture[None] / 255) * 255
        difference = (levels - floats).abs()
        assert difference.mean() < 0.4 and difference.max() < 4
    whole = pictures()[1]  # already of the right size: nothing is resized, nothing rounded
    torch.testing.assert_close(clip.embed_images([whole]), clip.embed_images([whole / 255]), rtol=0, atol=1e-5)


def test_other_pictures_are_refused(clip: CLIPModel) -> None:
    for images, message in (
        (torch.rand(2, 3, 8, 8) * 2 - 1, r"must lie in \[0, 1\].*signed_to_unit"),
        (torch.rand(2, 3, 8, 8) * 255, r"must lie in \[0, 1\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got torch.uint8 \(3, 8, 8\)"),
        ([torch.zeros(1, 8, 8)], r"\(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "got torch.int64"),
        ([], "no images"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.embed_images(images)


# ------------------------------------------------------------------ embeddings


def test_embeddings_are_unit_vectors_that_tell_inputs_apart(clip: CLIPModel) -> None:
    for units in (clip.embed_images(pictures()), clip.embed_texts(TEXTS)):
        assert units.dtype == torch.float32 and units.shape == (len(units), 16)
        torch.testing.assert_close(units.norm(dim=1), torch.ones(len(units)))
        similarity = units @ units.T - 2 * torch.eye(len(units))
        assert similarity.max() < 0.999


def test_a_list_of_sizes_is_picture_by_picture(clip: CLIPModel) -> None:
    together = clip.embed_images(pictures())
    alone = torch.cat([clip.embed_images([picture]) for picture in pictures()])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    batch = torch.stack([smooth(40, 50, seed) for seed in range(3)])
    torch.testing.assert_close(clip.embed_images(batch), clip.embed_images(list(batch)), rtol=0, atol=1e-6)


def test_texts_are_cut_off_at_the_context_and_repeats_keep_their_place(clip: CLIPModel) -> None:
    words = " ".join(["cat"] * 75)
    assert torch.equal(clip.tokenize([words + " dog"]), clip.tokenize([words + " bird"]))
    assert clip.tokenize(["cat", words * 3]).shape == (2, CONTEXT)
    texts = ["b", "a", "b", "c", "a"]
    torch.testing.assert_close(
        clip.embed_texts(texts), torch.cat([clip.embed_texts([text]) for text in texts]), rtol=0, atol=1e-6
    )


def test_one_text_is_no_list_of_letters(clip: CLIPModel) -> None:
    for texts in ("cat", []):
        with pytest.raises(ValueError, match="list of texts"):
            clip.embed_texts(texts)


def test_float_pictures_receive_gradients_and_weights_do_not(clip: CLIPModel) -> None:
    images = torch.rand(2, 3, 45, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clip.embed_images(images)[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0 and images.grad.isfinite().all()
    assert all(weight.grad is None and not weight.requires_grad for weight in clip.network.parameters())
    assert not clip.embed_images(pictures()).requires_grad and not clip.embed_texts(["a"]).requires_grad


def test_the_gradient_is_the_slope(models: dict[str, CLIPModel]) -> None:
    clip = copy.deepcopy(models["transformers"])
    text = clip.embed_texts(["a red cat"])[0]
    image = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1).requires_grad_()
    (clip.embed_images(image) @ text).sum().backward()
    assert image.grad is not None
    direction = image.grad / image.grad.norm()
    step = 1e-2
    with torch.no_grad():
        rise = (clip.embed_images(image + step * direction) - clip.embed_images(image - step * direction)) @ text
    assert float(rise) / (2 * step) == pytest.approx(float(image.grad.norm()), rel=0.02)


def test_precision_of_the_run_does_not_matter(clip: CLIPModel) -> None:
    images, expected = pictures(), clip.embed_images(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip.embed_images(images), expected)
        assert torch.equal(clip.embed_texts(TEXTS), clip.embed_texts(TEXTS).float())
    half = clip.embed_images([image.to(torch.float16) / 255 for image in images])
    assert half.dtype == torch.float32
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    clip.embed_images(images)
    assert matmul.fp32_precision == before


def test_a_parent_does_not_own_it(models: dict[str, CLIPModel]) -> None:
    clip = copy.deepcopy(models["open_clip"])
    parent = nn.Module()
    parent.clip = clip
    assert not list(parent.parameters()) and not parent.state_dict()
    parent.to(torch.bfloat16).train().requires_grad_(True)
    weights = list(clip.network.parameters())
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights)
    assert not clip.training and not any(module.training for module in clip.network.modules())
    parent.to("meta")
    assert clip.device.type == "cpu"


def test_building_leaves_the_random_state_and_survives_a_meta_context(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        torch.manual_seed(3)
        with torch.device("meta"):
            clip = load_clip(str(folder))
        assert clip.device.type == "cpu"
        drawn = torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(3))


def test_copies_and_pickles(clip: CLIPModel) -> None:
    images = pictures()[:2]
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert torch.equal(twin.embed_images(images), clip.embed_images(images))
        assert torch.equal(twin.embed_texts(TEXTS), clip.embed_texts(TEXTS))


# ------------------------------------------------------------------ files


def test_the_architecture_has_a_name(models: dict[str, CLIPModel]) -> None:
    assert {clip.architecture for clip in models.values()} == {"vit-2x32-8-32"}


def test_the_fingerprint_is_that_of_the_weights_file(folders: dict[str, Path], models: dict[str, CLIPModel]) -> None:
    for layout, name in (("transformers", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")):
        expected = hashlib.sha256((folders[layout] / name).read_bytes()).hexdigest()
        assert models[layout].fingerprint == expected


@pytest.fixture
def tiny_architecture(tmp_path: Path) -> str:
    """An architecture that open_clip knows by name."""
    import open_clip

    for name, width in (("tiny-test", 16), ("tiny-other", 24)):
        (tmp_path / f"{name}.json").write_text(json.dumps(open_clip_config(width)))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return "tiny-test"


def test_a_lone_file_needs_the_name_of_its_architecture(
    folders: dict[str, Path], models: dict[str, CLIPModel], tiny_architecture: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    state = load_file(folders["open_clip"] / "open_clip_model.safetensors")
    half = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": half}, tmp_path / "HPS_compressed.pt")
    clip = load_clip(str(tmp_path / "HPS_compressed.pt"), tiny_architecture)
    expected = models["open_clip"].embed_texts(TEXTS)
    torch.testing.assert_close(clip.embed_texts(TEXTS), expected, rtol=0, atol=0.02)
    assert next(clip.network.parameters()).dtype == torch.float32
    for model in (None, "no such architecture"):
        with pytest.raises(MissingWeightsError, match=r"give as model the name of its architecture"):
            load_clip(str(tmp_path / "HPS_compressed.pt"), model)
    with pytest.raises(MissingWeightsError, match="do not fit their configuration"):
        load_clip(str(tmp_path / "HPS_compressed.pt"), "tiny-other")


def test_a_file_that_may_run_code_is_not_read(tiny_architecture: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "arguments": Path("x"), "model": nn.Linear(2, 2)}, tmp_path / "whole.pt")
    with pytest.raises(MissingWeightsError, match="may run code"):
        load_clip(str(tmp_path / "whole.pt"), tiny_architecture)


def test_weights_without_a_configuration_beside_them(
    folders: dict[str, Path], models: dict[str, CLIPModel], tiny_architecture: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "open_clip_model.safetensors").symlink_to(folders["open_clip"] / "open_clip_model.safetensors")
    expected = models["open_clip"].embed_texts(TEXTS)
    assert torch.equal(load_clip(str(folder), tiny_architecture).embed_texts(TEXTS), expected)
    with pytest.raises(MissingWeightsError, match="holds no open_clip_config.json"):
        load_clip(str(folder))
    # A configuration beside the weights wins over a name.
    assert torch.equal(load_clip(str(folders["open_clip"]), "ViT-B-32").embed_texts(TEXTS), expected)


def linked(source: Path, folder: Path, leave_out: str = "") -> Path:
    folder.mkdir()
    for path in source.iterdir():
        if path.name != leave_out:
            (folder / path.name).symlink_to(path)
    return folder


def test_a_folder_with_both_layouts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = linked(folders["transformers"], tmp_path / "both")
    for path in folders["open_clip"].iterdir():
        (folder / path.name).symlink_to(path)
    assert load_clip(str(folder)).layout == "transformers"
    assert load_clip(str(folder), "ViT-L-14").layout == "open_clip"
    # as the repositories of timm are: a configuration of timm beside open_clip's files
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_large_patch14_clip_224"}))
    assert load_clip(str(folder)).layout == "open_clip"


def test_missing_files_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for i, name in enumerate(("tokenizer.json", "preprocessor_config.json", "model.safetensors", "config.json")):
        folder = linked(folders["transformers"], tmp_path / f"no{i}", leave_out=name)
        with pytest.raises(MissingWeightsError, match=f"holds no {name}"):
            load_clip(str(folder))
    folder = linked(folders["transformers"], tmp_path / "without", leave_out="tokenizer.json")
    clip = load_clip(str(folder), processor=str(folders["transformers"]))
    assert torch.equal(clip.embed_texts(TEXTS), load_clip(str(folders["transformers"])).embed_texts(TEXTS))
    with pytest.raises(MissingWeightsError, match="no folder nowhere"):
        load_clip("nowhere")
    with pytest.raises(MissingWeightsError, match="not on this machine"):
        load_clip("owner/nothing")


def test_another_network_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = linked(folders["transformers"], tmp_path / "other", leave_out="config.json")
    config = json.loads((folders["transformers"] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(MissingWeightsError, match="'siglip', not a CLIP"):
        load_clip(str(folder))
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeightsError, match="16 tensors lack or are too many"):
        load_clip(str(folder))
    config["vision_config"].update(num_hidden_layers=2, hidden_size=64)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeightsError, match="do not fit their configuration"):
        load_clip(str(folder))


def test_a_tokenizer_of_two_files_and_an_old_preprocessor(
    folders: dict[str, Path], models: dict[str, CLIPModel], tmp_path: Path
) -> None:
    folder = linked(folders["transformers"], tmp_path / "old", leave_out="tokenizer.json")
    whole = json.loads((folders["transformers"] / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in whole["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs))
    (folder / "preprocessor_config.json").unlink()
    old = {"size": 32, "crop_size": 32, "do_resize": True, "do_center_crop": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    clip = load_clip(str(folder))
    assert torch.equal(clip.tokenize(TEXTS), models["transformers"].tokenize(TEXTS))
    assert clip.pixels == models["transformers"].pixels


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 32, "width": 32}},
        {"do_center_crop": False},
        {"resample": 2},
        {"size": {"shortest_edge": 40}},
        {"crop_size": {"height": 32, "width": 40}},
    ],
)
def test_another_preprocessing_is_refused(folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = linked(folders["transformers"], tmp_path / "x", leave_out="preprocessor_config.json")
    config = json.loads((folders["transformers"] / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | change))
    with pytest.raises(MissingWeightsError, match="does not ask for the preprocessing of CLIP"):
        load_clip(str(folder))


@pytest.mark.parametrize("change", [{"resize_mode": "squash"}, {"interpolation": "bilinear"}, {"size": [32, 48]}])
def test_another_preprocessing_of_open_clip_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = linked(folders["open_clip"], tmp_path / "x", leave_out="open_clip_config.json")
    config = json.loads((folders["open_clip"] / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeightsError, match="does not ask for the preprocessing of CLIP"):
        load_clip(str(folder))
