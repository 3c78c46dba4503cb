import dataclasses
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from bitwise_vae.checkpoints.checkpoint import (
    CheckpointError,
    checkpoint_bytes,
    load_checkpoint,
    random_checkpoint,
    read_checkpoint,
    statistics_digest,
    weights_digest,
    write_checkpoint,
)
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE

STATED = {"num_heads": 3, "patch_nums": [1, 2, 3, 7]}


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def changed_state(model: BitwiseVAE, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The model's state dict with tensors replaced, or dropped where None; `__` stands for a dot."""
    state = dict(model.state_dict())
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    return state


def test_checkpoint_bytes_round_trip(tiny_model: BitwiseVAE) -> None:
    found = read_checkpoint(checkpoint_bytes(tiny_model), "vae.safetensors")
    assert found.config == tiny_model.config
    assert weights_digest(found) == weights_digest(tiny_model)
    assert not found.training
    assert all(weight.requires_grad for weight in found.parameters())


def test_checkpoint_bytes_keep_fps_and_groups(tiny_config: BitwiseVAEConfig) -> None:
    values = {**tiny_config.to_dict(), "fps": 30, "motion_groups": [["jaw", 2, 5, "rad"]]}
    config = BitwiseVAEConfig.from_json(values)
    model = random_checkpoint(config, np.zeros(6), np.ones(6), seed=1)
    assert read_checkpoint(checkpoint_bytes(model), "vae.safetensors").config == config


def test_checkpoint_bytes_are_reproducible(tiny_model: BitwiseVAE) -> None:
    assert checkpoint_bytes(tiny_model) == checkpoint_bytes(tiny_model)


def test_write_checkpoint_and_load_checkpoint_round_trip(tiny_model: BitwiseVAE, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    write_checkpoint(tiny_model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["vae.safetensors"]
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert weights_digest(load_checkpoint(source)) == weights_digest(tiny_model)
    with path.open("rb") as file:
        assert weights_digest(load_checkpoint(file)) == weights_digest(tiny_model)


def test_write_checkpoint_refuses_other_formats(tiny_model: BitwiseVAE, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"name it vae\.safetensors"):
        write_checkpoint(tiny_model, tmp_path / "vae.pt")


def test_read_checkpoint_finds_the_model_in_every_wrapping(tiny_model: BitwiseVAE) -> None:
    state = tiny_model.state_dict()
    released = {f"basic_vae.{name}": tensor for name, tensor in state.items()}
    released |= {"attn_bias": torch.zeros(3), "head.weight": torch.zeros(2, 2)}
    for content in (state, {"model": state, "iteration": 7}, {"state_dict": state}, released, {"model": released}):
        found = read_checkpoint(torch_bytes(content), "vae.pt", overrides=STATED)
        assert weights_digest(found) == weights_digest(tiny_model)


def test_read_checkpoint_tells_formats_by_content_without_a_suffix(tiny_model: BitwiseVAE) -> None:
    assert weights_digest(load_checkpoint(checkpoint_bytes(tiny_model))) == weights_digest(tiny_model)
    found = load_checkpoint(torch_bytes(tiny_model.state_dict()), STATED)
    assert weights_digest(found) == weights_digest(tiny_model)


def test_read_checkpoint_widens_half_floats(tiny_model: BitwiseVAE) -> None:
    state = {name: tensor.half() for name, tensor in tiny_model.state_dict().items()}
    found = read_checkpoint(torch_bytes(state), "vae.pth", overrides=STATED)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}


def test_read_checkpoint_reads_the_originals_golden_weights(golden) -> None:
    state = {f"basic_vae.{name}": tensor for name, tensor in golden.model.state_dict().items()}
    found = read_checkpoint(torch_bytes(state), "vae.pt", str(golden.arrays["config"]))
    assert found.config == golden.config
    assert weights_digest(found) == weights_digest(golden.model)


def test_load_checkpoint_reads_the_sidecar(tiny_model: BitwiseVAE, original_json: str, tmp_path: Path) -> None:
    torch.save(tiny_model.state_dict(), tmp_path / "vae.pt")
    (tmp_path / "vae.json").write_text(original_json)
    assert load_checkpoint(tmp_path / "vae.pt").config == tiny_model.config


def test_stated_values_win_in_order(tiny_config: BitwiseVAEConfig) -> None:
    config = dataclasses.replace(tiny_config, fps=10)
    data = checkpoint_bytes(random_checkpoint(config, np.zeros(6), np.ones(6), seed=1))
    assert read_checkpoint(data, "vae.safetensors").config.fps == 10
    assert read_checkpoint(data, "vae.safetensors", '{"fps": 20}').config.fps == 20
    assert read_checkpoint(data, "vae.safetensors", '{"fps": 20}', {"fps": 30}).config.fps == 30
    assert read_checkpoint(data, "vae.safetensors", '{"fps": 20}', '{"fps": 30}').config.fps == 30
    assert read_checkpoint(torch_bytes(read_checkpoint(data, "a").state_dict()), "a", None, STATED).config.fps == 25


def test_preset_says_what_shapes_cannot() -> None:
    config = BitwiseVAEConfig(hidden_dim=16, depth=1)
    state = random_checkpoint(config, np.zeros(106), np.ones(106), seed=1).state_dict()
    found = read_checkpoint(torch_bytes(state), "vae.pt", '{"fps": 30}', preset="artalk")
    assert found.config == config
    assert read_checkpoint(torch_bytes(state), "vae.pt", None, {"fps": 30}, preset="artalk").config.fps == 30


def test_load_checkpoint_accepts_a_whole_configuration(tiny_model: BitwiseVAE) -> None:
    data = torch_bytes(tiny_model.state_dict())
    assert load_checkpoint(data, tiny_model.config).config == tiny_model.config


def test_read_checkpoint_leaves_the_global_generator_alone(tiny_model: BitwiseVAE) -> None:
    before = torch.random.get_rng_state()
    read_checkpoint(checkpoint_bytes(tiny_model), "vae.safetensors")
    random_checkpoint(tiny_model.config, np.zeros(6), np.ones(6), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


class Marks:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_read_checkpoint_never_runs_a_files_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for data in (torch_bytes({"enc_pos_embed": Marks(mark)}), pickle.dumps(Marks(mark), protocol=2)):
        with pytest.raises(CheckpointError, match=r"evil\.pt: .*code in files is never run"):
            read_checkpoint(data, "evil.pt")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["vae.pt", "vae.safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 100, -50])
def test_read_checkpoint_refuses_cut_files(tiny_model: BitwiseVAE, name: str, kept: int) -> None:
    whole = checkpoint_bytes(tiny_model) if name.endswith("safetensors") else torch_bytes(tiny_model.state_dict())
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read as"):
        read_checkpoint(whole[:kept], name, overrides=STATED)


def test_load_checkpoint_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read"):
        load_checkpoint(tmp_path / "none.pt")


def test_read_checkpoint_refuses_other_suffixes() -> None:
    with pytest.raises(CheckpointError, match=r"vae\.onnx: wanted a checkpoint that ends in \.pt"):
        read_checkpoint(b"", "vae.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "wanted a state dict, found list"),
        ({}, "found no tensor at all"),
        ({"conv.weight": torch.zeros(2)}, r"found conv\.weight\. Is it the right file"),
        ({"model": {"base_codec.encoder.w": torch.zeros(2)}}, "ARTalkCodec"),
        ({"base_codec.anything": torch.zeros(2)}, "ARTalkCodec"),
        ({"model": {"encoder.inp_mapping.0.weight": torch.zeros(2, 108)}}, "ARTalkCodec"),
        ({"a.enc_pos_embed": torch.zeros(2), "b.enc_pos_embed": torch.zeros(2)}, "several bitwise VAEs"),
        ({"enc_pos_embed": torch.zeros(1, 14, 6)}, r"encoder\.inp_mapping\.0\.weight is missing"),
    ],
)
def test_read_checkpoint_refuses_other_content(content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(torch_bytes(content), "vae.pt", overrides=STATED)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "num_heads and patch_nums cannot be read off the weights .*--preset artalk .*--model-config"),
        ({"num_heads": 3}, "patch_nums cannot be read off"),
        ({"patch_nums": [1, 2, 3, 7]}, "num_heads cannot be read off"),
        ({**STATED, "num_heads": 5}, "hidden_dim must divide by num_heads, found 24 and 5"),
        ({**STATED, "patch_nums": [1, 2, 3, 8]}, r"says patch_nums \(1, 2, 3, 8\), a window of 8 frames, but .* 7"),
        ({**STATED, "num_tokens": 14}, r"num_tokens 14 is stated, but patch_nums \(1, 2, 3, 7\) give 13"),
        ({**STATED, "motion_dim": 106}, r"motion_dim 106, but encoder\.inp_mapping\.0\.weight has shape \(24, 6\)"),
        ({**STATED, "hidden_dim": 48}, r"--model-config says hidden_dim 48, but .* makes it 24"),
        ({**STATED, "code_dim": 16}, r"code_dim 16, but encoder\.code_mapping\.weight has shape \(8, 24\)"),
        ({**STATED, "depth": 6}, r"depth 6, but the encoder has 2 attention layers"),
        ({**STATED, "motion_groups": [["jaw", 3, 9, "rad"]]}, "covers columns 3:9, but motion_dim is 6"),
        ({**STATED, "head": 3}, "--model-config: unknown configuration key 'head'"),
        ("{", "--model-config: the configuration is not JSON"),
    ],
)
def test_read_checkpoint_refuses_contradictions(
    tiny_model: BitwiseVAE, overrides: Mapping[str, Any] | str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(torch_bytes(tiny_model.state_dict()), "vae.pt", overrides=overrides)


def test_read_checkpoint_names_the_source_of_a_contradiction(tiny_model: BitwiseVAE) -> None:
    data = torch_bytes(tiny_model.state_dict())
    with pytest.raises(CheckpointError, match="the JSON beside it says depth 3"):
        read_checkpoint(data, "vae.pt", json.dumps({**STATED, "depth": 3}))
    with pytest.raises(CheckpointError, match="--preset artalk says patch_nums"):
        read_checkpoint(data, "vae.pt", None, {"num_heads": 3, "motion_groups": []}, preset="artalk")
    with pytest.raises(CheckpointError, match="no preset 'artalkk'; there is artalk"):
        read_checkpoint(data, "vae.pt", preset="artalkk")


def test_read_checkpoint_refuses_another_schedule_than_the_file_states(tiny_model: BitwiseVAE) -> None:
    with pytest.raises(CheckpointError, match="num_tokens 13 is stated"):
        read_checkpoint(checkpoint_bytes(tiny_model), "a.safetensors", None, {"patch_nums": [1, 2, 4, 7]})


def test_read_checkpoint_refuses_metadata_that_is_no_configuration(tiny_model: BitwiseVAE) -> None:
    data = save(dict(tiny_model.state_dict()), {"config": "[]"})
    with pytest.raises(CheckpointError, match="the file's metadata: the configuration must be a JSON object"):
        read_checkpoint(data, "vae.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dec_pos_embed": None}, "lacks 1 tensors, among them dec_pos_embed"),
        ({"attn_mask": None}, "lacks 1 tensors, among them attn_mask"),
        ({"extra": torch.zeros(1)}, "also holds 1 tensors, among them extra"),
        ({"dec_pos_embed": torch.zeros(1, 14, 9)}, r"dec_pos_embed should have shape \(1, 14, 8\).*\(1, 14, 9\)"),
        ({"attn_mask": torch.zeros(1, 1, 14, 14)}, "attn_mask is not that of a bitwise VAE"),
        ({"motion_std": torch.tensor([1.0, 1, 0, 1, 1, 1])}, r"above 0, found 0\.0 in column 2"),
        ({"motion_std": torch.tensor([1.0, 1, -2, 1, 1, 1])}, r"above 0, found -2\.0 in column 2"),
        ({"motion_std": torch.full((6,), torch.nan)}, "motion_std holds numbers that are not finite"),
        ({"motion_mean": torch.full((6,), torch.inf)}, "motion_mean holds numbers that are not finite"),
        ({"encoder__code_mapping__bias": torch.full((8,), torch.nan)}, "code_mapping.bias holds numbers"),
    ],
)
def test_read_checkpoint_refuses_states(
    tiny_model: BitwiseVAE, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(torch_bytes(changed_state(tiny_model, **changes)), "vae.pt", overrides=STATED)


def test_weights_digest_sees_every_parameter_and_statistic(tiny_model: BitwiseVAE) -> None:
    digests = {weights_digest(tiny_model)}
    names = [name for name in tiny_model.state_dict() if name != "attn_mask"]
    for name in names:
        with torch.no_grad():
            tiny_model.state_dict()[name].view(-1)[0] += 0.25
        digests.add(weights_digest(tiny_model))
    assert len(digests) == len(names) + 1


def test_statistics_digest_sees_statistics_only(tiny_model: BitwiseVAE) -> None:
    before = statistics_digest(tiny_model)
    with torch.no_grad():
        tiny_model.enc_pos_embed += 1
    assert statistics_digest(tiny_model) == before
    tiny_model.motion_mean += 1
    assert statistics_digest(tiny_model) != before


def test_random_checkpoint_follows_its_seed(tiny_config: BitwiseVAEConfig) -> None:
    digests = [weights_digest(random_checkpoint(tiny_config, np.zeros(6), np.ones(6), seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_random_checkpoint_gives_telling_bits() -> None:
    """Most bits take both values over different motion, and both halves differ by role."""
    model = random_checkpoint(BitwiseVAEConfig(hidden_dim=64, depth=2), np.zeros(106), np.ones(106), seed=0)
    steps = torch.randn(32, 200, 106, generator=torch.Generator().manual_seed(1))
    prev, this = (steps.cumsum(dim=1) / 10).chunk(2, dim=1)
    with torch.no_grad():
        bits, this_as_prev = model.quant_to_vqidx(prev, this)[1], model.quant_to_vqidx(this)[0]
    share = bits.float().mean(dim=0)
    assert ((share > 0) & (share < 1)).float().mean() > 0.9
    assert 0.4 < share.mean() < 0.6
    assert (bits != this_as_prev).float().mean() > 0.1
    assert all((weight != 0).any() for name, weight in model.named_parameters() if "bias" in name)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (np.zeros(5), np.ones(6), "motion_mean should have shape"),
        (np.zeros(6), np.zeros(6), "motion_std must be above 0"),
    ],
)
def test_random_checkpoint_refuses_statistics(
    tiny_config: BitwiseVAEConfig, mean: np.ndarray, std: np.ndarray, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        random_checkpoint(tiny_config, mean, std, seed=0)


def test_constant_columns_encode(tiny_config: BitwiseVAEConfig) -> None:
    """A column that never moves has deviation 1 by agreement, and is coded like any other."""
    model = random_checkpoint(tiny_config, np.full(6, 5.0), np.ones(6), seed=0)
    prev, this = model.quant_to_vqidx(torch.full((1, 7, 6), 5.0), torch.full((1, 7, 6), 5.0))
    assert prev.shape == this.shape == (1, 13, 8)
