"""ArenaPO: capabilities of models from comparisons, gaps of pairs from capabilities (arXiv:2605.06070)."""
