"""A training's state as bytes and back, refused where it belongs to another training.

Knows bytes and plain values; no files. Never runs code that the bytes hold.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import torch

STATE_FIELDS = ("identity", "completed", "best_error", "model", "average", "best", "optimizer")


class TrainingStateError(ValueError):
    """A checkpoint of a training cannot be continued; the message says what differs."""


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """Writes tensors, numbers and texts in nested dicts and lists."""
    sink = io.BytesIO()
    torch.save(dict(state), sink)
    return sink.getvalue()


def state_from_bytes(data: bytes, name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what `state_bytes` wrote, on the CPU.

    Args:
        data: the bytes.
        name: of the file, for messages.
        identity: of the training that would continue; see `TrainingTask.identity`.

    Raises:
        TrainingStateError: unreadable, or of a training with other data or settings.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingStateError(
            f"{name}: cannot be read as a training's state ({type(error).__name__}): remove it to begin anew"
        ) from error
    if not isinstance(state, dict) or set(state) != set(STATE_FIELDS):
        raise TrainingStateError(f"{name}: holds no training's state: remove it to begin anew")
    differences = _differences(identity, json.loads(state["identity"]), "")
    if differences:
        raise TrainingStateError(
            f"{name}: belongs to another training: {'; '.join(differences[:5])}. Give the same data and settings, or "
            "another output folder"
        )
    return state


def _differences(ours: Any, theirs: Any, name: str) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = sorted({*ours, *theirs})
        parts = [_differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for part in parts for line in part]
    here, there = json.dumps(ours, sort_keys=True), json.dumps(theirs, sort_keys=True)
    return [] if here == there else [f"{name} {here[:40]} here, {there[:40]} there"]
