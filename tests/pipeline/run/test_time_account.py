import pytest

from pipeline.run.time_account import WorkClock, who_waits


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({}, ""),
        ({"tokenize": 90.0, "wait": 10.0, "read": 5.0, "decode": 4.0, "compute": 90.0}, "at work during 90%"),
        ({"tokenize": 50.0, "wait": 50.0, "read": 50.0, "decode": 40.0}, "80% of it decoding: more CPUs"),
        ({"tokenize": 50.0, "wait": 50.0, "read": 50.0, "decode": 10.0}, "80% of it waiting for storage"),
        ({"tokenize": 1.0, "wait": 50.0}, "the start of its workers"),
        (
            {"tokenize": 40.0, "wait": 0.0, "compute": 10.0, "stage": 12.0, "upload": 3.0, "download": 1.0},
            "computed during 25% of what they worked, copying frames took 12.0 s",
        ),
    ],
)
def test_who_waits_names_the_limit(seconds: dict[str, float], said: str) -> None:
    assert said in who_waits(seconds)
    assert bool(who_waits(seconds)) == bool(said)


def test_work_clock_books_a_second_that_two_calls_share_once() -> None:
    now = [0.0]
    clock = WorkClock(lambda: now[0])
    now[0] = 2.0
    first, second = clock.working(), clock.working()
    one = first.__enter__()
    now[0] = 5.0
    two = second.__enter__()
    now[0] = 9.0
    first.__exit__(None, None, None)
    now[0] = 10.0
    second.__exit__(None, None, None)
    assert (one, two) == ({"wait": 2.0, "tokenize": 7.0}, {"wait": 0.0, "tokenize": 1.0})
    now[0] = 14.0
    with clock.working() as three:
        now[0] = 15.0
    assert three == {"wait": 4.0, "tokenize": 1.0}
