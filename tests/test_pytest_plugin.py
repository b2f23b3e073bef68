"""The fixture `grd_latency_gate`, in a test suite of its own."""

import subprocess
import sys

import pytest

pytest_plugins = ("pytester",)


@pytest.fixture
def suite(pytester, tiny_bundle_files):
    """Runs tests whose bodies call the fixture as `gate`, with the bundle's path as `bundle`."""

    def run(*bodies):
        tests = [
            f"def test_{index}(grd_latency_gate):\n    gate, bundle = grd_latency_gate, {str(tiny_bundle_files)!r}\n"
            f"    {body}\n"
            for index, body in enumerate(bodies)
        ]
        pytester.makepyfile("\n".join(tests))
        return pytester.runpytest_subprocess()  # in this process it would unload modules that others hold

    return run


def test_gates_hold_or_fail_with_their_figures(suite):
    done = suite(
        'assert gate(bundle, p50_ms=1e4, rounds=3, patches=2)["figures"]["p50_ms"] > 0',
        "gate(bundle, p50_ms=1e-6, engine_mb=1e3, rounds=3)",
        "gate(bundle, p99_ms=1e4, rounds=3)",
        "gate(bundle, speedup=1e6, rounds=3)",
        "gate(bundle, p98_ms=3)",
        "gate(bundle)",
        'gate("no.grdb", p99_ms=3)',
        "gate(bundle, rounds=2, p50_ms=1e4)",
    )
    done.assert_outcomes(passed=1, failed=7)
    text = done.stdout.str()
    for words in (
        "1 of 2 gates did not hold: p50_ms ",
        "p99_ms not measured: it needs 100 frames and 3 were timed",
        "(at least 1e+06)",
        "there is no metric 'p98_ms'",
        "no gate was given",
        "no.grdb",
        "time at least 3",
    ):
        assert words in text, text
    assert "Traceback" not in text and "pytest_plugin.py" not in text.replace("test_pytest_plugin.py", "")


def test_it_refuses_to_measure_beside_other_tests(pytester):
    pytester.makeconftest("def pytest_configure(config):\n    config.workerinput = {}\n")
    pytester.makepyfile("def test_a(grd_latency_gate):\n    grd_latency_gate('part.grdb', p99_ms=20)\n")
    done = pytester.runpytest_subprocess()  # in this process it would unload modules that others hold
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*pytest-xdist*-n 0*"])


def test_the_plug_in_costs_nothing_until_it_is_used():
    code = "import sys, grd_edge.pytest_plugin; print(sorted({'numpy', 'torch', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
