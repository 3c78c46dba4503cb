"""A person's own layout works by configuration alone."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def clips(tools):
    return {f"talk{n}": tools.tiny_motion(n, 12 + n) for n in range(6)}


@pytest.fixture(scope="module")
def wanted(command, clips, tiny_codec, tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wanted")
    (folder / "motion").mkdir()
    for name, motion in clips.items():
        (folder / "motion" / f"{name}.npz").write_bytes(tools.npz_bytes(motion=motion, fps=25))
    assert command("tokenize", folder / "motion", folder / "tokens", "-c", tiny_codec, "--local").code == 0
    return bits_of(folder / "tokens")


def bits_of(output):
    rows = [row for path in output.glob("parquet/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    return {(row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"]) for row in rows}


def parquet(folder, clips, kind, dtype=np.float32, field="motion", id_field="clip_id"):
    value = pa.from_numpy_dtype(dtype)
    motions = [motion.astype(dtype) for motion in clips.values()]
    if kind == "flat":
        column = pa.array([motion.reshape(-1) for motion in motions], pa.list_(value))
    elif kind == "fixed":
        column = pa.array([list(motion) for motion in motions], pa.list_(pa.list_(value, 4)))
    else:
        column = pa.array([list(motion) for motion in motions], pa.large_list(pa.list_(value)))
    pq.write_table(pa.table({id_field: list(clips), field: column}), folder / "clips.parquet")


def wide(motion):
    """Two columns that are not the codec's on the left, one between."""
    filler = np.full((len(motion), 1), 7, np.float32)
    return np.concatenate([filler, filler, motion[:, :2], filler, motion[:, 2:]], axis=1)


LAYOUTS = {
    "flat list": (lambda f, c, t: parquet(f, c, "flat"), ()),
    "fixed-size list": (lambda f, c, t: parquet(f, c, "fixed"), ()),
    "nested large list": (lambda f, c, t: parquet(f, c, "nested"), ()),
    "float64": (lambda f, c, t: parquet(f, c, "nested", np.float64), ()),
    "other names": (
        lambda f, c, t: parquet(f, c, "flat", field="exp", id_field="name"),
        ("input.motion_field=exp", "input.clip_id_field=name"),
    ),
    "columns of a flat list": (
        lambda f, c, t: parquet(f, {k: wide(m) for k, m in c.items()}, "flat"),
        ("input.columns=2:4,5:7", "input.motion_dim=7"),
    ),
    "columns of npz": (
        lambda f, c, t: [(f / f"{k}.npz").write_bytes(t.npz_bytes(values=wide(m))) for k, m in c.items()],
        ("input.columns=2:4,5:7", "input.motion_field=values"),
    ),
    "npy": (lambda f, c, t: [(f / f"{k}.npy").write_bytes(t.npy_bytes(m)) for k, m in c.items()], ()),
    "tar of npy": (
        lambda f, c, t: t.write_tar(
            f / "s.tar",
            {
                name: data
                for k, m in c.items()
                for name, data in {f"{k}.npy": t.npy_bytes(m), f"{k}.json": json.dumps({"id": k}).encode()}.items()
            },
        ),
        ("input.clip_id_field=id",),
    ),
    "other suffix": (
        lambda f, c, t: [(f / f"{k}.mo").write_bytes(t.npz_bytes(motion=m)) for k, m in c.items()],
        ("input.format=npz",),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenize_reads_a_layout_by_configuration(command, clips, wanted, tiny_codec, tools, tmp_path, layout):
    write, settings = LAYOUTS[layout]
    (tmp_path / "motion").mkdir()
    write(tmp_path / "motion", clips, tools)
    sets = [part for setting in (*settings, "input.fps=25") for part in ("--set", setting)]
    outcome = command("tokenize", tmp_path / "motion", tmp_path / "o", "-c", tiny_codec, *sets, "--local")
    assert outcome.code == 0, outcome.text
    assert bits_of(tmp_path / "o") == wanted
    assert command("verify", tmp_path / "o").code == 0


def test_tokenize_reads_float16(command, clips, tiny_codec, tools, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "single").mkdir()
    parquet(tmp_path / "half", clips, "nested", np.float16)
    parquet(tmp_path / "single", {k: m.astype(np.float16).astype(np.float32) for k, m in clips.items()}, "nested")
    found = []
    for name in ("half", "single"):
        output = tmp_path / f"{name}-tokens"
        arguments = ("-c", tiny_codec, "--set", "input.fps=25", "--local")
        assert command("tokenize", tmp_path / name, output, *arguments).code == 0
        found.append(bits_of(output))
    assert found[0] == found[1]


def test_tokenize_reads_thousands_of_clips_in_one_file(command, tiny_codec, tools, tmp_path):
    clips = {f"c{n:05}": tools.tiny_motion(n, 5 + n % 20) for n in range(3000)}
    parquet(tmp_path, clips, "fixed")
    output = tmp_path / "o"
    arguments = ("-c", tiny_codec, "--set", "input.fps=25", "--set", "export.windows_per_shard=700", "--local")
    outcome = command("tokenize", tmp_path / "clips.parquet", output, *arguments)
    assert outcome.code == 0, outcome.text
    manifest = json.loads((output / "dataset.json").read_text())
    assert manifest["counts"]["clips"] == 3000
    assert set(manifest["splits"]) == {"train", "val", "test"}
    assert len(manifest["shards"]["parquet"]) > 3
    assert command("verify", output).code == 0


def test_tokenize_of_a_file_glob_and_named_inputs(command, clips, tiny_codec, tools, tmp_path):
    for part, names in {"a": list(clips)[:3], "b": list(clips)[3:]}.items():
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.npz").write_bytes(tools.npz_bytes(motion=clips[name], fps=25))
    output = tmp_path / "o"
    inputs = (f"talk={tmp_path}/a/*.npz", f"{tmp_path}/b")
    assert command("tokenize", *inputs, output, "-c", tiny_codec, "--local").code == 0
    clip_ids = set(pq.read_table(output / "index" / "clips.parquet")["clip_id"].to_pylist())
    assert clip_ids == {f"talk/talk{n}" for n in range(3)} | {f"1/talk{n}" for n in range(3, 6)}


def test_tokenize_obeys_clip_lists(command, clips, tiny_codec, tools, tmp_path):
    for name, motion in clips.items():
        (tmp_path / f"{name}.npz").write_bytes(tools.npz_bytes(motion=motion, fps=25))
    (tmp_path / "ids.txt").write_text("talk1\ntalk2\ntalk3\n")
    (tmp_path / "not.txt").write_text("talk2\n")
    sets = ("--set", f"input.clips.include={tmp_path}/ids.txt", "--set", f"input.clips.exclude={tmp_path}/not.txt")
    output = tmp_path / "o"
    assert command("tokenize", f"{tmp_path}/*.npz", output, "-c", tiny_codec, *sets, "--local").code == 0
    assert set(pq.read_table(output / "index/clips.parquet")["clip_id"].to_pylist()) == {"talk1", "talk3"}
