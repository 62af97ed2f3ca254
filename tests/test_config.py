"""The config is strict: nothing is coerced, nothing is ignored, and a mistake names its place and its mend."""

from collections import Counter
from pathlib import Path

import pytest

from command_line import dualign
from dualign.cli.train import KINDS
from dualign.config import Config, Section, load_config, validate
from dualign.errors import ConfigError, MissingError, UsageError
from dualign.job.checks import check
from dualign.strict import dump_yaml, parse_yaml

GOOD = """
policy: {model: m}
data: {sources: [{path: p.jsonl, columns: {label: a}}]}
reward: {scorer: {kind: length}}
constraints:
  - {name: harm, scorer: {kind: regex, pattern: a}, limit: 0.1, cap: 1.0}
"""
SECOND = "  - {name: words, scorer: {kind: length}, limit: 9, cap: 20}\n"
CONFIGS = Path(__file__).parents[1] / "src" / "dualign" / "cli" / "configs"
SECTIONS = set(Section.__subclasses__()) - {Config}
EXAMPLES = Path(__file__).parents[1] / "examples"


def written(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_defaults_written_out_are_the_same_config(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD + "training: {learning_rate: 1e-5}\n"))
    assert config.training.learning_rate == 1e-5
    text = dump_yaml(config.model_dump())
    assert load_config(written(tmp_path, text)) == config
    assert validate(parse_yaml(text, "x"), "x") == config


