"""Trains the classifiers that a scorer's description asks for once, and keeps them in a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.scorers.lexical import load_lexical
from dualign.scorers.lexical_spec import LexicalTraining, labelled_rows, train
from dualign.scorers.lexical_training import LabelledText
from dualign.scorers.protocol import Scorer
from dualign.scorers.spec import Setting, read_spec, revision_of


def trained(
    spec: Mapping[str, Any], *, folder: str | Path, out: str | Path, more: Sequence[LabelledText] = ()
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Return ``spec`` with every ``train`` replaced by the ``path`` of the trained classifier, and the qualities.

    Equal trainings (in the reward and in a cost) are done once: their folder inside ``out`` is named by a hash of
    the settings and of all rows, and one that is there already is taken.

    Args:
        spec: ``kind`` and its keys; classifiers may be nested at any depth.
        folder: where relative paths of ``spec`` start.
        out: folder that the classifiers are kept in.
        more: further labelled rows, such as a model's own samples.

    Returns:
        The new description, and for each folder's name the figures of its cross-validation.
    """
    qualities: dict[str, Mapping[str, Any]] = {}
    setting = Setting("reward", Path(folder), None, _no_inner)

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        inner = {key: walk(item) for key, item in value.items() if key != "train"}
        if "train" not in value:
            return inner
        training = read_spec(LexicalTraining, value["train"], "scorer lexical: train")
        rows = [*labelled_rows(training, setting), *more]
        settings = training.model_dump(exclude={"positives", "negatives", "rows"})
        facts = [[row.text, row.positive, row.group] for row in rows]
        path = Path(out).resolve() / f"lexical-{revision_of(settings=settings, rows=facts)}"
        if not (path / "lexical.json").exists():
            train(training, rows).save(path)
        qualities[path.name] = load_lexical(path).quality or {}
        return {**inner, "path": str(path)}

    return walk(spec), qualities


def _no_inner(spec: Mapping[str, Any]) -> Scorer:
    raise TypeError(f"a training has no scorer inside, given {dict(spec)}")
