"""Prompts say what requests ask for, both ways; words of other worlds are named."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_gen.metrics.compositional.geneval_prompts import parse_prompt as parse_record
from lightning_gen.shapes.grammar import Phrase, Request, parse_prompt
from lightning_gen.shapes.mixture import draw_request
from lightning_gen.shapes.tokenizer import MAX_LENGTH, ShapesTokenizer
from lightning_gen.shapes.vocabulary import KINDS
from lightning_gen.training.randomness import numpy_generator

REQUESTS = [draw_request(numpy_generator(0, "test prompts", number)) for number in range(2000)]


def test_every_request_comes_back_from_its_prompt() -> None:
    assert {request.tag for request in REQUESTS} == {
        "single_object", "two_object", "counting", "colors", "position", "color_attr", "word",
    }  # fmt: skip
    for request in REQUESTS:
        assert parse_prompt(request.prompt()) == request
        assert parse_prompt(f"  {request.prompt().upper()} . ".replace(" .", ".")) == request


def test_geneval_reads_the_records() -> None:
    for request in REQUESTS[:400]:
        record = request.metadata()
        assert json.loads(json.dumps(record)) == record
        if not request.word:
            prompt = parse_record(record, names=KINDS)
            assert (prompt.tag, prompt.prompt) == (request.tag, request.prompt())
            assert sum(clause.count for clause in prompt.include) == sum(one.count for one in request.phrases)


def test_a_relation_stands_at_its_first_object_and_points_to_the_other() -> None:
    record = parse_prompt("a photo of a red star above a moon").metadata()
    assert record["include"] == [
        {"class": "moon", "count": 1},
        {"class": "star", "count": 1, "color": "red", "position": ["above", 0]},
    ]
    counting = parse_prompt("a photo of three crosses").metadata()
    assert counting["exclude"] == [{"class": "cross", "count": 4}]


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a sketch of a star", "'a'"),
        ("a photo of a bicycle", "'bicycle'"),
        ("a photo of a mauve star", "'mauve'"),
        ("a photo of seven stars", "'seven'"),
        ("a photo of three star", "'star'"),
        ("a photo of a star beside a moon", "'beside'"),
        ("a photo of a star and", "its end"),
        ("a photo of a star on a beach background", "'beach'"),
        ("a photo of a star on a sand floor", "'floor'"),
        ("a photo of two stars above a moon", "'above'"),
        ("a photo of the word CAT", "'CAT'"),
        ('a photo of the word "ELEPHANT"', "'ELEPHANT'"),
        ('a photo of the word "C4T"', "'C4T'"),
        ("", "its end"),
    ],
)
def test_the_word_at_fault_is_named(prompt: str, word: str) -> None:
    with pytest.raises(ValueError, match="prompt") as raised:
        parse_prompt(prompt)
    assert word in str(raised.value)


def test_numbers_are_those_of_the_words_and_fit_the_row() -> None:
    tokenizer = ShapesTokenizer()
    longest = Request(
        (Phrase("circle", "orange"), Phrase("square", "orange")), "left of", "slate", opening="a photo of"
    )
    prompts = [longest.prompt(), "A photo of a star.", 'a photo of the word "ABCDE"', ""]
    numbers, mask = tokenizer(prompts)
    assert numbers.shape == (4, MAX_LENGTH) == mask.shape
    assert (numbers.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.sum(1).tolist() == [15, 5, 12, 0]
    assert torch.equal(mask, numbers > 0)
    assert int(tokenizer([request.prompt() for request in REQUESTS])[0].max()) < tokenizer.vocabulary_size
    assert torch.equal(tokenizer(["a photo of a star"])[0], numbers[1:2])
    rows = {tuple(row) for row in tokenizer([request.prompt() for request in REQUESTS])[0].tolist()}
    assert len(rows) == len({request.prompt() for request in REQUESTS})


def test_the_tokenizer_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="does not have the word 'zebra'"):
        ShapesTokenizer()(["a photo of a zebra"])
    with pytest.raises(ValueError, match="at most 3 fit"):
        ShapesTokenizer(3)(["a photo of a star"])
