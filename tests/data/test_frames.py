"""Frames are kept small and bit-identical; batches are the same whoever makes them, and whatever fails surfaces."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from grd_edge.config import load_config
from grd_edge.data.dataset import Sample
from grd_edge.data.frames import (
    BatchLoader,
    Frame,
    FrameStore,
    Masked,
    batch_at,
    grid_from_config,
    masked_batch_at,
    read_frame,
)
from grd_edge.errors import InputError
from grd_edge.patches import prepare_frame

RNG = np.random.default_rng(0)
SMALL = ("model.patch_h=16", "model.patch_w=32", "model.stages=[1, 1]")


def config_of(*settings):
    return load_config(overrides=(*SMALL, *settings))


def samples_of(folder, *images, roi=None):
    """One `.npy` file per image."""
    samples = []
    for index, image in enumerate(images):
        path = folder / f"{index}.npy"
        np.save(path, image)
        samples.append(Sample(path, "good", f"{index:064}", roi=roi))
    return samples


def random_images(n, h=37, w=53):
    return [RNG.integers(0, 256, (h, w), np.uint8) for _ in range(n)]


GREY = RNG.integers(0, 256, (37, 53), np.uint8)
KINDS = {
    "uint8": GREY,
    "uint16": RNG.integers(0, 65536, (37, 53), np.uint16),
    "uint8 RGB": RNG.integers(0, 256, (37, 53, 3), np.uint8),
    "uint16 RGB": RNG.integers(0, 65536, (37, 53, 3), np.uint16),
    "uint8 grey as RGB": np.repeat(np.arange(1961, dtype=np.uint32).astype(np.uint8).reshape(37, 53, 1), 3, axis=2),
    "float32": (GREY / 255).astype(np.float32),
    "float32 RGB": RNG.random((37, 53, 3), np.float32),
    "small": GREY[:9, :40],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [(), ("geometry.scale_px=31",), ("model.channels=3",)])
def test_what_is_kept_gives_the_values_of_the_prepared_frame_bit_for_bit(tmp_path, kind, settings):
    config = config_of("geometry.padding=reflect", *settings)
    image = KINDS[kind]
    samples = samples_of(tmp_path, image)
    if image.ndim < config.model.channels:
        with pytest.raises(InputError, match=r"0\.npy: .*has 1 channel"):
            FrameStore(samples, config)[0]
        return
    store, grid = FrameStore(samples, config), grid_from_config(config)
    whole = prepare_frame(image, scale_px=config.geometry.scale_px, channels=config.model.channels)
    for _ in range(2):
        assert store[0].dtype == np.float32
        assert np.array_equal(store[0], whole)
        assert np.array_equal(read_frame(samples[0], config), whole)
    # Patches are cut before they are converted; the definition converts first.
    for step in range(4):
        rng = np.random.default_rng((7, step, 0))
        h, w = whole.shape[1:]
        if h < 16:
            expected = grid.cut(whole)[int(rng.integers(len(grid.positions(h, w))))]
        else:
            y, x = int(rng.integers(h - 15)), int(rng.integers(w - 31))
            expected = whole[:, y : y + 16, x : x + 32]
        batch = batch_at(store, grid, seed=7, step=step, batch=1)
        assert batch.dtype == torch.float32
        assert np.array_equal(batch[0].numpy(), expected)


def test_frames_at_native_resolution_are_kept_as_the_integers_of_the_file(tmp_path):
    config = config_of()
    for kind, share in (("uint8", 1), ("uint16", 2), ("uint8 RGB", 3), ("uint8 grey as RGB", 1), ("float32", 4)):
        folder = tmp_path / kind
        folder.mkdir()
        assert FrameStore(samples_of(folder, KINDS[kind]), config).frame(0).pixels.nbytes == share * 37 * 53


def test_the_cache_ends_at_its_limit(tmp_path):
    images = random_images(6, 600, 600)  # 360 kB each
    store = FrameStore(samples_of(tmp_path, *images), config_of("data.cache_mb=1"))
    frames = [store.frame(index) for index in range(6)]
    assert [store.frame(index) is frame for index, frame in enumerate(frames)] == 2 * [True] + 4 * [False]


def test_errors_name_the_file_once(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    bad = np.full((37, 53), np.nan, np.float32)
    (nan,) = samples_of(tmp_path, bad)
    for sample in (Sample(tmp_path / "broken.png", "good", ""), nan):
        for read in (lambda s: read_frame(s, config_of()), lambda s: FrameStore([s], config_of())[0]):
            with pytest.raises(InputError) as refused:
                read(sample)
            assert str(refused.value).count(sample.path.name) == 1


def test_patches_show_a_pixel_of_interest(tmp_path):
    mask = np.zeros((37, 53), np.uint8)
    mask[36, 52] = 1  # one corner: 1 in 484 positions shows it
    np.save(tmp_path / "roi.npy", mask)
    images = [np.arange(37 * 53, dtype=np.uint16).reshape(37, 53)] * 3
    config = config_of()
    store, grid = FrameStore(samples_of(tmp_path, *images, roi=tmp_path / "roi.npy"), config), grid_from_config(config)
    batch = batch_at(store, grid, seed=0, step=0, batch=8)
    corner = np.float32(images[0][36, 52]) / np.float32(65535)
    assert (batch[:, 0, -1, -1] == corner).all()
    assert store.frame(0).interest is store.frame(1).interest  # a mask of all images is kept once

    mask[20:30, 20:30] = 255  # more positions: uniform among those that show any of it, and all of them come up
    np.save(tmp_path / "roi.npy", mask)
    store = FrameStore(store.samples, config)
    whole = store[0][0]
    seen = set()
    for step in range(300):
        for patch in batch_at(store, grid, seed=1, step=step, batch=4)[:, 0].numpy():
            y, x = divmod(round(float(patch[0, 0]) * 65535), 53)
            assert np.array_equal(patch, whole[y : y + 16, x : x + 32])
            assert mask[y : y + 16, x : x + 32].any()
            seen.add((y, x))
    expected = {(y, x) for y in range(22) for x in range(22) if mask[y : y + 16, x : x + 32].any()}
    assert len(seen) > 0.85 * len(expected)


def test_masks_of_interest_follow_the_working_scale_and_the_padding(tmp_path):
    mask = np.zeros((60, 90), bool)
    mask[:, 80:] = True
    np.save(tmp_path / "roi.npy", mask.astype(np.uint8))
    image = np.tile(np.arange(90, dtype=np.uint8), (60, 1))
    config = config_of("geometry.scale_px=12", "geometry.padding=reflect", "model.patch_w=8", "geometry.stride_x=4")
    store = FrameStore(samples_of(tmp_path, image, roi=tmp_path / "roi.npy"), config)
    assert store.frame(0).interest.shape == store[0].shape[1:] == (12, 18)
    batch = batch_at(store, grid_from_config(config), seed=0, step=0, batch=16)
    assert (batch[:, 0, 0, -1] > 80 / 255).all()

    tiny = np.zeros((60, 90), np.uint8)
    tiny[0, 0] = 1
    np.save(tmp_path / "roi.npy", tiny)
    with pytest.raises(InputError, match=r"roi\.npy is empty at the working scale of 12x18"):
        FrameStore(store.samples, config).frame(0)
    np.save(tmp_path / "roi.npy", tiny[1:])
    with pytest.raises(InputError, match=r"roi\.npy is 59x90 px but its image is 60x90"):
        FrameStore(store.samples, config).frame(0)


@pytest.mark.parametrize("settings", [(), ("geometry.scale_px=31",), ("model.patch_h=64",), ("model.patch_w=64",)])
def test_masks_are_cut_where_their_patches_are(tmp_path, settings):
    rng = np.random.default_rng(1)
    mask = (rng.random((37, 53)) < 0.3).astype(np.uint8)
    np.save(tmp_path / "roi.npy", mask)
    # An image that is its own mask, where nothing is interpolated.
    config = config_of("geometry.padding=reflect", *settings)
    samples = samples_of(tmp_path, *[mask * np.uint8(255)] * 2, roi=tmp_path / "roi.npy")
    store, grid = FrameStore(samples, config), grid_from_config(config)
    scaled = store.frame(0).interest
    pixels = scaled.astype(np.float32)[:, :, None]
    store._cache = {index: Frame(pixels, scaled) for index in range(2)}
    h, w = scaled.shape
    for step in range(3):
        drawn = {"seed": 2, "step": step, "batch": 3, "rank": 1, "world": 2}
        x, roi = masked_batch_at(store, grid, **drawn)
        assert torch.equal(x, batch_at(store, grid, **drawn))
        assert roi.shape == x.shape and roi.dtype == torch.float32
        inside = torch.zeros_like(roi)
        inside[:, :, :h, :w] = 1  # what padding adds is of no interest
        assert torch.equal(roi, x * inside)


def test_a_batch_without_masks_is_all_of_interest_and_the_loader_makes_both(tmp_path):
    config = config_of("data.workers=2")
    store, grid = FrameStore(samples_of(tmp_path, *random_images(3)), config), grid_from_config(config)
    for masked in (False, True):
        with BatchLoader(store, grid, seed=3, batch=4, masked=masked) as batches:
            found = batches.at(1)
        x, roi = found if masked else (found, None)
        assert isinstance(found, Masked) == masked
        assert torch.equal(x, batch_at(store, grid, seed=3, step=1, batch=4))
        assert roi is None or (roi.shape == x.shape and (roi == 1).all())


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_the_parts_of_one_global_batch(tmp_path, world):
    config = config_of()
    store, grid = FrameStore(samples_of(tmp_path, *random_images(7)), config), grid_from_config(config)
    for step in (0, 5):
        whole = batch_at(store, grid, seed=3, step=step, batch=4 * world)
        parts = [batch_at(store, grid, seed=3, step=step, batch=4, rank=r, world=world) for r in range(world)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_batches_made_ahead_are_those_of_batch_at(tmp_path, workers, prefetch):
    config = config_of(f"data.workers={workers}", f"data.prefetch={prefetch}", "data.cache_mb=0")
    store, grid = FrameStore(samples_of(tmp_path, *random_images(7)), config), grid_from_config(config)
    # Warm-up steps that are undone, the run from 0, a resumed run.
    order = [0, 1, 2, 0, 1, 2, 3, 4, 1000, 1001, 5]
    with BatchLoader(store, grid, seed=3, batch=4, rank=1, world=2) as batches:
        for step in order:
            expected = batch_at(store, grid, seed=3, step=step, batch=4, rank=1, world=2)
            assert torch.equal(batches.at(step), expected)
            assert len(batches._pending) <= prefetch


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grd-batch")]


def test_an_error_surfaces_at_its_step_and_no_thread_stays(tmp_path):
    samples = samples_of(tmp_path, *random_images(8))
    config = config_of("data.workers=2", "data.cache_mb=0")
    store, grid = FrameStore(samples, config), grid_from_config(config)
    samples[5].path.write_bytes(b"gone")
    steps = []
    with (
        pytest.raises(InputError, match=r"5\.npy is not an image") as refused,
        BatchLoader(store, grid, seed=0, batch=2) as batches,
    ):
        for step in range(8):
            batches.at(step)
            steps.append(step)
    assert type(refused.value) is InputError
    first = next(
        step for step in range(4) if 5 in np.random.default_rng((0, 0)).permutation(8)[2 * step : 2 * step + 2]
    )
    assert steps == list(range(first))
    assert not batch_threads()


def test_a_slow_consumer_holds_no_more_than_the_batches_ahead(tmp_path):
    config = config_of("data.workers=2", "data.prefetch=3")
    store, grid = FrameStore(samples_of(tmp_path, *random_images(4)), config), grid_from_config(config)
    made = []
    with BatchLoader(store, grid, seed=0, batch=1) as batches:
        make = batches._make
        batches._make = lambda step: made.append(step) or make(step=step)
        batches.at(0)
        time.sleep(0.2)
        assert sorted(made) == [0, 1, 2, 3]


INTERRUPTED = """
import sys, time
from pathlib import Path
import numpy as np
from grd_edge.config import load_config
from grd_edge.data.dataset import samples_from_folder
from grd_edge.data.frames import BatchLoader, FrameStore, grid_from_config

