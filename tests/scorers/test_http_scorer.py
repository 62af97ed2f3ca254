"""The plain HTTP scorer against a service with scripted faults: right scores, each paid once, or a typed error."""

import json
import re
import threading
import time
from email.utils import formatdate

import numpy as np
import pytest

from dualign.errors import ConfigError, DataError, MissingError, ScorerError
from dualign.records import Prompt, Turn
from dualign.scorers import http_client, remote
from dualign.scorers.checked import checked
from dualign.scorers.http_client import Clock
from dualign.scorers.spec import Setting
from dualign.scorers.table import make_scorer
from loopback_scorer import Service, answer, answers_json, answers_status, serving, true_items, true_score

PROMPT = Prompt("a question")
RESPONSES = ["one", "three", "fourteen", ""]
KEY = "k3y-of-a-test"


class FakeClock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.slept, self.lock = 0.0, [], threading.Lock()

    def sleep(self, seconds, stop):
        with self.lock:
            self.now += seconds
            self.slept.append(seconds)

    def clock(self):
        return Clock(lambda: self.now, lambda: 1e9 + self.now, self.sleep)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def fake():
    return FakeClock()


@pytest.fixture
def made(tmp_path, fake):
    """Return a builder of scorers, whose kept scores lie in one folder."""

    def make(service, clock=None, **keys):
        url = service.url if isinstance(service, Service) else service
        spec = remote.PlainSpec(**{"url": url, "cache": "kept", "concurrency": 1, **keys})
        return checked(remote.build_http(spec, Setting("cost", tmp_path, None, None), clock=clock or fake.clock()))

    return make


def scores(scorer, responses=RESPONSES):
    return scorer([PROMPT] * len(responses), list(responses)).tolist()


TRUE = [true_score(response) for response in RESPONSES]


def cut(handler, body):
    """Announce the whole answer, send most of it, hang up."""
    content = json.dumps({"items": true_items(body)}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:-3])


def cut_unannounced(handler, body):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps({"items": true_items(body)}).encode()[:-1])


def hang_up(handler, body):
    handler.close_connection = True


def literal(value):
    """Return the fault of an answer whose first score is written as ``value``."""

    def fault(handler, body):
        first, *others = true_items(body)
        text = json.dumps({"items": [{**first, "score": "HERE"}, *others]}).replace('"HERE"', value)
        answer(handler, 200, text.encode())

    return fault


def with_first(**change):
    return answers_json(lambda items: {"items": [{**items[0], **change}, *items[1:]]})


TRANSIENT = {
    "500": (answers_status(500), "HTTP 500 Internal Server Error"),
    "503 with words": (answers_status(503, b"model is\n loading\x1b[31m"), "loading"),
    "429": (answers_status(429), "HTTP 429 Too Many Requests"),
    "408": (answers_status(408), "HTTP 408"),
    "599 has no name": (answers_status(599), "HTTP 599"),
    "hangs up": (hang_up, "no answer"),
    "cut": (cut, "broke off"),
    "cut, length not announced": (cut_unannounced, "not JSON"),
    "NaN": (literal("NaN"), "NaN is not a number of JSON"),
    "Infinity": (literal("-Infinity"), "-Infinity is not"),
    "1e999": (literal("1e999"), "items.0.score"),
    "integer beyond floats": (literal("1" + "0" * 400), "items.0.score"),
    "integer of 5,000 digits": (literal("1" * 5000), "not JSON"),
    "null": (literal("null"), "items.0.score"),
    "true": (literal("true"), "items.0.score"),
    "text": (literal('"0.5"'), "items.0.score"),
    "score twice": (literal('1, "score": 2'), "occurs twice"),
    "one too few": (answers_json(lambda items: {"items": items[:-1]}), "3 items for 4 rows"),
    "one too many": (answers_json(lambda items: {"items": [*items, {"id": "x", "score": 1}]}), "5 items for 4 rows"),
    "none": (answers_json(lambda items: {"items": []}), "0 items for 4 rows"),
    "an id twice": (answers_json(lambda items: {"items": [items[0], *items[:-1]]}), "an id twice"),
    "a foreign id": (with_first(id="x"), "1 ids that were not asked for"),
    "no id": (answers_json(lambda items: {"items": [{"score": item["score"]} for item in items]}), "items.0.id"),
    "bare numbers": (answers_json(lambda items: [item["score"] for item in items]), "another form"),
    "other name": (answers_json(lambda items: {"scores": items}), "items: Field required"),
    "HTML page": (answers_status(200, b"<html><body>Welcome</body></html>", Content_Type="text/html"), "<html>"),
    "empty": (answers_status(200), "not JSON"),
    "204": (answers_status(204), "not JSON"),
    "not UTF-8": (answers_status(200, b'{"items": "\xff"}'), "not UTF-8"),
    "nested without end": (answers_status(200, b"[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_one_fault_costs_one_retry_and_no_score(name, made):
    with serving(TRANSIENT[name][0]) as service:
        assert scores(made(service)) == TRUE
        (_, first, body), (_, second, again) = service.requests
        assert first["idempotency-key"] == second["idempotency-key"] == body["id"] and body == again
        assert scores(made(service)) == TRUE, "kept"
        assert len(service.requests) == 2


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_lasting_fault_is_an_error_of_one_line_and_never_a_score(name, made, tmp_path):
    fault, says = TRANSIENT[name]
    with serving(*[fault] * 3) as service:
        with pytest.raises(ScorerError, match=re.escape(says)) as caught:
            scores(made(service, attempts=3))
        assert len(service.requests) == 3
    message = str(caught.value)
    assert message.isprintable() and len(message) < 450 and caught.value.exit_code == 69
    assert "3 attempts; 0 of 4 rows are scored and kept" in message
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "Bad Request: no such field"),
        (401, "key_from"),
        (403, "key_from"),
        (404, "Not Found"),
        (301, "final addr"),
    ],
)
def test_what_cannot_be_mended_by_waiting_is_sent_once(status, says, made):
    with serving(*[answers_status(status, b"no such field")] * 9) as service:
        with pytest.raises(ScorerError, match=says):
            scores(made(service))
        assert len(service.requests) == 1


