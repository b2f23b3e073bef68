"""Every rule of docs/bundle.md, broken one at a time, in both readers: Python's and the native one."""

import json
import os
import shutil

import numpy as np
import pytest

from grd_edge.bundle import MANIFEST, MODEL, read_bundle, sealed, write_bundle, write_decision
from grd_edge.errors import BundleError, InputError
from grd_edge.files import sha256_hex
from grd_edge.runtime import Inspector


def refused_by_both(path, *words):
    """Both readers refuse `path` in one sentence; Python's holds the words."""
    with pytest.raises(BundleError) as ours:
        read_bundle(path)
    with pytest.raises(BundleError) as native:
        Inspector(path)
    for error in (ours.value, native.value):
        assert "\n" not in str(error)
        assert len(str(error)) > 20
    for word in words:
        assert word in str(ours.value), str(ours.value)


def rewrite(path, name, change):
    """Applies `change` to a JSON file of a bundle and seals it again, so that only the planted defect is wrong."""
    mapping = json.loads((path / name).read_text(encoding="utf-8"))
    change(mapping)
    mapping.pop("seal", None)
    (path / name).write_bytes(sealed(mapping))
    if name == MANIFEST and (path / "decision.json").exists():
        seal = json.loads((path / name).read_text(encoding="utf-8"))["seal"]
        rewrite(path, "decision.json", lambda decision: decision.update(bundle=seal))


def test_a_good_bundle_opens_in_both(tiny_bundle):
    bundle = read_bundle(tiny_bundle)
    assert bundle.threshold == np.float32(0.4)
    assert sha256_hex(bundle.files[MODEL]) == bundle.manifest["files"][MODEL]["sha256"]
    with Inspector(tiny_bundle) as inspector:
        assert inspector.info.schema == 1
        assert inspector.info.threshold == np.float32(0.4)
        assert inspector.info.cut.stride_y == bundle.grid.stride_y


def test_the_decision_may_be_absent(tiny_bundle):
    (tiny_bundle / "decision.json").unlink()
    assert read_bundle(tiny_bundle).threshold is None
    with Inspector(tiny_bundle) as inspector:
        result = inspector.inspect(np.zeros((40, 40), np.uint8))
    assert result.decision == "undecided"
    assert np.isnan(result.threshold)


def delete(*keys):
    def change(mapping):
        for key in keys[:-1]:
            mapping = mapping[key]
        del mapping[keys[-1]]

    return change


def put(value, *keys):
    def change(mapping):
        for key in keys[:-1]:
            mapping = mapping[key]
        mapping[keys[-1]] = value

    return change


