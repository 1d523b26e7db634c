"""What every training run needs: optimiser, schedule, strategies, weight averages, callbacks, keyed randomness."""
