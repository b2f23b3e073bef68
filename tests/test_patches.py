"""Grid, working scale, grey, cutting and stitching: docs/method.md, section 6."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, area_resample, default_stride, prepare_frame, to_unit_float, working_size

AWKWARD = (1, 2, 3, 7, 10, 11, 12, 15, 16, 17, 31, 33, 63, 65)
extents = st.integers(1, 70)


def image_of(h: int, w: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, h, w), np.float32)


def area_mean_by_definition(values: np.ndarray, n_out: int) -> np.ndarray:
    """Mean over [i n_in/n_out, (i+1) n_in/n_out) of a line, pixel by pixel."""
    n_in = len(values)
    out = np.zeros(n_out)
    for i in range(n_out):
        begin, end = i * n_in / n_out, (i + 1) * n_in / n_out
        for j in range(n_in):
            out[i] += max(0.0, min(end, j + 1) - max(begin, j)) * float(values[j])
        out[i] /= end - begin
    return out


class TestGrid:
    @pytest.mark.parametrize(
        ("extent", "patch", "stride", "expected"),
        [
            (16, 16, 4, [0]),
            (17, 16, 16, [0, 1]),
            (20, 16, 4, [0, 4]),
            (21, 16, 4, [0, 4, 5]),
            (32, 16, 16, [0, 16]),
            (33, 16, 16, [0, 16, 17]),
            (7, 1, 1, [0, 1, 2, 3, 4, 5, 6]),
        ],
    )
    def test_last_patch_shifts_inward(self, extent, patch, stride, expected):
        grid = PatchGrid(patch, 1, stride, 1)
        assert grid.positions(extent, 1)[:, 0].tolist() == expected
        assert grid.shape(extent, 1) == (len(expected), 1)

    def test_positions_go_row_by_row(self):
        assert PatchGrid(4, 3, 4, 3).positions(8, 6).tolist() == [[0, 0], [0, 3], [4, 0], [4, 3]]

    @settings(max_examples=200, deadline=None)
    @given(h=extents, w=extents, patch_h=extents, patch_w=extents, data=st.data())
    def test_every_pixel_is_covered_and_stitching_inverts_cutting(self, h, w, patch_h, patch_w, data):
        stride_y = data.draw(st.integers(1 + patch_h // 4, patch_h))
        stride_x = data.draw(st.integers(1 + patch_w // 4, patch_w))
        grid = PatchGrid(patch_h, patch_w, stride_y, stride_x, padding="reflect")
        image = image_of(h, w, channels=2)
        patches = grid.cut(image)
        rows, cols = grid.shape(h, w)
        assert patches.shape == (rows * cols, 2, patch_h, patch_w)
        covered = np.zeros((max(h, patch_h), max(w, patch_w)), bool)
        for y, x in grid.positions(h, w):
            assert y >= 0 and x >= 0 and y + patch_h <= covered.shape[0] and x + patch_w <= covered.shape[1]
            covered[y : y + patch_h, x : x + patch_w] = True
        assert covered.all()
        stitched = grid.stitch(patches, h, w)
        assert stitched.dtype == np.float32
        np.testing.assert_array_equal(stitched, image)
        np.testing.assert_array_equal(grid.stitch(patches[:, 1], h, w), image[1])

    def test_stitching_averages_overlaps(self):
        grid = PatchGrid(1, 3, 1, 2)
        maps = np.array([[[0, 0, 0]], [[1, 1, 1]]], np.float32)
        assert grid.stitch(maps, 1, 5).tolist() == [[0, 0, 0.5, 1, 1]]

    @pytest.mark.parametrize("h", AWKWARD)
    @pytest.mark.parametrize("w", (1, 2, 16, 33))
    def test_reflection_is_numpys(self, h, w):
        grid = PatchGrid(48, 40, 28, 20, padding="reflect")
        image = image_of(h, w)
        grown = np.pad(image, ((0, 0), (0, max(0, 48 - h)), (0, max(0, 40 - w))), mode="reflect")
        y, x = grid.positions(h, w)[-1]
        np.testing.assert_array_equal(grid.cut(image)[-1], grown[:, y : y + 48, x : x + 40])

    def test_one_pixel_is_repeated(self):
        patches = PatchGrid(3, 3, 3, 3, padding="reflect").cut(np.full((1, 1, 1), 0.25, np.float32))
        assert patches.shape == (1, 1, 3, 3) and (patches == 0.25).all()

    def test_small_frames_are_refused_with_both_sizes_and_a_way_out(self):
        with pytest.raises(InputError, match=r"15x40 px.*16x16.*reflect"):
            PatchGrid(16, 16, 8, 8).cut(image_of(15, 40))

    def test_a_cut_is_a_copy(self):
        image = image_of(8, 8)
        PatchGrid(8, 8, 8, 8).cut(image)[...] = 2
        assert image.max() <= 1

    @pytest.mark.parametrize("sizes", [(0, 4, 1, 1), (4, 4, 0, 1), (4, 4, 5, 1), (4, 4, 1, 5), (4.0, 4, 1, 1)])
    def test_bad_grids_are_refused(self, sizes):
        with pytest.raises(InputError):
            PatchGrid(*sizes)
        with pytest.raises(InputError, match="padding"):
            PatchGrid(4, 4, 2, 2, padding="zero")

    def test_maps_that_do_not_fit_are_refused(self):
        with pytest.raises(InputError, match="expected 4 maps of 8x8"):
            PatchGrid(8, 8, 8, 8).stitch(np.zeros((3, 8, 8), np.float32), 16, 16)


class TestDefaultStride:
    @pytest.mark.parametrize("patch", (21, 22, 31, 33, 63, 65, 128))
    def test_a_defect_on_a_seam_lies_well_inside_some_patch(self, patch):
        """Every pixel 10 px or more from the border of the image is as far from the border of some patch."""
        extent = 3 * patch + 7
        grid = PatchGrid(patch, patch, default_stride(patch), default_stride(patch))
        begins = np.unique(grid.positions(extent, extent)[:, 0])
        pixel = np.arange(10, extent - 10)
        margin = np.minimum(pixel[:, None] - begins, begins + patch - 1 - pixel[:, None])
        assert (margin.max(axis=1) >= 10).all()

    def test_a_seam_of_two_dimensions(self):
        stride = default_stride(64)
        grid = PatchGrid(64, 64, stride, stride)
        image = np.zeros((1, 150, 150), np.float32)
        image[0, 62:66, 62:66] = 1  # where patches of stride 64 would meet
        inside = grid.cut(image)[:, 0, 10:-10, 10:-10]
        assert inside.sum(axis=(1, 2)).max() == 16

    @pytest.mark.parametrize(("patch", "stride"), [(1, 1), (2, 1), (3, 1), (16, 8), (20, 10), (21, 1), (256, 236)])
    def test_values(self, patch, stride):
        assert default_stride(patch) == stride

    def test_a_wider_stride_would_fail(self):
        """45 px leaves a seam that no patch of 64 px sees 10 px inside."""
        begins = np.arange(0, 200, 45)
        pixel = np.arange(10, 180)
        margin = np.minimum(pixel[:, None] - begins, begins + 63 - pixel[:, None])
        assert (margin.max(axis=1) < 10).any()


class TestWorkingScale:
    @pytest.mark.parametrize(
        ("h", "w", "scale", "expected"),
        [
            (300, 400, 150, (150, 200)),
            (400, 300, 150, (200, 150)),
            (300, 300, 128, (128, 128)),
            (2, 3, 1, (1, 2)),  # 1.5 rounds up
            (4, 5, 2, (2, 3)),  # 2.5 rounds up
            (97, 131, 200, (200, 270)),
            (7, 5, None, (7, 5)),
            (7, 5, 0, (7, 5)),
        ],
    )
    def test_size(self, h, w, scale, expected):
        assert working_size(h, w, scale) == expected

    @pytest.mark.parametrize("n_in", AWKWARD)
    @pytest.mark.parametrize("n_out", (1, 2, 3, 7, 11, 16, 33, 65))
    def test_area_is_the_mean_of_the_interval(self, n_in, n_out):
        line = image_of(1, n_in)
        expected = area_mean_by_definition(line[0, 0], n_out)
        wide = area_resample(line, 1, n_out)
        assert wide.dtype == np.float32
        np.testing.assert_allclose(wide[0, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(area_resample(line.transpose(0, 2, 1), n_out, 1)[0, :, 0], wide[0, 0])

    @settings(max_examples=60, deadline=None)
    @given(h=extents, w=extents, data=st.data())
    def test_shrinking_is_opencvs_inter_area(self, h, w, data):
        cv2 = pytest.importorskip("cv2")
        out_h, out_w = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
        image = image_of(h, w)
        theirs = cv2.resize(image[0], (out_w, out_h), interpolation=cv2.INTER_AREA).reshape(out_h, out_w)
        np.testing.assert_allclose(area_resample(image, out_h, out_w)[0], theirs, atol=1e-5)

    def test_identity_white_and_mean(self):
        image = image_of(31, 33, channels=3)
        same = area_resample(image, 31, 33)
        np.testing.assert_array_equal(same, image)
        assert not np.shares_memory(same, image)
        white = area_resample(np.ones((1, 65, 63), np.float32), 31, 17)
        assert (white == 1).all()
        assert abs(area_resample(image, 7, 11).mean() - image.mean()) < 1e-6

    def test_wrong_images_are_refused(self):
        for image in (np.zeros((2, 2), np.float32), np.zeros((1, 2, 2)), np.zeros((1, 0, 2), np.float32)):
            with pytest.raises(InputError, match="expected float32"):
                area_resample(image, 1, 1)


class TestFrames:
    def test_unit_float(self):
        assert to_unit_float(np.array([0, 51, 255], np.uint8)).tolist() == [0, np.float32(0.2), 1]
        assert to_unit_float(np.array([0, 65535], np.uint16)).tolist() == [0, 1]
        frame = np.array([0, 0.5, 1], np.float32)
        assert to_unit_float(frame) is frame

    @pytest.mark.parametrize("bad", [-0.1, 1.1, 255.0, np.nan, np.inf])
    def test_floats_outside_the_range_are_refused(self, bad):
        with pytest.raises(InputError, match=r"expected \[0, 1\]"):
            to_unit_float(np.array([0.5, bad], np.float32))
        with pytest.raises(InputError):
            prepare_frame(np.full((2, 2, 3), bad, np.float32), scale_px=None, channels=1)

    @pytest.mark.parametrize("dtype", [np.float64, np.int16, np.int32, bool])
    def test_other_types_are_refused(self, dtype):
        with pytest.raises(InputError, match="expected uint8"):
            prepare_frame(np.zeros((4, 4), dtype), scale_px=None, channels=1)

    @pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_grey(self, dtype, full):
        rng = np.random.default_rng(0)
        frame = rng.integers(0, full + 1, (17, 31, 3)).astype(dtype)
        image = prepare_frame(frame, scale_px=None, channels=1)
        expected = (frame.astype(np.float64) / full) @ [0.299, 0.587, 0.114]
        assert image.shape == (1, 17, 31) and image.dtype == np.float32
        np.testing.assert_allclose(image[0], expected, atol=1e-7)
        white = prepare_frame(np.full((2, 2, 3), full, dtype), scale_px=None, channels=1)
        assert (white == 1).all()
        floats = prepare_frame(to_unit_float(frame), scale_px=None, channels=1)
        np.testing.assert_allclose(floats, image, atol=1.2e-7)
        assert (prepare_frame(np.ones((2, 2, 3), np.float32), scale_px=None, channels=1) == 1).all()

    def test_channels_and_layout(self):
        frame = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
        image = prepare_frame(frame, scale_px=None, channels=3)
        assert image.shape == (3, 12, 16) and image.flags.c_contiguous
        np.testing.assert_array_equal(image, frame.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        grey = prepare_frame(frame[:, :, 0], scale_px=None, channels=1)
        np.testing.assert_array_equal(grey, image[:1])
        with pytest.raises(InputError, match="1 channel but the model takes 3"):
            prepare_frame(frame[:, :, :1], scale_px=None, channels=3)
        for channels in (2, 4):
            with pytest.raises(InputError, match=f"{channels} channels"):
                prepare_frame(np.zeros((4, 4, channels), np.uint8), scale_px=None, channels=1)
        for shape in ((4,), (1, 4, 4, 1), (0, 4), (4, 4, 0)):
            with pytest.raises(InputError):
                prepare_frame(np.zeros(shape, np.uint8), scale_px=None, channels=1)

    def test_grey_then_scale(self):
        frame = np.random.default_rng(0).integers(0, 256, (33, 65, 3), np.uint8)
        image = prepare_frame(frame, scale_px=16, channels=1)
        assert image.shape == (1, *working_size(33, 65, 16))
        np.testing.assert_array_equal(image, area_resample(prepare_frame(frame, scale_px=0, channels=1), 16, 32))

    def test_a_float_frame_is_not_aliased(self):
        frame = np.full((4, 4), 0.5, np.float32)
        prepare_frame(frame, scale_px=None, channels=1)[...] = 0
        assert (frame == 0.5).all()


def test_line_modules_stay_free_of_the_training_stack():
    code = (
        "import sys, grd_edge.patches, grd_edge.decide; "
        "print([m for m in ('torch', 'cv2', 'scipy', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
