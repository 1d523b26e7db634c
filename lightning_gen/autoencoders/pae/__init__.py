"""PAE: auto-encoders whose latents are aligned with a refined vision prior (arXiv:2605.07915)."""
