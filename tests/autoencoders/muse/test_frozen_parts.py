"""Teachers, text towers, the perceptual loss and the discriminator, on tiny networks that the tests save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.muse.decoder import read_dcae_decoder
from lightning_gen.autoencoders.muse.discriminator import BlurDownsample, PatchDiscriminator, pad_same
from lightning_gen.autoencoders.muse.perceptual import PerceptualLoss
from lightning_gen.autoencoders.muse.teacher import AffinityTeacher, ColorAffinity, DINOv3Attention
from lightning_gen.autoencoders.muse.text import CLIPText, WordVectors
from lightning_gen.backbones.weights import MissingWeightsError
from tests.autoencoders.muse.tiny import DECODER, SHAPE, module
from tests.harness.network import NetworkChecks
from tests.harness.tiny_dinov3 import random_dinov3, save_transformers

CPU = torch.device("cpu")


def images(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_teacher_is_the_last_layer_of_dinov3(tmp_path: Path) -> None:
    save_transformers(tmp_path / "dino")
    found = DINOv3Attention(str(tmp_path / "dino")).attention(images(32, 48))
    assert found.grid == (2, 3) and found.values.shape == (2, 6, 6)
    assert torch.allclose(found.values.sum(-1), torch.ones(2, 6), atol=1e-5)
    network = random_dinov3()
    network.set_attn_implementation("eager")
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((images(32, 48) + 1) / 2 - mean) / std
    with torch.no_grad():
        whole = network(pixels, output_attentions=True).attentions[-1].mean(1)[:, -6:, -6:]
        assert torch.allclose(found.values, whole / (whole.sum(-1, keepdim=True) + 1e-6), atol=1e-6)
        twice = network(((pixels + 1) / 2 - mean) / std, output_attentions=True).attentions[-1].mean(1)[:, -6:, -6:]
    double = DINOv3Attention(str(tmp_path / "dino"), "official_double").attention(images(32, 48)).values
    assert torch.allclose(double, twice / (twice.sum(-1, keepdim=True) + 1e-6), atol=1e-6)
    assert not torch.allclose(double, found.values, atol=1e-4)


def test_teachers_that_are_not_there_are_named(tmp_path: Path) -> None:
    need = DINOv3Attention(str(tmp_path / "none")).need()
    assert need is not None and not need.found and "there is no folder" in need.hint
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        DINOv3Attention(str(tmp_path / "none")).load()
    folder = save_transformers(tmp_path / "dino")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(MissingWeightsError, match="describes 'bert'; the teacher must be a DINOv3"):
        DINOv3Attention(str(folder)).load()
    with pytest.raises(ValueError, match="teacher_norm is 'own' or 'official_double'"):
        DINOv3Attention(teacher_norm="none")  # type: ignore[arg-type]


def test_affinities_of_any_encoder(tmp_path: Path) -> None:
    from lightning_gen.shapes.encoder import ShapesEncoder

    encoder = ShapesEncoder(8)
    encoder.save_pretrained(tmp_path / "shapes")
    teacher = AffinityTeacher("lightning_gen.shapes.encoder.ShapesEncoder", str(tmp_path / "shapes"), 0.5)
    found = teacher.attention(images(32, 48))
    with torch.no_grad():
        tokens = F.normalize(encoder.features(images(32, 48))[-1].flatten(2).transpose(1, 2), dim=-1)
    assert found.grid == (4, 6)
    assert torch.allclose(found.values, (tokens @ tokens.transpose(1, 2) * 2).softmax(-1), atol=1e-6)


def test_the_preflight_knows_whether_the_shipped_encoder_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_gen.backbones import shipped
    from lightning_gen.shapes.encoder import ShapesEncoder

    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "lightning_gen")
    name = "lightning_gen.shapes.encoder.ShapesEncoder"
    need = AffinityTeacher(name, "shapes_encoder").need()
    assert need is not None and not need.found and "shapes_encoder are not in this installation" in need.hint
    ShapesEncoder(8).save_pretrained(tmp_path / "data" / "shapes_encoder")
    need = AffinityTeacher(name, "shapes_encoder").need()
    assert need is not None and need.found and need.source == "shapes_encoder"
    assert AffinityTeacher(name, "weights/mine").need() is None


def test_equal_colours_look_at_each_other() -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, :, :, 8:] = 1.0
    found = ColorAffinity(8).attention(picture)
    assert found.grid == (2, 2) and torch.allclose(found.values[0, 0], torch.tensor([0.5, 0.0, 0.5, 0.0]), atol=1e-6)


def test_words_make_captions() -> None:
    tower = WordVectors(64, seed=1)
    found = tower.embed(["a red circle", "a red square", "two moons", "A red circle.", ""], CPU)
    assert torch.allclose(found.norm(dim=-1), torch.ones(5))
    assert torch.equal(found[0], found[3]) and found[0] @ found[1] > found[0] @ found[2] + 0.2
    assert torch.equal(WordVectors(64, seed=1).embed(["two moons"], CPU)[0], found[2])
    assert not torch.equal(tower.embed(["red a circle"], CPU)[0], found[0])


def test_clip_text_tower(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    (tmp_path / "vocab.json").write_text(
        json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "r": 3, "e": 4, "d</w>": 5})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=6, projection_dim=12, eos_token_id=1, **sizes))
    network.save_pretrained(tmp_path / "clip")
    with pytest.raises(MissingWeightsError, match="has no tokenizer"):
        CLIPText(str(tmp_path / "clip")).load()
    tokenizer.save_pretrained(tmp_path / "clip")
    found = CLIPText(str(tmp_path / "clip")).embed(["a red", "a"], CPU)
    words = tokenizer(["a red", "a"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        wanted = F.normalize(network.eval()(**words).text_embeds, dim=-1)
    assert found.shape == (2, 12) and torch.allclose(found, wanted, atol=1e-6)


def test_logits_of_a_classifier_are_compared(tmp_path: Path) -> None:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], num_labels=5, image_size=32)
    network = ConvNextForImageClassification(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(tmp_path / "convnext")
    loss = PerceptualLoss(classifier=str(tmp_path / "convnext"), size=32)
    y, x = images(32, 32).requires_grad_(), images(32, 32).flip(0)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        a, b = (network(((side + 1) / 2 - mean) / std).logits for side in (y, x))
    found = loss(y, x)
    assert found.item() == pytest.approx((a - b).square().mean().item(), rel=1e-4) and found.item() > 0
    (gradient,) = torch.autograd.grad(found, y)
    assert gradient.any() and loss(x, x).item() == 0
    with pytest.raises(MissingWeightsError, match="no folder"):
        PerceptualLoss(classifier=str(tmp_path / "none")).load()
    with pytest.raises(ValueError, match="needs lpips_trunk, classifier or both"):
        PerceptualLoss()


class TestDiscriminator(NetworkChecks):
    def network(self) -> nn.Module:
        return PatchDiscriminator(32, 2)

    def batch(self) -> Tensor:
        return images(40, 48)


def test_the_discriminator_judges_16_x_16_patches() -> None:
    made = PatchDiscriminator()
    assert made(torch.rand(1, 3, 50, 70)).shape == (1, 1, 16, 16)
    assert [tuple(stage.conv.weight.shape[:2]) for stage in made.stages] == [(128, 128), (256, 128), (512, 256)]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="multiple of 32"):
        PatchDiscriminator(48)


def test_the_blur_keeps_flat_pictures_and_halves_odd_sides() -> None:
    x = torch.rand(1, 2, 9, 12)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    found = BlurDownsample()(x)
    assert found.shape == (1, 2, 5, 6)
    assert found[0, 1, 2, 3].item() == pytest.approx((taps[:, None] * taps * x[0, 1, 3:7, 5:9]).sum().item(), rel=1e-5)
    assert torch.allclose(BlurDownsample()(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2))
    assert pad_same(x, 5, 1).shape[-2:] == (13, 16) and pad_same(x, 4, 2).shape[-2:] == (12, 14)


def save_dcae(folder: Path) -> str:
    from diffusers import AutoencoderDC

    whole = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 4),
        encoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        downsample_block_type="conv",
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_out_channels=(8, 16, 16),
        decoder_layers_per_block=(1, 1, 1),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
    )
    whole.save_pretrained(folder)
    return str(folder)


def test_encoder_and_decoder_start_from_folders(tmp_path: Path) -> None:
    from lightning_gen.backbones.intern_vit import InternViT
    from tests.autoencoders.muse.tiny import ENCODER

    source = save_dcae(tmp_path / "dcae")
    shape, state = read_dcae_decoder(source)
    assert shape == DECODER and "conv_in.weight" in state
    encoder = InternViT(ENCODER)
    encoder.model.save_pretrained(tmp_path / "vit")
    model = module(encoder_source=str(tmp_path / "vit"), decoder_source=source)
    model.configure_model()
    assert torch.equal(model.network.decoder.model.conv_out.weight, state["conv_out.weight"])
    position = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(model.network.encoder.model.get_parameter(position), encoder.model.get_parameter(position))
    latents = torch.randn(1, 4, 3, 5)
    from diffusers import AutoencoderDC

    with torch.no_grad():
        whole = AutoencoderDC.from_pretrained(source)
        assert torch.allclose(model.network.decoder(latents), whole.decode(latents, return_dict=False)[0], atol=1e-6)
    other = module(shape=type(SHAPE)(ENCODER, type(DECODER)(4, (8, 8, 16), (1, 1, 1), 2, 8), 16, 1, 2, 6, 12))
    other.building = type(other.building)(encoder_source="random", decoder_source=source)
    with pytest.raises(ValueError, match="a DC-AE decoder of other sizes"):
        other.configure_model()
    (tmp_path / "dcae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(MissingWeightsError, match="describes 'AutoencoderKL', not an AutoencoderDC"):
        read_dcae_decoder(source)
