"""Where units stand between the stages, through retries and words that come late."""

from __future__ import annotations

from pipeline.run.flow import STATES, FlowBook


def standing(book: FlowBook) -> dict[str, int]:
    return {state: count for state, count in book.take().in_flight.items() if count}


def test_take_names_every_state():
    assert tuple(FlowBook().take().in_flight) == STATES


def test_a_run_of_units_goes_through_all_states_and_leaves():
    book = FlowBook()
    for stage, entered, left in (("read", "reading", "read"), ("tokenize", "tokenizing", "tokenized")):
        book.enter(stage, 7, 3)
        assert standing(book) == {entered: 3}
        book.leave(stage, 7, 0)
        assert standing(book) == {left: 3}
    book.enter("write", 7, 3)
    book.enter("read", 8, 2)
    assert standing(book) == {"writing": 3, "reading": 2}
    book.leave("write", 7, 0)
    assert standing(book) == {"reading": 2}


def test_a_stage_that_begins_again_is_a_retry_and_moves_the_units_back():
    book = FlowBook()
    book.enter("read", 1, 2)
    book.leave("read", 1, 0)
    book.enter("tokenize", 1, 2)
    assert book.take().retries == {}
    book.enter("tokenize", 1, 2)  # its process died
    book.enter("read", 1, 2)  # and what it was given is lost too
    assert standing(book) == {"reading": 2}
    book.enter("read", 1, 2)
    assert book.take().retries == {"task": 1}


def test_storage_retries_are_told_once():
    book = FlowBook()
    book.enter("read", 1, 1)
    book.leave("read", 1, 4)
    assert book.take().retries["storage"] == 4
    assert "storage" not in book.take().retries


def test_a_word_that_comes_late_does_no_harm():
    book = FlowBook()
    book.enter("read", 1, 5)
    book.enter("tokenize", 1, 5)
    book.leave("read", 1, 0)
    book.leave("tokenize", 1, 0)
    book.enter("write", 1, 5)
    book.leave("write", 1, 0)
    assert standing(book) == {}