config = load_config(overrides=["model.patch_h=16", "model.patch_w=16", "model.stages=[1]", "data.cache_mb=0"])
store = FrameStore(samples_from_folder(Path(sys.argv[1])), config)
with BatchLoader(store, grid_from_config(config), seed=0, batch=4) as batches:
    for step in range(10**9):
        batches.at(step)
        if step == 2:
            print("running", flush=True)
"""


def test_ctrl_c_ends_a_run_at_once(tmp_path):
    samples_of(tmp_path, *random_images(4))
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode != 0
    assert stderr.rstrip().endswith(b"KeyboardInterrupt")


def test_a_step_costs_the_same_with_100_000_images(tmp_path, monkeypatch):
    """A batch looks at its own images only."""
    (sample,) = samples_of(tmp_path, GREY)
    config = config_of("data.cache_mb=0")
    grid = grid_from_config(config)

    def seconds(n):
        store = FrameStore([sample] * n, config)
        batch_at(store, grid, seed=0, step=0, batch=4)
        start = time.perf_counter()
        for step in range(1, 100):
            batch_at(store, grid, seed=0, step=step, batch=4)
        return time.perf_counter() - start

    ratios = [seconds(100_000) / seconds(1000) for _ in range(3)]
    assert min(ratios) < 2