def test_refused_connection(made, fake):
    with serving() as service:
        pass
    with pytest.raises(ScorerError, match=r"no answer \(.*refused\), 5 attempts"):
        scores(made(service))
    assert len(fake.slept) == 4


def hang(service):
    return lambda handler, body: service.gate.wait(10) and None


def drip(handler, body):
    """Send a byte at a time: each comes in time, the answer does not."""
    content = json.dumps({"items": true_items(body)}).encode()
    handler.send_response(200)
    handler.end_headers()
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        threading.Event().wait(0.02)


def test_a_service_that_hangs_or_drips_is_left_after_the_timeout(made):
    with serving() as service:
        service.script += [hang(service), drip]
        with pytest.raises(ScorerError, match=r"no answer within 0.2 s, 2 attempts"):
            scores(made(service, clock=Clock(), timeout=0.2, attempts=2, backoff=0.0))


def drip_headers(handler, body):
    """Send a whole answer of 80 header lines, a byte at a time: twelve seconds or more."""
    lines = b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 80 + b"\r\n" + json.dumps({"items": true_items(body)}).encode()
    for byte in lines:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        threading.Event().wait(0.025)


def test_headers_that_drip_are_left_after_the_timeout_too(made):
    with serving(*[drip_headers] * 2) as service:
        started = time.monotonic()
        with pytest.raises(ScorerError, match=r"no answer within 0.2 s, 2 attempts"):
            scores(made(service, clock=Clock(), timeout=0.2, attempts=2, backoff=0.0))
        assert time.monotonic() - started < 6


