"""Broken clips, files and folders of every format, each with the reason it must be dropped for, among good ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import numpy as np
import soundfile
from bad_arrays import motion, npy, npy_files, npz, npz_files, sparse_npy, spoiled
from bad_tables import bad_rows, parquet, parquet_files
from bad_tars import SPECIAL, good_sample, members, samples, special_members, tar_files


@dataclass(frozen=True)
class Bad:
    """A clip that must be dropped: where it stands, under which reason, and words that the detail must hold."""

    kind: str
    source: str
    where: str
    reason: str
    detail: str


@dataclass
class Corpus:
    """A folder of good and bad clips with the settings it is to be read under."""

    folder: Path
    settings: tuple[str, ...]
    bad: list[Bad] = field(default_factory=list)
    good: dict[str, int] = field(default_factory=dict)

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def file(self, name: str, data: bytes, reason: str, detail: str = "") -> None:
        """Write a file that is one bad clip, or bad as a whole."""
        self.write(name, data)
        self.bad.append(Bad(Path(name).stem, name, "", reason, detail))


def write_main(folder: Path) -> Corpus:
    """npz, tar and Parquet, good and bad."""
    corpus = Corpus(folder, ("input.max_frozen_frames=20",))
    for number, (kind, data, reason, detail) in enumerate(npz_files()):
        corpus.file(f"npz/{kind}.npz", data, reason, detail)
        corpus.write(f"npz/good {number}.npz", npz(motion=motion(5 + number), fps=25.0))
        corpus.good[f"npz/good {number}"] = 5 + number
    corpus.write("npz/folder.npz/inside.npz", npz(motion=motion(8), fps=25.0))
    corpus.good["npz/folder.npz/inside"] = 8
    (folder / "npz/broken link.npz").symlink_to("nowhere.npz")
    (folder / "npz/circle").symlink_to(folder, target_is_directory=True)
    corpus.write("npz/.hidden.npz", b"hidden")
    _write_tars(corpus)
    for kind, data, where, reason, detail in parquet_files():
        corpus.write(f"parquet/{kind}.parquet", data)
        corpus.bad.append(Bad(kind, f"parquet/{kind}.parquet", where, reason, detail))
    table, bad, good = bad_rows()
    corpus.write("parquet/rows.parquet", parquet(table, row_group_size=4))
    corpus.good.update(good)
    for row, reason, detail in bad:
        corpus.bad.append(Bad(f"row {row}", "parquet/rows.parquet", f"row {row}", reason, detail))
    return corpus


def _write_tars(corpus: Corpus) -> None:
    for kind, data, reason, detail in tar_files():
        corpus.file(f"tar/{kind}.tar", data, reason, detail)
    items, number = good_sample("first"), 0
    for number, (kind, found, where, reason, detail) in enumerate(samples()):
        items += [*found, *good_sample(f"good{number}", 6 + number)]
        corpus.good[f"tar/samples#good{number}"] = 6 + number
        corpus.bad.append(Bad(kind, "tar/samples.tar", where, reason, detail))
    corpus.good["tar/samples#first"] = 12
    corpus.write("tar/samples.tar", members(*items))
    corpus.write("tar/no end mark.tar", members(*good_sample("a"), *good_sample("b"), tail=False))
    corpus.bad.append(Bad("no end mark", "tar/no end mark.tar", "", "truncated", "end mark"))
    corpus.good["tar/no end mark#a"] = 12
    corpus.write("tar/special.tar", special_members())
    corpus.good.update({"tar/special#tar-special-first": 12, "tar/special#tar-special-last": 12})
    for kind in (*SPECIAL, "sparse"):
        detail = "stored sparse" if kind == "sparse" else "link or device"
        corpus.bad.append(Bad(kind, "tar/special.tar", f"sample {kind}", "unreadable", detail))


def write_npy(folder: Path) -> Corpus:
    """npy files, good and bad; one of them larger than a clip may be."""
    corpus = Corpus(folder, ("input.fps=25",))
    for number, (kind, data, reason, detail) in enumerate(npy_files()):
        corpus.file(f"{kind}.npy", data, reason, detail)
        corpus.write(f"good {number}.npy", npy(motion(6 + number, dtype="float64")))
        corpus.good[f"good {number}"] = 6 + number
    sparse_npy(folder / "endless.npy")
    corpus.bad.append(Bad("endless", "endless.npy", "", "unreadable", "more than 4294967296 bytes"))
    return corpus


def write_resampled(folder: Path) -> Corpus:
    """Rates that no conversion makes sense of, under `resample: linear`."""
    corpus = Corpus(folder, ("input.resample=linear",))
    for rate in (1e-9, 1e-300, 5e-324):
        corpus.file(f"{rate:g}.npz", npz(motion=motion(), fps=rate), "fps_mismatch", f"{rate:g} frames a second")
    corpus.file("1e300.npz", npz(motion=motion(), fps=1e300), "too_short", "1 frames")
    corpus.file("minus.npz", npz(motion=motion(), fps=-25.0), "fps_missing", "-25 is no positive number")
    corpus.write("good.npz", npz(motion=motion(40), fps=50.0))
    corpus.good["good"] = 20
    return corpus


def write_exploding(folder: Path) -> Corpus:
    """Values that the statistics of the codec (mean 0, deviation 1) rule out."""
    corpus = Corpus(folder, ())
    far = "20000 at frame 7, column 2 is 20000 deviations off, 10000 are allowed"
    corpus.file("far.npz", npz(motion=spoiled(20_000), fps=25), "exploding", far)
    corpus.file("edge.npz", npz(motion=spoiled(-3e38), fps=25), "exploding", "-3e+38 at frame 7, column 2")
    corpus.write("good.npz", npz(motion=spoiled(10_000), fps=25))
    corpus.good["good"] = 12
    return corpus


def sound(num_samples: int, rate_hz: int = 1000) -> np.ndarray:
    """Bytes of a wav file, as an array."""
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(num_samples, np.int16), rate_hz, format="WAV", subtype="PCM_16")
    return np.frombuffer(sink.getvalue(), np.uint8)


def write_audio(folder: Path) -> Corpus:
    """Sound that is missing, damaged, of another rate or length, or far from the clip's folder."""
    corpus = Corpus(folder, ("input.audio.field=audio", "input.audio.rate_hz=1000"))
    lengths = "audio of 0.700 s, motion of 0.480 s"
    for kind, audio, reason, detail in (
        ("mute", None, "audio_missing", "no audio in 'audio'"),
        ("nowhere", "sound/a.wav", "audio_missing", "no file at sound/a.wav"),
        ("outside", "../../etc/passwd", "audio_missing", "lies outside the input"),
        ("absolute", "/etc/passwd", "audio_missing", "is no path relative"),
        ("itself", "good.npz", "unreadable", "audio: no wav or flac"),
        ("slow", sound(480, 999), "audio_rate", "wanted 1,000 to 655,350 samples a second, found 999"),
        ("long", sound(700), "audio_mismatch", lengths),
        ("empty", np.zeros(0, np.int16), "audio_mismatch", "audio of 0.000 s"),
        ("noise", np.arange(200, dtype=np.uint8), "unreadable", "audio: no wav or flac"),
        ("half", sound(480)[:40], "unreadable", "audio: no wav or flac"),
        ("nan", np.full(480, np.nan), "non_finite", "audio: NaN or infinity at sample 0"),
        ("loud", np.full(480, 20_000.0), "wrong_dtype", "floats from -1 to 1, found 20000"),
        ("wide", np.zeros((40, 50)), "wrong_dim", "shape (50, 40)"),
        ("pickled", np.array([{}], object), "unreadable", "found object"),
    ):
        fields = {} if audio is None else {"audio": np.asarray(audio)}
        corpus.file(f"{kind}.npz", npz(motion=motion(), fps=25.0, **fields), reason, detail)
    corpus.write("good.npz", npz(motion=motion(), fps=25.0, audio=np.zeros(480, np.int16)))
    corpus.good["good"] = 12
    return corpus


