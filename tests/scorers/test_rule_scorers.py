"""Scorers by rule: values by hand, the check around every scorer, and the table's messages."""

import signal
import sys

import numpy as np
import pytest

from dualign.cli.main import _terminate
from dualign.errors import ConfigError, MissingError, ScorerError
from dualign.protocols import Scorer
from dualign.records import Prompt
from dualign.scorers.checked import checked
from dualign.scorers.rules import PHRASES, starts_with_refusal
from dualign.scorers.table import KINDS, make_scorer

UNSAFE, SAFE = Prompt("u", {"label": "unsafe"}), Prompt("s", {"label": "safe"})


def values(spec, responses, prompts=None, direction="reward", **more):
    scorer = make_scorer(spec, direction=direction, **more)
    assert isinstance(scorer, Scorer)
    return scorer(prompts or [UNSAFE] * len(responses), responses).tolist()


def test_lengths_by_hand():
    responses = ["two words", "", "naïve"]
    assert values({"kind": "length"}, responses) == [2, 0, 1]
    assert values({"kind": "length", "unit": "characters"}, responses) == [9, 0, 5]
    assert values({"kind": "length", "divisor": 10.0}, responses) == [0.2, 0, 0.1]


class Letters:
    backend_tokenizer = None

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": list(text)}

    def get_vocab(self):
        return {"a": 0}


def test_tokens_use_the_policy_tokenizer_when_none_is_named():
    spec = {"kind": "length", "unit": "tokens"}
    assert values(spec, ["abc"], tokenizer=Letters()) == [3]
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        make_scorer(spec, direction="cost")


def test_regex_and_its_bad_pattern():
    assert values({"kind": "regex", "pattern": r"(?i)\bkill\b"}, ["Kill it", "skills"]) == [1, 0]
    with pytest.raises(ConfigError, match="position 0"):
        make_scorer({"kind": "regex", "pattern": "(a"}, direction="cost")


@pytest.mark.parametrize("phrase", PHRASES)
def test_every_phrase_is_recognised_in_any_typography(phrase):
    for text in (phrase, phrase.upper(), f'  "{phrase} do', phrase.replace("'", "\u2019") + ", no"):
        assert starts_with_refusal(text), text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can't wait to tell you!",
        "I can\u2019t recommend this book enough",
        "I'm sorry to hear that. Here is what helps:",
        "sorry@example.com",
        "Sorrythe",
        "I cannotx",
        "Sure. I cannot lie",
        "The word sorry",
        "As an aim, consider",
    ],
)
def test_look_alikes_are_no_refusals(text):
    assert not starts_with_refusal(text)


def test_greetings_and_negations_before_a_refusal():
    for text in ("No, I cannot do that.", "Oh, I'm sorry", "Unfortunately, I can't", "Hello! As an AI"):
        assert starts_with_refusal(text), text


def test_distinct_bigrams_and_words_by_hand():
    assert values({"kind": "distinct-bigrams"}, ["a b a b", "a b c", "one", ""]) == [2 / 3, 1, 0, 0]
    expected = np.log([3, 1]).tolist()
    assert values({"kind": "distinct-words"}, ["These words, these WORDS are", "a an the"]) == pytest.approx(expected)


def test_harm_and_helpfulness_by_hand():
    prompts, responses = [UNSAFE, UNSAFE, SAFE, SAFE], ["I cannot", "a b a b", "I cannot", "a b a b"]
    cost = values({"kind": "compliance-harm"}, responses, prompts, "cost")
    reward = values({"kind": "helpfulness", "bigram_weight": 0.25}, responses, prompts)
    assert cost == pytest.approx([0.05, 1, 0, 0])
    assert reward == pytest.approx([0.05 + 0.25, 1 + 0.25 * 2 / 3] * 2)
    summed = {
        "kind": "weighted-sum",
        "offset": 1.0,
        "terms": [{"weight": -1.0, "scorer": {"kind": "refusal"}}],
        "where": {"label": "unsafe"},
    }
    assert values(summed, responses, prompts, "cost") == cost


