"""`make bench-compare BASE=…`: two commits, built apart, their benchmarks alternated; exit code 1 when one got slower.

Each commit gets a work tree and a native library of its own in a temporary folder. Runs alternate in pairs, first one
first and then the other, each in its own process. A run's figure of a row is its least time, the one
that others disturb least. A row got slower when all its figures are above all those before, or when six of seven pairs
are worse by more than the margin. Source: docs/bench.md, "Two commits".
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grd_edge.bench.gate import ROOT, aligned, run_benchmarks
from grd_edge.bench.rows import PRODUCT

from grd_edge.errors import EngineError, GrdError, InputError

PAIRS, MARGIN, SELECTED = 7, 0.05, "score or patchify or frame"

Figures = dict[tuple[str, str], float]  # (group, row) -> ms of one run


@dataclass(frozen=True)
class Comparison:
    """One row's figures in ms, pair by pair."""

    base: np.ndarray
    head: np.ndarray
    margin: float = MARGIN

    @property
    def ratio(self) -> float:
        """Median over the pairs of head / base."""
        return float(np.median(self.head / self.base))

    @property
    def apart(self) -> bool:
        """Even the fastest run is slower than each before."""
        return bool(self.head.min() > self.base.max())

    @property
    def worse_pairs(self) -> int:
        return int((self.head > (1 + self.margin) * self.base).sum())

    @property
    def slower(self) -> bool:
        return self.apart or self.worse_pairs >= len(self.base) - 1

    @property
    def verdict(self) -> str:
        if not self.slower:
            return "holds"
        return "slower: " + ("ranges apart" if self.apart else f"{self.worse_pairs} of {len(self.base)} pairs")


def comparisons(pairs: Sequence[tuple[Figures, Figures]], margin: float = MARGIN) -> dict[tuple[str, str], Comparison]:
    """Rows that every run measured.

    Raises:
        InputError: none did, or a row of the base is not in every run of the head: what is not measured is not faster.
    """
    base = set.intersection(*({*first} for first, _ in pairs))
    head = set.intersection(*({*second} for _, second in pairs))
    if not base & head:
        raise InputError(
            "the two commits have no row of a product in common, so nothing is compared; choose others with -k"
        )
    gone = sorted(base - head)
    if gone:
        raise InputError(f"the row {' / '.join(gone[0])} was measured before and is not any more; leave it out with -k")
    return {
        key: Comparison(np.array([b[key] for b, _ in pairs]), np.array([h[key] for _, h in pairs]), margin)
        for key in sorted(base)
    }


def table(found: dict[tuple[str, str], Comparison]) -> str:
    """One line for each row: verdict, median ratio, ranges in ms, pairs that are worse beyond the margin."""
    rows = [("verdict", "head / base", "base ms", "head ms", "worse", "row")]
    for key, one in found.items():
        ranges = [f"{side.min():.4g} to {side.max():.4g}" for side in (one.base, one.head)]
        worse = f"{one.worse_pairs} of {len(one.base)}"
        rows.append((one.verdict, f"{one.ratio:.3f}", *ranges, worse, " / ".join(key)))
    return aligned(rows)


def commit_of(name: str) -> str:
    """The full hash of a commit that has benchmarks.

    Raises:
        InputError: there is no such commit, or it has none.
    """
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    commit = found.stdout.strip()
    if found.returncode or not commit:
        raise InputError(f"there is no commit {name!r} in {ROOT}; give a hash, a branch or a tag")
    suites = _git("ls-tree", "--name-only", commit, "bench/").stdout.split()
    if not any(Path(path).match("bench_*.py") for path in suites):
        raise InputError(
            f"{name!r} has no benchmarks (bench/bench_*.py), so it cannot be compared; give a later commit"
        )
    return commit


def check_clean() -> None:
    """Raises InputError where files differ from the last commit: what they change would not be measured."""
    changed = _git("status", "--porcelain", "--untracked-files=no").stdout.split("\n")[0][3:]
    if changed:
        raise InputError(f"{changed} has changes that no commit holds, and commits are compared; commit or stash them")


