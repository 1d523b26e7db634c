"""Tiny random detection networks on disk, in the layout of transformers, with everything that a real folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["MEAN", "STD", "WORDS", "save_grounding_dino", "save_mask2former"]

MEAN, STD = [0.48, 0.45, 0.41], [0.23, 0.22, 0.21]

# Numbers from 1100 on in the vocabulary of the tiny tokenizer.
WORDS = ("cat", "dog", "traffic", "light", "hot", "tooth", "##brush", "a")

_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}


def save_mask2former(folder: Path, num_labels: int = 80, processor: dict[str, Any] | None = None) -> Path:
    """Write a Mask2Former with random weights whose classes and masks depend on the picture.

    Args:
        folder: written to.
        num_labels: number of its classes.
        processor: entries of preprocessor_config.json that differ.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Mask2FormerConfig(
            backbone_config=SwinConfig(**_SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
            id2label={index: f"LABEL_{index}" for index in range(num_labels)},
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=12,
        )
        model = Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            # Fresh weights give every class the same probability.
            model.class_predictor.weight.mul_(40)
            model.model.pixel_level_module.decoder.mask_projection.weight.mul_(20)
    model.save_pretrained(folder)
    _save_processor(
        folder, {"size": {"shortest_edge": 64, "longest_edge": 100}, "size_divisor": 32, **(processor or {})}
    )
    return folder


def save_grounding_dino(folder: Path, processor: dict[str, Any] | None = None) -> Path:
    """Write a Grounding DINO with random weights and a tokenizer that knows ``WORDS``.

    Args:
        folder: written to.
        processor: entries of preprocessor_config.json that differ.
    """
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GroundingDinoConfig(
            backbone_config=SwinConfig(**_SWIN, out_indices=[2, 3, 4]),
            text_config=BertConfig(
                vocab_size=1100 + len(WORDS),
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            ),
            num_queries=20,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            d_model=64,
            max_text_len=24,
        )
        model = GroundingDinoForObjectDetection(config)
        with torch.no_grad():
            for head in model.bbox_embed:
                head.layers[-1].weight.normal_(0, 0.1)
    model.save_pretrained(folder)
    _save_tokenizer(folder)
    _save_processor(folder, {"size": {"shortest_edge": 64, "longest_edge": 100}, **(processor or {})})
    return folder


def _save_tokenizer(folder: Path) -> None:
    """A BERT tokenizer in which the delimiters have the numbers that the network's code expects."""
    from transformers import BertTokenizerFast

    words = [f"[unused{number}]" for number in range(1100)] + list(WORDS)
    for word, number in {
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        "[MASK]": 103,
        ".": 1012,
        "?": 1029,
    }.items():
        words[number] = word
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)


def _save_processor(folder: Path, entries: dict[str, Any]) -> None:
    config = {
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **entries,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
