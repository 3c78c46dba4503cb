import dataclasses
import json

import pytest

from bitwise_vae.config import (
    FLAME_GROUPS,
    PRESETS,
    BitwiseVAEConfig,
    ConfigError,
    MotionGroup,
    config_from_values,
    values_from_json,
)


def test_config_defaults_are_the_released_sizes() -> None:
    config = BitwiseVAEConfig()
    assert (config.window_frames, config.num_tokens, config.num_scales) == (100, 181, 5)
    assert config.bytes_per_half == 724
    assert config.motion_groups == FLAME_GROUPS
    assert config.fps == 25


def test_config_names_other_motion_as_one_group() -> None:
    assert BitwiseVAEConfig(motion_dim=52).motion_groups == (MotionGroup("motion", 0, 52, ""),)


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BitwiseVAEConfig().depth = 8  # type: ignore[misc]


def test_config_tells_schedules_of_equal_length_apart() -> None:
    one, other = (
        BitwiseVAEConfig(patch_nums=(1, 5, 25, 50, 100)),
        BitwiseVAEConfig(patch_nums=(1, 10, 20, 50, 100)),
    )
    assert one.num_tokens == other.num_tokens
    assert one != other


def test_to_dict_round_trips_through_json() -> None:
    config = BitwiseVAEConfig(motion_dim=51, fps=30, motion_groups=(MotionGroup("brow", 3, 9, "mm"),))
    assert BitwiseVAEConfig.from_json(json.dumps(config.to_dict())) == config


def test_from_json_reads_the_originals_file(original_json: str, tiny_config: BitwiseVAEConfig) -> None:
    assert BitwiseVAEConfig.from_json(original_json) == tiny_config


def test_from_json_reads_the_originals_keys_alone(original_json: str, tiny_config: BitwiseVAEConfig) -> None:
    assert BitwiseVAEConfig.from_json(json.loads(original_json)["VAE_CONFIG"]) == tiny_config


def test_from_json_reads_own_keys_beside_the_originals(original_json: str) -> None:
    assert BitwiseVAEConfig.from_json({**json.loads(original_json), "fps": 30}).fps == 30


def test_from_json_reads_groups_as_lists() -> None:
    config = BitwiseVAEConfig.from_json({"motion_dim": 9, "motion_groups": [["jaw", 6, 9, "rad"]]})
    assert config.motion_groups == (MotionGroup("jaw", 6, 9, "rad"),)


def test_preset_artalk_says_what_shapes_cannot() -> None:
    config = config_from_values({**PRESETS["artalk"], "depth": 8})
    assert (config.num_heads, config.patch_nums, config.depth) == (8, (1, 5, 25, 50, 100), 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"patch_num": [1, 2]}', "did you mean 'patch_nums'"),
        ('{"T_HEADS": 8}', "did you mean 'T_NUM_HEADS'"),
        ('{"zzz": 8}', "known keys: motion_dim"),
        ('{"VAE_CONFIG": 3}', "must be an object"),
        ("[1]", "must be a JSON object"),
        ("{", "not JSON"),
        ('{"num_tokens": 182}', r"num_tokens 182 is stated, but patch_nums .* give 181"),
        ('{"window_frames": 99}', "window_frames 99 is stated"),
        ('{"motion_groups": 3}', "motion_groups must be a list"),
        ('{"motion_groups": [{"name": "jaw"}]}', "must have name, start, stop and unit"),
    ],
)
def test_from_json_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitwiseVAEConfig.from_json(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"motion_dim": 0}, "motion_dim must be a whole number"),
        ({"depth": 2.0}, "depth must be a whole number"),
        ({"depth": True}, "depth must be a whole number"),
        ({"code_dim": 12}, "multiple of 8"),
        ({"num_heads": 7}, "must divide by num_heads"),
        ({"patch_nums": ()}, "at least one scale"),
        ({"patch_nums": 100}, "must be a list"),
        ({"patch_nums": "100"}, "must be a list"),
        ({"patch_nums": (1, 5, 5)}, "increase strictly"),
        ({"patch_nums": (0, 5)}, "each of patch_nums"),
        ({"fps": 0}, "fps must be a number above 0"),
        ({"fps": float("nan")}, "fps must be a number above 0"),
        ({"fps": "25"}, "fps must be a number above 0"),
        ({"motion_dim": 9, "motion_groups": FLAME_GROUPS}, "but motion_dim is 9"),
        ({"motion_groups": (MotionGroup("a", "0", 1, ""),)}, "start and stop at whole numbers"),
        ({"motion_groups": (MotionGroup("a", 0, 1, ""), MotionGroup("a", 1, 2, ""))}, "different names"),
    ],
)
def test_config_refuses(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitwiseVAEConfig(**values)  # type: ignore[arg-type]


def test_values_from_json_keeps_a_part_a_part() -> None:
    assert values_from_json('{"T_NUM_HEADS": 4, "fps": 30}') == {"num_heads": 4, "fps": 30}
