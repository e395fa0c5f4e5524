"""The audit file of a node, and the recipes that it keeps."""

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from fedssl.flower import audit
from fedssl.flower.audit import Audit
from fedssl.flower.consent import ConsentError
from fedssl.flower.records import Lacking, Refusal, encode_answer
from fedssl.protocol.messages import Result

RUN = "0123456789abcdef" * 2


def test_lines_are_added_by_several_writers_and_rounds_are_counted(tmp_path: Path) -> None:
    first, second = Audit(tmp_path), Audit(tmp_path)
    result = Result(1, {}, 3, 0.5, 0.25, 10, 20, 1)
    assert first.rounds_today(1) == 0
    for writer, answer in ((first, result), (second, result), (first, Refusal("memory")), (second, Lacking({}))):
        writer.write(encode_answer(answer), client=1, round=4)
    first.write(encode_answer(result), client=2)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"client": 1, "sent": {"ki')  # a crash
    first.write(encode_answer(result), client=1)
    assert (first.rounds_today(1), second.rounds_today(2)) == (3, 1)
    assert path.stat().st_mode & 0o077 == 0


def test_the_first_recipe_of_a_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Audit(tmp_path)
    kept = book.keep_recipe(RUN, "a: 1")
    assert book.keep_recipe(RUN, "a: 1") == kept
    with pytest.raises(ConsentError, match=f"run {RUN} comes with another recipe, [0-9a-f]{{64}}, than the one in "):
        book.keep_recipe(RUN, "a: 2")
    assert kept.read_text() == "a: 1"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    with pytest.raises(ValueError, match=r"32 hexadecimal digits, got '../../evil'"):
        book.keep_recipe("../../evil", "a: 1")
    monkeypatch.setattr(audit, "MOST_RECIPES", 1)
    with pytest.raises(ConsentError, match="clear it"):
        book.keep_recipe(RUN[::-1], "a: 1")
