"""The judge in this process, with a tiny random image-text model that is read from a folder as a published one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.judging.local_judge import TransformersJudge

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}answer{% endif %}"
)
WORDS = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "answer", "pass", "fail", "one", "two", "[", "]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
            text_config=LlamaConfig(**small, vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=0),
            image_token_id=WORDS.index("<image>"),
            vision_feature_layer=-1,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    # As published models do: settings that ask for sampling.
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=3)
    target = tmp_path_factory.mktemp("judge") / "Tiny-Judge"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 20, 24), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_it_answers_greedily_what_the_message_shows(folder: Path) -> None:
    judge = TransformersJudge(str(folder), max_new_tokens=8)
    message: list[Any] = ["one", picture(0), "two", picture(1)]
    torch.manual_seed(1)
    answer = judge(message)
    torch.manual_seed(2)
    assert judge(message) == answer
    assert answer
    assert set(answer.split()) <= set(WORDS[4:]), "the prompt and special tokens are no part of the answer"
    others = [judge(["one", picture(seed), "two", picture(seed + 1)]) for seed in range(2, 6)]
    assert any(other != answer for other in others), "the pictures reach the model"


def test_it_is_named_and_described_for_the_protocol(folder: Path) -> None:
    judge = TransformersJudge(str(folder), dtype=torch.bfloat16, max_new_tokens=3)
    assert judge.name == "tiny-judge"
    assert isinstance(judge([picture(0), "one"]), str)
    assert judge.settings["judge_dtype"] == "bfloat16"
    assert judge.settings["judge_decoding"] == "greedy"
    assert not judge.model.training
    assert not any(parameter.requires_grad for parameter in judge.model.parameters())


def test_incomplete_folders_are_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(MissingWeightsError, match="there is no folder"):
        TransformersJudge(str(tmp_path / "gone"))
    for missing, message in (
        ("model.safetensors", "holds no model.safetensors"),
        ("tokenizer_config.json", "holds no tokenizer_config.json"),
        ("chat_template.jinja", "holds no chat template"),
    ):
        copy = tmp_path / missing.partition(".")[0]
        shutil.copytree(folder, copy)
        (copy / missing).unlink()
        with pytest.raises(MissingWeightsError, match=message):
            TransformersJudge(str(copy))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    from tests.harness.tiny_clip import write_tiny_clip

    with pytest.raises(MissingWeightsError, match="model_type 'clip'.*is no image-text model"):
        TransformersJudge(str(write_tiny_clip(tmp_path)))
