"""A configuration resolved into specs: nothing is left to defaults."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.contract.carried import fields_to_carry
from pipeline.contract.columns import token_row_bytes
from pipeline.contract.schema import RESERVED_COLUMNS, CarriedKind
from pipeline.contract.specs import (
    AudioRule,
    CarriedColumn,
    CodecSpec,
    CorpusSpec,
    ExportSpec,
    FlipRule,
    TokenSpec,
    WindowRule,
)
from pipeline.errors import ConfigError
from pipeline.settings.job_config import AudioConfig, JobConfig, WindowConfig, parse_columns


def window_rule(window: WindowConfig, window_frames: int) -> WindowRule:
    """Return the rule with every default filled in.

    Args:
        window_frames: frames of one half, the default stride.
    """
    training = window.preset == "training"
    stride = window.stride or (max(1, window_frames // 2) if training else window_frames)
    phases = window.phases if window.phases is not None else int(training)
    return WindowRule(stride=stride, tail=window.tail, phases=phases, seed=window.seed)


def corpus_spec(
    config: JobConfig,
    codec: CodecSpec,
    *,
    batch_size: int,
    clips_digest: str = "",
    carried_kinds: Mapping[str, CarriedKind] | None = None,
) -> CorpusSpec:
    """Return the corpus half of a TokenSpec.

    Args:
        batch_size: windows a batch, resolved.
        clips_digest: digest of the id lists that `input.clips` names.
        carried_kinds: field -> kind of the fields that `input.carry` names, as the inputs have them; a kind
            that is named there stands instead, and others are text.

    Raises:
        ConfigError: a field to carry has the name of a column that is there already, or an unknown kind.
    """
    source, kinds = config.input, carried_kinds or {}
    fields = fields_to_carry(source.carry)
    taken = [name for name in fields if name in RESERVED_COLUMNS]
    if taken:
        raise ConfigError(f"input.carry: {', '.join(taken)} would stand beside our own column of this name: rename it")
    return CorpusSpec(
        motion_field=source.motion_field,
        clip_id_field=source.clip_id_field,
        motion_dim=source.motion_dim,
        format=source.format,
        columns=parse_columns(source.columns) if source.columns else None,
        fps=source.fps,
        resample=source.resample,
        max_abs_z=source.max_abs_z,
        max_frozen_frames=source.max_frozen_frames,
        clips=clips_digest,
        window=window_rule(config.window, codec.window_frames),
        unit_bytes=config.units.bytes,
        unit_files=config.units.files,
        precision=config.precision,
        batch_size=batch_size,
        emit=config.emit,
        flips=FlipRule(**config.flips.model_dump()) if "flips" in config.emit else None,
        carry=tuple(CarriedColumn(name=name, kind=kind or kinds.get(name, "string")) for name, kind in fields.items()),
        audio=_audio_rule(source.audio),
    )


def _audio_rule(audio: AudioConfig) -> AudioRule | None:
    return None if audio.field is None else AudioRule(**audio.model_dump())


SHARD_WINDOWS, SHARD_BYTES = 16_384, 256 << 20
"""Windows of a shard, and bytes of their rows, where a configuration names no number: whichever is less."""


def default_windows_per_shard(spec: TokenSpec) -> int:
    """Return how many windows a shard has on average unless a configuration says it: a power of two."""
    fitting = SHARD_BYTES // token_row_bytes(spec)
    return min(SHARD_WINDOWS, 1 << max(0, fitting.bit_length() - 1))


def export_spec(config: JobConfig, spec: TokenSpec, split_file_digest: str = "", clips_digest: str = "") -> ExportSpec:
    """Return the ExportSpec of a configuration.

    Args:
        spec: of the windows that are exported.
        split_file_digest: digest of the file that `export.splits.file` names.
        clips_digest: digest of the id lists that `export.clips` names.
    """
    export = config.export
    return ExportSpec(
        formats=export.formats,
        windows_per_shard=export.windows_per_shard or default_windows_per_shard(spec),
        shuffle=export.shuffle,
        seed=export.seed,
        splits=export.splits,
        split_file=split_file_digest,
        duplicate_ids=config.input.duplicate_ids,
        where=export.where,
        clips=clips_digest,
    )


def codec_to_be(config: JobConfig, fps: float | None = None) -> CodecSpec:
    """Return a codec of which nothing is known but the rate: readers of motion ask for one."""
    return CodecSpec(
        weights="",
        statistics="",
        motion_dim=config.input.motion_dim or 0,
        code_dim=8,
        patch_nums=(1,),
        hidden_dim=1,
        depth=1,
        num_heads=1,
        fps=fps or 1.0,
    )
