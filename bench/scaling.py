"""How the cost of a frame grows: with its patches, the batch, patch size, base width, threads and queue depth; and
memory with the length of a stream.

    python -m grd_edge.bench.scaling --out artifacts/scaling            # under ten minutes on two idle cores
    python -m grd_edge.bench.scaling --short --only patches memory

Writes a record (bench/records.py) and a chart for each sweep. All sizes of a sweep take turns in one
process (bench/timer.py). Networks have random weights: speed does not depend on them. Exit code 3 where a bar is not
held.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from grd_edge.bench.exponents import Verdict, affine_power_fit, interval_verdict, linear_verdict
from grd_edge.bench.frame_stages import write_int8_bundle
from grd_edge.bench.records import RESULTS, write_record
from grd_edge.bench.scaling_charts import write_charts
from grd_edge.bench.stream_memory import FLAT_BYTES, stream_memory
from grd_edge.bench.sweeps import NotMeasured, Sweep, inspected, streamed

from grd_edge.bundle import read_bundle
from grd_edge.errors import CheckFailedError, EngineError, GrdError, InputError
from grd_edge.latency_frames import made_frames
from grd_edge.machine import fingerprint, usable_cores
from grd_edge.runtime import Inspector

SWEEPS = ("patches", "batch", "patch-size", "base", "threads", "queue-depth", "memory")
LINEAR = (0.95, 1.05)  # issue G, bar 4


@dataclass(frozen=True)
class Plan:
    """Sizes of the sweeps.

    Attributes:
        base, patch_px: of the network where neither is swept.
        patches: of a frame, by precision; FP32 is several times as slow, and gets fewer.
        batches, batch_patches: patches per engine call at most, of a frame of so many.
        patch_sizes, bases, few: networks, and the patches of a frame for them.
        thread_patches: of a frame.
        depths, stream_frames, stream_rounds: frames that may wait; frames of a run, of one patch each.
        rounds: of the other sweeps.
        memory_frames: through one stream.
    """

    base: int = 16
    patch_px: int = 128
    patches: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("int8", (1, 2, 4, 8, 16, 32, 64, 128)),
        ("fp32", (1, 2, 4, 8, 16, 32)),
    )
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    batch_patches: int = 32
    patch_sizes: tuple[int, ...] = (64, 128, 256)
    bases: tuple[int, ...] = (8, 16, 32)
    few: int = 4
    thread_patches: int = 16
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    stream_frames: int = 96
    stream_rounds: int = 10
    rounds: int = 30
    memory_frames: int = 20_000


FULL = Plan()
SHORT = Plan(
    base=8,
    patch_px=64,
    patches=(("int8", (1, 2, 4, 8, 16, 32)), ("fp32", (1, 2, 4, 8, 16, 32))),
    patch_sizes=(64, 96, 128),
    bases=(4, 8, 12),
    stream_frames=64,
    stream_rounds=5,
    rounds=10,
    memory_frames=3_000,
)


class Scaling:
    """The sweeps of a plan.

    Args:
        folder: where networks are written that are made.
        bundle: in place of the plan's network, for the sweeps that do not change the network; it is measured in the
            precision that it chose.
        tell: told what is under way.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, bundle: Path | None = None, tell: Callable[[str], object] = lambda text: None
    ) -> None:
        self.plan, self.folder, self.bundle, self.tell = plan, folder, bundle, tell
        self.memory: dict[str, Any] | None = None

    def of(self, name: str) -> Iterator[Sweep]:
        """The measured sweeps of one of `SWEEPS`.

        Raises:
            NotMeasured: this machine or this bundle does not allow it, with the reason.
        """
        return getattr(self, f"_{name.replace('-', '_')}")()

    def network(self, base: int, patch_px: int) -> Path:
        path = self.folder / f"base{base}-{patch_px}px.grdb"
        if not path.exists():
            self.tell(f"making a network of base {base} for {patch_px} px")
            write_int8_bundle(path, base=base, patch_px=patch_px)
        return path

    def _path(self) -> Path:
        return self.bundle or self.network(self.plan.base, self.plan.patch_px)

    def _swept(self) -> dict[str | None, tuple[int, ...]]:
        """Precision -> patches of its frames; None: the one that the bundle chose."""
        return {None: dict(self.plan.patches)["int8"]} if self.bundle else dict(self.plan.patches)

    def _frame(self, path: Path, patches: int) -> np.ndarray:
        try:
            return made_frames(read_bundle(path), patches)[0]
        except InputError as error:
            raise NotMeasured(str(error)) from error

    def _patches(self) -> Iterator[Sweep]:
        path = self._path()
        for precision, sizes in self._swept().items():
            for note, batch in (("", 16), ("one by one", 1)):
                with Inspector(path, precision=precision, batch_limit=batch) as inspector:
                    runs = {size: (inspector, self._frame(path, size), size) for size in sizes}
                    yield inspected("patches", "patches per frame", runs, self.plan.rounds, precision, note=note)

    def _batch(self) -> Iterator[Sweep]:
        path, patches = self._path(), self.plan.batch_patches
        frame = self._frame(path, patches)
        for precision in self._swept():
            with ExitStack() as stack:
                runs = {}
                for size in self.plan.batches:
                    inspector = stack.enter_context(Inspector(path, precision=precision, batch_limit=size))
                    runs[size] = inspector, frame, patches
                label = f"patches per engine call, frame of {patches}"
                yield inspected("batch", label, runs, self.plan.rounds, precision)

    def _patch_size(self) -> Iterator[Sweep]:
        base = self.plan.base
        networks = {size: self.network(base, size) for size in self.plan.patch_sizes}
        yield from self._networks("patch-size", f"patch size in px, base {base}", networks)

    def _base(self) -> Iterator[Sweep]:
        side = self.plan.patch_px
        networks = {size: self.network(size, side) for size in self.plan.bases}
        yield from self._networks("base", f"base width, patches of {side} px", networks)

    def _networks(self, name: str, label: str, paths: dict[int, Path]) -> Iterator[Sweep]:
        few = self.plan.few
        for precision, _ in self.plan.patches:
            with ExitStack() as stack:
                runs = {}
                for size, path in paths.items():
                    inspector = stack.enter_context(Inspector(path, precision=precision))
                    runs[size] = inspector, made_frames(read_bundle(path), few)[0], few
                yield inspected(name, f"{label}, {few} a frame", runs, self.plan.rounds, precision)

    def _threads(self) -> Iterator[Sweep]:
        cores = usable_cores()
        if cores < 2:
            raise NotMeasured("this process may use one core only")
        path, patches = self._path(), self.plan.thread_patches
        frame = self._frame(path, patches)
        sizes = sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})
        for precision in self._swept():
            with ExitStack() as stack:
                runs = {}
                for size in sizes:
                    inspector = stack.enter_context(Inspector(path, precision=precision, threads=size))
                    runs[size] = inspector, frame, patches
                label = f"threads, frame of {patches} patches"
                yield inspected("threads", label, runs, self.plan.rounds, precision)

    def _queue_depth(self) -> Iterator[Sweep]:
        path, plan = self._path(), self.plan
        frame = self._frame(path, 1)
        sizes = {"frames": plan.stream_frames, "rounds": plan.stream_rounds}
        yield from streamed(path, frame, plan.depths, precision=None, **sizes)

    def _memory(self) -> Iterator[Sweep]:
        path = self.bundle or self.network(self.plan.base, min(self.plan.patch_sizes))
        self.memory = stream_memory(path, frames=self.plan.memory_frames)
        return iter(())


