"""A pytest fixture that holds a bundle to latency gates in a project's own tests. Imports nothing before it is used.

Example::

    def test_the_line_keeps_its_cycle(grd_latency_gate):
        grd_latency_gate("part.grdb", p99_ms=20, speedup=3)

Source: docs/bench.md, section "In a test suite".
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def grd_latency_gate(request: pytest.FixtureRequest):
    """Function of a bundle and limits, metric=limit; fails the test when one is missed or cannot be measured.

    It takes the arguments of `grd_edge.latency.LatencyOptions`, too (`patches`, `images`, `threads`, `batch_limit`,
    `precision`, `target`, `rounds`, `seconds`, `against`, `cold_starts`), measures no more than the gates need, and
    returns the result of `grd_edge.latency.measured`.
    """

    def gate(bundle: str | os.PathLike[str], **limits_and_options):
        __tracebackhide__ = True
        if hasattr(request.config, "workerinput"):
            pytest.fail(
                "latency cannot be measured while pytest-xdist runs tests beside it; run with: -n 0", pytrace=False
            )
        from pathlib import Path

        from grd_edge.errors import GrdError
        from grd_edge.gates import failure, gates_from_limits
        from grd_edge.latency import LatencyOptions, measured, verdicts_of

        names = LatencyOptions.__dataclass_fields__.keys() - {"parts"}
        options = {name: value for name, value in limits_and_options.items() if name in names}
        if "images" in options:
            given = options["images"]
            options["images"] = tuple(map(Path, [given] if isinstance(given, str | os.PathLike) else given))
        try:
            gates = gates_from_limits(
                {name: value for name, value in limits_and_options.items() if name not in options}
            )
            if not gates:
                pytest.fail(f"no gate was given for {bundle}; give one, such as p99_ms=20", pytrace=False)
            if all(gate.metric.name != "speedup" for gate in gates):
                options.setdefault("against", "none")
            parts = tuple({gate.metric.part for gate in gates})
            result = measured(Path(bundle), LatencyOptions(parts=parts, **options), gates)
        except GrdError as error:
            pytest.fail(str(error), pytrace=False)
        missed = failure(verdicts_of(result))
        if missed:
            pytest.fail(f"{bundle} on {result['machine']['cpu']}: {missed}", pytrace=False)
        return result

    return gate
