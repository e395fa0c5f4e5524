"""Who is asked when, and what the server says of it."""

from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from flwr.app import Context, Message

from fedssl.flower import roster
from fedssl.flower.records import Hello, Question, Refusal, encode_answer, encode_hello, encode_question
from fedssl.flower.roster import Roster


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(roster.time, "monotonic", lambda: now[0])
    return now


def test_nodes_that_refuse_are_asked_after_growing_pauses(grid: Any, clock: list[float]) -> None:
    willing = False

    def answer(message: Message, context: Context) -> Message:
        content = encode_hello(Hello(1, {}, 0, 0)) if willing else encode_answer(Refusal("consent"))
        return Message(content, reply_to=message)

    def asked_at(seconds: float) -> bool:
        clock[0], before = seconds, len(grid.sent)
        people.refresh()
        return len(grid.sent) > before

    grid.hidden.update({100, 102})
    grid.answers[101] = answer
    people = Roster(grid, 3, encode_question(Question("0" * 32, "")), lambda _: None)
    assert [second for second in range(0, 300, 10) if asked_at(second)] == [0, 30, 90, 210]
    grid.hidden.add(101)
    asked_at(300)
    grid.hidden.discard(101)
    willing = True
    assert asked_at(301)  # it was started anew, and may have been mended
    assert people.connected() == {1: 101}
    assert not asked_at(10_000)


def test_it_says_who_is_missing_and_what_the_nodes_do(grid: Any) -> None:
    grid.answers[100] = lambda message, _: Message(encode_hello(Hello(0, {}, 0, 0)), reply_to=message)
    grid.answers[101] = lambda message, _: Message(encode_answer(Refusal("error")), reply_to=message)
    grid.silent.add(102)
    people = Roster(grid, 14, encode_question(Question("0" * 32, "")), lambda _: None)
    people.refresh()
    assert people.describe() == (
        "1 of 14 clients are connected; 3 nodes are online, 1 have not answered yet, 1 do not take part; "
        "missing: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more"
    )