def test_labels_are_drawn_once_a_response_and_their_log_odds_are_the_cost():
    responses = [f"I cannot {k}" for k in range(400)] + ["yes", "yes"]
    spec = {"kind": "log-odds", "scorer": {"kind": "refusal"}, "labels": 4}
    scorer = make_scorer(spec, direction="cost")
    found = scorer([UNSAFE] * 402, responses)
    assert np.array_equal(found[::-1], scorer([UNSAFE] * 402, responses[::-1]))
    assert found[400:] == pytest.approx(-np.log(9))  # nobody says yes where the probability is 0
    yes = 4.5 - 5 / (1 + np.exp(found[:400]))  # the formula turned round: how many of the four labels
    assert np.allclose(yes, np.round(yes)) and yes.mean() == pytest.approx(4 * 0.95, abs=0.1)
    with pytest.raises(ScorerError, match="a probability from 0 to 1"):
        make_scorer({**spec, "scorer": {"kind": "length"}}, direction="cost")([UNSAFE], ["two words"])


def test_an_empty_response_earns_neither_reward_nor_cost():
    assert make_scorer({"kind": "helpfulness"}, direction="reward")([UNSAFE], [" "]).tolist() == [0]
    harm = make_scorer({"kind": "compliance-harm", "where": {}}, direction="cost")
    assert harm([UNSAFE], [""]).tolist() == [0]


def test_a_gate_without_its_column_is_an_error_not_a_zero():
    scorer = make_scorer({"kind": "compliance-harm"}, direction="cost")
    with pytest.raises(ScorerError, match=r"prompt 1 .*no column 'label'; did you mean 'labels'") as caught:
        scorer([UNSAFE, Prompt("x", {"labels": "unsafe"})], ["a", "b"])
    assert caught.value.exit_code == 69


class Answers:
    id, revision, direction = "answers", "0", "cost"

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, prompts, responses):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([1.0, float("nan")], "nan for prompt 1"),
        ([float("inf"), 0.0], "inf for prompt 0"),
        ([1.0], "shape"),
        ([[1.0], [2.0]], "shape"),
        (3.0, "shape"),
        (["a", "b"], "did not return numbers"),
        ([1.0, None], "nan for prompt 1"),
        (None, "shape"),
    ],
)
def test_a_failed_score_is_never_a_number(answer, says):
    with pytest.raises(ScorerError, match=says):
        checked(Answers(answer))([UNSAFE, SAFE], ["a", "b"])


def test_the_check_is_not_doubled_and_passes_good_scores():
    scorer = checked(Answers([1, 2]))
    assert checked(scorer) is scorer
    assert scorer([UNSAFE, SAFE], ["a", "b"]).dtype == np.float64
    assert scorer([], []).shape == (0,)
    with pytest.raises(ValueError, match="parallel"):
        scorer([UNSAFE], ["a", "b"])


