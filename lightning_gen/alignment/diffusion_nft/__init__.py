"""DiffusionNFT: reinforcement learning on the forward process, without likelihoods (arXiv:2509.16117)."""
