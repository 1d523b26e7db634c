"""Questions to a tiny LLaVA with random weights, saved and loaded as a real one is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.compositional.geneval2_questions import GenEval2Prompt, GenEval2Question, judge_questions
from lightning_gen.metrics.compositional.local_vqa import TransformersVQA
from lightning_gen.metrics.judging.local_judge import TransformersJudge

WORDS = ("<unk>", "<pad>", "<s>", "</s>", "<image>", "Yes", "yes", "two", "Two", "2", "Is", "it", "red", "?", "Answer")
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} Answer{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("llava")
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(where)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_id=4,
    )
    model = LlavaForConditionalGeneration(config)
    # Wide enough that the answer depends on the picture and on the question.
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4)
    model.save_pretrained(where)
    # Settings that came with the weights must not change the distribution.
    (where / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 3.0, "repetition_penalty": 5.0, "pad_token_id": 1})
    )
    return where


@pytest.fixture(scope="module")
def vqa(folder: Path) -> TransformersVQA:
    return TransformersVQA(TransformersJudge(str(folder), max_new_tokens=3))


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=generator) for _ in range(2)]


def plain_distribution(vqa: TransformersVQA, image: Tensor, question: str) -> Tensor:
    """One forward pass through the network, without generation."""
    processor, network = vqa.model.processor, vqa.model.model
    text = "<image> " + question + " Answer"
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        return network(**inputs).logits[0, -1].softmax(-1)


def test_the_distribution_is_that_of_one_forward_pass(vqa: TransformersVQA) -> None:
    image = pictures()[0]
    found = vqa.first_token(image, "Is it red ?")
    assert found.shape == (len(WORDS),) and float(found.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found, plain_distribution(vqa, image, "Is it red ?"), atol=1e-5, rtol=1e-5)


def test_picture_and_question_both_matter(vqa: TransformersVQA) -> None:
    first, second = pictures()
    found = vqa.first_token(first, "Is it red ?")
    assert not torch.allclose(found, vqa.first_token(second, "Is it red ?"), atol=1e-4)
    assert not torch.allclose(found, vqa.first_token(first, "red it Is ?"), atol=1e-4)


def test_probabilities_of_answers_count_a_shared_token_as_often_as_the_benchmark(folder: Path) -> None:
    judge = TransformersJudge(str(folder))
    image, question = pictures()[0], "Is it red ?"
    spread = TransformersVQA(judge).first_token(image, question)
    yes = spread[WORDS.index("Yes")] + spread[WORDS.index("yes")]
    spellings = [["Yes", "yes", " yes", " Yes"]]
    official, once = (
        float(TransformersVQA(judge, deduplicate).answer_probabilities([image], [question], spellings)[0])
        for deduplicate in (False, True)
    )
    assert once == pytest.approx(float(yes), rel=1e-6)
    # This tokenizer drops the space, so " yes" begins like "yes".
    assert official == pytest.approx(2 * float(yes), rel=1e-6)


def test_questions_of_geneval2_go_through_it(vqa: TransformersVQA) -> None:
    prompt = GenEval2Prompt(
        "two", 3, (GenEval2Question("Is it red ?", "Yes", "attribute"), GenEval2Question("How many ?", "two", "count"))
    )
    image = pictures()[1]
    (scores,) = judge_questions(vqa, [image], [prompt])
    spread = plain_distribution(vqa, image, "How many ? Answer in one word.")
    number = 2 * (spread[WORDS.index("two")] + spread[WORDS.index("Two")] + spread[WORDS.index("2")])
    assert scores[1] == pytest.approx(float(number), rel=1e-4)


def test_answers_in_words(vqa: TransformersVQA) -> None:
    answers = vqa.answer(pictures(), ["Is it red ?", "Is it red ?"])
    assert len(answers) == 2 and all(len(answer.split()) <= 3 for answer in answers)


def test_the_settings_say_how_tokens_are_counted(vqa: TransformersVQA) -> None:
    assert vqa.settings["deduplicate"] is False and vqa.name == vqa.model.name


def test_floats_are_refused(vqa: TransformersVQA) -> None:
    with pytest.raises(ValueError, match="uint8"):
        vqa.answer([torch.rand(3, 8, 8)], ["Is it red ?"])
