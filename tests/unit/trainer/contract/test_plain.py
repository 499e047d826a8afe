"""Files and requests are read as they are written: nothing is lost, and nothing is in them that cannot be sent."""

import pytest

from trainer.contract.plain import NotPlain, as_json, from_json, from_yaml


def test_dates_stay_the_text_they_were_and_keys_become_text() -> None:
    found = from_yaml("2026-11-24: 2026-11-24 10:00:00\n1: [0.5, true, null]\nx: &x {a: 1}\ny: {<<: *x, a: 2}\nz: *x")
    text = {"2026-11-24": "2026-11-24 10:00:00", "1": [0.5, True, None]}
    assert found == text | {"x": {"a": 1}, "y": {"a": 2}, "z": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("factors:\n  mask_ratio: [0.5]\n  mask_ratio: [0.75]", "'mask_ratio' comes twice: in line 2 and in line 3"),
        ("a: {b: 1,\n  'b': 2}", "'b' comes twice: in line 1 and in line 2"),
        ("1: a\n'1': b", "'1' comes twice: in line 1 and in line 2"),
        ("yes: a\ntrue: b", "'true' comes twice"),
        ("a: 1\nb: .inf", ".inf in line 2 is not a finite number"),
        ("a: -.INF", "-.INF in line 1"),
        ("a: [.nan]", ".nan in line 1"),
        ("a: 1.0e+999", "1.0e+999 in line 1"),
        ('a: "\\ud800"', r"'\ud800' is half a character"),
        ('"\\udfff": a', r"'\udfff' is half a character"),
        ("a: &a [*a]", "Circular reference"),
        ("a: &a {b: *a}", "Circular reference"),
        ("a: !!set {b}", "set is not JSON serializable"),
        ("a: !!binary aGk=", "bytes is not JSON serializable"),
        ("[a, b]: c", "unhashable"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("[" * 5000, "too deeply"),
        ("a: [", "expected"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_would_be_lost_or_could_not_be_sent_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(NotPlain) as caught:
        from_yaml(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("data", [b"a: \xff", b"\xff\xfea", bytes(range(256)), "a: \0"])
def test_what_is_no_text_is_refused(data: bytes | str) -> None:
    for read in from_yaml, from_json:
        with pytest.raises(NotPlain):
            read(data)


def test_a_request_may_have_no_aliases() -> None:
    with pytest.raises(NotPlain, match="aliases"):
        from_yaml("a: &a [1]\nb: *a", aliases=False)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[" * 100_000])
def test_json_is_read_as_strictly(text: str) -> None:
    with pytest.raises(NotPlain):
        from_json(text)
    assert from_json('{"a": [1, {"a": 2.5}]}') == {"a": [1, {"a": 2.5}]}


def test_what_a_program_hands_over_is_looked_at_too() -> None:
    assert as_json({"a": (1, 2)}) == {"a": [1, 2]}
    with pytest.raises(NotPlain, match="only text, finite numbers"):
        as_json({"a": float("inf")})
    with pytest.raises(NotPlain, match="half a character"):
        as_json({"a": ["\ud800"]})