def verdict_of_patches(sweep: Sweep | None, why: str = "") -> Verdict:
    """Bar 4: the exponent of `t0 + c n^p` over the minima is 0.95 to 1.05.

    t0, what a call costs whatever it holds, is no cost of patches; the plain power law, which spreads it over the range
    of sizes, is told beside it.
    """
    fit = None
    if sweep is not None:
        try:
            fit = affine_power_fit(sweep.sizes, sweep.times_ms, "min")
        except CheckFailedError as error:
            why = str(error)
    name = f"exponent of patches per frame{f', {sweep.engine}' if sweep else ''}"
    return linear_verdict(fit, low=LINEAR[0], high=LINEAR[1], bar=name, why=why)


def measured(scaling: Scaling, names: Sequence[str]) -> dict[str, Any]:
    """What the record holds, `rows`, `figures` and `samples`, and `sweeps` and `verdicts`.

    A sweep that cannot be measured has a row that says why.
    """
    rows: list[dict[str, Any]] = []
    sweeps: list[Sweep] = []
    verdicts: list[Verdict] = []
    figures: dict[str, Any] = {}
    for name in names:
        scaling.tell(name)
        found: list[Sweep] = []
        why = ""
        try:
            for sweep in scaling.of(name):
                found.append(sweep)
                rows.append(sweep.row())
                figures |= sweep.figures()
        except (NotMeasured, EngineError) as error:
            why = str(error)
            rows.append({"sweep": name, "not_measured": why})
        sweeps += found
        if name == "patches":
            verdicts += [verdict_of_patches(sweep) for sweep in found]
            if why:
                verdicts.append(verdict_of_patches(None, why))
        elif name == "memory":
            verdicts.append(_verdict_of_memory(scaling.memory, why))
    if scaling.memory:
        memory = scaling.memory
        interval = f"[{memory['low']:.2g}, {memory['high']:.2g}]"
        rows.append(
            {
                "sweep": "frames streamed",
                "cost": "bytes a frame by which resident memory grows",
                "sizes": f"{memory['frames'][0]} to {memory['frames'][-1]}",
                "values": f"{memory['bytes_a_frame']:.2g} {interval}",
            }
        )
        figures |= {
            "memory_bytes_a_frame": memory["bytes_a_frame"],
            "memory_bytes_a_frame_interval": [memory["low"], memory["high"]],
            "memory_frames": memory["frames"][-1],
            "memory_mb": memory["resident_bytes"][-1] / 1e6,
        }
    samples = {
        sweep.key: {str(n): sweep.times_ms[:, i].tolist() for i, n in enumerate(sweep.sizes)} for sweep in sweeps
    }
    if scaling.memory:
        samples["memory"] = {key: scaling.memory[key] for key in ("frames", "resident_bytes")}
    return {"rows": rows, "figures": figures, "samples": samples, "sweeps": sweeps, "verdicts": verdicts}


