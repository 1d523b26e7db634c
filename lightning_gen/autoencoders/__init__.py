"""Tokenizers: networks that turn images into latents and back, one room per paper."""
