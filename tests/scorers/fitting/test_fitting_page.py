"""The page on fitting: every key with its default, and its configs are configs."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from dualign.scorers.fitting.inputs import FitConfig, FitData, LightSettings, TrainSettings
from dualign.strict import parse_yaml

PAGE = (Path(__file__).parents[3] / "docs" / "fitting.md").read_text()
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def defaults(section):
    """Return key -> default as the page writes it."""
    found = {}
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = isinstance(default, BaseModel)
        found[name] = "required" if field.is_required() else "its own" if inner else f"`{json.dumps(default)}`"
    return found


@pytest.mark.parametrize(
    ("title", "section"),
    [("All", FitConfig), ("`data`", FitData), ("`light`", LightSettings), ("`training`", TrainSettings)],
)
def test_every_key_is_there_with_its_default(title, section):
    assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", SECTIONS[title], re.MULTILINE)) == defaults(section)


def test_the_examples_are_configs():
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert [FitConfig.model_validate(parse_yaml(text, "fitting.md")).path for text in examples] == ["light", "lora"]