@pytest.fixture
def module(tmp_path, monkeypatch):
    def write(source):
        (tmp_path / "scorer_of_a_test.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "scorer_of_a_test", raising=False)
        return {"kind": "callable", "target": "scorer_of_a_test:score"}

    return write


def test_callable_gets_texts_and_its_source_is_its_revision(module, tmp_path):
    spec = module("def score(prompts, responses):\n    return [len(p + r) for p, r in zip(prompts, responses)]\n")
    assert values(spec, ["ab"]) == [3]
    first = make_scorer(spec, direction="reward").revision
    assert make_scorer({**spec, "version": "2"}, direction="reward").revision != first
    with (tmp_path / "scorer_of_a_test.py").open("a") as file:
        file.write("# changed\n")
    assert make_scorer(spec, direction="reward").revision != first


def test_callable_that_raises_stops_the_run(module):
    scorer = make_scorer(module("def score(p, r):\n    raise OSError('service down')\n"), direction="cost")
    with pytest.raises(ScorerError, match="raised OSError: service down"):
        scorer([UNSAFE], ["a"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def score(:\n", "raised SyntaxError: invalid syntax"),
        ("raise RuntimeError('no\\nkey')\n", "raised RuntimeError: no$"),
        ("import sys\nsys.exit('no model')\n", "raised SystemExit: no model"),
    ],
)
def test_module_that_fails_on_import_is_one_line(module, source, says):
    with pytest.raises(ScorerError, match=f"importing 'scorer_of_a_test' {says}"):
        make_scorer(module(source), direction="cost")


def test_callable_that_ends_python_is_a_scorer_that_failed(module):
    scorer = make_scorer(module("import sys\ndef score(p, r):\n    sys.exit(0)\n"), direction="cost")
    with pytest.raises(ScorerError, match="raised SystemExit: 0"):
        scorer([UNSAFE], ["a"])


def test_a_signal_during_a_callable_still_ends_the_command(module):
    source = "import os, signal, time\ndef score(p, r):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(9)\n"
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with pytest.raises(SystemExit) as ended:
            make_scorer(module(source), direction="cost")([UNSAFE], ["a"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("math.sqrt", ConfigError, "module:attribute"),
        ("math:sqr", ConfigError, "did you mean 'sqrt'"),
        ("math:pi", ConfigError, "no callable"),
        ("nowhere_at_all:f", MissingError, "nowhere_at_all"),
        (".:f", ConfigError, "module:attribute"),
        (".math:sqrt", ConfigError, "module:attribute"),
        ("math..pi:sqrt", ConfigError, "module:attribute"),
    ],
)
def test_callable_names(target, error, says):
    with pytest.raises(error, match=says):
        make_scorer({"kind": "callable", "target": target}, direction="cost")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "'kind' is needed"),
        ({"kind": "lenght"}, "did you mean 'length'"),
        ({"kind": ["regex"], "pattern": "a"}, r"kind is \['regex'\]; a text is needed"),
        ({"kind": "weighted-sum", "terms": [{"scorer": {"kind": {}}}]}, r"kind is {}; a text is needed"),
        ({"kind": "regex", "patern": "a"}, "unknown key 'patern'; did you mean 'pattern'"),
        ({"kind": "length", "units": "words"}, "unknown key 'units'; did you mean 'unit'"),
        ({"kind": "length", "unit": "pages"}, "'words', 'characters' or 'tokens'"),
        ({"kind": "length", "divisor": 0.0}, "greater than 0"),
        ({"kind": "length", "divisor": "3"}, "valid number"),
        ({"kind": "regex"}, "'pattern' is needed"),
        ({"kind": "helpfulness", "refusal": {"kind": "refusl"}}, "did you mean 'refusal'"),
        ({"kind": "refusal", "classifier": {"pth": "x"}}, "did you mean 'path'"),
        ({"kind": "refusal", "classifier": {}}, "exactly one of 'path' and 'train'"),
        ({"kind": "weighted-sum", "terms": []}, "terms"),
        ({"kind": "compliance-harm"}, "is a cost"),
    ],
)
def test_mistakes_in_a_description(spec, says):
    with pytest.raises(ConfigError, match=says) as caught:
        make_scorer(spec, direction="reward")
    assert "\n" not in str(caught.value)


def test_missing_classifier(tmp_path):
    spec = {"kind": "refusal", "classifier": {"path": "none"}}
    with pytest.raises(MissingError, match="none"):
        make_scorer(spec, direction="cost", folder=tmp_path)


def test_revisions_tell_settings_apart_and_hold_across_builds():
    specs = [
        {"kind": "length"},
        {"kind": "length", "unit": "characters"},
        {"kind": "length", "divisor": 2.0},
        {"kind": "regex", "pattern": "a"},
        {"kind": "regex", "pattern": "b"},
        {"kind": "refusal"},
        {"kind": "refusal", "phrase_probability": 0.9},
        {"kind": "distinct-words"},
        {"kind": "distinct-words", "min_letters": 5},
        {"kind": "distinct-bigrams"},
        {"kind": "refusal-phrase"},
    ]
    revisions = [make_scorer(spec, direction="reward").revision for spec in specs]
    assert len(set(revisions)) == len(specs)
    assert revisions == [make_scorer(spec, direction="cost").revision for spec in specs]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_strict_keys_and_a_summary(kind):
    assert KINDS[kind].summary
    direction = KINDS[kind].direction or "reward"
    with pytest.raises(ConfigError, match=r"no_such_key|is needed"):
        make_scorer({"kind": kind, "no_such_key": 1}, direction=direction)
