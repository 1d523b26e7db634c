"""Flow-GRPO: policy gradients through the stochastic sampling of flow models (arXiv:2505.05470)."""
