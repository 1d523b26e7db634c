"""Detectors of objects and the namer of colours that GenEval needs."""
