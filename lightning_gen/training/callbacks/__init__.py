"""Callbacks of training: pictures, speed, token budget. The weight averages are in ``training/ema.py``."""
