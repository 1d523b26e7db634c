"""What the ideas of the three tokenizers cost in training, and how fast each of them encodes and decodes.

(a) a training step, optimiser included, against the same step without the losses that are the tokenizer's idea:
    ViTok-v2 without SSIM on tiles, MUSE's last stage without structure and semantics, PAE without SSR, MCR and SCR
(b) pictures to latents, images/s, MUSE and PAE against ViTok-v2
(c) latents to pictures, images/s, the same

All three see the same pictures in patches of 4 pixels, and their transformers have one width, depth and number of
heads. What needs weights that do not come along is left out on both sides: LPIPS, discriminators, ViTok-v2's DINOv3
distance. MUSE's teacher is the affinity of colours and PAE's prior a few convolutions, far cheaper than the papers', so
(a) is the cost of the losses themselves. In (a) a ratio below 1 is the price: 0.8 = the idea takes a fifth of the time.

    python benchmarks/speed/tokenizers.py
    python benchmarks/speed/tokenizers.py --part a --quick
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def elsewhere() -> list[str]:
    """Where Python looks for packages, without this folder: transformers imports one that has this file's name."""
    folder = Path(__file__).resolve().parent
    return [place for place in sys.path if Path(place).resolve() != folder]


def main() -> None:
    """Run the parts that were asked for."""
    sys.path[:] = [*elsewhere(), str(Path(__file__).resolve().parent)]
    from tokenizer_speed import run

    run(__doc__)


if __name__ == "__main__":
    main()
elif __name__ == "tokenizers":
    # Another command of this folder runs, and the package was meant: it takes this module's place.
    before = list(sys.path)
    sys.path[:] = elsewhere()
    del sys.modules[__name__]
    try:
        importlib.import_module(__name__)
    finally:
        sys.path[:] = before
