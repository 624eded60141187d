"""Settings are checked where they are made."""

from __future__ import annotations

import math

import pytest

from purecc.settings import PureSettings, TrainSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: TrainSettings(steps=0), "steps is 0; it must be at least 1"),
        (lambda: TrainSettings(learning_rate=-1.0), "learning_rate is -1.0; it must be above 0"),
        (lambda: TrainSettings(learning_rate=math.nan), "learning_rate is nan"),
        (lambda: TrainSettings(targets="all"), "targets is all; it must be one of attention, "),
        (lambda: TrainSettings(embeddings="add"), "embeddings is add; it must be one of replace, offset, none"),
        (lambda: PureSettings(eta=-0.1), "eta is -0.1; it must be 0 or more"),
        (lambda: PureSettings(original="base"), "original is base; it must be one of frozen base, "),
        (lambda: PureSettings(method="DreamBooth"), "method is DreamBooth; it must be one of PureCC, LoRA"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings()