@contextmanager
def built_tree(commit: str, folder: Path) -> Iterator[Path]:
    """A work tree of a commit with its native library; removed at the end, whatever happens.

    Raises:
        InputError: git does not make it.
        EngineError: the build fails; what it said is on stderr.
    """
    try:
        made = _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        if made.returncode:
            raise InputError(f"git makes no work tree of {commit[:12]}: {' '.join(made.stderr.split())}")
        # Where an installed package has them; so nothing of this tree's is imported.
        for name in ("bench", "calibration"):
            (folder / "grd_edge" / name).symlink_to(Path("..") / name)
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
        if not cmake:
            raise EngineError("cmake, which builds the native library, is not installed; pip install cmake ninja")
        build = str(folder / "build")
        options = ("-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}")
        for command in ([cmake, "-S", str(folder), "-B", build, *options], [cmake, "--build", build]):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                print(done.stdout[-4000:], file=sys.stderr)
                raise EngineError(f"the native library of {commit[:12]} does not build; its compiler's words are above")
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def measured(tree: Path, commit: str, select: str, options: Sequence[str]) -> Figures:
    """The products' rows of one run in a work tree.

    Raises:
        InputError: the benchmarks failed, none was selected, or they ran another tree's code.
    """
    env = {"PYTHONPATH": str(tree), "GRD_LIBRARY_DIR": str(tree / "build")}
    run = run_benchmarks(["bench"], "-k", select, *options, root=tree, env=env)
    if run.exit_code or not run.result.get("benchmarks"):
        none = run.exit_code == 5
        why = f"none matches -k {select!r}" if none else f"pytest's exit code is {run.exit_code}; it says why above"
        raise InputError(f"the benchmarks of {commit[:12]} measured nothing to compare: {why}")
    ran = run.result["machine_info"]["machine"]["commit"]
    if ran != commit:
        raise InputError(
            f"the benchmarks of {commit[:12]} ran the code of {ran}; unset PYTHONPATH and run from a checkout"
        )
    return {
        (bench["group"], bench["param"]): 1e3 * bench["stats"]["min"]
        for bench in run.result["benchmarks"]
        if bench["extra_info"]["role"] == PRODUCT
    }


def compared(
    base: str, head: str, *, pairs: int = PAIRS, margin: float = MARGIN, select: str = SELECTED, full: bool = False
) -> dict[tuple[str, str], Comparison]:
    """Builds both commits and alternates their benchmarks.

    Args:
        full: all rounds in place of the short run.

    Raises:
        InputError, EngineError: see the functions above.
    """
    commits = [commit_of(base), commit_of(head)]
    check_clean()
    options = () if full else ("--short",)
    with tempfile.TemporaryDirectory(prefix="grd-compare-", ignore_cleanup_errors=True) as folder:
        first, second = Path(folder) / "base", Path(folder) / "head"
        print(f"building {commits[0][:12]} and {commits[1][:12]}", file=sys.stderr)
        with built_tree(commits[0], first), built_tree(commits[1], second):
            sides = {"base": (first, commits[0]), "head": (second, commits[1])}
            found = []
            for index in range(pairs):
                pair = {}
                for side in ("base", "head") if index % 2 == 0 else ("head", "base"):
                    print(f"pair {index + 1} of {pairs}: {side}", file=sys.stderr)
                    pair[side] = measured(*sides[side], select, options)
                found.append((pair["base"], pair["head"]))
    return comparisons(found, margin)


def _git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grd_edge.bench.compare", description=__doc__.partition(";")[0])
    parser.add_argument("base", metavar="BASE", help="commit before")
    parser.add_argument("head", metavar="HEAD", nargs="?", default="HEAD", help="commit after (HEAD)")
    parser.add_argument(
        "-k", dest="select", default=SELECTED, metavar="EXPRESSION", help="which benchmarks, as pytest's"
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help="runs of each commit (7)")
    parser.add_argument("--margin", type=float, default=MARGIN, help="how much worse a pair may be (0.05)")
    parser.add_argument("--full", action="store_true", help="all rounds, in place of the short run")
    options = parser.parse_args(arguments)
    if options.pairs < 3 or not 0 <= options.margin < 1:
        parser.error("--pairs is 3 or more, --margin a share from 0 to below 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job cleans up, too
    try:
        found = compared(
            options.base,
            options.head,
            pairs=options.pairs,
            margin=options.margin,
            select=options.select,
            full=options.full,
        )
    except GrdError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("the comparison was stopped; its work trees are removed", file=sys.stderr)
        return 130
    print(table(found), flush=True)
    slower = [key for key, one in found.items() if one.slower]
    said = f": {', '.join(' / '.join(key) for key in slower)}" if slower else ""
    print(f"{len(slower)} of {len(found)} rows got slower{said}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