@pytest.mark.parametrize("announced", ["\xb2", "-5", "", "9" * 5000, "0" * 5000])
def test_an_answer_whose_length_no_parser_takes_is_asked_for_again(made, announced):
    """As RFC 9112 (section 6.3) wants it: such an answer is discarded, wherever it seems to end."""

    def announces(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", announced)
        handler.end_headers()
        handler.wfile.write(json.dumps({"items": true_items(body)}).encode())

    with serving(announces) as service:
        assert scores(made(service)) == TRUE
        assert len(service.requests) == 2


def test_an_answer_without_end_is_not_read_to_the_end(made, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_BYTES", 1000)
    with serving(answers_status(200, b" " * 200_000)) as service, pytest.raises(ScorerError, match="longer than 1000"):
        scores(made(service))


def test_the_order_is_that_of_the_ids(made):
    with serving(answers_json(lambda items: {"items": items[::-1], "took": 3})) as service:
        assert scores(made(service)) == TRUE
        assert len(service.requests) == 1


def test_retry_after_is_waited_for_and_no_longer_than_allowed(made, fake):
    in_a_while = formatdate(1e9 + 20, usegmt=True)
    asked = [answers_status(429, Retry_After="7"), answers_status(503, Retry_After=in_a_while)]
    with serving(*asked) as service:
        assert scores(made(service)) == TRUE
    # The first wait is for 7 s. By the clock of the service 13 s are then left of the 20.
    assert fake.slept == [7, pytest.approx(13)]
    with serving(answers_status(429, Retry_After="61")) as service:
        with pytest.raises(ScorerError, match=r"asks for 61 s of rest, above max_wait 60"):
            scores(made(service))
        assert len(service.requests) == 1


def test_waits_double_between_half_and_all(made, fake):
    with serving(*[answers_status(500)] * 6) as service:
        scores(made(service, attempts=7, backoff=2.0, max_wait=20.0))
    longest = np.array([2, 4, 8, 16, 20, 20])
    assert len(fake.slept) == 6 and (longest / 2 <= fake.slept).all() and (fake.slept <= longest).all()


def test_requests_keep_to_the_rate_retries_included(made, fake):
    with serving(answers_status(500)) as service:
        scores(made(service, batch_size=1, requests_per_second=0.5, backoff=0.0))
        assert len(service.requests) == 5
    assert fake.now == pytest.approx(4 * 2.0)


def test_requests_go_out_together_up_to_the_concurrency(made):
    together = threading.Barrier(3, timeout=5)
    under_way, most, lock = 0, 0, threading.Lock()

    def meet(handler, body):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait()
        with lock:
            under_way -= 1
        answer(handler, 200, json.dumps({"items": true_items(body)}).encode())

    with serving(*[meet] * 6) as service:
        responses = [f"{'x' * n}" for n in range(6)]
        assert scores(made(service, batch_size=1, concurrency=3), responses) == list(map(true_score, responses))
    assert most == 3


def test_equal_rows_are_sent_once_and_other_prompts_are_other_rows(made):
    with serving() as service:
        scorer = made(service, batch_size=10)
        assert scores(scorer, ["aa", "b", "aa"]) == [0.5, 0.25, 0.5]
        assert service.asked == [["aa", "b"]]
        scorer(
            [PROMPT, Prompt("other"), Prompt(PROMPT.text, history=(Turn("user", "x"), Turn("assistant", "y")))],
            ["b"] * 3,
        )
        assert service.asked[1:] == [["b", "b"]]
        assert service.requests[1][2]["items"][1]["history"] == [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
        ]
        assert "history" not in service.requests[1][2]["items"][0]


def test_after_a_failure_only_the_rest_is_sent(made):
    responses = ["r" * n for n in range(10)]
    honest, broken = answers_json(lambda items: {"items": items}), answers_status(500)
    with serving(honest, honest, honest, broken, broken) as service:
        with pytest.raises(
            ScorerError, match="6 of 10 rows are scored and kept, and the same command sends the others"
        ):
            scores(made(service, batch_size=2, attempts=2), responses)
        sent = service.asked
        assert sent == [responses[0:2], responses[2:4], responses[4:6], responses[6:8], responses[6:8]]
        assert scores(made(service, batch_size=3), responses) == list(map(true_score, responses))
        assert service.asked[5:] == [responses[6:9], responses[9:]]


def test_requests_under_way_are_kept_when_another_fails(made):
    failed = threading.Event()

    def slow(handler, body):
        failed.wait(5)
        threading.Event().wait(0.05)
        answer(handler, 200, json.dumps({"items": true_items(body)}).encode())

    def by_content(handler, body):
        if body["items"][0]["response"] == "bad":
            answer(handler, 400, b"")
            failed.set()
        else:
            slow(handler, body)

    with serving(*[by_content] * 2) as service:
        with pytest.raises(ScorerError, match="1 of 2 rows"):
            scores(made(service, batch_size=1, concurrency=2), ["good", "bad"])
        assert scores(made(service), ["good", "bad"]) == [1.0, 0.75]
        assert service.asked[2:] == [["bad"]]


def test_the_key_is_sent_and_seen_nowhere_else(made, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    with serving(answers_status(401, f"invalid key '{KEY}'".encode())) as service:
        scorer = made(service, key_from="JUDGE_KEY")
        with pytest.raises(ScorerError, match=r"invalid key '\*\*\*'") as caught:
            scores(scorer)
        assert service.requests[0][1]["authorization"] == f"Bearer {KEY}"
        assert KEY not in f"{caught.value}{scorer!r}{scorer.id}"
        assert scorer.revision == made(service).revision
        scores(scorer)
        assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.json"))
        assert KEY not in json.dumps(service.requests[0][2])


def test_a_redirect_takes_the_key_to_no_other_host(made, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as other, serving(*[answers_status(s, Location=other.url) for s in (302, 307)]) as service:
        for _ in range(2):
            with pytest.raises(ScorerError, match="redirects are not followed"):
                scores(made(service, key_from="JUDGE_KEY"))
        assert not other.requests and len(service.requests) == 2


def test_a_key_that_is_missing_or_unsendable_is_noticed_before_anything_is_sent(made, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(MissingError, match="JUDGE_KEY is not set"):
        made("http://x/score", key_from="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX-Evil: 1")
    with pytest.raises(ConfigError, match="JUDGE_KEY holds blanks") as caught:
        made("http://x/score", key_from="JUDGE_KEY")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"url": "file:///etc/passwd"}, "scheme 'file'; http:// or https:// is needed"),
        ({"url": "ftp://host/x"}, "scheme 'ftp'"),
        ({"url": "host.example/score"}, "scheme ''"),
        ({"url": "http:///score"}, "names no host"),
        ({"url": "http://host:port/"}, "[Pp]ort"),
        ({"url": "http://[::1/score"}, "Invalid IPv6"),
        ({"url": "http://me:s3cret@host/"}, "holds a user name or password"),
        ({"url": "http://host/a b"}, "%XX"),
        ({"url": "http://host/\r\nX-Evil: 1"}, "%XX"),
        ({"url": "http://host/#top"}, "fragment"),
        ({"key_from": "sk-s3cret"}, "the key itself must not stand here"),
        ({"key_from": "gsk_s3cret"}, "the key itself must not stand here"),
        ({"timeout": 0.0}, "greater than 0"),
        ({"timeout": float("inf")}, "finite"),
        ({"attempts": 0}, "greater than or equal to 1"),
        ({"batchsize": 2}, "did you mean 'batch_size'"),
        ({"requests_per_second": 0.0}, "greater than 0"),
    ],
)
def test_mistakes_in_the_keys_repeat_no_secret(keys, says):
    with pytest.raises(ConfigError, match=says) as caught:
        make_scorer({"kind": "http", "url": "http://host/score", **keys}, direction="cost")
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_revision_is_that_of_the_numbers_not_of_the_way_to_them(made):
    same = [made("http://h/s", **keys).revision for keys in ({}, {"timeout": 1.0}, {"batch_size": 2}, {"cache": "x"})]
    other = [made("http://h/t").revision, made("http://h/s", version="2").revision]
    assert len(set(same)) == 1 and len({*same, *other}) == 3
    assert made("http://h:8/s/?a=b").id == "http(h:8/s)"


def test_a_new_version_is_asked_again(made):
    with serving() as service:
        scores(made(service))
        scores(made(service, version="2"))
        (_, first, _), (_, second, _) = service.requests
        assert first["idempotency-key"] != second["idempotency-key"], "or the service would repeat its old answer"


def test_a_damaged_kept_score_is_named_and_not_used(made, tmp_path):
    with serving() as service:
        scores(made(service), ["a"])
        (path,) = tmp_path.rglob("*.json")
        whole = path.read_text()
        for damaged in (
            whole[:-4],
            "[]",
            whole.replace("0.25", "null"),
            whole.replace("0.25", "true"),
            '{"score": 1.0}',
        ):
            path.write_text(damaged)
            with pytest.raises(DataError, match=path.name):
                scores(made(service), ["a"])
        path.unlink()
        assert scores(made(service), ["a"]) == [0.25]


def test_a_lone_surrogate_and_every_control_character_reach_the_service(made):
    response = "\ud800" + "".join(map(chr, range(32))) + "\u2028é"
    with serving() as service:
        assert scores(made(service), [response]) == [true_score(response)]
        assert service.asked == [[response]]


def test_nothing_to_score_sends_nothing(made):
    with serving() as service:
        assert made(service)([], []).shape == (0,)
        assert not service.requests


def test_an_answer_is_asked_for_as_it_is_and_no_cookie_comes_back(made):
    """A few compressed bytes could fill the memory: the limit on an answer counts what is sent."""
    with serving(answers_json(lambda items: {"items": items}), answers_status(200, Set_Cookie="a=b")) as service:
        scores(made(service), ["a"])
        scores(made(service), ["b"])
        assert {headers["accept-encoding"] for _, headers, _ in service.requests} == {"identity"}
        assert not any("cookie" in headers for _, headers, _ in service.requests)


@pytest.fixture
def proxies(monkeypatch):
    """Return a setter of the proxies that the environment names; all others are taken away."""

    def put(**named):
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in named.items():
            monkeypatch.setenv(name, value)

    return put


def test_the_proxy_of_the_environment_is_asked_and_no_other(made, proxies):
    with serving() as service:
        host = service.url.removeprefix("http://").removesuffix("/score")
        for named in (f"http://{host}", host):
            proxies(http_proxy=named)
            assert scores(made("http://judge.invalid/score", version=named)) == TRUE
        assert {path for path, _, _ in service.requests} == {"http://judge.invalid/score"}
        for others in ({"https_proxy": "http://127.0.0.1:1"}, {"all_proxy": "socks5://127.0.0.1:1"}, {
            "http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}):  # fmt: skip
            proxies(**others)
            assert scores(made(service, version=str(others))) == TRUE
    assert service.requests[-1][0] == "/score"


@pytest.mark.parametrize("named", ["ftp://me:s3cret@h/", "http://me:s3cret@h:port/"])
def test_a_proxy_that_cannot_be_used_is_one_line_without_its_password(made, proxies, named):
    proxies(http_proxy=named)
    with pytest.raises(ConfigError, match="the proxy that the environment names for judge.invalid/score") as caught:
        made("http://judge.invalid/score")
    assert "s3cret" not in str(caught.value)
