"""Models that judge pictures by a written rubric, and what becomes of their answers."""
