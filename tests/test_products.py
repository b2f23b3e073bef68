"""Products of several images and runs of several acquisitions: docs/method.md, section 7."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from grd_edge.errors import InputError
from grd_edge.products import ProductRule


def inspection(*scores: float, threshold: float | None = 0.5):
    """What an engine says of an image whose patches scored so."""
    phi = np.array(scores, np.float32)
    defective = np.zeros(len(phi), bool) if threshold is None else ~(phi < threshold)
    decision = "undecided" if threshold is None else "defective" if defective.any() else "good"
    regions = np.zeros(len(phi), np.int32)
    return SimpleNamespace(decision=decision, score=phi.max(), phi=phi, defective=defective, regions=regions)


def test_patches_of_all_images_count_together():
    rule = ProductRule("phi", (0.5,), k=3)
    images = [inspection(0.1, 0.6), inspection(0.7), inspection(0.2, 0.8, 0.3)]
    result = rule.product(images)
    assert (result.decision, result.patches, result.defective_patches) == ("defective", 6, 3)
    assert result.score == np.float32(0.6) and result.threshold == 0.5
    assert rule.product(images[:2]).decision == "good"


def test_an_image_that_was_not_inspected_never_makes_a_product_good():
    rule = ProductRule("phi", (0.5,), k=1)
    assert rule.product([inspection(0.1), None]).decision == "error"
    assert rule.product([inspection(0.9), None]).decision == "defective"
    nothing = rule.product([None])
    assert nothing.decision == "error" and nothing.patches == 0 and np.isnan(nothing.score)
    undecided = ProductRule("phi", ()).product([inspection(0.1, threshold=None), None])
    assert undecided.decision == "error"


def test_without_thresholds_the_score_still_follows_k():
    rule = ProductRule("phi", (), k=2)
    result = rule.product([inspection(0.1, 0.9, threshold=None), inspection(0.4, threshold=None)])
    assert result.decision == "undecided" and result.score == np.float32(0.4) and np.isnan(result.threshold)
    assert rule.image_score(inspection(0.1, 0.9, threshold=None)) == np.float32(0.1)
    assert rule.image_score(inspection(0.3, threshold=None)) == np.float32(0.3)


def test_margins_decide_where_regions_differ():
    rule = ProductRule("phi", (0.5, 0.1), k=1)
    image = inspection(0.4, 0.2)
    image.regions, image.defective, image.decision = np.array([0, 1], np.int32), np.array([False, True]), "defective"
    result = rule.product([image])
    assert result.decision == "defective" and result.threshold == 0
    assert result.score == pytest.approx(0.1)


def test_nan_is_never_good():
    assert ProductRule("phi", (0.5,)).product([inspection(float("nan"), 0.1)]).decision == "defective"


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        (["good"] * 7 + ["defective"] * 3, "good"),
        (["good"] * 6 + ["defective"] * 4, "inconsistent"),
        (["good"] * 3 + ["defective"] * 7, "defective"),
        (["good"] * 7 + ["error"] * 3, "good"),
        (["good"] * 3 + ["error"] * 7, "inconsistent"),
        (["defective"] * 7 + ["error"] * 3, "defective"),
        (["error"], "inconsistent"),
        (["good", "undecided"], "undecided"),
    ],
)
def test_runs(decisions, expected):
    assert ProductRule("phi", (0.5,)).run(decisions) == expected


def test_a_run_needs_acquisitions():
    with pytest.raises(InputError, match="no acquisitions"):
        ProductRule("phi").run([])