GEOMETRY, SCORE = "geometry", "score"
BROKEN_MANIFESTS = {
    "newer schema": (put(2, "schema"), "update grd-edge"),
    "schema as text": (put("1", "schema"), "schema"),
    "schema as bool": (put(True, "schema"), "schema"),
    "unknown key": (put(1, "extra"), "unknown key bundle.extra"),
    "unknown geometry key": (put(1, GEOMETRY, "extra"), "geometry.extra"),
    "no name": (delete("name"), "lacks bundle.name"),
    "other head": (put("map", "head"), "head"),
    "no geometry": (delete(GEOMETRY), "geometry"),
    "geometry is a list": (put([], GEOMETRY), "geometry"),
    "patch too small": (put(10, GEOMETRY, "patch_h"), "patch_h"),
    "patch as float": (put(32.0, GEOMETRY, "patch_h"), "patch_h"),
    "stride zero": (put(0, GEOMETRY, "stride_x"), "stride_x"),
    "stride beyond the patch": (put(33, GEOMETRY, "stride_y"), "never be inspected"),
    "negative scale": (put(-1, GEOMETRY, "scale_px"), "scale_px"),
    "two channels": (put(2, GEOMETRY, "channels"), "channels"),
    "other padding": (put("zero", GEOMETRY, "padding"), "padding"),
    "other score": (put("psi", SCORE, "decides"), "decides"),
    "other window": (put("hann", SCORE, "window"), "window"),
    "local window zero": (put(0, SCORE, "local_window_px"), "local_window_px"),
    "no files": (put({}, "files"), "files"),
    "parent path": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "../x"), "bad name"),
    "absolute path": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "/etc/passwd"), "bad name"),
    "hidden path": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "models/.x"), "bad name"),
    "deep path": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "a/b/c/d"), "bad name"),
    "lists itself": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "bundle.json"), "bad name"),
    "listed file missing": (put({"sha256": "0" * 63 + "1", "bytes": 1}, "files", "models/x"), "models/x is missing"),
    "wrong size": (put(5, "files", MODEL, "bytes"), "expected exactly 5"),
    "wrong hash": (put("0" * 63 + "1", "files", MODEL, "sha256"), "expected 000000000000"),
    "upper-case hash": (put("A" * 64, "files", MODEL, "sha256"), "sha256"),
    "engine of no file": (put("models/none", "engines", 0, "file"), "not listed"),
    "engine with extra key": (put(1, "engines", 0, "extra"), "engines[].extra"),
    "backend with a path": (put("../evil", "engines", 0, "backend"), "backend"),
    "mask of interest not listed": (put("roi.pgm", "roi"), "mask of interest"),
    "mask of interest null": (put(None, "roi"), "roi"),
    "the model as a mask of interest": (put(MODEL, "roi"), "binary PGM"),
    "chosen engine missing": (put({"cpu": "int8"}, "precision", "chosen"), "no such engine"),
}


@pytest.mark.parametrize("name", BROKEN_MANIFESTS)
def test_a_broken_manifest_is_refused(tiny_bundle, name):
    change, words = BROKEN_MANIFESTS[name]
    rewrite(tiny_bundle, MANIFEST, change)
    refused_by_both(tiny_bundle, words)


BROKEN_DECISIONS = {
    "newer schema": (put(2, "schema"), "update grd-edge"),
    "unknown key": (put(1, "extra"), "unknown key decision.extra"),
    "no regions": (put([], "regions"), "regions"),
    "two regions of one name": (lambda d: d["regions"].append(d["regions"][0]), "regions"),
    "threshold null": (put(None, "regions", 0, "threshold"), "threshold"),
    "threshold as text": (put("0.5", "regions", 0, "threshold"), "threshold"),
    "threshold that float32 cannot hold": (put(0.1, "regions", 0, "threshold"), "threshold"),
    "threshold infinite in float32": (put(1e300, "regions", 0, "threshold"), "threshold"),
    "name of 65 characters": (put("x" * 65, "regions", 0, "name"), "1 to 64 characters"),
    "65 regions": (lambda d: d.update(regions=[{"name": str(i), "threshold": 0} for i in range(65)]), "regions"),
    "areas without a frame": (put([[0, 0, 1, 1]], "regions", 0, "areas"), "size of the frame"),
    "a frame without areas": (put([9, 9], "frame_px"), "size of the frame"),
    "areas null": (lambda d: (put([9, 9], "frame_px")(d), put(None, "regions", 0, "areas")(d)), "areas"),
    "no areas": (lambda d: (put([9, 9], "frame_px")(d), put([], "regions", 0, "areas")(d)), "0 areas"),
    "area beyond the frame": (
        lambda d: (put([9, 9], "frame_px")(d), put([[0, 0, 9, 10]], "regions", 0, "areas")(d)),
        "does not lie in its frame",
    ),
    "area of three numbers": (
        lambda d: (put([9, 9], "frame_px")(d), put([[0, 0, 9]], "regions", 0, "areas")(d)),
        "areas",
    ),
    "area of floats": (
        lambda d: (put([9, 9], "frame_px")(d), put([[0, 0, 9, 1.0]], "regions", 0, "areas")(d)),
        "areas",
    ),
    "frame as floats": (
        lambda d: (put([9.0, 9], "frame_px")(d), put([[0, 0, 9, 1]], "regions", 0, "areas")(d)),
        "frame_px",
    ),
    "k zero": (put(0, "k"), "k"),
    "k as bool": (put(True, "k"), "k"),
    "run agreement too low": (put(0.5, "run_agreement"), "run_agreement"),
    "of another bundle": (put("0" * 63 + "1", "bundle"), "another bundle"),
    "no fit": (delete("fit"), "fit"),
}


