"""The progress bar of the command line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar

from lightning_gen.commands.progress import RunProgressBar, with_progress_bar


@pytest.mark.parametrize(("epochs", "expected"), [(-1, "Epoch 0"), (3, "Epoch 0/2"), (None, "Epoch 0")])
def test_no_last_epoch_where_there_is_none(epochs: int | None, expected: str) -> None:
    bar = RunProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=epochs, sanity_checking=False)  # type: ignore[assignment]
    assert bar._get_train_description(0).strip() == expected


def test_lightning_asks_this_method() -> None:
    """It is not public: if a release renames it, the words "Epoch 0/-2" come back, and this test says why."""
    plain = RichProgressBar()
    plain._trainer = SimpleNamespace(max_epochs=-1, sanity_checking=False)  # type: ignore[assignment]
    assert plain._get_train_description(0).strip() == "Epoch 0/-2"


def test_the_bar_is_added_unless_there_is_one() -> None:
    other, own = Callback(), TQDMProgressBar()
    assert [type(one) for one in with_progress_bar(None)] == [RunProgressBar]
    assert [type(one) for one in with_progress_bar(other)] == [Callback, RunProgressBar]
    given = [other, own]
    assert with_progress_bar(given) == given and with_progress_bar(own) == [own]
    assert len(with_progress_bar([other])) == 2 and given == [other, own]