def write_lmdb(folder: Path) -> Corpus:
    """Values of LMDB that are no clip between some that are, and files that are no LMDB."""
    corpus = Corpus(folder, ("input.fps=25",))
    whole = npz(motioncode=motion())
    values = {
        "0": ("", whole, ""),
        "1": ("unreadable", b"", "no npz archive"),
        "2": ("unreadable", b"motion" * 100, "no npz archive"),
        "3": ("truncated", whole[:300], "no npz archive"),
        "4": ("missing_field", npz(other=motion()), "no key 'motion' or 'motioncode'"),
        "5": ("", whole, ""),
    }
    with lmdb.open(str(folder / "set"), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for key, (reason, data, detail) in values.items():
            writing.put(key.encode(), data)
            if reason:
                corpus.bad.append(Bad(f"key {key}", "set/data.mdb", f"key {key}", reason, detail))
            else:
                corpus.good[f"set/data#{key}"] = 12
    (folder / "set" / "lock.mdb").unlink()
    data = (folder / "set" / "data.mdb").read_bytes()
    corpus.file("cut/data.mdb", data[:8192], "truncated", "bytes of pages, the file 8192")
    corpus.file("words/data.mdb", b"words" * 2000, "unreadable", "no LMDB of 10000 bytes")
    corpus.file("nothing/data.mdb", b"", "unreadable", "no LMDB of 0 bytes")
    return corpus


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "main": write_main,
    "npy": write_npy,
    "resampled": write_resampled,
    "exploding": write_exploding,
    "audio": write_audio,
    "lmdb": write_lmdb,
}
