"""Flow-matching diffusion transformer on the latents of a tokenizer (arXiv:2605.05331)."""
