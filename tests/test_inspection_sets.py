"""Every set of real inspection images goes through train, build and eval. The figures of long runs: docs/results.md."""

import os
from pathlib import Path

import pytest
from grd_edge.bench.inspection_sets import SETS, run_set

DATA = Path(os.environ.get("GRD_DATA", "unset"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="GRD_DATA is not set to the real inspection sets")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.mark.slow
@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_a_real_set_goes_through(one, out):
    if not (DATA / one.name).is_dir():
        pytest.skip(f"{one.name} is not below GRD_DATA")
    result = run_set(one, DATA, out, ("--steps", 4))
    assert result["decision_flips"] == 0
    assert result["phi_max_abs_diff"] <= 1e-5
    assert 0 <= result["image_auroc"] <= 1
    assert result["defective"] == len([path for path in (DATA / one.name).glob("test/[!g]*/*")])
