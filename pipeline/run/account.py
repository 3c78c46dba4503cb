"""The account of a run of units: all that reaches the driver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.hashing import canonical_json


@dataclass(frozen=True)
class UnitAccount:
    """What was done for a run of units: all that reaches the driver."""

    num_units: int
    num_bytes: int
    num_clips: int
    num_frames: int
    num_windows: int
    drops: Mapping[str, int]
    seconds: Mapping[str, float]
    audio: Mapping[str, float] = field(default_factory=dict)
    """What `audio_account` says; empty without audio."""
    codes: Mapping[str, Any] = field(default_factory=dict)
    """What `count_codes` says of some of the windows; empty where there are none."""

    def to_table(self) -> pa.Table:
        """Return the account as one Arrow row."""
        return pa.table({"account": [canonical_json(vars(self))]})

    @classmethod
    def from_text(cls, text: str) -> UnitAccount:
        """Return the account of a row's text."""
        return cls(**json.loads(text))
