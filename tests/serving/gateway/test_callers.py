"""Keys in a file, and how much each may ask at once and in a minute."""

from __future__ import annotations

import pytest

from iblip.export.errors import OptionError
from iblip.serving.gateway import callers as module
from iblip.serving.gateway.callers import Caller, read_callers
from iblip.serving.gateway.errors import TooManyError, UnknownKeyError

KEYS = ("0123456789abcdef", "fedcba9876543210")


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "keys"
        path.write_text(text)
        return path

    return write


def scope(value):
    return {"headers": [] if value is None else [(b"authorization", value.encode())]}


def test_a_key_and_its_limits(write):
    callers = read_callers(
        write(f"# ours\n{KEYS[0]} name=web open=2 per_minute=60\n\n{KEYS[1]}  # theirs\n")
    )
    web, other = (callers.of(scope(f"Bearer {key}")) for key in KEYS)
    assert (web.name, web.most_open, web.per_minute) == ("web", 2, 60)
    assert (other.name, other.most_open, other.per_minute) == ("key 4", None, None)


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", f"Basic {KEYS[0]}", KEYS[0], "Bearer wrong", "Bearer \xff"]
)
def test_no_other_key_is_taken(write, value):
    callers = read_callers(write(KEYS[0]))
    with pytest.raises(UnknownKeyError, match="Authorization: Bearer"):
        callers.of(scope(value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("short\n", "keys:1: the token has 5 characters"),
        (f"{KEYS[0]} max=3\n", "'max=3' is no limit"),
        (f"{KEYS[0]} open=0\n", "'open=0' is no limit"),
        (f"{KEYS[0]}\n{KEYS[0]}\n", "keys:2: the key is there twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_its_keys(write, text, words):
    with pytest.raises(OptionError, match=words) as refused:
        read_callers(write(text))
    assert KEYS[0] not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read_callers(tmp_path / "none")


def test_open_requests_are_limited_and_counted_down():
    caller = Caller(name="web", most_open=1)
    for _ in range(3):
        with (
            caller.admitted(),
            pytest.raises(TooManyError, match="1 requests of web are open"),
            caller.admitted(),
        ):
            pass
    assert caller.open == 0


def test_a_minute_has_so_many_requests_and_says_when_the_next_may_begin(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caller = Caller(name="web", per_minute=2)
    for _ in range(2):
        with caller.admitted():
            pass
    with pytest.raises(TooManyError) as refused, caller.admitted():
        pass
    assert refused.value.retry_after_s == pytest.approx(30.0)
    now[0] += 30.0
    with caller.admitted():
        pass
    with pytest.raises(TooManyError), caller.admitted():
        pass
