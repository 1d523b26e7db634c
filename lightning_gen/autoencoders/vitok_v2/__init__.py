"""ViTok-v2: native-resolution auto-encoders of plain transformer blocks (arXiv:2605.05331)."""
