"""A bundle that is exchanged while it is opened, and provenance of any content."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from grd_edge import shipped
from grd_edge.bundle import read_bundle, write_decision
from grd_edge.errors import BundleError
from grd_edge.shipped import opened_bundle, seen_ids, training_of, unknown_images


def decided(path, threshold):
    regions = [{"name": "frame", "threshold": threshold}]
    return write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})


def test_engine_and_bundle_are_the_same_one(tiny_bundle, monkeypatch):
    """Thresholds that are replaced between the two: both are opened again."""
    opened = []

    class Exchanged(shipped.Inspector):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            opened.append(self)
            if len(opened) < 3:
                decided(path, len(opened) / 4)

    monkeypatch.setattr(shipped, "Inspector", Exchanged)
    inspector, bundle = opened_bundle(tiny_bundle, threads=1)
    with inspector:
        assert len(opened) == 3 and bundle.threshold == 0.5 == inspector.info.threshold
    assert bundle.decision["seal"] == read_bundle(tiny_bundle).decision["seal"]
    assert not opened[0]._handle and not opened[1]._handle


def test_a_bundle_that_never_rests_is_refused(tiny_bundle, monkeypatch):
    count = iter(range(10_000))

    class Restless(shipped.Inspector):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            decided(path, next(count) / 64)

    monkeypatch.setattr(shipped, "Inspector", Restless)
    monkeypatch.setattr(shipped, "_ATTEMPTS", 3)
    with pytest.raises(BundleError, match="replaced again and again while it is opened"):
        opened_bundle(tiny_bundle)


def test_an_engine_is_closed_where_the_bundle_has_gone(tiny_bundle, monkeypatch):
    opened = []

    class Gone(shipped.Inspector):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            opened.append(self)
            shutil.rmtree(path)

    monkeypatch.setattr(shipped, "Inspector", Gone)
    with pytest.raises(BundleError, match="no bundle"):
        opened_bundle(tiny_bundle)
    assert not opened[0]._handle


@pytest.mark.parametrize("training", [None, "by hand", ["a"], {"seen": None}, {"seen": "abc"}, {"seen": [1, ["a"]]}])
def test_provenance_is_free_in_content(training):
    bundle = SimpleNamespace(manifest={"provenance": {"training": training}})
    assert seen_ids(training_of(bundle)) == []
    assert seen_ids(training_of(SimpleNamespace(manifest={"provenance": {}}))) == []


@pytest.mark.parametrize(
    ("training", "fit", "notes"),
    [
        ({"train_images": 5, "validation_images": 2, "seen": ["a"] * 7}, {"images": 3, "seen": ["b"] * 3}, []),
        ({"train_images": 5, "validation_images": 2, "seen": ["a"] * 4}, {}, ["only 4 of 7 training images are known"]),
        ({"train_images": 5}, {"images": 3}, ["only 0 of 5 training", "only 0 of 3 calibration images are known"]),
        ({"train_images": "many", "seen": []}, {"images": None}, []),
        ("by hand", {"method": "test"}, []),
    ],
)
def test_images_that_cannot_be_refused_are_told(training, fit, notes):
    found = unknown_images(SimpleNamespace(manifest={"provenance": {"training": training}}, decision={"fit": fit}))
    assert len(found) == len(notes) and all(text.startswith(note) for text, note in zip(found, notes, strict=True))
