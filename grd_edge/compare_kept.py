"""What an earlier call of `grd-edge compare` left: results of stages, each with what it was made from.

`<folder>/<method>/<stage>.json` holds `identity` and `result`; a result counts where the identity is the same.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grd_edge.files import write_atomically
from grd_edge.results import json_document, plain
from grd_edge.run_folder import difference

# besides the configuration, what a training depends on, and how it is told
_TOLD = {"asked": "training time", "grd_edge": "version of grd-edge"}


class Kept:
    """Results in a folder. A name of "" is that of all methods together."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get(self, name: str, stage: str, identity: dict[str, Any]) -> Any:
        """The result that was made from the same; None: there is none."""
        before, result = self._stored(name, stage)
        return result if before == json.loads(json_document(identity)) else None

    def make(self, name: str, stage: str, identity: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
        """A result made now, with the `seconds` that it took; until it is complete, none is there."""
        self.drop(name, stage)
        began = time.monotonic()
        result = make()
        return self.put(name, stage, identity, result | {"seconds": round(time.monotonic() - began, 1)})

    def put(self, name: str, stage: str, identity: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        write_atomically(self._path(name, stage), json_document({"identity": identity, "result": result}))
        return plain(result)

    def drop(self, name: str, *stages: str) -> None:
        for stage in stages:
            self._path(name, stage).unlink(missing_ok=True)

    def change(self, name: str, stage: str, identity: dict[str, Any]) -> str:
        """What a stored result was made from otherwise, as the end of a sentence; "" where there is none."""
        before, _ = self._stored(name, stage)
        if before is None or before == json.loads(json_document(identity)):
            return ""
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            if told := difference(before, identity):
                return told
            for key, what in _TOLD.items():
                if before[key] != identity[key]:
                    return f"its {what} is {before[key]}, now {identity[key]}"
        return "what it was made from has changed"

    def _path(self, name: str, stage: str) -> Path:
        return self.folder / name / f"{stage}.json"

    def _stored(self, name: str, stage: str) -> tuple[Any, Any]:
        try:
            stored = json.loads(self._path(name, stage).read_text(encoding="utf-8"))
            return stored["identity"], stored["result"]
        except (OSError, ValueError, KeyError, TypeError):  # none, or half of one: it is made again
            return None, None
