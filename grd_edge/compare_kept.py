"""What an earlier call of `grd-edge compare` left: results of stages, each with what it was made from.

`<folder>/<method>/<stage>.json` holds `identity` and `result`; a result counts where the identity is the same.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from grd_edge.bundle import read_bundle
from grd_edge.compare_measures import Halves
from grd_edge.compare_result import Options
from grd_edge.contenders import Contender
from grd_edge.data.dataset import Dataset, images_sha256
from grd_edge.errors import BundleError
from grd_edge.files import write_atomically
from grd_edge.precision import FP32, Request
from grd_edge.results import json_document, plain
from grd_edge.run_folder import difference

CHECKPOINT, BUNDLE, DRAWN = "checkpoint.safetensors", "bundle.grdb", "drawn.npz"
PLAN, TRAIN, BUILD, MEASURE = "plan", "train", "build", "measure"
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


class Made(NamedTuple):
    """What the stages of a method left; None: it is not there, or was made from something else."""

    trained: dict[str, Any] | None
    built: dict[str, Any] | None
    measured: dict[str, Any] | None


class Stages:
    """What the stages of methods are made from, and what of them is there.

    Args:
        caps: name -> seconds that bound its training; None: no seconds do.
    """

    def __init__(
        self, kept: Kept, dataset: Dataset, halves: Halves, options: Options, caps: dict[str, float | None]
    ) -> None:
        self.kept, self.dataset, self.halves, self.options, self.caps = kept, dataset, halves, options, caps
        self.manifest = dataset.manifest_sha256()

    def training(self, contender: Contender) -> dict[str, Any]:
        """Of a checkpoint. Seconds that come from a plan are told by what was asked for."""
        config, asked = contender.config.to_json(), None
        if self.caps[contender.name] is not None:
            config["train"]["seconds"] = None
            seconds = self.options.train_seconds
            asked = f"{self.options.minutes:g} minutes in all" if seconds is None else f"{seconds:g} s each"
        return {
            "config": config,
            "asked": asked,
            "dataset": self.dataset.name,
            "manifest_sha256": self.manifest,
            "train_images": len(self.dataset.train),
            "world_size": 1,
            "grd_edge": metadata.version("grd-edge"),
        }

    def building(self, trained: dict[str, Any], request: Request) -> dict[str, Any]:
        return {"checkpoint": trained["sha256"], "request": request, "budget": asdict(self.options.budget)}

    def measuring(self, built: dict[str, Any]) -> dict[str, Any]:
        parts = [images_sha256(part) for part in (self.halves.choosing, self.halves.reported)]
        return {"seal": built["seal"], "decision_seal": built["decision_seal"], "images": parts}

    def found(self, contender: Contender) -> Made:
        """What is there and whole, in the precision that was asked for or else in FP32; of a stage whose own begin has
        changed nothing counts."""
        name, folder, built, measured = contender.name, self.kept.folder / contender.name, None, None
        trained = self.kept.get(name, TRAIN, self.training(contender))
        for request in (self.options.request, FP32) if trained else ():
            built = built or self.kept.get(name, BUILD, self.building(trained, request))
        if built and not _is_bundle(folder / BUNDLE, built):
            built = None
        if built:
            measured = self.kept.get(name, MEASURE, self.measuring(built))
        if measured and not (folder / DRAWN).is_file():
            measured = None
        return Made(trained, built, measured)


def _is_bundle(path: Path, built: dict[str, Any]) -> bool:
    with contextlib.suppress(BundleError):
        bundle = read_bundle(path)
        return (bundle.seal, bundle.decision and bundle.decision["seal"]) == (built["seal"], built["decision_seal"])
    return False
