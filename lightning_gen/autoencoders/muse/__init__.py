"""MUSE: a tokenizer whose attention learns structure, whose values learn meaning (arXiv:2605.05646)."""
