"""The lexical classifier: saved without loss, honest quality, one training for equal requests."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dualign.data.prompts import read_demonstrations
from dualign.errors import DataError, MissingError
from dualign.job.measurement import Scored
from dualign.job.results import unread
from dualign.maths.agreement import clustered_auc, wilson
from dualign.protocols import words_read
from dualign.records import Prompt, Response
from dualign.scorers.checked import checked
from dualign.scorers.lexical import (
    LabelledText,
    LexicalTraining,
    fit_lexical,
    lexical_scorer,
    load_lexical,
    quality,
    trained,
)
from dualign.scorers.rules import refusal_scorer
from dualign.scorers.spec import Setting
from dualign.scorers.sums import (
    ComplianceHarmSpec,
    LogOddsSpec,
    build_compliance_harm,
    build_log_odds,
    weighted_sum,
)
from dualign.scorers.table import make_scorer

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
TOPICS = ["bombs", "cakes", "taxes", "poems", "locks", "gardens", "rivers", "engines", "songs", "horses"]


def fit(rows, **settings):
    return fit_lexical(rows, LexicalTraining(**settings))


def rows(n=60):
    generator = np.random.default_rng(0)
    texts = []
    for index in range(n):
        topic, other = generator.choice(TOPICS, 2, replace=False)
        texts.append(LabelledText(f"I will not talk of {topic} or {other}, it is wrong", True, f"p{index}"))
        texts.append(LabelledText(f"Here is how {topic} go with {other}, step by step", False, f"p{index}"))
    return texts


def test_saved_classifier_gives_the_same_numbers(tmp_path):
    classifier = fit(rows())
    texts = [row.text for row in rows()] + ["", "something else \u2019 altogether"]
    classifier.save(tmp_path / "c")
    loaded = load_lexical(tmp_path / "c")
    assert np.array_equal(classifier.logits(texts), loaded.logits(texts))
    assert loaded.revision == classifier.revision
    assert loaded.quality == classifier.quality
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["lexical.json", "lexical.safetensors"]
    assert np.array_equal(fit(rows()).logits(texts), classifier.logits(texts))


def test_separable_rows_are_separated_and_words_past_the_cut_do_not_count():
    classifier = fit(rows(), max_words=6)
    figures = classifier.quality
    assert figures["accuracy"] == 1 and figures["auc"] == 1 and figures["auc_low"] < 1
    one, two = classifier.logits(["I will not talk of cakes or", "I will not talk of cakes and many more words"])
    assert one == two


class Inner:
    """A scorer of a classifier's words, for what scorers are made of."""

    id, revision, direction = "inner", "1", "cost"

    def __init__(self, words):
        self.words_read = words

    def __call__(self, prompts, responses):
        return np.full(len(responses), 0.5)


def around(inner):
    return Setting("cost", Path(), None, lambda _: inner)


def test_every_scorer_says_how_many_words_it_reads():
    classifier = fit(rows(), max_words=6)
    lexical, refusal = lexical_scorer(classifier, "cost"), refusal_scorer(classifier, "cost", 0.95)
    phrases = refusal_scorer(None, "cost", 0.95)
    assert [words_read(checked(one)) for one in (lexical, refusal, phrases)] == [6, 6, None]
    assert words_read(build_compliance_harm(ComplianceHarmSpec(), around(refusal))) == 6
    both = weighted_sum([(1.0, Inner(9)), (2.0, lexical), (1.0, Inner(None))], "cost")
    assert words_read(checked(both)) == 6
    assert words_read(build_log_odds(LogOddsSpec(scorer={}), around(both))) == 6


def test_answers_that_a_scorer_does_not_read_whole_are_counted():
    made = Scored((Prompt("x"),), ((Response("one two three"), Response("one")),), *[np.zeros((1, 2))] * 3)
    assert unread({"reward": Inner(None), "harm": Inner(2)}, made) == [
        "harm (inner) reads the first 2 words of an answer: 1 of 2 answers that are trained on have more"
    ]
    assert unread({"reward": Inner(None), "harm": Inner(3)}, made) == []


