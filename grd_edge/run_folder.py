"""The folder of a training run: state to resume from, best weights, log, previews. One process at a time uses it.

Layout: docs/design/foundation.md.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from grd_edge.checkpoint import Checkpoint, read_checkpoint, read_training_state, write_checkpoint, write_training_state
from grd_edge.config import Config
from grd_edge.errors import InputError, require
from grd_edge.files import check_parent, locked_file, write_atomically, write_error

COLUMNS = (
    "step",
    "seconds",
    "lr",
    "total",
    "contextual",
    "noise",
    "adversarial",
    "encoder",
    "discriminator",
    "segmentor",
    "distillation",
    "reconstruction",
    "validation_auroc",
    "validation_contextual",
)
PREVIEWS = 8  # over the whole run
# Settings that change no bit of the result, so that a resumed run may have others.
FREE_SETTINGS = ("train.save_seconds", "train.save_steps", "data.cache_mb", "data.workers", "data.prefetch")


def run_folder_of(checkpoint: Path) -> Path:
    """`part.run` beside `part.safetensors`."""
    return Path(checkpoint).with_suffix(".run")


def check_output(output: Path) -> None:
    """Raises InputError where no checkpoint can be written, before hours of training tell: `output` is a folder, or is
    its own run folder, or no folder can hold it."""
    check_parent(output)
    if output.is_dir():
        raise InputError(
            f"{output} is a folder, and the output is one file; give a name such as {output}/part.safetensors"
        )
    if run_folder_of(output) == output:
        raise InputError(
            f"{output} is the name of a run folder; give the checkpoint another name, such as "
            f"{output.with_suffix('.safetensors')}"
        )


class RunFolder:
    """Owns `path` until `close`, or until the process ends in whatever way.

    Raises:
        InputError: another process owns it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.last, self.best = self.path / "last.safetensors", self.path / "best.safetensors"
        self._lock = locked_file(
            self.path / "lock",
            f"another training is writing {self.path}; wait until it ends, or choose another --output",
        )
        for parent in (self.path, self.path / "previews"):
            for left in parent.glob(".*"):  # temporary files of a run that was killed
                with contextlib.suppress(OSError):
                    left.unlink()
        self._log: io.RawIOBase | None = None
        self._board: Any = None

    def close(self) -> None:
        for stream in (self._log, self._board, self._lock):
            if stream is not None:
                with contextlib.suppress(OSError):  # curves that do not fit on the disk are no reason to lose a run
                    stream.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clear(self) -> None:
        """Removes what an earlier run left, its state first: a half-removed run can never be resumed."""
        try:
            for name in ("last.safetensors", "best.safetensors", "log.csv", "config.yaml", "manifest.json"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("previews", "tensorboard"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        except OSError as error:
            raise InputError(
                f"the earlier run in {self.path} was removed in part only ({error.strerror}) and cannot be resumed; "
                "make the folder writable or choose another --output, the checkpoint beside it is unchanged"
            ) from error

    # ------------------------------------------------------------ checkpoints

    def write_last(self, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        write_training_state(self.last, tensors, about)

    def read_last(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest state, or None where the run was stopped before its first one."""
        return read_training_state(self.last) if self.last.exists() else None

    def write_best(self, checkpoint: Checkpoint) -> None:
        write_checkpoint(self.best, checkpoint)

    def read_best(self) -> Checkpoint:
        return read_checkpoint(self.best)

    # -------------------------------------------------------------------- log

    def start_log(self, config: Config, step: int) -> None:
        """Writes the configuration and opens the logs behind `step`; rows of later steps are dropped."""
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config.to_json(), sort_keys=False).encode())
        path = self.path / "log.csv"
        rows = []
        if step and path.exists():
            with open(path, newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.DictReader(stream) if None not in row.values() and row["step"].isdigit()]
        kept = [_line(COLUMNS), *(_line(row.get(c) or "" for c in COLUMNS) for row in rows if int(row["step"]) <= step)]
        write_atomically(path, "".join(kept).encode())
        try:
            self._log = open(path, "ab", buffering=0)  # noqa: SIM115 (one write per row: never half of one)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            return
        self._board = board.SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    @property
    def has_board(self) -> bool:
        return self._board is not None

    def log(self, row: dict[str, float]) -> None:
        """Appends one row; keys are of COLUMNS."""
        try:
            line = _line(f"{row[name]:.9g}" if name in row else "" for name in COLUMNS).encode()
            if self._log.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._board is not None:
                for name, value in row.items():
                    if name != "step":
                        group = "validation" if name.startswith("validation") else "train"
                        self._board.add_scalar(f"{group}/{name.removeprefix('validation_')}", value, int(row["step"]))
        except OSError as error:
            raise write_error(self.path / "log.csv", error) from error

    def preview(self, step: int, columns: list[torch.Tensor]) -> None:
        """Writes `previews/<step>.png`: one row per patch; `columns` are (N, C, H, W) in [0, 1]."""
        cv2 = require("cv2", extra="images", purpose="to draw previews")
        images = torch.cat([torch.cat(list(column.float().cpu()), dim=1) for column in columns], dim=2)
        pixels = np.rint(255 * images.clamp(0, 1).permute(1, 2, 0).numpy()).astype(np.uint8)
        _, data = cv2.imencode(".png", pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)
        write_atomically(self.path / "previews" / f"{step:07}.png", data.tobytes())


def _line(values: Any) -> str:
    return ",".join(map(str, values)) + "\n"


def difference(about: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What of a stored run is not as it is now, as the middle of a sentence; None where it can be resumed."""
    before, after = _flat(about["config"]), _flat(now["config"])
    for key in sorted(before.keys() | after.keys()):
        if key not in FREE_SETTINGS and before.get(key) != after.get(key):
            return f"its {key} is {json.dumps(before.get(key))}, now {json.dumps(after.get(key))}"
    if about["manifest_sha256"] != now["manifest_sha256"]:
        return f"its images are others ({about['dataset']}, {about['train_images']} for training)"
    if about["world_size"] != now["world_size"]:
        return f"it ran in {about['world_size']} processes, now {now['world_size']}"
    if about.get("teacher_sha256") != now.get("teacher_sha256"):
        return "its teacher is another checkpoint, or only one of both trainings has a teacher"
    return None


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