@pytest.mark.parametrize("name", BROKEN_DECISIONS)
def test_a_broken_decision_is_refused(tiny_bundle, name):
    change, words = BROKEN_DECISIONS[name]
    rewrite(tiny_bundle, "decision.json", change)
    refused_by_both(tiny_bundle, words)


def test_regions_of_both_kinds_open_in_both(tiny_bundle):
    areas = [[0, 0, 60, 40], [59, 89, 1, 1]]
    regions = [{"name": "ä" * 64, "threshold": 0.5, "areas": areas}, {"name": "rest", "threshold": -1}]
    written = write_decision(
        tiny_bundle, {"frame_px": [60, 90], "regions": regions, "k": 2, "run_agreement": 1, "fit": {}}
    )
    assert written.threshold is None and written.thresholds == (0.5, -1)
    assert written.regions.names == ("ä" * 64, "rest")
    assert written.regions.regions[0].areas == ((0, 0, 60, 40), (59, 89, 1, 1))
    with Inspector(tiny_bundle) as inspector:
        assert inspector.info.region_count == 2 and np.isnan(inspector.info.threshold)
        assert inspector.region_names == written.regions.names


MASK = b"P5\n3 2\n255\n\x00\x01\x02\x03\x04\xff"
BROKEN_MASKS = (
    MASK[:-1],
    MASK + b"\0",
    MASK.replace(b"P5", b"P2"),
    MASK.replace(b"\n3", b" 3", 1),
    MASK.replace(b"3 2", b"03 2"),
    MASK.replace(b"3 2", b"3  2"),
    MASK.replace(b"255", b"65535"),
    MASK.replace(b"255", b" 255"),
    MASK.replace(b"P5\n", b"P5\n# made by hand\n"),
    MASK.replace(b"255\n", b"255\r\n"),
    b"P5\n0 2\n255\n",
    b"P5\n-3 2\n255\n" + bytes(6),
    b"P5\n65537 1\n255\n" + bytes(65537),
    b"P5\n3 2\n255",
    b"P5\n3",
    b"",
)


@pytest.mark.parametrize("data", [MASK, *BROKEN_MASKS], ids=range(1 + len(BROKEN_MASKS)))
def test_masks_of_interest_in_both(tiny_bundle, data):
    (tiny_bundle / "roi.pgm").write_bytes(data)

    def listed(manifest):
        manifest["roi"] = "roi.pgm"
        manifest["files"]["roi.pgm"] = {"sha256": sha256_hex(data), "bytes": len(data)}

    rewrite(tiny_bundle, MANIFEST, listed)
    if data != MASK:
        refused_by_both(tiny_bundle, "roi.pgm")
        return
    assert read_bundle(tiny_bundle).roi.tolist() == [[0, 1, 2], [3, 4, 255]]
    with Inspector(tiny_bundle) as inspector:
        assert (inspector.info.roi_h, inspector.info.roi_w) == (2, 3)