def test_labels_without_meaning_score_at_chance():
    generator = np.random.default_rng(1)
    noise = [
        LabelledText(" ".join(generator.choice(TOPICS, 6)), bool(generator.integers(2)), f"p{index}")
        for index in range(300)
    ]
    figures = fit(noise).quality
    assert figures["auc_low"] < 0.5 < figures["auc_high"]


def test_groups_are_not_split_over_folds():
    # Two rows of a group share a unique word; with the group split, the word would give the class away.
    generator = np.random.default_rng(2)
    texts = []
    for index in range(80):
        label = bool(generator.integers(2))
        texts += [
            LabelledText(f"{index:03d}key{index:03d} {word}", label, f"g{index}")
            for word in generator.choice(TOPICS, 2)
        ]
    grouped = fit(texts).quality
    split = fit([LabelledText(row.text, row.positive, row.text) for row in texts]).quality
    assert grouped["auc"] < 0.65 < 0.8 < split["auc"]


def test_altered_files_are_refused(tmp_path):
    fit(rows(20)).save(tmp_path)
    head = json.loads((tmp_path / "lexical.json").read_text())
    (tmp_path / "lexical.json").write_text(json.dumps({**head, "intercept": head["intercept"] + 1}))
    with pytest.raises(DataError, match="altered"):
        load_lexical(tmp_path)
    (tmp_path / "lexical.json").write_text(json.dumps({**head, "format": "dualign-lexical-0"}))
    with pytest.raises(DataError, match="'dualign-lexical-0'; dualign-lexical-1 is needed: fit it again"):
        load_lexical(tmp_path)
    (tmp_path / "lexical.json").write_text(json.dumps(head))
    (tmp_path / "lexical.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match="damaged"):
        load_lexical(tmp_path)
    (tmp_path / "lexical.safetensors").unlink()
    with pytest.raises(MissingError, match="safetensors"):
        load_lexical(tmp_path)


def test_too_few_rows_of_a_class():
    with pytest.raises(DataError, match="3 groups of negative rows"):
        fit([row for row in rows() if row.positive or row.group in {"p0", "p1", "p2"}])


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path.name


def test_equal_trainings_are_done_once_and_paths_give_equal_scores(tmp_path):
    refused = write(
        tmp_path / "r.jsonl", [{"prompt": f"r{i}", "response": r.text} for i, r in enumerate(rows()) if r.positive]
    )
    labelled = write(tmp_path / "l.jsonl", [{"response": r.text, "label": 0} for r in rows() if not r.positive])
    refusal = {"kind": "refusal", "classifier": {"train": {"positives": [refused], "rows": [labelled]}}}
    spec = {"a": {"kind": "helpfulness", "refusal": refusal}, "b": [{"kind": "compliance-harm", "refusal": refusal}]}
    new, qualities = trained(spec, folder=tmp_path, out=tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == len(qualities) == 1
    assert next(iter(qualities.values()))["accuracy"] == 1
    before = make_scorer(spec["a"], direction="reward", folder=tmp_path)
    after = make_scorer(new["a"], direction="reward")
    texts = ["I will not talk of cakes", "Here is how cakes go"]
    prompts = [Prompt("x", {"label": "unsafe"})] * 2
    assert before.revision == after.revision
    assert before(prompts, texts).tolist() == after(prompts, texts).tolist()
    low, high = make_scorer(new["b"][0], direction="cost")(prompts, texts)
    assert low < 0.3 < 0.7 < high
    with (tmp_path / "l.jsonl").open("a") as file:
        file.write(json.dumps({"response": "Sure", "label": 0}) + "\n")
    again, _ = trained(spec, folder=tmp_path, out=tmp_path / "out")
    assert again["a"] != new["a"]


def test_labels_in_a_file_must_be_labels(tmp_path):
    bad = write(tmp_path / "l.jsonl", [{"response": "a", "label": "maybe"}])
    with pytest.raises(DataError, match="line 1"):
        make_scorer({"kind": "lexical", "train": {"rows": [bad]}}, direction="cost", folder=tmp_path)


def test_auc_by_hand_and_delong_variance():
    score = np.array([0.9, 0.4, 0.4, 0.1])
    label = np.array([True, True, False, False])
    area, low, high = clustered_auc(score, label, np.arange(4), 0.95)
    assert area == (1 + 1 + 0.5 + 1) / 4
    # DeLong: placements 1, 3/4 of the positives and 3/4, 1 of the negatives; variance 1/64 from each side.
    half = 1.959963984540054 * np.sqrt(1 / 32) / (area * (1 - area))
    centre = np.log(area / (1 - area))
    assert (low, high) == pytest.approx(tuple(1 / (1 + np.exp(-(centre + s * half))) for s in (-1, 1)))


def test_auc_interval_covers_with_related_rows():
    """3 rows a group with a common part: at 95 % at least 90 % of 300 intervals hold the true AUC."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 3)
    label = np.arange(180) % 2 == 0
    true = 0.7602499389065233  # Phi(1/sqrt(2)): scores have unit variance, means one apart
    covered = naive = 0
    for _ in range(300):
        common = np.repeat(generator.normal(size=60), 3) * np.sqrt(0.5)
        score = label + common + generator.normal(size=180) * np.sqrt(0.5)
        _, low, high = clustered_auc(score, label, group, 0.95)
        covered += low < true < high
        naive += 1
    assert covered >= 0.9 * naive


def test_perfect_scores_do_not_give_certainty():
    label = np.array([True] * 20 + [False] * 30)
    figures = quality(label.astype(float), label, [str(index) for index in range(50)])
    assert figures["auc_high"] == 1 and figures["auc_low"] == pytest.approx(0.025 ** (1 / 20))
    assert figures["accuracy_low"] == pytest.approx(wilson(1.0, 50, 0.95)[0]) and figures["accuracy_low"] < 0.94


def test_indices_are_not_taken_for_labels():
    with pytest.raises(ValueError, match="booleans"):
        quality(np.zeros(2), np.array([0, 1]), ["a", "b"])


def test_wilson_by_hand():
    # 0.5 in 4 trials: z = 1.96 gives 0.1500 and 0.8500 (Brown, Cai and DasGupta 2001).
    assert wilson(0.5, 4, 0.95) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    widths = [high - low for low, high in (wilson(0.3, n, 0.95) for n in (10, 40, 160))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of shared data")
def test_refusals_in_real_answers():
    refusals = SHARED / "safety-tuned-llamas/safety_only_data_Instructions.jsonl"
    answers = [SHARED / "self-instruct" / f"{name}.jsonl" for name in ("seed_tasks", "user_oriented_instructions")]
    labelled = [(True, refusals), *((False, path) for path in answers)]
    harmful = read_demonstrations(SHARED / "pku-saferlhf-5k/pairs.jsonl", response_column="less_safe").demonstrations
    sources = [(kind, read_demonstrations(path).demonstrations) for kind, path in labelled]
    figures = fit(
        [
            LabelledText(response, positive, prompt.id)
            for positive, rows in (*sources, (False, harmful))
            for prompt, response in rows
        ]
    ).quality
    assert figures["auc_low"] > 0.93 and figures["accuracy_low"] > 0.85


def test_texts_without_spaces_or_words_are_told_apart_by_their_characters():
    bad, good = "\u65e0\u6cd5", "\u53ef\u4ee5"
    texts = [
        LabelledText(f"{opening}{chr(0x4E00 + n)}{chr(0x4F00 + n * 7 % 97)}", opening == bad, f"p{n}")
        for n in range(120)
        for opening in (bad, good)
    ]
    classifier = fit(texts)
    assert classifier.quality["auc"] == 1 and classifier.tfidf.words == ()
    refusing, answering = classifier.probabilities([bad, good])
    assert refusing > 0.9 > 0.1 > answering
