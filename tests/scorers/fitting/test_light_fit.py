"""The light path from rows to a scorer in a folder: what it learns, that it is kept whole, and the command."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from command_line import dualign
from dualign.cli.scorer import named_scorer
from dualign.data.formats.table import read_preferences
from dualign.errors import ConfigError, DataError, MissingError
from dualign.hashing import plain
from dualign.records import Prompt
from dualign.scorers.fitted import Tfidf
from dualign.scorers.fitting.entry import fit_scorer, scored, split_pairs
from dualign.scorers.fitting.inputs import FitConfig, pairs_of
from dualign.scorers.table import make_scorer
from dualign.strict import parse_yaml
from fitting_parts import FILLER, HARMFUL, HARMLESS, safety_rows, tiny_model, write_rows

ASKED = [Prompt("question about anything")] * 3
ANSWERS = ["poison steal weapon threat", "poison patience garden steal", "advice kindness patience garden"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    write_rows(folder / "rows.jsonl", safety_rows(120))
    tiny_model(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config(**changes):
    light = {"decays": [0.1, 0.01, 0.001], "folds": 3}
    return FitConfig(
        **{"kind": "cost", "dtype": "float32", "data": {"files": ["rows.jsonl"]}, "light": light} | changes
    )


def fit(data, out, **changes):
    return fit_scorer(config(**changes), data, out, lambda _: None)


def test_a_cost_learns_order_and_zero_and_is_loaded_by_what_the_folder_says(data, tmp_path):
    report = fit(data, tmp_path / "cost")
    assert report["objective"] == "pairs-and-signs"
    assert report["held_out"]["accuracy"]["value"] > 0.9
    assert report["held_out"]["sign_accuracy"]["value"] > 0.85
    spec = parse_yaml((tmp_path / "cost" / "scorer.yaml").read_text(), "scorer.yaml")
    scorer = make_scorer(spec, direction="cost", folder=tmp_path / "cost")
    pairs = split_pairs(pairs_of(read_preferences(data / "rows.jsonl").rows, "cost").pairs, config())[1]
    higher, lower = scored(scorer, pairs)
    assert (higher > lower).mean() == report["held_out"]["accuracy"]["value"]
    worst, middle, best = scorer(ASKED, ANSWERS)
    assert worst > middle > best and worst > 0 > best
    assert scorer.revision == report["revision"]
    assert json.loads((tmp_path / "cost" / "report.json").read_text())["held_out"] == plain(report["held_out"])


def test_the_data_says_which_prompts_were_held_out(data, tmp_path):
    sizes = fit(data, tmp_path / "a")["data"]
    assert sizes["train_prompts"] + sizes["held_out_prompts"] == 120
    assert 12 <= sizes["held_out_prompts"] <= 36
    assert sizes == fit(data, tmp_path / "b")["data"]
    assert sizes != fit(data, tmp_path / "c", seed=1)["data"]


def test_the_same_config_gives_the_same_scorer(data, tmp_path):
    assert fit(data, tmp_path / "a")["revision"] == fit(data, tmp_path / "b")["revision"]


def test_states_of_a_model_are_features_beside_words_or_alone(data, tmp_path):
    light = {"features": ["tfidf", "states"], "decays": [0.01], "folds": 3}
    both = fit(data, tmp_path / "both", model="model", light=light)
    light = {"decays": [0.01], "folds": 3, "layer": 1}
    alone = fit(data, tmp_path / "alone", model="model", light=light)
    assert both["fit"]["states"]["layer"] == 2  # of three: the layer above the middle one
    assert alone["fit"]["states"]["layer"] == 1
    assert (both["fit"]["features"], alone["fit"]["features"]) == (["tfidf", "states"], ["states"])
    assert alone["held_out"]["accuracy"]["value"] > 0.7  # random states still tell which words were there
    folder = make_scorer({"kind": "fitted", "path": str(tmp_path / "alone")}, direction="cost")
    assert folder.revision == alone["revision"]
    one_by_one = [folder(ASKED[:1], [answer])[0] for answer in ANSWERS]
    assert folder(ASKED, ANSWERS) == pytest.approx(one_by_one, abs=1e-5)


def test_pairs_without_flags_say_that_their_zero_means_nothing(tmp_path):
    rows = [
        {"prompt": row["prompt"], "safer": row[f"response_{row['safer_response_id']}"],
         "less_safe": row[f"response_{1 - row['safer_response_id']}"]}
        for row in safety_rows(60)
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    report = fit(tmp_path, tmp_path / "out")
    assert report["objective"] == "pairs" and "arbitrary" in report["zero"]
    assert report["held_out"]["sign_accuracy"] is None
    assert report["held_out"]["accuracy"]["value"] > 0.8


def test_a_reward_learns_nothing_from_coins(data, tmp_path):
    report = fit(data, tmp_path / "reward", kind="reward")
    assert report["held_out"]["accuracy"]["low"] < 0.5 < report["held_out"]["accuracy"]["high"]


def test_a_cost_is_no_reward_unless_it_is_said(data, tmp_path):
    fit(data, tmp_path / "cost")
    spec = {"kind": "fitted", "path": str(tmp_path / "cost")}
    with pytest.raises(ConfigError, match="was fitted as a cost and is used as a reward; say 'fitted_as: cost'"):
        make_scorer(spec, direction="reward")
    inner = {**spec, "fitted_as": "cost"}
    summed = make_scorer({"kind": "weighted-sum", "terms": [{"weight": -2.0, "scorer": inner}]}, direction="reward")
    assert summed(ASKED, ANSWERS) == pytest.approx(-2 * make_scorer(spec, direction="cost")(ASKED, ANSWERS))


def test_an_altered_or_damaged_folder_is_refused(data, tmp_path):
    out = tmp_path / "cost"
    fit(data, out)
    spec = {"kind": "fitted", "path": str(out)}
    weights = load_file(out / "fitted.safetensors")
    save_file({**weights, "tfidf.weights": -weights["tfidf.weights"]}, out / "fitted.safetensors")
    with pytest.raises(DataError, match="was altered"):
        make_scorer(spec, direction="cost")
    (out / "fitted.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(DataError, match="damaged fitted scorer"):
        make_scorer(spec, direction="cost")
    (out / "fitted.json").unlink()
    with pytest.raises(MissingError, match="no fitted.json"):
        make_scorer(spec, direction="cost")


def test_too_few_prompts_are_refused(tmp_path):
    write_rows(tmp_path / "rows.jsonl", safety_rows(4))
    with pytest.raises(DataError, match=r"prompts to train on; at least light.folds = 5|cannot be split"):
        fit(tmp_path, tmp_path / "out", light={"decays": [0.1], "folds": 5})


def test_pairs_longer_than_the_model_takes_are_left_out_and_counted(tmp_path, data):
    rows = safety_rows(40)
    rows[3]["response_0"] += " hello" * 200
    write_rows(tmp_path / "rows.jsonl", rows)
    report = fit(tmp_path, tmp_path / "out", model=str(data / "model"), max_length=150)
    assert report["data"]["left_out"] == {"longer than max_length": 1}
    assert report["data"]["train_pairs"] + report["data"]["held_out_pairs"] == 39


def test_the_command_prints_a_table_or_one_object(data, tmp_path):
    (data / "cost.yaml").write_text("kind: cost\ndata: {files: [rows.jsonl]}\nlight: {decays: [0.01], folds: 3}\n")
    done = dualign("scorer", "fit", data / "cost.yaml", "--out", tmp_path / "out", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "order of the answers" in done.out and "sign of the cost" in done.out
    done = dualign("scorer", "fit", data / "cost.yaml", "--out", tmp_path / "out", "--json")
    report = json.loads(done.out)
    assert report["kind"] == "cost" and "held-out pairs" in done.err
    drawn = (tmp_path / "out" / "reliability.svg").read_text()
    assert drawn.startswith("<svg") and "P(unsafe)" in drawn and np.isfinite(report["held_out"]["accuracy"]["low"])


@pytest.mark.parametrize(("text", "said"), [
    ("kind: cost\ndata: {files: [rows.jsonl]}\npat: light\n", "unknown key 'pat'; did you mean 'path'?"),
    ("kind: cost\ndata: {files: [rows.jsonl], colums: {}}\n", "unknown key 'data.colums'; did you mean 'columns'?"),
    ("kind: harm\ndata: {files: [rows.jsonl]}\n", "key 'kind'"),
    ("kind: cost\ndata: {files: [rows.jsonl]}\npath: lora\n", "path 'lora' needs a 'model'"),
    ("kind: cost\ndata: {files: []}\n", "key 'data.files'"),
    ("kind: cost\ndata: {files: [rows.jsonl]}\nlight: {features: [states]}\n", "'states' needs a 'model'"),
    ("- kind\n", "expected keys (kind, data"),
])  # fmt: skip
def test_a_mistake_in_the_config_is_one_line(data, text, said):
    (data / "wrong.yaml").write_text(text)
    dualign("scorer", "fit", data / "wrong.yaml", "--quiet").refused(65, said)


def test_missing_files_are_one_line(data, tmp_path):
    dualign("scorer", "fit", tmp_path / "none.yaml").refused(66, "none.yaml")
    (data / "missing.yaml").write_text("kind: cost\ndata: {files: [rowz.jsonl]}\n")
    dualign("scorer", "fit", data / "missing.yaml", "--quiet").refused(66, "rowz.jsonl")


def unspaced(text):
    """Return ``text`` in a script without spaces: two characters a word, chosen by the word."""
    words = [*HARMFUL, *HARMLESS, *FILLER]
    return "".join(chr(0x4E00 + 2 * words.index(word)) + chr(0x4E01 + 2 * words.index(word)) for word in text.split())


def test_answers_without_spaces_are_told_apart_by_their_characters(tmp_path):
    rows = [
        {name: unspaced(value) if name in ("response_0", "response_1") else value for name, value in row.items()}
        for row in safety_rows(160)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert fit(tmp_path, tmp_path / "cost")["held_out"]["accuracy"]["value"] > 0.8
    scorer = make_scorer({"kind": "fitted", "path": str(tmp_path / "cost")}, direction="cost")
    head = json.loads((tmp_path / "cost" / "fitted.json").read_text())
    # Some 250 texts, no two alike: each is one word, and a word of one text is left out.
    assert head["features"]["tfidf"]["words"] == [] and head["features"]["tfidf"]["characters"]
    worst, middle, best = scorer(ASKED, [unspaced(answer) for answer in ANSWERS])
    assert worst > middle > best


@pytest.mark.parametrize(("harmful", "harmless"), [("\U0001f44e", "\U0001f44d"), ("??", "!!")])
def test_answers_without_any_word_are_told_apart_by_their_characters(tmp_path, harmful, harmless):
    rows = [
        {"prompt": f"question {n} on subject {n * 7 % 61}", "response_0": harmful, "response_1": harmless,
         "is_response_0_safe": False, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1}
        for n in range(60)
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    assert fit(tmp_path, tmp_path / "cost")["held_out"]["accuracy"]["value"] == 1


def test_texts_that_share_nothing_are_refused_in_one_line():
    texts = [chr(0x4E00 + number) for number in range(200)]
    with pytest.raises(DataError, match="no word and no 2 to 4 characters in a row stand in 2 of the 200 texts"):
        Tfidf.learn(texts, 1_000)[0]
    assert Tfidf.learn(texts[:-1], 1_000)[0].words == tuple(texts[:-1])


def test_a_scorer_can_be_copied_and_moved_with_its_folder(data, tmp_path):
    revision = fit(data, tmp_path / "cost")["revision"]
    (tmp_path / "cost").rename(tmp_path / "moved")
    for place in (tmp_path / "moved", tmp_path / "moved" / "scorer.yaml"):
        scorer = named_scorer(str(place), direction="cost", default="cost").build()
        assert (scorer.id, scorer.revision) == ("fitted(moved)", revision)
        assert np.ptp(scorer(ASKED, ANSWERS)) > 0