@pytest.mark.parametrize(
    "path", [*sorted(CONFIGS.glob("*.yaml")), *sorted(EXAMPLES.glob("*.yaml"))], ids=lambda p: p.name
)
def test_every_config_that_we_ship_is_accepted(path: Path) -> None:
    check(load_config(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "trianing: {beta: 1}\n", "unknown key 'trianing'; did you mean 'training'?"),
        (GOOD + "training: {betta: 1}\n", "training: unknown key 'betta'; did you mean 'beta'?"),
        (GOOD + "training: {qqq: 1}\n", "training: unknown key 'qqq'; known: beta, "),
        (
            GOOD.replace("pattern: a}, limit", "pattern: a}, limmit"),
            "constraints.harm: unknown key 'limmit'; did you mean",
        ),
        (GOOD.replace("columns: {label: a}", "colums: {}"), "data.sources.0: unknown key 'colums'"),
        (GOOD + "training: {beta: 0}\n", "training.beta: input should be greater than 0, given 0"),
        (GOOD + "training: {beta: -0.1}\n", "training.beta"),
        (GOOD + "training: {beta: .inf}\n", "training.beta: input should be a finite number"),
        (GOOD + "training: {beta: 1e400}\n", "training.beta: input should be a finite number"),
        (GOOD + "training: {beta: '0.3'}\n", "training.beta: input should be a valid number, given '0.3'"),
        (GOOD + "training: {beta: true}\n", "training.beta: input should be a valid number, given True"),
        (GOOD + "training: 3\n", "training: "),
        (GOOD + "sampling: {responses_per_prompt: 1}\n", "sampling.responses_per_prompt: input should be greater"),
        (GOOD + "sampling: {responses_per_prompt: 2.5}\n", "valid integer, given 2.5"),
        (
            GOOD + "method: {loss: dop}\n",
            "'b-dpo' or 'dr-dpo', given 'dop'; did you mean 'dpo'?",
        ),
        (GOOD + "method: {labels: sfot}\n", "method.labels: input should be 'soft', 'bernoulli' or 'hard'"),
        (GOOD + "method: {start: soon}\n", "method.start: should be a number of 0 or more, or one-shot, given 'soon'"),
        (GOOD + "method: {start: -1}\n", "method.start"),
        (GOOD + "certificate: {confidence: 95}\n", "certificate.confidence: input should be less than 1, given 95"),
        (GOOD + "run: {name: ..}\n", "run.name: should name a folder, given '..'"),
        (GOOD + "run: {name: a/b}\n", "run.name"),
        (GOOD + "run: {seed: 99999999999}\n", "run.seed"),
        (GOOD + "1: 2\n", "keys should be strings"),
        (GOOD.replace("scorer: {kind: regex, pattern: a}, ", ""), "constraints.harm.scorer: missing"),
        (
            GOOD.replace("limit: 0.1", "limit: .nan"),
            "constraints.harm.limit: input should be a finite number, given nan",
        ),
        (GOOD.replace("limit: 0.1, ", ""), "constraints.harm.limit: missing"),
        (GOOD.replace("model: m", "model: m, world: w"), "policy: give exactly one of 'model' and 'world'"),
        (GOOD.split("data:")[0], "data.sources: a model needs prompts"),
        (GOOD.split("constraints:")[0], "constraints: name at least one limit"),
        (GOOD.replace("reward:", "#"), "reward: a model needs a reward scorer"),
        (GOOD + SECOND.replace("words", "harm"), "constraints: two constraints are named 'harm'"),
        (GOOD.replace("columns: {label: a}", "splits: {trian: 3}"), "splits.trian: input should be 'train'"),
        ("- a\n- b\n", "expected sections (policy, data, "),
        ("", "found NoneType"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(written(tmp_path, text))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "method: {name: cdpo}\n", "method.name: method: unknown 'cdpo'; did you mean 'c-dpo'?"),
        (GOOD + "method: {dual: brackt}\n", "method.dual: dual rule: unknown 'brackt'; did you mean 'bracket'?"),
        (GOOD + "method: {dual: fixed}\n", "method.name: fixed"),
        (GOOD + SECOND + "method: {dual: bracket}\n", "bracket serves one limit, 2 are given; use projected_newton"),
        (GOOD + SECOND + "method: {dual: newton}\n", "newton serves one limit"),
        (GOOD + SECOND, "evaluation.responses_per_prompt: Newton rules need at least 2"),
        (
            GOOD.replace("limit: 0.1", "functional: men, limit: 0.1"),
            "functional: unknown functional 'men'; did you mean 'mean'",
        ),
        (
            GOOD.replace("limit: 0.1", "functional: 'cvar:1.5', limit: 0.1"),
            "the level must lie strictly between 0 and 1",
        ),
        (GOOD.replace("limit: 0.1", "functional: cvar, limit: 0.1"), "expected cvar:ALPHA"),
        (GOOD.replace(", cap: 1.0", ""), "constraints.harm.cap: missing"),
        (GOOD.replace("cap: 1.0", "cap: 0.1"), "must be a finite number below its cap 0.1"),
        (GOOD.replace("cap: 1.0", "functional: 'cvar:0.9', cap: 0.1"), "must be a finite number below its cap 0.1"),
        (GOOD.replace("cap: 1.0", "functional: rate").replace("0.1", "1.5"), "below its cap 1"),
        (GOOD.replace("cap: 1.0", "functional: rate").replace("0.1", "-0.5"), "a rate is never below 0"),
        (GOOD.replace("kind: regex, pattern: a", ""), "scorer of cost harm: names no kind; known: "),
        (GOOD.replace("regex", "regx"), "scorer of cost harm: kind: unknown 'regx'; did you mean 'regex'?"),
        (GOOD.replace("pattern", "patern"), "scorer of cost harm: regex: "),
        (
            GOOD.replace("kind: length", "kind: compliance-harm"),
            "is a cost, given as a reward; its sign would be wrong",
        ),
        (
            GOOD.replace("kind: length", "kind: weighted-sum, terms: [{scorer: {kind: lenght}}]"),
            "scorer of reward.terms.0.scorer: kind: unknown 'lenght'; did you mean 'length'?",
        ),
        (GOOD + "evaluation: {metrics: {r: {kind: refsal}}}\n", "scorer of metric r: kind: unknown 'refsal'"),
        ("policy: {world: assistant}\n", "policy.world: the assistant world has a reward and one limit, 0 given"),
        (
            "policy: {world: assistant}\nreward: {scorer: {kind: assistant-reward}}\n"
            "constraints: [{name: harm, scorer: {kind: assistant-cost}, limit: 0, cap: 4}]\n",
            "constraints.harm: the assistant world knows the truth of the mean where {'label': 'risky'}; given mean",
        ),
        ("policy: {world: w.json}\ntraining: {beta: 0.4}\n", "training: a world file brings its own"),
        ("policy: {world: w.json}\nreward: {scorer: {kind: length}}\n", "reward: a world file brings its own"),
    ],
)
def test_what_no_job_could_use_is_refused_without_opening_a_file(text: str, said: str, tmp_path: Path) -> None:
    config = load_config(written(tmp_path, text))
    with pytest.raises(ConfigError) as refusal:
        check(config)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_rate_needs_no_cap(tmp_path: Path) -> None:
    check(load_config(written(tmp_path, GOOD.replace("cap: 1.0", "functional: rate"))))


