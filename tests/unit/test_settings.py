"""Settings are checked where they are made."""

from __future__ import annotations

import math

import pytest

from purecc.settings import METHODS, PureSettings, TrainSettings


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
        (lambda: TrainSettings(alpha=0.0), "alpha is 0.0; it must be above 0"),
        (lambda: TrainSettings(rank=-1), "rank is -1; it must be 0 or more"),
        (
            lambda: TrainSettings(rank=0, embeddings="none"),
            "rank is 0; it must be above 0 where there are no embeddings",
        ),
        (lambda: TrainSettings(gate="time"), "gate is time; it must be one of off, picture, conditioning, rows"),
        (lambda: TrainSettings(schedule="step"), "schedule is step; it must be one of constant, cosine"),
        (lambda: TrainSettings(steps=10, warmup=10), "warmup is 10; it must be below the number of steps, 10"),
        (lambda: TrainSettings(times="uniform"), "times is uniform; it must be one of logit-normal, diffusers grid"),
        (lambda: TrainSettings(accumulate=0), "accumulate is 0; it must be at least 1"),
        (lambda: TrainSettings(first_block=3, last_block=2), "last_block is 2; it must be at least 3"),
        (lambda: TrainSettings(background_weight=1.5), "background_weight is 1.5; it must be from 0 to 1"),
        (lambda: TrainSettings(stop_patience=-1), "stop_patience is -1; it must be 0 or more"),
        (lambda: TrainSettings(stop_every=0), "stop_every is 0; it must be at least 1"),
        (lambda: TrainSettings(stop_gain=1.0), "stop_gain is 1.0; it must be from 0 to below 1"),
        (lambda: TrainSettings(background_weight=math.nan), "background_weight is nan"),
        (
            lambda: PureSettings(target="absolute"),
            "target is absolute; it must be one of null-relative, class-relative, ",
        ),
        (lambda: PureSettings(eta_schedule="late"), "eta_schedule is late; it must be one of constant, high noise, "),
        (lambda: PureSettings(eta=math.inf), "eta is inf; it must be 0 or more"),
        (lambda: PureSettings(fixed_scale=math.nan), "fixed_scale is nan; it must be a number"),
        (lambda: PureSettings(scale_min=2.0, scale_max=1.0), "scale_min is 2.0; it must be at most scale_max, 1.0"),
        (lambda: PureSettings(scale_multiplier=2.0), "lambda_multiplier is 2 at eta 1.*without end. Lower it below 2"),
        (lambda: PureSettings(eta=4.0, scale_multiplier=1.5), "Lower it below 1.25, or set lambda_max"),
        (lambda: PureSettings(null_anchor=-1.0), "null_anchor is -1.0; it must be 0 or more"),
        (lambda: PureSettings(class_pictures=0), "class_pictures is 0; it must be at least 1"),
        (lambda: PureSettings(class_texts="target"), "class_texts is target; it must be one of class, base"),
        (lambda: PureSettings(method="DreamBooth"), "method is DreamBooth; it must be one of PureCC, LoRA"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings()


def test_without_a_lora_its_alpha_does_not_matter() -> None:
    assert TrainSettings(rank=0, alpha=0.0).rank == 0


def test_a_method_uses_what_its_loss_reads() -> None:
    assert "eta" in PureSettings("merged stage").used() and "eta" not in PureSettings("LoRA + DOP").used()
    assert "scale_min" not in PureSettings(fixed_scale=0.0).used() and "scale_min" in PureSettings().used()
    assert "class_pictures" in PureSettings("LoRA + prior preservation").used()
    for method in METHODS:
        pure = PureSettings(method)
        assert {"base_anchor", "null_anchor", "train_embeddings"} <= pure.used().keys()
        assert PureSettings(**pure.used()) == pure


@pytest.mark.parametrize(
    "settings", [{"scale_max": 2.0}, {"fixed_scale": 1.0}, {"eta": 0.0}, {"method": "LoRA"}, {"eta": 0.5}]
)
def test_a_multiplier_that_cannot_run_away_is_taken(settings: dict) -> None:
    assert PureSettings(scale_multiplier=2.0, **settings).scale_multiplier == 2.0
