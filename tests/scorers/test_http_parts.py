"""Waits, the gate for all threads, ``Retry-After`` and strict JSON, each by itself."""

import json
import threading
from email.utils import formatdate

import numpy as np
import pytest

from dualign.scorers.http_client import Clock, Pace, Retries, asked_wait
from dualign.strict import parse_json

NEVER = threading.Event()


def test_waits_are_uniform_between_half_and_all_of_a_doubling_time():
    retries = Retries(attempts=9, backoff=1.0, max_wait=10.0)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (2000, 10)):
        waits = np.array([retries.wait(attempt, f"request {n}") for n in range(2000)]) / longest
        assert waits.min() >= 0.5 and waits.max() <= 1
        # Mean of 2,000 uniform draws on [0.5, 1]: standard error 0.0032.
        assert abs(waits.mean() - 0.75) < 5 * 0.0032


def test_a_wait_depends_on_the_request_and_the_attempt_alone():
    retries = Retries(attempts=3, backoff=1.0, max_wait=1.0)
    waits = {(seed, attempt): retries.wait(attempt, seed) for seed in "ab" for attempt in (1, 2)}
    assert len(set(waits.values())) == 4
    assert waits == {(seed, attempt): retries.wait(attempt, seed) for seed, attempt in waits}


class Hand:
    """A clock that sleeping moves."""

    def __init__(self):
        self.now = 100.0

    def clock(self):
        return Clock(lambda: self.now, lambda: self.now, self.sleep)

    def sleep(self, seconds, stop):
        self.now += seconds


def test_the_gate_opens_at_the_rate_and_lost_turns_are_not_made_up():
    hand = Hand()
    pace, passed = Pace(4.0, hand.clock()), []
    for pause in (0, 0, 0, 10, 0, 0):
        hand.now += pause
        pace.pass_through(NEVER)
        passed.append(hand.now - 100)
    assert passed == [0, 0.25, 0.5, 10.5, 10.75, 11.0]


def test_without_a_rate_the_gate_is_open_until_it_is_closed_and_the_longest_closing_counts():
    hand = Hand()
    pace = Pace(None, hand.clock())
    pace.pass_through(NEVER)
    pace.pass_through(NEVER)
    assert hand.now == 100
    pace.close(5)
    pace.close(3)
    pace.pass_through(NEVER)
    assert hand.now == 105


def test_a_thread_that_waits_leaves_when_all_are_stopped():
    pace, stop, left = Pace(None, Clock()), threading.Event(), threading.Event()
    pace.close(3600)
    thread = threading.Thread(target=lambda: (pace.pass_through(stop), left.set()))
    thread.start()
    assert not left.wait(0.05)
    stop.set()
    assert left.wait(5)
    thread.join()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 12 ", 12),
        (formatdate(1_000_030, usegmt=True), 30),
        (formatdate(999_970, usegmt=True), 0),
        ("9" * 400, 999_999_999_999),
        (None, 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("nan", 0),
        ("²", 0),
        ("soon", 0),
        ("Mon, 99 Foo 2026 00:00:00 GMT", 0),
    ],
)
def test_retry_after(value, seconds):
    assert asked_wait(value, 1_000_000) == seconds


def test_no_beginning_of_an_object_is_json():
    text = json.dumps({"items": [{"id": "a}]}", "score": -1.25e-3}, {"id": '\u00e9\\"', "score": 0}]})
    assert parse_json(text) == json.loads(text)
    for end in range(len(text)):
        with pytest.raises(ValueError):
            parse_json(text[:end])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"score": NaN}', "NaN"),
        ('{"score": Infinity}', "Infinity"),
        ('{"score": 1, "score": 2}', "twice"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "twice"),
        ('{"score": 1} {"score": 2}', "Extra data"),
        ("```json\n{}\n```", "Expecting value"),
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
    ],
)
def test_what_other_parsers_let_pass(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text)
