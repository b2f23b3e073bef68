"""Regions and masks of interest, native against the definition: docs/method.md, sections 6 and 7."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge.bundle import read_bundle, write_bundle, write_decision
from grd_edge.bundle_schema import decision_regions
from grd_edge.decide import frame_decision, product_margin
from grd_edge.engine.torch import TorchInspector
from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, prepare_frame, working_size
from grd_edge.regions import (
    WHOLE_FRAME,
    Region,
    Regions,
    checked_mask,
    mask_from_pgm,
    patches_with_interest,
    pgm_from_mask,
    regions_from_mapping,
    scaled_mask,
    selected_patches,
)
from grd_edge.runtime import Inspector
from grd_edge.score import score_patches_f64

LEFT_RIGHT = Regions((Region("left", ((0, 0, 60, 40),)), Region("right", ((0, 40, 60, 50),))), 60, 90)


class TestRegions:
    @pytest.mark.parametrize(
        ("regions", "frame", "words"),
        [
            ((), (), "0 regions"),
            (tuple(Region(f"r{i}") for i in range(65)), (), "65 regions"),
            ((Region("a"), Region("a")), (), "name of its own"),
            ((Region(""),), (), "1 to 64 characters"),
            ((Region("x" * 65),), (), "1 to 64 characters"),
            ((Region("a", ((0, 0, 1, 1),)),), (), "size of the frame"),
            ((Region("a"),), (9, 9), "size of the frame"),
            ((Region("a", ()),), (9, 9), "0 areas"),
            ((Region("a", ((0, 0, 1, 1),) * 65),), (9, 9), "65 areas"),
            ((Region("a", ((0, 0, 10, 1),)),), (9, 9), "does not lie in its frame"),
            ((Region("a", ((5, 5, 0, 1),)),), (9, 9), "does not lie in its frame"),
            ((Region("a", ((-1, 0, 2, 1),)),), (9, 9), "does not lie in its frame"),
        ],
    )
    def test_what_cannot_be_is_refused(self, regions, frame, words):
        with pytest.raises(InputError, match=words):
            Regions(regions, *frame)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_the_first_region_that_holds_the_center(self, data):
        frame_h, frame_w = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
        scaled_h, scaled_w = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
        patch_h, patch_w = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))

        def area():
            y, x = data.draw(st.integers(0, frame_h - 1)), data.draw(st.integers(0, frame_w - 1))
            return y, x, data.draw(st.integers(1, frame_h - y)), data.draw(st.integers(1, frame_w - x))

        listed = tuple(Region(str(i), tuple(area() for _ in range(2))) for i in range(3))
        positions = [(data.draw(st.integers(0, 90)), data.draw(st.integers(0, 90))) for _ in range(8)]
        found = Regions(listed, frame_h, frame_w).of_patches(np.array(positions), patch_h, patch_w, scaled_h, scaled_w)
        for (y, x), index in zip(positions, found, strict=True):
            cy = (y + Fraction(patch_h, 2)) * frame_h / scaled_h
            cx = (x + Fraction(patch_w, 2)) * frame_w / scaled_w
            holds = [any(b <= cy < b + h and a <= cx < a + w for b, a, h, w in region.areas) for region in listed]
            assert index == (holds.index(True) if any(holds) else -1)

    def test_plain_data_and_back(self):
        described = LEFT_RIGHT.to_json()
        assert regions_from_mapping(described) == LEFT_RIGHT
        assert regions_from_mapping(WHOLE_FRAME.to_json()) == WHOLE_FRAME
        written = decision_regions(LEFT_RIGHT, (0.5, 0.25))
        assert written["frame_px"] == [60, 90] and written["regions"][1]["threshold"] == 0.25
        assert decision_regions(WHOLE_FRAME, (0.5,)) == {"regions": [{"name": "frame", "threshold": 0.5}]}

    @pytest.mark.parametrize(
        ("mapping", "words"),
        [
            ([], "needs a list"),
            ({"regions": {}}, "needs a list"),
            ({"regions": [], "x": 1}, "unknown key 'x'"),
            ({"regions": [{"name": "a"}], "frame_px": [1]}, "frame_px"),
            ({"regions": [{"name": "a"}], "frame_px": [1, True]}, "frame_px"),
            ({"regions": [{"areas": []}]}, "region 0 needs a `name`"),
            ({"regions": [{"name": "a", "area": []}]}, "nothing else"),
            ({"regions": [{"name": "a", "areas": [[0, 0, 1]]}], "frame_px": [5, 5]}, "as a list of"),
            ({"regions": [{"name": "a", "areas": [[0, 0, 1, 1.5]]}], "frame_px": [5, 5]}, "as a list of"),
        ],
    )
    def test_bad_mappings(self, mapping, words):
        with pytest.raises(InputError, match=words):
            regions_from_mapping(mapping)


class TestMasks:
    @pytest.mark.parametrize("n_in", [1, 2, 7, 30])
    @pytest.mark.parametrize("n_out", [1, 3, 7, 31])
    def test_a_scaled_pixel_is_the_one_under_its_center(self, n_in, n_out):
        mask = np.random.default_rng(n_in * n_out).random((n_in, n_in)) < 0.5
        for (y, x), value in np.ndenumerate(scaled_mask(mask, n_out, n_out)):
            under = [int(Fraction(2 * i + 1, 2) * n_in / n_out) for i in (y, x)]
            assert value == mask[tuple(under)]

    def test_what_padding_adds_is_of_no_interest(self):
        grid = PatchGrid(32, 32, 12, 12, "reflect")
        chosen = selected_patches(grid, (20, 40), None, WHOLE_FRAME, np.ones((20, 40), bool))
        assert chosen.masks.shape == (2, 32, 32)
        assert chosen.masks[:, :20].all() and not chosen.masks[:, 20:].any()

    def test_a_frame_without_a_patch_to_inspect_is_refused(self):
        grid, roi = PatchGrid(32, 32, 32, 32), np.zeros((64, 64), bool)
        with pytest.raises(InputError, match="no patch to inspect"):
            selected_patches(grid, (64, 64), None, WHOLE_FRAME, roi)
        roi[0, 0] = True
        corner = Regions((Region("corner", ((60, 60, 4, 4),)),), 64, 64)
        with pytest.raises(InputError, match="no patch to inspect"):
            selected_patches(grid, (64, 64), None, corner, None)
        assert selected_patches(grid, (64, 64), None, WHOLE_FRAME, roi).index.tolist() == [0]
        with pytest.raises(InputError, match="mask of interest is 64x63"):
            selected_patches(grid, (64, 64), None, WHOLE_FRAME, roi[:, 1:])
        with pytest.raises(InputError, match="drawn on frames of 64x64"):
            selected_patches(grid, (64, 65), None, corner, None)
        with pytest.raises(InputError, match="float64"):
            checked_mask(np.zeros((2, 2)), 2, 2)

    def test_pgm_and_back(self):
        mask = np.random.default_rng(0).random((7, 13)) < 0.5
        data = pgm_from_mask(mask)
        assert data.startswith(b"P5\n13 7\n255\n") and len(data) == 12 + 91
        assert ((mask_from_pgm(data) != 0) == mask).all()


# ------------------------------------------------------------------------- native against the definition


@pytest.fixture(scope="module")
def inspectors(tiny_checkpoint, tiny_bundle_files, tmp_path_factory):
    """(checkpoint, bundle) by window, decided by phi or phi_local."""
    made = {}
    for window, decides in (("gaussian", "phi"), ("box", "phi_local")):
        score = tiny_checkpoint.config.score.model_copy(update={"window": window, "decides": decides})
        config = tiny_checkpoint.config.model_copy(update={"score": score})
        bundle = read_bundle(tiny_bundle_files)
        manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
        manifest["score"] = score.model_dump(mode="json")
        path = tmp_path_factory.mktemp(window) / "b.grdb"
        write_bundle(path, manifest, bundle.files)
        made[window] = dataclasses.replace(tiny_checkpoint, config=config), path
    return made


def random_mask(rng, shape):
    """A mask of blobs, of single pixels, of a half, or of nearly everything."""
    kind = rng.integers(4)
    if kind == 0:
        mask = np.zeros(shape, bool)
        for _ in range(3):
            y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
            mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = True
        return mask
    if kind == 1:
        return rng.random(shape) < 0.002
    if kind == 2:
        return np.broadcast_to(np.arange(shape[1]) < shape[1] // 2, shape).copy()
    return rng.random(shape) < 0.9


def random_regions(rng, shape):
    listed = []
    for i in range(rng.integers(1, 4)):
        areas = []
        for _ in range(rng.integers(1, 3)):
            y, x = (int(rng.integers(0, extent)) for extent in shape)
            areas.append((y, x, int(rng.integers(1, shape[0] - y + 1)), int(rng.integers(1, shape[1] - x + 1))))
        listed.append(Region(f"region {i}", tuple(areas)))
    if rng.random() < 0.5:
        listed.append(Region("the rest"))
    return Regions(tuple(listed), *shape)


@pytest.mark.parametrize("window", ["gaussian", "box"])
def test_native_and_torch_agree_over_masks_and_regions(inspectors, window):
    checkpoint, path = inspectors[window]
    rng = np.random.default_rng(7)
    inspected = empty = 0
    for shape in [(32, 32), (33, 95), (40, 47), (61, 90), (100, 70), (32, 200), (75, 90), (48, 48)] * 3:
        frame = rng.integers(0, 256, shape, np.uint8)
        roi = random_mask(rng, shape) if rng.random() < 0.8 else None
        regions = random_regions(rng, shape) if rng.random() < 0.8 else WHOLE_FRAME
        thresholds = tuple(float(np.float32(t)) for t in rng.uniform(0.2, 0.6, len(regions.regions)))
        fitted = {**decision_regions(regions, thresholds), "k": 1, "run_agreement": 0.7, "fit": {}}
        bundle = write_decision(path, fitted)
        reference = TorchInspector.of_bundle(checkpoint, bundle)
        with Inspector(path, batch_limit=4) as engine:
            try:
                theirs = reference.inspect(frame, roi=roi, heatmap=True, x_hat=True)
            except InputError as error:
                with pytest.raises(InputError, match="no patch to inspect"):
                    engine.inspect(frame, roi=roi)
                assert "no patch to inspect" in str(error)
                empty += 1
                continue
            ours = engine.inspect(frame, roi=roi, heatmap=True, x_hat=True)
        inspected += 1
        assert np.array_equal(ours.positions, theirs.positions)
        assert np.array_equal(ours.regions, theirs.regions)
        assert ours.region_names == theirs.region_names == regions.names
        assert np.abs(ours.x_hat - theirs.x_hat).max() <= 2e-5
        assert np.abs(ours.heatmap - theirs.heatmap).max() <= 2e-5
        assert ours.heatmap.shape == theirs.heatmap.shape == shape
        if roi is not None:
            assert not ours.heatmap[~roi].any()
        assert np.abs(ours.phi - theirs.phi).max() <= 1e-4
        assert np.abs(ours.phi_local - theirs.phi_local).max() <= 1e-4
        assert ours.decision == theirs.decision and ours.threshold == theirs.threshold
        assert abs(ours.score - theirs.score) <= 1e-4

        # Exactly, on what the engine itself says: decisions and the score.
        deciding = ours.phi if window == "gaussian" else ours.phi_local
        decided = frame_decision(deciding, thresholds, ours.regions)
        assert decided[:3] == (ours.decision, ours.score, ours.threshold)
        assert np.array_equal(decided.defective, ours.defective)

        # Within 1e-6 of float64 on the engine's own reconstruction.
        grid = bundle.grid
        chosen = selected_patches(grid, shape, None, regions, roi)
        x = grid.cut(prepare_frame(frame, scale_px=None, channels=1))[chosen.index]
        exact = score_patches_f64(x, ours.x_hat, window=window, roi=chosen.masks)
        assert np.abs(ours.phi - exact.phi).max() <= 1e-6
        assert np.abs(ours.phi_local - exact.phi_local).max() <= 1e-6
        maps = grid.stitch(exact.heatmap, *shape, positions=ours.positions)
        assert np.abs(ours.heatmap - maps[0]).max() <= 1e-6
    assert inspected >= 12 and empty >= 1


def test_working_scale_and_padding(tiny_checkpoint, tiny_bundle_files, tmp_path):
    bundle = read_bundle(tiny_bundle_files)
    rng = np.random.default_rng(3)
    for scale_px, padding, shape in ((40, "error", (97, 130)), (33, "error", (20, 31)), (None, "reflect", (20, 70))):
        geometry = {"scale_px": scale_px, "padding": padding}
        manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
        manifest["geometry"] = {**manifest["geometry"], **geometry}
        roi = rng.random(shape) < 0.7
        opened = write_bundle(
            tmp_path / "b.grdb", {**manifest, "roi": "roi.pgm"}, {**bundle.files, "roi.pgm": pgm_from_mask(roi)}
        )
        config = tiny_checkpoint.config
        config = config.model_copy(update={"geometry": config.geometry.model_copy(update=geometry)})
        reference = TorchInspector.of_bundle(dataclasses.replace(tiny_checkpoint, config=config), opened)
        frame = rng.integers(0, 256, shape, np.uint8)
        with Inspector(tmp_path / "b.grdb") as engine:
            assert (engine.info.roi_h, engine.info.roi_w) == shape
            ours, theirs = (i.inspect(frame, heatmap=True) for i in (engine, reference))
            assert np.abs(ours.phi - theirs.phi).max() <= 1e-4
            assert np.abs(ours.heatmap - theirs.heatmap).max() <= 2e-5
            assert not ours.heatmap[~scaled_mask(roi, *working_size(*shape, scale_px))].any()
            for wrong in (frame[1:], frame[:, 1:]):
                for inspector in (engine, reference):
                    with pytest.raises(InputError, match="mask of interest"):
                        inspector.inspect(wrong)
            # The caller's mask takes the bundle's place, for that frame only.
            assert len(engine.inspect(frame[:, 1:], roi=np.ones(wrong.shape, bool)).phi) >= 1
            assert np.array_equal(engine.inspect(frame).phi, ours.phi)


def test_a_mask_of_ones_changes_nothing_and_outside_does_not_count(tiny_bundle):
    rng = np.random.default_rng(5)
    frame = rng.integers(0, 256, (60, 90), np.uint8)
    with Inspector(tiny_bundle) as engine:
        plain = engine.inspect(frame, heatmap=True)
        ones = engine.inspect(frame, roi=np.full(frame.shape, 7, np.uint8)[:, ::-1], heatmap=True)
        for name in ("phi", "phi_local", "heatmap", "positions"):
            assert np.array_equal(getattr(plain, name), getattr(ones, name)), name
        half = np.zeros(frame.shape, bool)
        half[:, :32] = True
        masked = engine.inspect(frame, roi=half)
        assert len(masked.phi) < len(plain.phi)
        assert patches_with_interest(half, masked.positions, 32, 32).all()
        # Of the patches that lie in the mask as a whole, nothing changes.
        inside = [i for i, (_, x) in enumerate(masked.positions) if x == 0]
        same = [i for i, (_, x) in enumerate(plain.positions) if x == 0]
        assert np.array_equal(masked.phi[inside], plain.phi[same])


def test_several_regions_score_by_margin(tiny_bundle):
    frame = np.random.default_rng(6).integers(0, 256, (60, 90), np.uint8)
    with Inspector(tiny_bundle, decide=False) as engine:
        undecided = engine.inspect(frame)
    assert undecided.decision == "undecided" and undecided.region_names == ("frame",)
    assert np.isnan(undecided.threshold) and not undecided.regions.any()
    index = LEFT_RIGHT.of_patches(undecided.positions, 32, 32, 60, 90)
    assert set(index.tolist()) == {0, 1}
    for k in (1, 3):
        for shift, expected in ((0.0, "defective"), (1e-6, "good")):
            best = [float(np.sort(undecided.phi[index == i])[-k]) for i in (0, 1)]
            thresholds = (float(np.float32(best[0] + shift)), 1.0)
            write_decision(
                tiny_bundle, {**decision_regions(LEFT_RIGHT, thresholds), "k": k, "run_agreement": 0.7, "fit": {}}
            )
            with Inspector(tiny_bundle) as engine:
                assert engine.info.region_count == 2 and np.isnan(engine.info.threshold)
                found = engine.inspect(frame)
                assert found.decision == expected and found.threshold == 0
                assert found.score == product_margin(found.phi, thresholds, found.regions, k)
                assert (found.score >= 0) == (expected == "defective")
                assert found.region_names == ("left", "right")
                with pytest.raises(InputError, match="drawn on frames of 60x90"):
                    engine.inspect(frame[1:])
    with pytest.raises(InputError, match="fewer than the k"):
        write_decision(
            tiny_bundle, {**decision_regions(LEFT_RIGHT, (0.5, 0.5)), "k": 4, "run_agreement": 0.7, "fit": {}}
        )
        with Inspector(tiny_bundle) as engine:
            roi = np.zeros((60, 90), bool)
            roi[0, 0] = True
            engine.inspect(frame, roi=roi)


def test_color_patches_are_masked_in_every_channel():
    from grd_edge.score import score_patches_torch

    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    x, y = (rng.random((3, 3, 33, 40), np.float32) for _ in range(2))
    roi = np.stack([random_mask(rng, (33, 40)) for _ in range(3)])
    roi[:, 16, 20] = True
    for window in ("gaussian", "box"):
        exact = score_patches_f64(x, y, window=window, roi=roi)
        found = score_patches_torch(torch.from_numpy(x), torch.from_numpy(y), window=window, roi=roi)
        assert np.abs(found.phi.numpy() - exact.phi).max() <= 1e-6
        assert np.abs(found.phi_local.numpy() - exact.phi_local).max() <= 1e-6
        noisy = y.copy()
        noisy[np.broadcast_to(~roi[:, None], y.shape)] = np.nan
        again = score_patches_f64(x, noisy, window=window, roi=roi)
        assert np.array_equal(again.phi, exact.phi) and np.array_equal(again.heatmap, exact.heatmap)
        whole = score_patches_f64(x, y, window=window, roi=np.ones_like(roi))
        assert np.array_equal(whole.phi, score_patches_f64(x, y, window=window).phi)
    with pytest.raises(InputError, match="not scored"):
        score_patches_f64(x, y, roi=np.zeros_like(roi))


def test_phi_of_a_masked_patch_by_its_definition():
    """Loops over positions: the mean of the masked pair's distance where the window holds a pixel of interest."""
    from tests.test_score import ssim_by_definition

    rng = np.random.default_rng(9)
    for window in ("gaussian", "box"):
        x, y = rng.random((13, 15)), rng.random((13, 15))
        roi = np.zeros((13, 15), bool)
        roi[2, 3] = roi[9:, 11:] = True
        distance = 1 - ssim_by_definition(np.where(roi, x, 0), np.where(roi, y, 0), window)
        kept = []
        for (i, j), value in np.ndenumerate(distance):
            top, left = (i, j) if window == "gaussian" else (i - 5, j - 5)
            if roi[max(top, 0) : top + 11, max(left, 0) : left + 11].any():
                kept.append(value)
            else:
                assert value == 0
        found = score_patches_f64(x[None, None], y[None, None], window=window, roi=roi[None])
        assert found.phi[0] == pytest.approx(np.mean(kept), abs=1e-12)
