"""Straight flows between images and noise: the path, times, solvers and guidance. t = 0 is clean, t = 1 is noise."""
