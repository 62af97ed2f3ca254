"""Scores that were paid for, kept on the disk: one small file a row, whole or absent, named by a hash."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dualign.errors import DataError
from dualign.runs.store import read_json, write_json


@dataclass(frozen=True, slots=True)
class ScoreCache:
    """A folder of scores by row id. It holds hashes and numbers alone, no text."""

    folder: Path

    def read(self, ids: Iterable[str]) -> dict[str, float]:
        """Return the scores that are there.

        Raises:
            DataError: a file is not what was written.
        """
        return {id: self._score(path, id) for id in ids if (path := self._path(id)).exists()}

    def write(self, scores: Mapping[str, float]) -> None:
        """Keep ``scores``; each is on the disk once this returns.

        Raises:
            StorageError: the disk refused.
        """
        for id, score in scores.items():
            write_json(self._path(id), {"id": id, "score": score})

    def _path(self, id: str) -> Path:
        # Two letters of folder: a hundred thousand files in one are slow on some systems.
        return self.folder / id[:2] / f"{id}.json"

    def _score(self, path: Path, id: str) -> float:
        entry = read_json(path)
        score = entry.get("score") if isinstance(entry, dict) and entry.get("id") == id else None
        if not isinstance(score, float) or not math.isfinite(score):
            raise DataError(f"{path}: damaged: not the kept score of a row; delete the file, and the row is sent again")
        return score


def default_folder() -> Path:
    """Return where scores are kept unless the config says otherwise: ``dualign/scores`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dualign" / "scores"
