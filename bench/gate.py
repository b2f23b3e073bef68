"""`make bench-gate`: runs the benchmarks and holds them to `bench/budgets.yaml`; exit code 1 when one does not hold.

A budget that misses is measured again, at most twice more and in processes of their own, before the gate says so: what
disturbs a run on a shared machine passes, and what was made slower stays. Source: docs/bench.md, "The gate".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge.bench.budgets import BUDGETS, ELSEWHERE, MISSED, Budget, Verdict, budgets_from_file, verdicts

from grd_edge.errors import ConfigError, GrdError

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 2


@dataclass(frozen=True)
class Run:
    """One run of benchmarks.

    Attributes:
        result: the JSON of pytest-benchmark; {}: it wrote none.
        exit_code: of pytest; not 0: a benchmark failed, whatever the others measured.
    """

    result: dict[str, Any]
    exit_code: int


def run_benchmarks(
    tests: Sequence[str], *options: str, root: Path = ROOT, env: dict[str, str] | None = None, keep: Path | None = None
) -> Run:
    """Runs benchmarks in a process of their own; what pytest says goes to stderr.

    Args:
        tests: files or node ids, from the source tree's root.
        options: of pytest.
        env: added to the environment.
        keep: where the JSON is copied to.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--benchmark-quiet",
            f"--benchmark-json={path}",
            *options,
            *tests,
        ]
        code = subprocess.run(command, cwd=root, env={**os.environ, **(env or {})}, stdout=2).returncode
        if not path.exists():
            return Run({}, code)
        if keep:
            shutil.copyfile(path, keep)
        return Run(json.loads(path.read_text(encoding="utf-8")), code)


def judged(
    budgets: list[Budget], measure: Callable[[Sequence[str]], Run], tests: Sequence[str]
) -> tuple[list[list[Verdict]], list[str]]:
    """Every budget's verdicts, one for each time that it was measured, and what else went wrong.

    Args:
        measure: runs tests.
        tests: first to run; misses run again the tests that wrote their group.
    """
    first = measure(tests)
    found = [[verdict] for verdict in verdicts(budgets, first.result)]
    wrong = _wrong(first)
    for _ in range(REPEATS):
        again = [attempts for attempts in found if attempts[-1].outcome == MISSED]
        if not again:
            break
        groups = {attempts[-1].budget.group for attempts in again}
        written = [
            bench["fullname"].partition("[")[0] for bench in first.result["benchmarks"] if bench["group"] in groups
        ]
        repeat = measure(list(dict.fromkeys(written)))
        wrong += _wrong(repeat)
        for attempts, verdict in zip(
            again, verdicts([attempts[-1].budget for attempts in again], repeat.result), strict=True
        ):
            attempts.append(verdict)
    return found, list(dict.fromkeys(wrong))


def _wrong(run: Run) -> list[str]:
    return [f"a benchmark failed (pytest's exit code is {run.exit_code}; it says why above)"] if run.exit_code else []


def failure(found: list[list[Verdict]], wrong: list[str]) -> str | None:
    """One sentence about what did not hold; None: all did.

    Budgets of other machines alone gate nothing, which is a failure, too.
    """
    failed = [attempts for attempts in found if attempts[-1].failed]
    said = [_said(attempts) for attempts in failed]
    if failed:
        said[0] = f"{len(failed)} of {len(found)} budgets did not hold: {said[0]}"
    elif all(attempts[-1].outcome == ELSEWHERE for attempts in found):
        said = ["no budget is of this machine, so nothing was gated"]
    return "; ".join(said + wrong) or None


def _said(attempts: list[Verdict]) -> str:
    last = attempts[-1]
    what = f"not measured: {last.why}" if last.value is None else f"{_values(attempts)} ({last.budget.limit_text})"
    return f"{last.budget} {what}"


def _values(attempts: list[Verdict]) -> str:
    return ", ".join("-" if each.value is None else f"{each.value:.4g}" for each in attempts)


def table(found: list[list[Verdict]]) -> str:
    """One line for each budget: verdict, what was measured at each attempt, limit, budget, device."""
    rows = [("verdict", "measured", "limit", "budget", "device")]
    for attempts in found:
        last, budget = attempts[-1], attempts[-1].budget
        why = f" ({last.why})" if last.why else ""
        rows.append(
            (last.outcome, _values(attempts), budget.limit_text, f"{budget}{why}", budget.device_name or "every")
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines whose columns begin at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grd_edge.bench.gate", description=__doc__.partition(";")[0])
    parser.add_argument("tests", nargs="*", default=["bench"], help="benchmarks to run (default: all)")
    parser.add_argument("--short", action="store_true", help="few rounds; the ratios that say `short: true` alone")
    parser.add_argument("--only", metavar="TEXT", default="", help="budgets whose group holds this text alone")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the first run's JSON goes")
    options = parser.parse_args(arguments)
    try:
        budgets = [
            budget
            for budget in budgets_from_file(options.budgets)
            if options.only in budget.group and not (options.short and (budget.device or not budget.row_budgets.short))
        ]
        if not budgets:
            raise ConfigError(f"no budget of {options.budgets} is left to gate; see --only and --short")
        short = ("--short",) if options.short else ()
        keep = [options.output]  # the first run's alone
        found, wrong = judged(
            budgets, lambda tests: run_benchmarks(tests, *short, keep=keep.pop() if keep else None), options.tests
        )
    except GrdError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(found), flush=True)
    missed = failure(found, wrong)
    print(missed or f"all {len(found)} budgets hold", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