def flip_byte(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def text_damage(old, new):
    def change(bundle):
        path = bundle / MANIFEST
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


BROKEN_FOLDERS = {
    "byte of the model": (lambda b: flip_byte(b / MODEL, 1000), "was changed"),
    "model truncated": (lambda b: os.truncate(b / MODEL, 100), "expected exactly"),
    "model is a link": (
        lambda b: ((b / MODEL).rename(b.parent / "away"), (b / MODEL).symlink_to(b.parent / "away")),
        "link",
    ),
    "folder is a link": (
        lambda b: ((b / "models").rename(b.parent / "away"), (b / "models").symlink_to(b.parent / "away")),
        "link",
    ),
    "model is a pipe": (lambda b: ((b / MODEL).unlink(), os.mkfifo(b / MODEL)), "not listed"),
    "unlisted file": (lambda b: (b / "extra.txt").write_text("x"), "not listed"),
    "unlisted hidden file": (lambda b: (b / ".hidden").write_text("x"), "not listed"),
    "unlisted empty folder": (lambda b: (b / "engines").mkdir(), "not listed"),
    "file beside the model": (lambda b: (b / "models" / "x").write_text("x"), "not listed"),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "there is no bundle"),
    "manifest is a link": (
        lambda b: ((b / MANIFEST).rename(b.parent / "m"), (b / MANIFEST).symlink_to(b.parent / "m")),
        "link",
    ),
    "manifest empty": (lambda b: (b / MANIFEST).write_text(""), "not valid JSON"),
    "manifest is a list": (lambda b: (b / MANIFEST).write_text("[]"), "object"),
    "manifest is deep": (lambda b: (b / MANIFEST).write_text('{"a":' * 9000 + "1" + "}" * 9000), "JSON"),
    "manifest is huge": (lambda b: (b / MANIFEST).write_text(" " * (1 << 20) + "{}"), "at most"),
    "manifest not UTF-8": (lambda b: (b / MANIFEST).write_bytes(b'{"a": "\xff"}'), "JSON"),
    "manifest holds NaN": (text_damage('"schema": 1', '"schema": NaN'), "JSON"),
    "manifest with a doubled key": (text_damage('"schema": 1', '"schema": 1, "schema": 1'), "twice"),
    "manifest changed": (text_damage('"head"', ' "head"'), "seal"),
    "decision changed": (lambda b: (b / "decision.json").write_text("{}"), "seal"),
    "not a folder": (lambda b: (shutil.rmtree(b), b.write_text("x")), "there is no bundle"),
    "nothing there": (shutil.rmtree, "there is no bundle"),
}


@pytest.mark.parametrize("name", BROKEN_FOLDERS)
def test_a_broken_folder_is_refused(tiny_bundle, name):
    change, words = BROKEN_FOLDERS[name]
    change(tiny_bundle)
    refused_by_both(tiny_bundle, words)


def manifest_of(path):
    manifest = dict(read_bundle(path).manifest)
    for key in ("schema", "files", "seal"):
        del manifest[key]
    return manifest


def test_a_failed_write_leaves_the_old_bundle_and_no_trace(tiny_bundle):
    before = read_bundle(tiny_bundle)

    def fail(_):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_bundle(tiny_bundle, manifest_of(tiny_bundle), before.files, check=fail)
    with pytest.raises(BundleError):
        write_bundle(tiny_bundle, {**manifest_of(tiny_bundle), "head": "none"}, before.files)
    assert read_bundle(tiny_bundle) == before
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_writing_replaces_a_bundle_and_drops_its_thresholds(tiny_bundle):
    after = write_bundle(tiny_bundle, manifest_of(tiny_bundle), read_bundle(tiny_bundle).files)
    assert after.decision is None
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_a_bundle_never_replaces_something_else(tiny_bundle, tmp_path):
    manifest, files = manifest_of(tiny_bundle), read_bundle(tiny_bundle).files
    folder = tmp_path / "photos.grdb"
    folder.mkdir()
    (folder / "holiday.jpg").write_text("x")
    with pytest.raises(InputError, match="not a bundle"):
        write_bundle(folder, manifest, files)
    assert (folder / "holiday.jpg").exists()
    with pytest.raises(InputError, match=r"\.grdb"):
        write_bundle(tmp_path / "name", manifest, files)
    link = tmp_path / "link.grdb"
    link.symlink_to(tiny_bundle)
    with pytest.raises(InputError, match="not a bundle"):
        write_bundle(link, manifest, files)


def test_a_bad_decision_is_not_written(tiny_bundle):
    before = (tiny_bundle / "decision.json").read_bytes()
    regions = [{"name": "frame", "threshold": 0.1}]
    with pytest.raises((BundleError, ValueError)):
        write_decision(tiny_bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})
    assert (tiny_bundle / "decision.json").read_bytes() == before