def _verdict_of_memory(memory: dict[str, Any] | None, why: str) -> Verdict:
    bar = "bytes a frame by which the memory of a stream grows"
    if memory is None:
        return Verdict(bar, -FLAT_BYTES, FLAT_BYTES, None, False, f"cannot measure: {why}")
    interval = memory["low"], memory["high"]
    return interval_verdict(bar, memory["bytes_a_frame"], interval, low=-FLAT_BYTES, high=FLAT_BYTES)


COLUMNS = [
    {"key": "sweep", "name": "against"},
    {"key": "engine", "name": "engine"},
    {"key": "cost", "name": "cost"},
    {"key": "sizes", "name": "sizes"},
    {"key": "values", "name": "least, in order"},
    {"key": "exponent_min", "name": "exponent"},
    {"key": "exponent_p50", "name": "of the medians"},
    {"key": "affine", "name": "beside a fixed cost"},
    {"key": "not_measured", "name": "not measured"},
]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="in place of a random network, where the sweep does not change it")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=SWEEPS, metavar="SWEEP", help=", ".join(SWEEPS))
    parser.add_argument("--short", action="store_true", help="smaller networks, fewer sizes and rounds: under a minute")
    parser.add_argument("--rounds", type=int, help=f"of each sweep but the queue's: {FULL.rounds}")
    parser.add_argument("--out", type=Path, default=Path("artifacts/scaling"), help="folder of charts and record")
    parser.add_argument("--record", action="store_true", help="write the record `scaling` below bench/results instead")
    arguments = parser.parse_args(words)
    plan = SHORT if arguments.short else FULL
    if arguments.rounds is not None:
        plan = replace(plan, rounds=arguments.rounds)
    command = "python -m grd_edge.bench.scaling " + shlex.join(sys.argv[1:] if words is None else words)
    machine = fingerprint()
    try:
        if arguments.bundle:
            read_bundle(arguments.bundle)  # refused here, not by one sweep after the other
        with tempfile.TemporaryDirectory() as folder:
            scaling = Scaling(plan, Path(folder), bundle=arguments.bundle, tell=lambda t: print(t, file=sys.stderr))
            found = measured(scaling, arguments.only)
        bars = [f"{verdict}." for verdict in found["verdicts"]]
        written = write_record(
            "scaling",
            title="How the cost of a frame grows",
            command=command.strip(),
            columns=COLUMNS,
            rows=found["rows"],
            notes=["Exponents with their 95 % interval: a bootstrap over the rounds.", *bars],
            figures=found["figures"],
            samples=found["samples"],
            machine=machine,
            root=RESULTS if arguments.record else arguments.out,
        )
        write_charts(arguments.out, found["sweeps"], scaling.memory)
    except GrdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for row in found["rows"]:
        print("  ".join(row[column["key"]] for column in COLUMNS if column["key"] in row))
    for verdict in found["verdicts"]:
        print(verdict)
    print(f"written: {written}, charts in {arguments.out}")
    return 0 if all(verdict.passed for verdict in found["verdicts"]) else CheckFailedError.exit_code


if __name__ == "__main__":
    sys.exit(main())
