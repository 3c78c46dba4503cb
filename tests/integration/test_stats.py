"""The command stats: one pass over real and bad motion, equal bytes for any executor, helpful refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.specs import TokenSpec
from pipeline.errors import InputFormatError, StorageError
from pipeline.executors.ray_statistics import measure_with_ray
from pipeline.plan.plan import make_plan
from pipeline.stages.measure import UnitMeasurer
from pipeline.stages.read import UnitReader
from pipeline.statistics.motion_statistics import statistics_from_bytes
from pipeline.storage import open_inputs

DIMS_OF_TINY = 4


@pytest.fixture(scope="module")
def measured(command, tiny_corpus, tmp_path_factory):
    """The statistics of the tiny corpus, measured in this process with small units."""
    out = tmp_path_factory.mktemp("stats") / "stats.json"
    outcome = command("stats", tiny_corpus, out, "--local", "--set", "units.files=2")
    assert outcome.code == 0, outcome.text
    return out, outcome.text


def values_of(tools, names):
    clips = [tools.tiny_motion(n, 7 + 3 * n) for n in range(30)] + [tools.tiny_motion(n, length) for n, length in names]
    return np.concatenate(clips).astype(np.float64), clips


def test_stats_of_a_mixed_corpus_agree_with_numpy(measured, tools):
    out, text = measured
    tree = json.loads(out.read_text())
    values, clips = values_of(tools, ((99, 4), (98, 40)))
    values[-40 + 7, 2] = np.nan
    assert tree["motion_dim"] == DIMS_OF_TINY
    assert (tree["num_clips"], tree["num_frames"]) == (len(clips), len(values))
    assert tree["hours"] == pytest.approx(len(values) / 25 / 3600)
    np.testing.assert_allclose(tree["mean"], np.nanmean(values, axis=0), rtol=1e-10)
    np.testing.assert_allclose(tree["std"], np.nanstd(values, axis=0), rtol=1e-10)
    assert tree["min"] == np.nanmin(values, axis=0).tolist()
    assert tree["max"] == np.nanmax(values, axis=0).tolist()
    assert tree["nan_counts"] == [0, 0, 1, 0]
    assert (tree["non_finite_clips"], tree["constant_dims"]) == (1, [])
    assert tree["dropped"] == {"truncated": 1}
    assert tree["fps"] == [{"clips": len(clips), "fps": 25.0, "frames": len(values)}]
    lengths = [len(clip) for clip in clips]
    assert (tree["lengths"]["min"], tree["lengths"]["max"]) == (min(lengths), max(lengths))
    assert tree["lengths"]["counts"] == np.histogram(lengths, tree["lengths"]["edges"])[0].tolist()
    histogram = tree["histogram"]
    sums = np.sum(histogram["counts"], axis=1) + histogram["below"] + histogram["above"]
    assert sums.tolist() == [len(values) - count for count in tree["nan_counts"]]
    assert "1 NaN" in text
    assert "1 truncated" in text
    assert str(out.parent) not in out.read_text()


def test_stats_write_a_picture(measured):
    out, _ = measured
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_stats_json_reads_back_and_is_canonical(measured):
    data = measured[0].read_bytes()
    statistics = statistics_from_bytes(data, "stats.json")
    assert statistics.to_bytes() == data
    with pytest.raises(InputFormatError, match="motion-tokens stats"):
        statistics_from_bytes(b'{"kind": "other"}', "x.json")
    with pytest.raises(InputFormatError, match="mean has 3 numbers"):
        statistics_from_bytes(_shortened(data), "x.json")


def _shortened(data):
    tree = json.loads(data)
    tree["mean"] = tree["mean"][:3]
    return json.dumps(tree).encode()


def test_stats_are_equal_bytes_with_ray_and_on_s3(command, measured, tiny_corpus, ray_local, s3):
    from s3fs import S3FileSystem

    files = S3FileSystem(use_listings_cache=False, **s3.options)
    motion, out = s3.url("stats/motion"), s3.url("stats/out/stats.json")
    files.put(str(tiny_corpus), motion, recursive=True)
    outcome = command("stats", motion, out, "--workers", 3, "--set", "units.files=2")
    assert outcome.code == 0, outcome.text
    assert files.cat_file(out) == measured[0].read_bytes()
    assert files.cat_file(out.replace(".json", ".png")) == measured[0].with_suffix(".png").read_bytes()


def test_stats_name_the_same_content_however_it_is_cut(command, measured, tiny_corpus, tmp_path):
    out = tmp_path / "stats.json"
    assert command("stats", tiny_corpus, out, "--local", "--set", "units.bytes=500").code == 0
    ours, theirs = (json.loads(path.read_text()) for path in (out, measured[0]))
    assert ours["content"] == theirs["content"]
    np.testing.assert_allclose(ours["std"], theirs["std"], rtol=1e-12)


def test_stats_survive_constant_dims_and_empty_ones(command, tools, tmp_path):
    motion = tools.tiny_motion(0, 50)
    motion[:, 1], motion[:, 3] = 0.1, np.nan
    (tmp_path / "a.npz").write_bytes(tools.npz_bytes(motion=motion, fps=25.0))
    outcome = command("stats", tmp_path / "a.npz", tmp_path / "s.json", "--local")
    assert outcome.code == 0, outcome.text
    tree = json.loads((tmp_path / "s.json").read_text())
    assert tree["constant_dims"] == [1, 3]
    assert (tree["std"][1], tree["std"][3]) == (1.0, 1.0)
    assert tree["mean"][1] == pytest.approx(0.1)
    assert (tree["mean"][3], tree["min"][3], tree["max"][3]) == (0.0, None, None)
    assert "2 (1, 3) constant" in outcome.text


def test_stats_count_clips_of_other_dims_and_without_rate(command, tools, tmp_path):
    for n in range(3):
        (tmp_path / f"a{n}.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(n, 20)))
    (tmp_path / "b.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(9, 30, 7), fps=25.0))
    np.save(tmp_path / "c.npy", tools.tiny_motion(9, 5, 2))
    outcome = command("stats", tmp_path, tmp_path / "s.json", "--local")
    assert outcome.code == 0, outcome.text
    tree = json.loads((tmp_path / "s.json").read_text())
    assert (tree["motion_dim"], tree["num_clips"], tree["hours"]) == (4, 3, 0.0)
    assert (tree["dropped"], tree["other_dims"]) == ({"wrong_dim": 2}, {"2": 1, "7": 1})
    assert tree["fps"] == [{"fps": None, "clips": 3, "frames": 60}]
    assert "none stated (3)" in outcome.text
    too_many = command("stats", tmp_path, tmp_path / "t.json", "--local", "--set", "run.max_dropped=1")
    assert too_many.code == 65
    assert not (tmp_path / "t.json").exists()


def test_stats_follow_the_rules_for_rates_of_a_codec_where_one_is_named(command, tools, tmp_path):
    motions = {25.0: tools.tiny_motion(0, 40), 50.0: tools.tiny_motion(1, 41)}
    for fps, motion in motions.items():
        (tmp_path / f"r{fps:g}.npz").write_bytes(tools.npz_bytes(motion=motion, fps=fps))
    (tmp_path / "none.npz").write_bytes(tools.npz_bytes(motion=motions[25.0]))
    dropping = command("stats", tmp_path, tmp_path / "a.json", "--local", "--fps", 25)
    assert dropping.code == 0, dropping.text
    tree = json.loads((tmp_path / "a.json").read_text())
    assert (tree["num_frames"], tree["dropped"]) == (40, {"fps_mismatch": 1, "fps_missing": 1})
    resampling = ("--fps", 25, "--set", "input.resample=linear")
    assert command("stats", tmp_path, tmp_path / "b.json", "--local", *resampling).code == 0
    tree = json.loads((tmp_path / "b.json").read_text())
    both = np.concatenate([motions[25.0], motions[50.0][::2]]).astype(np.float64)
    assert tree["fps"] == [{"fps": 25.0, "clips": 2, "frames": 61}]
    np.testing.assert_allclose(tree["mean"], both.mean(axis=0), rtol=1e-6)
    assert tree["input"]["target_fps"] == 25.0


def test_stats_select_columns_and_clips(command, tools, tmp_path):
    for n in range(3):
        (tmp_path / f"a{n}.npz").write_bytes(tools.npz_bytes(exp=tools.tiny_motion(n, 20), fps=25.0))
    (tmp_path / "ids.txt").write_text("a1\n")
    settings = ["input.motion_field=exp", "input.columns=1:3", f"input.clips.exclude={tmp_path / 'ids.txt'}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    outcome = command("stats", tmp_path, tmp_path / "s.json", "--local", *flags)
    assert outcome.code == 0, outcome.text
    tree = json.loads((tmp_path / "s.json").read_text())
    both = np.concatenate([tools.tiny_motion(n, 20)[:, 1:3] for n in (0, 2)]).astype(np.float64)
    np.testing.assert_allclose(tree["mean"], both.mean(axis=0), rtol=1e-10)
    assert (tree["num_clips"], tree["motion_dim"]) == (2, 2)
    assert str(tmp_path) not in (tmp_path / "s.json").read_text()


def test_stats_of_flat_lists_ask_for_the_dims(command, tools, tmp_path):
    flat = [tools.tiny_motion(n, 10).ravel().tolist() for n in range(3)]
    table = pa.table({"motion": pa.array(flat, pa.list_(pa.float32())), "fps": [25.0] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    arguments = ("stats", tmp_path, tmp_path / "s.json", "--local")
    refused = command(*arguments)
    assert refused.code == 65
    assert "wrong_dim" in refused.text
    assert command(*arguments, "--set", "input.motion_dim=4").code == 0
    assert json.loads((tmp_path / "s.json").read_text())["num_frames"] == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing", "s.json"], "check the path"),
        (["CORPUS", "s.txt"], ".json"),
        (["CORPUS", "FOLDER.json"], "is a folder"),
        (["CORPUS", "s.json", "--fps", "-1"], "above 0"),
        (["CORPUS", "s.json", "--set", "input.resample=linear"], "--fps"),
        (["CORPUS", "s.json", "--set", "input.fpz=3"], "input.fps"),
        (["CORPUS", "s.json", "--set", "input.clips=nowhere.txt"], "check the path"),
        (["CORPUS"], "Missing argument"),
    ],
)
def test_stats_refuse_bad_requests(command, tiny_corpus, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER.json").mkdir()
    (tmp_path / "FOLDER.json" / "x").write_text("x")
    outcome = command("stats", *(tiny_corpus if word == "CORPUS" else word for word in arguments), "--local")
    assert outcome.code == 2, outcome.text
    assert words in outcome.text
    assert not (tmp_path / "s.json").exists()


def test_stats_without_any_clip_are_refused(command, tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    outcome = command("stats", tmp_path, tmp_path / "s.json", "--local")
    assert outcome.code == 65
    assert "input.motion_field" in outcome.text


@pytest.mark.parametrize(("folder", "field", "dims"), [("flame106", "motion", 106), ("arkit_iphone", "values", 61)])
def test_stats_of_face_motion_agree_with_numpy(command, procedural_motion, tmp_path, folder, field, dims):
    out = tmp_path / "stats.json"
    outcome = command("stats", procedural_motion / folder, out, "--local", "--set", f"input.motion_field={field}")
    assert outcome.code == 0, outcome.text
    tree = json.loads(out.read_text())
    paths = sorted((procedural_motion / folder).glob("*.npz"))
    values = np.concatenate([np.load(path)[field] for path in paths]).astype(np.float64)
    assert (tree["motion_dim"], tree["num_clips"], tree["num_frames"]) == (dims, len(paths), len(values))
    np.testing.assert_allclose(tree["mean"], values.mean(axis=0), rtol=1e-9, atol=1e-12)
    constant = values.min(axis=0) == values.max(axis=0)
    np.testing.assert_allclose(tree["std"], np.where(constant, 1, values.std(axis=0)), rtol=1e-9)
    assert tree["constant_dims"] == np.flatnonzero(constant).tolist()


def test_stats_of_input_that_changes_meanwhile_can_be_run_again(tools, make_corpus, make_codec, ray_local, tmp_path):
    (tmp_path / "a.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(0, 20), fps=25.0))
    corpus = make_corpus()
    roots = open_inputs([str(tmp_path)], (".npz",))
    (unit,) = make_plan(roots, corpus).units
    reader = UnitReader({"": roots[0].folder}, TokenSpec(codec=make_codec(), corpus=corpus))
    (found,) = measure_with_ray([[unit]], UnitMeasurer(reader), None)
    assert found.by_dims[4].clips == 1
    (tmp_path / "a.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(1, 21), fps=25.0))
    with pytest.raises(StorageError, match="changed"):
        list(measure_with_ray([[unit]], UnitMeasurer(reader), None))


def test_every_key_of_stats_json_is_documented(measured):
    text = (Path(__file__).resolve().parents[2] / "docs" / "statistics.md").read_text()
    rows = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert set(json.loads(measured[0].read_text())) <= rows
