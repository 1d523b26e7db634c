"""Generators: networks that turn noise into latents or pictures."""
