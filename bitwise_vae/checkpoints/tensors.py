"""From a checkpoint file's bytes to the tensors of the bitwise VAE in it, and to nothing else.

Knows the two file formats and the original's names; no configuration, no paths. Never runs a file's code.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

SUFFIXES = (".pt", ".pth", ".safetensors")
WRAPPERS = ("model", "state_dict")
MARKERS = ("enc_pos_embed", "dec_pos_embed", "attn_mask")
"""Names that every bitwise VAE has, and ARTalkCodec has not."""
CODEC_SIGNS = ("base_codec.", "encoder.", "decoder.")


class CheckpointError(ValueError):
    """A file is no checkpoint of a bitwise VAE, or contradicts the configuration given with it."""


def tensors_from_bytes(data: bytes, name: str) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Reads a checkpoint's content.

    Args:
        data: the whole file.
        name: its suffix says the format; without one the content does.

    Returns:
        What is stored under which name; and the metadata, empty unless the file is safetensors.

    Raises:
        CheckpointError: an unknown suffix, or a file that cannot be read as what it claims to be.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise CheckpointError(f"{name}: wanted a checkpoint that ends in {', '.join(SUFFIXES)}")
    is_safetensors = suffix == ".safetensors" if suffix else data[8:9] == b"{"
    return _read_safetensors(data, name) if is_safetensors else (_read_torch(data, name), {})


def vae_state(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Finds the bitwise VAE among a file's content, which may wrap it or hold much else.

    Args:
        content: from `tensors_from_bytes`.
        name: of the file, for messages.

    Returns:
        Tensors by state-dict name, prefix removed.

    Raises:
        CheckpointError: there is none, or more than one, or another architecture.
    """
    for wrapper in WRAPPERS:
        if isinstance(wrapped := content.get(wrapper), Mapping):
            content = wrapped
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    prefixes = sorted(key.removesuffix(MARKERS[0]) for key in tensors if key.endswith(MARKERS[0]))
    if not prefixes:
        raise CheckpointError(f"{name}: {_what_it_is_instead(tensors)}")
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{name}: holds several bitwise VAEs, under {prefixes}: save the wanted one in a file of its own"
        )
    prefix = prefixes[0]
    if not prefix:
        return tensors
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _read_torch(data: bytes, name: str) -> Mapping[str, Any]:
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{name}: cannot be read as a checkpoint of plain tensors, and code in files is never run "
            f"({reason[0] if reason else type(error).__name__}). Save the state dict alone, with "
            "torch.save(model.state_dict(), path), or convert to safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name}: wanted a state dict, found {type(content).__name__}")
    return content


def _read_safetensors(data: bytes, name: str) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: cannot be read as safetensors ({error}); is it whole? Copy it again") from error
    header_bytes = int.from_bytes(data[:8], "little")
    return tensors, json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})


def _what_it_is_instead(tensors: Mapping[str, Tensor]) -> str:
    if any(sign in key for key in tensors for sign in CODEC_SIGNS):
        return (
            f"found the architecture of ARTalkCodec (no {', '.join(MARKERS)}): it has rotary embeddings, "
            "another attention scale, std + 1e-8 and no prev/this, so its tokens mean something else. Give a "
            "checkpoint of BITWISE_VAE, such as the one inside the released ARTalk model"
        )
    found = ", ".join(sorted(tensors)[:3]) or "no tensor at all"
    return f"wanted a bitwise VAE (names {', '.join(MARKERS)}, ..), found {found}. Is it the right file?"
