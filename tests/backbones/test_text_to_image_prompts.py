"""Encoded prompts: what they depend on, where they are kept, and life without text encoders."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from lightning_gen.backbones.pipelines.folder import PipelineFolder, TextEncoders
from lightning_gen.backbones.text_to_image import DiffusersTextToImage
from lightning_gen.interfaces import Conditioning
from tests.harness.tiny_pipelines import write_tiny_pipeline

PROMPTS = ["a red circle", "two blue squares", ""]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("sd3") / "model", "sd3")


def model_of(folder: Path, cache: Path | None = None, text_length: int | None = 24) -> DiffusersTextToImage:
    return DiffusersTextToImage(
        str(folder), canvas=(16, 16), text_length=text_length, prompt_cache=None if cache is None else str(cache)
    )


def same(found: Conditioning, expected: Conditioning) -> bool:
    assert found.pooled is not None and expected.pooled is not None
    return torch.equal(found.sequence, expected.sequence) and torch.equal(found.pooled, expected.pooled)


def without_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the text encoders were read")

    monkeypatch.setattr(PipelineFolder, "text_encoders", refuse)


def test_lengths_are_those_that_were_asked_for(sd3: Path, tmp_path: Path) -> None:
    encoded = model_of(sd3).encode_prompts(PROMPTS)
    assert encoded.sequence.shape == (3, 77 + 24, 40) and encoded.mask.all() and encoded.mask.shape == (3, 101)
    assert encoded.pooled is not None and encoded.pooled.shape == (3, 32) and not encoded.extra
    shorter = DiffusersTextToImage(str(sd3), canvas=(16, 16), text_length=8, clip_length=16)
    assert shorter.encode_prompts([""]).sequence.shape == (1, 24, 40)
    # A long prompt is cut: what comes after does not matter.
    cut = shorter.encode_prompts(["a red circle on the left of a dog", "a red circle on the left of a cat"])
    assert torch.equal(cut.sequence[0], cut.sequence[1])
    assert DiffusersTextToImage(str(sd3), canvas=(16, 16)).lengths.text == 256
    sd15 = write_tiny_pipeline(tmp_path / "sd15", "sd15")
    shorter = DiffusersTextToImage(str(sd15), clip_length=9)
    assert shorter.encode_prompts(["a cat"]).sequence.shape == (1, 9, 16)
    with pytest.raises(ValueError, match=r"no encoder that text_length is for"):
        DiffusersTextToImage(str(sd15), text_length=8)
    with pytest.raises(ValueError, match=r"clip_length is at most 77.*got 128"):
        DiffusersTextToImage(str(sd3), clip_length=128)
    with pytest.raises(ValueError, match=r"text_length must be at least 1, got 0"):
        model_of(sd3, text_length=0)


def test_a_prompt_is_encoded_the_same_in_any_company(sd3: Path) -> None:
    model = model_of(sd3)
    before = torch.get_rng_state()
    together = model.encode_prompts([*PROMPTS, PROMPTS[0]])
    for row, prompt in enumerate([*PROMPTS, PROMPTS[0]]):
        alone = model.encode_prompts([prompt])
        assert torch.equal(together.sequence[row], alone.sequence[0])
    assert not torch.allclose(together.sequence[0], together.sequence[1], atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(model.encode_prompts(PROMPTS), model.encode_prompts(PROMPTS))
        assert torch.equal(model.encode_prompts(PROMPTS).sequence, together.sequence[:3])
    assert torch.equal(torch.get_rng_state(), before)
    assert not together.sequence.requires_grad


def test_cached_prompts_need_no_encoders(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_of(sd3, tmp_path / "cache")
    assert first.cache_prompts([*PROMPTS, PROMPTS[0]]) == 3 and first.cache_prompts(PROMPTS) == 0
    files = sorted((tmp_path / "cache").rglob("*.*"))
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    expected = model_of(sd3).encode_prompts(PROMPTS)
    without_encoders(monkeypatch)
    assert same(model_of(sd3, tmp_path / "cache").encode_prompts(PROMPTS), expected)
    with pytest.raises(AssertionError, match="were read"):
        model_of(sd3, tmp_path / "cache").encode_prompts(["something new"])


def test_freed_encoders_are_gone_and_a_new_prompt_says_so(sd3: Path, tmp_path: Path) -> None:
    model = model_of(sd3, tmp_path)
    model.cache_prompts(PROMPTS)
    assert model._text is not None
    encoder = weakref.ref(model._text.pipeline.text_encoder_3)
    expected = model.encode_prompts(PROMPTS)
    model.free_text_encoders()
    gc.collect()
    assert encoder() is None
    assert same(model.encode_prompts(PROMPTS), expected)
    with pytest.raises(RuntimeError, match=r"were freed.*'three dogs' is not in their cache.*call cache_prompts"):
        model.encode_prompts([PROMPTS[0], "three dogs"])
    with pytest.raises(ValueError, match=r"free_text_encoders needs a folder.*prompt_cache"):
        model_of(sd3).free_text_encoders()


def test_a_cache_belongs_to_its_encoders(sd3: Path, tmp_path: Path) -> None:
    kept = model_of(sd3, tmp_path / "cache")
    assert kept.cache is not None
    other = write_tiny_pipeline(tmp_path / "other", "sd3", seed=1)
    coarse = DiffusersTextToImage(
        str(sd3), canvas=(16, 16), text_length=24, text_dtype="bfloat16", prompt_cache=str(tmp_path / "cache")
    )
    longer = model_of(sd3, tmp_path / "cache", text_length=32)
    for model in (model_of(other, tmp_path / "cache"), longer, coarse):
        assert model.cache is not None and model.cache.folder != kept.cache.folder
    # One encoder's weights are enough; another transformer, another place or another canvas are not.
    mixed = tmp_path / "mixed"
    shutil.copytree(sd3, mixed)
    shutil.copytree(other / "transformer", mixed / "transformer", dirs_exist_ok=True)
    moved = DiffusersTextToImage(str(mixed), canvas=(32, 16), text_length=24, prompt_cache=str(tmp_path / "cache"))
    assert moved.cache is not None and moved.cache.folder == kept.cache.folder
    shutil.copy(other / "text_encoder_2" / "model.safetensors", mixed / "text_encoder_2" / "model.safetensors")
    mixed_cache = model_of(mixed, tmp_path / "cache").cache
    assert mixed_cache is not None and mixed_cache.folder != kept.cache.folder


def test_a_damaged_entry_is_named(sd3: Path, tmp_path: Path) -> None:
    model = model_of(sd3, tmp_path)
    model.cache_prompts(["a cat"])
    assert model.cache is not None
    path = model.cache.path("a cat")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{path.name} of the prompt cache is damaged: delete it"):
        model.encode_prompts(["a cat"])


def test_the_empty_prompt_of_stable_diffusion_xl_is_zero_where_its_pipeline_says_so(tmp_path: Path) -> None:
    folder = write_tiny_pipeline(tmp_path / "sdxl", "sdxl")
    model = DiffusersTextToImage(str(folder), canvas=(16, 24), prompt_cache=str(tmp_path / "cache"))
    encoded = model.encode_prompts(["a cat", ""])
    assert encoded.pooled is not None
    assert not encoded.sequence[1].any() and not encoded.pooled[1].any() and encoded.sequence[0].any()
    assert encoded.extra["time_ids"].tolist() == [[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]] * 2
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    changed = DiffusersTextToImage(str(folder), canvas=(16, 24), prompt_cache=str(tmp_path / "cache"))
    assert changed.encode_prompts([""]).sequence.any(), "zeros that were kept for another setting"


def test_stable_diffusion_3_without_t5(sd3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(sd3, folder)
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder_3"] = index["tokenizer_3"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    encoded, whole = model_of(folder).encode_prompts(["a cat"]), model_of(sd3).encode_prompts(["a cat"])
    assert encoded.sequence.shape == whole.sequence.shape and not encoded.sequence[:, 77:].any()
    assert torch.equal(encoded.sequence[:, :77], whole.sequence[:, :77])


@pytest.mark.parametrize("offload", [True, False])
def test_text_encoders_may_wait_in_host_memory(
    offload: bool, sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    monkeypatch.setattr(TextEncoders, "to", lambda its, device: moves.append(str(device)) or its)
    model = DiffusersTextToImage(str(sd3), (16, 16), 8, prompt_cache=str(tmp_path), text_offload=offload)
    monkeypatch.setattr(DiffusersTextToImage, "device", property(lambda _: torch.device("cpu", 0)))
    model.encode_prompts(PROMPTS)
    # There for every new prompt, away when all are encoded.
    assert moves == ["cpu:0"] * 3 + ["cpu"] * offload
    model.encode_prompts(PROMPTS)
    model.cache_prompts(["another"])
    assert moves[3 + offload :] == ["cpu"] * offload + ["cpu:0"] + ["cpu"] * offload
