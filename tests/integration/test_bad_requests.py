"""A bad request stops before any work, a bad clip is dropped with its reason: exit code, file and next step."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, load_checkpoint, random_checkpoint, write_checkpoint


def good(tools, folder, name="good", num_frames=30, **changes):
    folder.mkdir(exist_ok=True, parents=True)
    arrays = {"motion": tools.tiny_motion(1, num_frames), "fps": 25.0, **changes}
    (folder / f"{name}.npz").write_bytes(tools.npz_bytes(**arrays))


@pytest.fixture
def motion(tools, tmp_path):
    good(tools, tmp_path / "motion")
    return tmp_path / "motion"


def assert_refused(outcome, code, *words):
    assert outcome.code == code, outcome.text
    for word in words:
        assert str(word) in outcome.text.replace(" ", ""), (word, outcome.text)


@pytest.mark.parametrize("executor", ["--local"])
def test_missing_input_is_named(command, tiny_codec, tmp_path, executor):
    outcome = command("tokenize", tmp_path / "nowhere", tmp_path / "o", "-c", tiny_codec, executor)
    assert_refused(outcome, 2, tmp_path / "nowhere")
    assert not (tmp_path / "o").exists()


def test_folder_without_motion_is_named(command, tiny_codec, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(command("tokenize", tmp_path / "empty", tmp_path / "o", "-c", tiny_codec, "--local"), 2, "empty")
    (tmp_path / "empty" / "a.txt").write_text("x")
    outcome = command("tokenize", tmp_path / "empty", tmp_path / "o", "-c", tiny_codec, "--local")
    assert_refused(outcome, 2, "a.txt", ".parquet")


def test_named_file_of_unknown_format_is_refused(command, tiny_codec, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    outcome = command("tokenize", tmp_path / "a.txt", tmp_path / "o", "-c", tiny_codec, "--local")
    assert_refused(outcome, 2, "a.txt", ".npz")


def test_unknown_keys_are_refused_with_the_nearest(command, motion, tiny_codec, tmp_path):
    arguments = ("tokenize", motion, tmp_path / "o", "-c", tiny_codec, "--local")
    assert_refused(command(*arguments, "--set", "window.strid=4"), 2, "window.stride")
    (tmp_path / "run.yaml").write_text("windw: {stride: 3}\n")
    assert_refused(command(*arguments, "--config", tmp_path / "run.yaml"), 2, "windw", "'window'", "run.yaml")
    assert_refused(command(*arguments, "--config", tmp_path / "no.yaml"), 2, "no.yaml")
    assert_refused(command(*arguments, "--precision", "float8"), 2, "float8")
    assert_refused(command(*arguments, "--no-such-option"), 2)
    assert not (tmp_path / "o").exists()


def test_missing_checkpoint_is_named(command, motion, tmp_path):
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tmp_path / "no.safetensors", "--local")
    assert_refused(outcome, 2, "no.safetensors")


def test_checkpoint_of_another_dimension_drops_every_clip(command, tools, tiny_codec, tmp_path):
    good(tools, tmp_path / "motion", motion=tools.tiny_motion(1, 30, dims=6))
    outcome = command("tokenize", tmp_path / "motion", tmp_path / "o", "-c", tiny_codec, "--local")
    assert_refused(outcome, 65, "wrong_dim", "good.npz", "6", "4", "input.columns")
    assert not (tmp_path / "o" / "dataset.json").exists()


def test_columns_that_do_not_fit_the_checkpoint_are_refused(command, motion, tiny_codec, tmp_path):
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tiny_codec, "--local", "--set", "input.columns=0:3")
    assert_refused(outcome, 2, "3", "4", "input.columns")


def test_checkpoints_that_do_not_fit_are_explained(command, motion, tiny_codec, tmp_path):
    state = load_checkpoint(tiny_codec).state_dict()
    torch.save(state, tmp_path / "bare.pt")
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tmp_path / "bare.pt", "--local")
    assert_refused(outcome, 2, "bare.pt", "--model-config", "--preset")
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tmp_path / "bare.pt", "--preset", "artalk", "--local")
    assert_refused(outcome, 2, "bare.pt", "motion_dimis4", "--model-config")
    (tmp_path / "m.json").write_text(json.dumps({"patch_nums": [1, 3, 5], "num_heads": 3}))
    arguments = ("tokenize", motion, tmp_path / "o", "-c", tmp_path / "bare.pt", "--local")
    assert_refused(command(*arguments, "--model-config", tmp_path / "m.json"), 2, "num_heads")
    rotary = {f"base_codec.{k}": v for k, v in state.items() if "embed" not in k and "mask" not in k}
    torch.save(rotary, tmp_path / "later.pt")
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tmp_path / "later.pt", "--preset", "artalk", "--local")
    assert_refused(outcome, 2, "ARTalkCodec")
    (tmp_path / "broken.pt").write_bytes(b"not weights")
    outcome = command("tokenize", motion, tmp_path / "o", "-c", tmp_path / "broken.pt", "--local")
    assert_refused(outcome, 2, "broken.pt")
    assert not (tmp_path / "o").exists()


def test_a_bare_checkpoint_works_with_a_model_config(command, motion, tiny_codec, tmp_path):
    torch.save({"model": load_checkpoint(tiny_codec).state_dict()}, tmp_path / "bare.pt")
    (tmp_path / "m.json").write_text(json.dumps({"V_PATCH_NUMS": [1, 2, 5], "T_NUM_HEADS": 2}))
    outcome = command(
        "tokenize", motion, tmp_path / "o", "-c", tmp_path / "bare.pt", "--local", "--model-config", tmp_path / "m.json"
    )
    assert outcome.code == 0, outcome.text


def test_a_schedule_of_equal_length_is_another_dataset(command, tools, tmp_path):
    frames, output = 100, tmp_path / "o"
    good(tools, tmp_path / "motion", num_frames=frames)
    weights = random_checkpoint(
        BitwiseVAEConfig(motion_dim=4, hidden_dim=8, depth=1, num_heads=1), np.zeros(4), np.ones(4), 0
    )
    write_checkpoint(weights, tmp_path / "codec.safetensors")
    torch.save(weights.state_dict(), tmp_path / "other.pt")
    (tmp_path / "other.json").write_text(json.dumps({"patch_nums": [1, 10, 20, 50, 100], "num_heads": 1}))
    assert command("tokenize", tmp_path / "motion", output, "-c", tmp_path / "codec.safetensors", "--local").code == 0
    outcome = command("tokenize", tmp_path / "motion", output, "-c", tmp_path / "other.pt", "--local")
    assert_refused(outcome, 2, "codec.patch_nums", "[1,10,20,50,100]", "[1,5,25,50,100]")


def test_output_that_holds_something_else_is_refused(command, motion, tiny_codec, tmp_path):
    arguments = ("tokenize", motion, tmp_path / "o", "-c", tiny_codec, "--local")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.tex").write_text("x")
    assert_refused(command(*arguments), 2, "thesis.tex")
    (tmp_path / "o" / "thesis.tex").unlink()
    assert command(*arguments).code == 0
    assert_refused(command(*arguments, "--stride", "3"), 2, "corpus.window.stride")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "dataset.json").write_text("{}")
    assert_refused(command("tokenize", motion, tmp_path / "p", "-c", tiny_codec, "--local"), 2, "dataset.json")


def test_bad_clips_are_dropped_with_their_reason_and_the_rest_arrives(command, tools, tiny_codec, tmp_path):
    folder = tmp_path / "motion"
    good(tools, folder)
    bad = tools.tiny_motion(2, 30)
    bad[3, 1] = np.inf
    good(tools, folder, "infinite", motion=bad)
    good(tools, folder, "short", num_frames=4)
    good(tools, folder, "empty", motion=np.zeros((0, 4), np.float32))
    good(tools, folder, "wide", motion=tools.tiny_motion(3, 30, dims=5))
    good(tools, folder, "fast", fps=60.0)
    good(tools, folder, "whole", motion=np.ones((30, 4), np.int32))
    (folder / "nameless.npz").write_bytes(tools.npz_bytes(other=np.zeros((30, 4), np.float32), fps=25))
    (folder / "silent.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(4, 30)))
    (folder / "torn.npz").write_bytes((folder / "good.npz").read_bytes()[:300])
    (folder / "footer.parquet").write_bytes(b"PAR1" + b"\0" * 500 + b"PAR1")
    tools.write_tar(folder / "cut.tar", {f"t{n}.npy": tools.npy_bytes(tools.tiny_motion(n, 30)) for n in range(4)})
    (folder / "cut.tar").write_bytes((folder / "cut.tar").read_bytes()[: 3 * 1536 + 700])
    (folder / "twin").mkdir()
    good(tools, folder / "twin", "good")
    good(tools, folder / "twin", "one", id=np.array("same"), motion=tools.tiny_motion(5, 30))
    good(tools, folder / "twin", "two", id=np.array("same"), motion=tools.tiny_motion(6, 30))
    outcome = command("tokenize", folder, tmp_path / "o", "-c", tiny_codec, "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    quarantine = pq.read_table(tmp_path / "o" / "quarantine.parquet").to_pylist()
    reasons = {row["source"].split("/")[-1].split(".")[0]: row["reason"] for row in quarantine}
    assert reasons == {
        "infinite": "non_finite",
        "short": "too_short",
        "empty": "too_short",
        "wide": "wrong_dim",
        "fast": "fps_mismatch",
        "whole": "wrong_dtype",
        "nameless": "missing_field",
        "silent": "fps_missing",
        "torn": "truncated",
        "footer": "unreadable",
        "cut": reasons["cut"],
    }
    assert {row["reason"] for row in quarantine if row["source"] == "cut.tar"} <= {"truncated", "fps_missing"}
    assert "truncated" in {row["reason"] for row in quarantine}
    assert all(row["detail"] for row in quarantine)
    manifest = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert manifest["counts"]["clips"] == 4
    assert sum(manifest["drops"].values()) == len(quarantine) == manifest["counts"]["dropped_clips"]


def test_duplicate_ids_are_rejected_or_told_apart(command, tools, tiny_codec, tmp_path):
    folder = tmp_path / "motion"
    for name, seed in {"a": 1, "b": 1, "c": 2, "d": 3}.items():
        clip_id = np.array("same" if name != "d" else "other")
        good(tools, folder, name, label=clip_id, motion=tools.tiny_motion(seed, 30))
    sets = ("--set", "input.clip_id_field=label")
    assert command("tokenize", folder, tmp_path / "o", "-c", tiny_codec, *sets, "--local").code == 0
    drops = json.loads((tmp_path / "o" / "dataset.json").read_text())["drops"]
    assert drops == {"duplicate_id": 3}
    sets = (*sets, "--set", "input.duplicate_ids=suffix", "--set", "window.phases=1", "--set", "window.stride=3")
    assert command("tokenize", folder, tmp_path / "p", "-c", tiny_codec, *sets, "--local").code == 0
    assert command("verify", tmp_path / "p").code == 0
    clips = pq.read_table(tmp_path / "p" / "index" / "clips.parquet").to_pylist()
    kept = {row["clip_id"] for row in clips if row["num_windows"]}
    assert "other" in kept
    assert len(kept) == 3
    rows = {i for path in (tmp_path / "p").glob("parquet/*/*") for i in pq.read_table(path)["clip_id"].to_pylist()}
    assert rows == kept


def test_every_clip_dropped_is_wrong_data(command, tools, tiny_codec, tmp_path):
    good(tools, tmp_path / "motion", fps=60.0)
    arguments = ("tokenize", tmp_path / "motion", tmp_path / "o", "-c", tiny_codec, "--local")
    for _ in range(2):
        assert_refused(command(*arguments), 65, "fps_mismatch", "good.npz", "input.resample=linear")
    outcome = command(*arguments, "--set", "input.resample=linear")  # as the message said, in the same place
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0


def test_errors_inside_ray_reach_the_person(command, tools, tiny_codec, tmp_path, ray_local):
    good(tools, tmp_path / "motion")
    output = tmp_path / "o"
    arguments = ("tokenize", tmp_path / "motion", output, "-c", tiny_codec)
    assert command(*arguments, "--local").code == 0
    contract = next(output.glob("_store/*/contract.json"))
    tree = json.loads(contract.read_text())
    tree["numerics"]["torch"] = "1.0"
    contract.write_text(json.dumps(tree))
    assert_refused(command(*arguments), 2, "numerics.torch", "run.numerics=mixed")
    next(output.glob("_store/*/fragments/*/*")).unlink()
    assert command(*arguments, "--set", "run.numerics=mixed", "--local").code == 0
