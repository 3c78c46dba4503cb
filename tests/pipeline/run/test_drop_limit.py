from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.run.drop_limit import TooManyDroppedError, check_dropped
from pipeline.settings.job_config import load_config

COUNTS = {"units": 5, "clips": 190, "dropped_clips": 10, "windows": 1000, "frames": 9000}
DROPS = {"frozen": 3, "too_short": 7}


@pytest.mark.parametrize("limit", [None, 10, 0.05, 1.0, 200])
def test_check_dropped_allows_up_to_the_limit(limit):
    check_dropped(COUNTS, DROPS, limit)


@pytest.mark.parametrize(("limit", "words"), [(9, "allows 9:"), (0, "allows 0:"), (0.049, "0.049 of all (4.9 %)")])
def test_check_dropped_names_counts_by_reason(limit, words):
    with pytest.raises(TooManyDroppedError) as caught:
        check_dropped(COUNTS, DROPS, limit)
    assert caught.value.exit_code == 65
    assert "10 of 200 clips are dropped (7 too_short, 3 frozen)" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("text", "limit"), [("10", 10), ("0.01", 0.01), ("1%", 0.01), ("1.0", 1.0), ("0", 0)])
def test_max_dropped_is_a_count_or_a_share(text, limit):
    found = load_config(None, [f"run.max_dropped={text}"]).run.max_dropped
    assert (found, type(found)) == (limit, type(limit))


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "true", "x%", "101%", ".nan"])
def test_max_dropped_refuses_what_is_neither(text):
    with pytest.raises(ConfigError, match="count such as 10, or a share"):
        load_config(None, [f"run.max_dropped={text}"])
