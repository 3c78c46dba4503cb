"""The command decode: a dataset and its codec, clips decoded, npz files.

Knows no data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from jobs.output.display import counted
from pipeline.dataset.open_dataset import open_dataset, require_clips
from pipeline.errors import ConfigError
from pipeline.inspect.decode_clips import ClipDecoder, DecodedClip, find_codec
from pipeline.settings.job_config import JobConfig
from pipeline.stages.codec import open_codec
from pipeline.storage import Folder, parent_and_name, read_text, without_secrets

NAME_LENGTH = 100


@dataclass(frozen=True)
class DecodeRequest:
    """What a person asked for.

    Args:
        clips: clip ids.
        clip_list: path or URL of a file with one clip id a line, beside them.
        checkpoint: None looks for the codec beside the dataset.
        out: an .npz for one clip, else a folder.
    """

    output: str
    clips: tuple[str, ...]
    clip_list: str | None
    checkpoint: str | None
    preset: str | None
    model_config: str | None
    out: str


def run_decode(request: DecodeRequest, config: JobConfig, console: Console) -> None:
    """Decode clips, write one npz each, and tell about it.

    Raises:
        RequestError: there is no such dataset or clip, or the checkpoint is not the dataset's.
        VerifyError: the dataset is damaged.
    """
    options = config.run.storage_options
    clip_ids = _clip_ids(request, options)
    target, names = _target(request.out, clip_ids, options)
    dataset = open_dataset(Folder(request.output, options))
    require_clips(dataset, clip_ids)
    if request.checkpoint is None:
        codec = find_codec(dataset)
    else:
        codec = open_codec(
            request.checkpoint, preset=request.preset, model_config=request.model_config, options=options
        )
    decoder = ClipDecoder(dataset, codec)
    for clip_id, name in zip(clip_ids, names, strict=True):
        with console.status(f"decoding {escape(clip_id)}"):
            clip = decoder.decode(clip_id)
            target.publish(name, clip.to_npz())
        console.print(f"  {_told(clip, target, name)}", highlight=False, soft_wrap=True)


def file_name(clip_id: str) -> str:
    """Return the name of a clip's file: the id made safe, and a hash of it where that changed it."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", clip_id)[:NAME_LENGTH].lstrip(".")
    if safe == clip_id:
        return f"{safe}.npz"
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}.npz"


def _clip_ids(request: DecodeRequest, options: Mapping[str, Any]) -> list[str]:
    listed = read_text(request.clip_list, options).splitlines() if request.clip_list is not None else []
    found = list(dict.fromkeys([*request.clips, *(line.strip() for line in listed if line.strip())]))
    if not found:
        raise ConfigError("no clip is named: --clip ID, or --clips FILE with one id a line")
    return found


def _target(out: str, clip_ids: Sequence[str], options: Mapping[str, Any]) -> tuple[Folder, list[str]]:
    """Return the folder to write to, and the name of each clip's file."""
    if out.endswith(".npz"):
        if len(clip_ids) > 1:
            raise ConfigError(f"{without_secrets(out)} is one file, {len(clip_ids)} clips are named: name a folder")
        folder, name = parent_and_name(out, options)
        return folder, [name]
    return Folder(out, options), [file_name(clip_id) for clip_id in clip_ids]


def _told(clip: DecodedClip, folder: Folder, name: str) -> str:
    frames, dims = clip.motion.shape
    place = escape(without_secrets(folder.url_of(name)))
    missing = (
        f"; [yellow]{clip.num_uncovered:,} frames that no window covers are NaN[/yellow]" if clip.num_uncovered else ""
    )
    windows = counted(clip.num_windows, "window")
    return f"{escape(clip.clip_id)}  [dim]{windows} -> {frames:,} x {dims} at {clip.fps:g} fps[/dim]{missing}  {place}"
