"""Post-training of text-to-image models by rewards and preferences, one room per paper."""
