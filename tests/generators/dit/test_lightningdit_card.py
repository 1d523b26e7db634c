"""The model card names things that exist, and its example runs."""

import lightning_gen.generators.dit.lightningdit as room
from tests.harness.model_card import card_of, missing_functions, named_functions, python_blocks

CARD = card_of(room)


def test_every_function_of_the_card_exists() -> None:
    assert len(named_functions(CARD)) >= 10
    assert missing_functions(CARD, room) == []


def test_the_example_runs() -> None:
    space: dict[str, object] = {}
    exec(python_blocks(CARD)[0], space)
    latents = space["latents"]
    assert latents.values.shape == (2, 256, 32) and latents.grid.tolist() == [[16, 16], [12, 16]]  # type: ignore[attr-defined]
    assert space["published"].times().shape == (250,)  # type: ignore[attr-defined]
