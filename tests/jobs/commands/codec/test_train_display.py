"""What a training shows: a line of the curve, and TensorBoard scalars that a killed training does not repeat."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bitwise_vae import CurvePoint
from jobs.commands.codec.train_command import TrainDisplay, curve_line, scalars_folder, scalars_of
from pipeline.storage import Folder

LOSSES = {"total": 0.5, "l1": 0.25, "quantizer": 0.125}
HELD_OUT = {"fraction_of_mean": 0.375, "dead_bits": 2}


def point(step: int, held_out: dict[str, Any] | None = None) -> CurvePoint:
    return CurvePoint(
        step=step, losses=LOSSES, entropy=(0.75, 1.0), gradient=1.5, learning_rate=0.01, held_out=held_out
    )


def test_curve_line_says_what_was_measured() -> None:
    assert curve_line(point(50), 1000).startswith("step 50 of 1,000  loss 0.5000")
    assert curve_line(point(50, HELD_OUT), 1000).endswith("held out 0.3750 of the mean, 2 dead bits")


def test_scalars_of_a_point_are_named_by_what_they_are() -> None:
    assert scalars_of(point(50)) == {
        "loss/total": 0.5,
        "loss/l1": 0.25,
        "loss/quantizer": 0.125,
        "bit_entropy/scale_0": 0.75,
        "bit_entropy/scale_1": 1.0,
        "optimizer/gradient": 1.5,
        "optimizer/learning_rate": 0.01,
    }
    assert scalars_of(point(50, HELD_OUT))["held_out/fraction_of_mean"] == 0.375


def test_scalars_stand_beside_a_codec_on_disk_only(tmp_path: Path) -> None:
    assert scalars_folder(Folder(str(tmp_path))) == str(tmp_path / "tensorboard")
    assert scalars_folder(Folder("memory://codec")) is None


def test_train_display_writes_scalars_that_tensorboard_reads(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install motion-tokens[train]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = str(tmp_path / "tensorboard")
    for first, steps in ((0, (50, 100)), (50, (100, 150))):  # killed after step 100, its last state of step 50
        display = TrainDisplay(Console(file=io.StringIO()), 150, folder)
        display.on_start(SimpleNamespace(completed=first))  # type: ignore[arg-type]
        for step in steps:
            display.on_point(point(step, HELD_OUT))
            display.on_checkpoint(step, None)
    events = EventAccumulator(folder)
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(scalars_of(point(50, HELD_OUT)))
    found = events.Scalars("held_out/fraction_of_mean")
    assert [event.step for event in found] == [50, 100, 150]
    assert {event.value for event in found} == {0.375}
