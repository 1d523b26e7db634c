"""LightningDiT, the class-conditional transformer that PAE (arXiv:2605.07915) measures its latents with."""
