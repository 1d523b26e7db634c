"""Annotation tables whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

__all__ = ["NAMES", "TRUTH", "pickapic", "write"]

NAMES = ("Org/Fine", "other/GOOD ", "org/fair", "org/poor")
TRUTH = (29.0, 26.0, 24.0, 21.0)
_BETA = 25 / 6


def pickapic(count: int = 2000, seed: int = 0, ties: float = 0.1) -> dict[str, list[Any]]:
    """Columns of Pick-a-Pic v2 but for pictures; models meet themselves as often as others."""
    random = np.random.default_rng(seed)
    models = random.integers(len(NAMES), size=(2, count))
    quality = np.array(TRUTH)[models] + _BETA * random.standard_normal((2, count))
    label = np.where(random.random(count) < ties, 0.5, (quality[0] > quality[1]).astype(float))
    uids = [[f"{number:08x}-{side}" for number in range(count)] for side in (0, 1)]
    best = [uids[0][n] if one == 1 else uids[1][n] if one == 0 else None for n, one in enumerate(label.tolist())]
    return {
        "are_different": [True] * count,
        "best_image_uid": best,
        "caption": [f"a cat {number}" for number in range(count)],
        "created_at": np.arange(count).astype("datetime64[ns]"),
        "has_label": [True] * count,
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "image_0_url": ["http://gone"] * count,
        "image_1_url": ["http://gone"] * count,
        "label_0": label.tolist(),
        "label_1": (1 - label).tolist(),
        "model_0": [NAMES[one] for one in models[0]],
        "model_1": [NAMES[one] for one in models[1]],
        "ranking_id": list(range(count)),
        "user_id": random.integers(50, size=count).tolist(),
        "num_example_per_prompt": [1] * count,
        "__index_level_0__": list(range(count)),
    }


def write(path: Path, columns: dict[str, Any], rows_per_group: int = 512) -> Path:
    """A Parquet file with several row groups."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)
    return path
