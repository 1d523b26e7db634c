"""Frozen text encoders, read from folders as the published ones are laid out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lightning_gen.backbones.text import FrozenTextEncoder
from lightning_gen.backbones.weights import MissingWeightsError
from tests.harness.tiny_clip import write_tiny_clip

PROMPTS = ["a photo of a cat", "two dogs", ""]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_gives_its_hidden_states_its_mask_and_its_own_pooled_vector(clip: Path) -> None:
    import transformers

    encoder = FrozenTextEncoder(str(clip), length=12)
    found = encoder(PROMPTS)
    words = encoder.tokenizer(PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = transformers.CLIPTextModel.from_pretrained(clip)(**words)
    torch.testing.assert_close(found.sequence, wanted.last_hidden_state)
    torch.testing.assert_close(found.pooled, wanted.pooler_output)
    assert torch.equal(found.mask, words.attention_mask.bool()) and found.sequence.shape[-1] == encoder.width
    assert not found.sequence.requires_grad and not list(encoder.parameters())


def test_t5_is_pooled_over_its_real_tokens(clip: Path, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=len(tokenizer), **sizes)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = FrozenTextEncoder(str(tmp_path), length=10)(PROMPTS)
    assert found.pooled is not None and found.sequence.shape == (3, 10, 16)
    for row in range(3):
        torch.testing.assert_close(found.pooled[row], found.sequence[row][found.mask[row]].mean(0))


def test_what_cannot_encode_is_named(clip: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip / name, bare / name)
    with pytest.raises(MissingWeightsError, match="has no tokenizer"):
        FrozenTextEncoder(str(bare))
    (bare / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MissingWeightsError, match="'bert', not a text encoder"):
        FrozenTextEncoder(str(bare))
