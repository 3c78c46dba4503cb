"""The command demo: makes motion, tokenizes it with the codec of this package, verifies, and says what to look at.

Knows the layouts that motion comes in, and asks the other commands for everything else.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from jobs.commands.dataset.verify_command import run_verify
from jobs.commands.run.tokenize_command import run_tokenize
from jobs.demo.clip_files import parquet_of_clips, tar_of_clips
from jobs.demo.procedural_motion import MOTION_DIM, speech_motion
from jobs.demo.speaker_timeline import FPS
from jobs.output.program import program_text
from pipeline.dataset.manifest import Manifest
from pipeline.errors import VerifyError
from pipeline.job.gate import GateResult
from pipeline.settings.job_config import JobConfig, TokenizeRequest
from pipeline.storage import Folder

Motion = npt.NDArray[np.float32]
MotionGenerator = Callable[[int, int], Motion]

NUM_CLIPS = 300
CLIP_FRAMES, SHORT_FRAMES = (100, 500), (50, 99)
"""Fewest and most frames of a clip, and of one too short for a window."""

NPZ_SHARE, NUM_SHORT_PER_FORMAT, ROW_GROUP_CLIPS = 8, 2, 32
LENGTH_SEED = 25

CODEC = "demo"
"""The codec inside this package. It was fitted to speakers of other seeds than these: see `demo_corpus.FIRST_SEEDS`."""

PICTURE_BITS, PICTURE_COLUMNS = 6, 104
QUADRANTS = " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"
"""Character by its four cells: 1 upper left, 2 upper right, 4 lower left, 8 lower right."""

SCALE_COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")


@dataclass(frozen=True)
class _Clip:
    clip_id: str
    motion: Motion


def run_demo(output: Path, config: JobConfig, console: Console, num_clips: int = NUM_CLIPS) -> None:
    """Make motion shards below `output`, tokenize and verify them, and tell what there is to see.

    Files that stand with the same bytes are left as they are, so that a second run finds all work done.

    Args:
        num_clips: clips of motion, at least 16; a few more are made that must be dropped.

    Raises:
        MotionTokensError: the job cannot start, or ended incomplete.
        VerifyError: the tokens are not what the manifest promises.
    """
    folder = Folder(str(output))
    with console.status("making motion"):
        clips = make_clips(num_clips)
        files = motion_files(clips)
        num_written = sum(put(folder, f"motion/{path}", data) for path, data in files.items())
    hours, state = sum(len(clip.motion) for clip in clips) / FPS / 3600, "made" if num_written else "found"
    console.print(
        f"motion\n  {state} {len(clips)} clips, {hours:.2f} h of procedural motion, in {len(files)} files",
        highlight=False,
    )
    console.print(
        "  The codec is --checkpoint demo: small, fitted to other made-up speakers and to one recorded take.",
        highlight=False,
    )
    tokens = output / "tokens"
    request = TokenizeRequest((folder.url_of("motion"),), str(tokens), CODEC, None, None, config)
    done = run_tokenize(request, console)
    if done.gate is not None:
        _print_gate(done.gate, console)
    if not run_verify(str(tokens), config, console):
        raise VerifyError(f"{tokens} is not what its dataset.json promises: remove {output} and run the demo again")
    show_results(output, done.manifest, console)


def make_clips(num_clips: int, generator: MotionGenerator = speech_motion) -> list[_Clip]:
    """Return clips of 4 to 20 s, equal ones for equal numbers.

    Args:
        generator: (num_frames, seed) -> (num_frames, M) at 25 frames a second.
    """
    rng = np.random.Generator(np.random.PCG64(LENGTH_SEED))
    lengths = rng.integers(*CLIP_FRAMES, num_clips, endpoint=True)
    return [_Clip(f"clip-{index:04d}", generator(int(length), index)) for index, length in enumerate(lengths)]


def motion_files(clips: Sequence[_Clip], generator: MotionGenerator = speech_motion) -> dict[str, bytes]:
    """Return path -> bytes of motion shards in every layout, with a few clips that no dataset should keep.

    An eighth of the clips becomes npz files; the others go in equal parts to two Parquet files and two tars.
    Every shard holds two clips too short for a window, one Parquet file a NaN, and one npz ends early.

    Args:
        clips: what `make_clips` gave.
        generator: as there; for the clips that are too short.
    """
    num_npz = len(clips) // NPZ_SHARE
    rest = clips[num_npz:]
    shards = [[*rest[part::4], *_short_clips(part, generator)] for part in range(4)]
    files = {f"npz/{clip.clip_id}.npz": _npz(clip.motion) for clip in clips[:num_npz]}
    files["npz/truncated.npz"] = _npz(clips[0].motion[::-1])[: -len(clips[0].motion)]
    shards[1].append(_with_nan(clips[0]))
    frames, flat, named, plain = ({clip.clip_id: clip.motion for clip in shard} for shard in shards)
    files["parquet/frames.parquet"] = parquet_of_clips(frames, FPS, row_group_size=ROW_GROUP_CLIPS)
    files["parquet/flat.parquet"] = parquet_of_clips(flat, FPS, is_flat=True, row_group_size=ROW_GROUP_CLIPS)
    files["tar/named.tar"] = tar_of_clips(named, FPS)
    files["tar/plain.tar"] = tar_of_clips(plain, FPS, member="npy")
    return files


def put(folder: Folder, path: str, data: bytes) -> bool:
    """Write a file unless it stands with these bytes; return whether it was written."""
    standing = folder.stat(path)
    if standing is not None and standing.num_bytes == len(data) and folder.read(path) == data:
        return False
    folder.publish(path, data)
    return True


def show_results(output: Path, manifest: Manifest, console: Console) -> None:
    """Print where things stand, how to read a row, a picture of one window, and commands to try next."""
    tokens = output / "tokens"
    shard = next(shard for shard in manifest.shards["parquet"] if shard.split == "train")
    snippet = read_snippet(str(tokens / shard.path), manifest.contract.codec.patch_nums)
    rows = pq.read_table(
        io.BytesIO(Folder(str(tokens)).read(shard.path)), columns=["clip_id", "start_frame", "this_bits"]
    )
    row = rows.slice(rows.num_rows // 2, 1).to_pylist()[0]
    patch_nums, code_dim = manifest.contract.codec.patch_nums, manifest.contract.codec.code_dim
    bits = np.unpackbits(np.frombuffer(row["this_bits"], np.uint8)).reshape(-1, code_dim)
    title = f"{row['clip_id']}, frames {row['start_frame']} to {row['start_frame'] + patch_nums[-1]}"
    fps = manifest.contract.codec.fps
    console.print()
    console.print(
        Panel.fit(Group(*window_picture(bits, patch_nums, fps)), title=title, border_style="dim", padding=(0, 1))
    )
    _print_block(console, "Look at", _places(output))
    _print_block(console, "Read a row", snippet)
    _print_block(console, "Try next", next_commands(output, row["clip_id"]))


def window_picture(bits: npt.NDArray[np.uint8], patch_nums: Sequence[int], fps: float) -> list[Text]:
    """Return lines that show a few bits of every scale over one time axis, coarse to fine.

    Shown are the bits that change most often at the finest scale.

    Args:
        bits: (tokens, code_dim) of 0 and 1.
        patch_nums: tokens of every scale.
        fps: frames a second.
    """
    lines = []
    scales = np.split(bits, np.cumsum(patch_nums)[:-1])
    num_changes = (np.diff(scales[-1], axis=0) != 0).sum(axis=0)
    shown = np.sort(np.argsort(-num_changes, kind="stable")[:PICTURE_BITS])
    for index, (scale, num_tokens) in enumerate(zip(scales, patch_nums, strict=True)):
        columns = np.arange(PICTURE_COLUMNS) * num_tokens // PICTURE_COLUMNS
        cells = scale[columns][:, shown].T
        corners = cells[::2, ::2] + 2 * cells[::2, 1::2] + 4 * cells[1::2, ::2] + 8 * cells[1::2, 1::2]
        for row, codes in enumerate(corners):
            label = f"{num_tokens:>3} token{'s' * (num_tokens > 1)}" if row == 0 else ""
            shape = "".join(QUADRANTS[code] for code in codes)
            lines.append(Text.assemble((f"{label:<11} ", "dim"), (shape, SCALE_COLOURS[index % len(SCALE_COLOURS)])))
    width, end = PICTURE_COLUMNS // 2, f"{patch_nums[-1] / fps:g} s"
    lines.append(Text(f"{'':<12}{'0 s':<{width - len(end)}}{end}", style="dim"))
    note = f"Filled is 1: the {PICTURE_BITS} liveliest of {bits.shape[1]} bits a token of `this`."
    lines.append(Text(note, style="dim"))
    return lines


def read_snippet(path: str, patch_nums: Sequence[int]) -> str:
    """Return a Python program that reads the bits of one window, split into scales."""
    return (
        "import numpy as np, pyarrow.parquet as pq\n"
        f"rows = pq.read_table({path!r})\n"
        'packed = np.frombuffer(rows["this_bits"][0].as_py(), np.uint8)\n'
        f"bits = np.unpackbits(packed.reshape({sum(patch_nums)}, -1), axis=1)  # (tokens, bits) of 0 and 1\n"
        f"scales = np.split(bits, np.cumsum({list(patch_nums[:-1])}))  # coarse to fine"
    )


def _print_gate(gate: GateResult, console: Console) -> None:
    """Say why the dataset is complete: what its tokens decode to, beside what the codec was recorded with."""
    if gate.figures is None or gate.sample is None or gate.record.reference is None:
        return
    found, recorded = gate.figures.as_trained.fraction_of_mean, gate.record.reference["fraction_of_mean"]
    console.print(
        f"gate {gate.record.outcome}: {len(gate.sample)} windows decode to {found:.1%} of the error of keeping the"
        f" mean; the codec recorded {recorded:.1%}",
        highlight=False,
        soft_wrap=True,
    )


def _places(output: Path) -> str:
    tokens = output / "tokens"
    places = {
        tokens / "report" / "report.html": "decoded beside recorded motion, use of bits, drops: open it in a browser",
        output / "motion": "what went in: Parquet, tars, npz",
        tokens / "dataset.json": "the record of truth: shards, counts, contract",
        tokens / "README.md": "the dataset's card",
        tokens / "parquet": "token shards; the same windows in webdataset/",
        tokens / "quarantine.parquet": "every dropped clip with its reason",
    }
    width = max(len(str(path)) for path in places)
    return "\n".join(f"{path!s:<{width}}  {what}" for path, what in places.items())


def next_commands(output: Path, clip_id: str) -> str:
    """Return what to try next, a command a line."""

    def at(name: str) -> str:
        return shlex.quote(str(output / name))

    program, clip = program_text(), f"--clip {shlex.quote(clip_id)}"
    motion, tokens, codec = at("motion"), at("tokens"), f"-c {CODEC}"
    return "\n".join(
        (
            f"{program} demo {shlex.quote(str(output))}    # again: already complete",
            f"{program} inspect {tokens} {clip}",
            f"{program} decode {tokens} {at('decoded.npz')} {clip} {codec}",
            f"{program} stats {motion} {at('stats.json')} --set input.motion_dim={MOTION_DIM}",
            f"{program} report {tokens} {motion} {codec} --windows 200",
            f"{program} tokenize {motion} {at('dense')} {codec} --stride 25",
            f"{program} tokenize {motion} {at('padded')} {codec} --set window.tail=pad",
            f"{program} export {tokens} {at('mixed')} --set export.shuffle=global",
            f"{program} verify {tokens}",
        )
    )


def _print_block(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    for line in text.splitlines():
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _short_clips(part: int, generator: MotionGenerator) -> list[_Clip]:
    rng = np.random.Generator(np.random.PCG64([LENGTH_SEED, part]))
    lengths = rng.integers(*SHORT_FRAMES, NUM_SHORT_PER_FORMAT, endpoint=True)
    return [
        _Clip(f"short-{part}-{index}", generator(int(length), NUM_CLIPS + 10 * part + index))
        for index, length in enumerate(lengths)
    ]


def _with_nan(clip: _Clip) -> _Clip:
    motion = clip.motion.copy()
    motion[len(motion) // 2, 0] = np.nan
    return _Clip("lost-tracking", motion)


def _npz(motion: Motion) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, motion=motion, fps=np.float32(FPS))
    return sink.getvalue()
