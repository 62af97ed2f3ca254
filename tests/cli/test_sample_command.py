"""``dualign sample``: rows out, the same rows again, mistakes before the model is loaded."""

import json

import pytest

from dualign.cli.sample import sample
from dualign.data.prompts import read_responses
from dualign.errors import UsageError
from dualign.models.loading import save_model
from sampling_parts import tiny_model, tiny_tokenizer


def test_rows_and_summary(tmp_path, capsys):
    save_model(tiny_model(dtype="float32"), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c"}\n')
    for name in ("one", "two"):
        sample(
            str(tmp_path / "model"),
            tmp_path / "prompts.jsonl",
            tmp_path / f"{name}.jsonl",
            n=3,
            max_new_tokens=5,
            as_json=True,
        )
    figures = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (figures["prompts"], figures["responses"]) == (2, 6)
    text = (tmp_path / "one.jsonl").read_text()
    assert text == (tmp_path / "two.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, i) for p in ("a b", "c") for i in range(3)]
    assert all(row["log_prob"] < 0 and 1 <= len(row["tokens"]) <= 5 for row in rows)


def test_output_must_not_be_the_input(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match="is the file of the prompts"):
        sample("nowhere", path, path)
    with pytest.raises(UsageError, match="ends in .jsonl"):
        sample("nowhere", path, tmp_path / "out.csv")


def test_arguments_and_day_of_a_template_are_given_said_and_stored(tmp_path, capsys):
    template = (
        "{% if short %}c {% endif %}{{ strftime_now('%d')[1:] | replace('5', 'a') | replace('6', 'b') }} "
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    save_model(tiny_model(dtype="float32"), tokenizer, tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n')
    found = {}
    for name, day, arguments in (("a", "05", []), ("b", "06", []), ("again", "05", []), ("c", "05", ["short=true"])):
        sample(
            str(tmp_path / "model"), tmp_path / "prompts.jsonl", tmp_path / f"{name}.jsonl", max_new_tokens=9,
            template_date=f"2026-01-{day}", template_argument=arguments,
        )  # fmt: skip
        assert f"note: the chat template reads the clock: it is 2026-01-{day} here" in capsys.readouterr().err
        found[name] = (tmp_path / f"{name}.jsonl").read_text()
    assert json.loads(found["b"])["template_date"] == "2026-01-06"
    assert found["a"] == found["again"] and json.loads(found["a"])["log_prob"] != json.loads(found["b"])["log_prob"]
    assert json.loads(found["a"])["log_prob"] != json.loads(found["c"])["log_prob"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template_argument": ["short"]}, "--template-argument 'short': expected K=V"),
        ({"template_argument": ["tokenize=false"]}, "--template-argument: 'tokenize' is no argument of a chat"),
        ({"template_date": "yesterday"}, "--template-date: should be a day such as 2026-01-31"),
        ({"template_argument": ["a=1"], "template_date": "2026-1-1"}, "--template-date: should be a day"),
    ],
)
def test_mistyped_arguments_are_refused_before_the_model_is_looked_for(tmp_path, changes, says):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match=says):
        sample("nowhere", tmp_path / "p.jsonl", tmp_path / "o.jsonl", **changes)


TALK = [
    {"role": "system", "content": "b"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "a b"},
]


def test_every_row_is_answered_in_the_order_of_the_file(tmp_path, capsys):
    save_model(tiny_model(dtype="float32"), tiny_tokenizer(), tmp_path / "model")
    rows = [("a b", 7), (TALK, 8), ("c", 9), ("A  b", 10), ("a b", 11)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"question": q, "id": i}) + "\n" for q, i in rows))
    arguments = {"n": 2, "max_new_tokens": 6, "template": "plain", "columns": ["prompt=question"]}
    sample(str(tmp_path / "model"), tmp_path / "p.jsonl", tmp_path / "o.jsonl", as_json=True, **arguments)
    shown = capsys.readouterr()
    drawn = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["id"], row["sample"]) for row in drawn] == [
        (q, str(i), s) for q, i in rows for s in (0, 1)
    ]
    assert json.loads(shown.out)["repeated_prompts"] == 2
    assert "2 of 5 prompts repeat another one, 1 of them in another letter case" in shown.err
    assert len({row["prompt_id"] for row in drawn}) == 3
    # the draws of the first row are those of a file of it alone, and a repeated row has others
    (tmp_path / "one.jsonl").write_text('{"question": "a b"}\n')
    sample(str(tmp_path / "model"), tmp_path / "one.jsonl", tmp_path / "one_out.jsonl", quiet=True, **arguments)
    alone = [json.loads(line)["tokens"] for line in (tmp_path / "one_out.jsonl").read_text().splitlines()]
    tokens = [row["tokens"] for row in drawn]
    assert tokens[:2] == alone and tokens[8:] != alone

    answers = read_responses(tmp_path / "o.jsonl")
    assert [prompt.id for prompt in answers.prompts] == [row["prompt_id"] for row in drawn]
