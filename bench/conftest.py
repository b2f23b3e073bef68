"""Options and session of the benchmarks: `python -m pytest bench --benchmark-json=out.json`. Source: docs/bench.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from grd_edge.bench.rows import Setting

from grd_edge.machine import fingerprint


def pytest_addoption(parser) -> None:
    group = parser.getgroup("grd-edge benchmarks")
    group.addoption("--short", action="store_true", help="few rounds, and only the groups that `make test` gates on")
    group.addoption("--bundle", type=Path, help="bundle to measure in place of one with random weights")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "full: a benchmark that --short leaves out")


def pytest_collection_modifyitems(config, items) -> None:
    if config.getoption("--short"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["machine"] = fingerprint()


@pytest.fixture(scope="session")
def setting(request, tmp_path_factory) -> Setting:
    options = request.config.option
    return Setting(short=options.short, given=options.bundle, folder=tmp_path_factory.mktemp("bench"))
