"""Latents that were encoded once: how they are written, read and served."""
