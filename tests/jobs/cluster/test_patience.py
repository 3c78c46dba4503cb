"""How long silence is borne."""

from __future__ import annotations

import pytest

from jobs.cluster.patience import patiently
from pipeline.errors import ConfigError, IncompleteError

LIMIT_S, POLL_S = 0.3, 0.01


def test_patiently_asks_until_there_is_an_answer():
    answers, said = [IncompleteError("silent"), IncompleteError("silent"), "here"], []

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, said.append, limit_s=LIMIT_S, poll_s=POLL_S) == "here"
    assert said == ["silent; trying again for 0.3 s"]


def test_patiently_ends_where_silence_lasts():
    asked = []

    def ask():
        asked.append(None)
        raise IncompleteError("silent")

    with pytest.raises(IncompleteError, match="silent"):
        patiently(ask, limit_s=LIMIT_S, poll_s=POLL_S)
    assert len(asked) > 3


def test_patiently_passes_other_errors_on_at_once():
    asked = []

    def ask():
        asked.append(None)
        raise ConfigError("wrong")

    with pytest.raises(ConfigError):
        patiently(ask, limit_s=LIMIT_S, poll_s=POLL_S)
    assert len(asked) == 1