def test_overrides_reach_sections_that_the_file_leaves_out_and_items_of_lists(tmp_path: Path) -> None:
    given = ["training.beta=1e-1", "constraints.0.limit=0.25", "run.name=no", "evaluation.metrics.n={kind: length}"]
    config = load_config(written(tmp_path, GOOD + "training:\n"), given)
    assert (config.training.beta, config.constraints[0].limit, config.run.name) == (0.1, 0.25, "no")
    assert config.evaluation.metrics == {"n": {"kind": "length"}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.beta", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("training.betta=1", "training: unknown key 'betta'; did you mean 'beta'?"),
        ("training.beta=0", "training.beta: input should be greater than 0"),
        ("training.beta=low", "given 'low'"),
        ("policy.model.name=x", "'policy.model' is not a section"),
        ("constraints.7.limit=1", "is not a section"),
        ("constraints.x=1", "is not a section"),
        ("run.seed=[1", "--set run.seed line 1"),
        ("training={beta: 0.1, beta: 0.2}", "stands twice"),
    ],
)
def test_a_mistake_in_an_override_is_one_of_the_command_line(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        load_config(written(tmp_path, GOOD), [override])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_mistake_of_the_file_stays_one_of_the_file_beside_an_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling"):
        load_config(written(tmp_path, GOOD + "sampling: {batch_size: 0}\n"), ["training.beta=0.2"])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(MissingError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("policy: {model: m\xe9}".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_every_key_says_what_it_does() -> None:
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
    assert set(Config.model_fields) == {
        "policy", "data", "reward", "constraints", "method", "training", "sampling", "evaluation", "certificate", "run",
    }  # fmt: skip


def test_every_key_of_every_section_is_on_the_page() -> None:
    page = (EXAMPLES.parent / "docs" / "config.md").read_text()
    rows = Counter(line.split("`")[1] for line in page.splitlines() if line.startswith("| `"))
    assert rows == Counter(name for section in SECTIONS for name in section.model_fields)
    assert len(SECTIONS) == 14


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {pairs: [{path: a.jsonl, formt: hh}]}", "data.pairs.0: unknown key 'formt'; did you mean 'format'?"),
        (
            "data: {sources: [{path: a.jsonl, split: {}}]}",
            "data.sources.0: unknown key 'split'; did you mean 'splits'?",
        ),
        ("policy: {model: m, warm_start: [{mix: [{cont: 3}]}]}", "unknown key 'cont'; did you mean 'count'?"),
    ],
)
def test_an_unknown_key_is_compared_with_the_keys_of_its_own_section(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert told in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_that_init_prints_is_sound(kind: str, tmp_path: Path) -> None:
    done = dualign("init", "--kind", kind)
    assert done.code == 0
    check(load_config(written(tmp_path, done.out)))
