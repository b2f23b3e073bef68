"""Sources of frames: each once, in order, whole, and whatever happens to folders, files and cameras."""

import os
import shutil
import threading
import time
from itertools import islice

import cv2
import numpy as np
import pytest

from grd_edge.errors import InputError
from grd_edge.sources import SourceOptions, paced, source_of, video
from grd_edge.sources.folder import ImageSource, WatchedSource
from grd_edge.sources.raw import RawSource, raw_format
from grd_edge.sources.video import CameraSource, VideoSource


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture
def stop():
    event = threading.Event()
    yield event
    event.set()


class Collected:
    """The frames of a source, taken by a thread."""

    def __init__(self, source, stop):
        self.frames, self.stop = [], stop
        self.thread = threading.Thread(target=self._run, args=[source], daemon=True)
        self.thread.start()

    def _run(self, source):
        for captured in source.frames(self.stop):
            self.frames.append(captured)

    def names(self):
        return [os.path.basename(captured.name) for captured in self.frames]

    def wait_for(self, count, seconds=10):
        until = time.monotonic() + seconds
        while len(self.frames) < count and time.monotonic() < until:
            time.sleep(0.01)
        assert len(self.frames) == count, self.names()

    def stays(self, seconds=0.8):
        before = self.names()
        time.sleep(seconds)
        assert self.names() == before


def test_images_of_a_folder(tmp_path, stop):
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "b.npy", noise(20, 30))
    np.save(tmp_path / "deep" / "c.npy", noise(20, 30, dtype=np.uint16))
    cv2.imwrite(str(tmp_path / "a.png"), noise(20, 30, 3))
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    (tmp_path / "readme.txt").write_text("no image")
    found = list(ImageSource([tmp_path]).frames(stop))
    assert [os.path.basename(each.name) for each in found] == ["a.png", "b.npy", "bad.png"]
    assert found[0].frame.shape == (20, 30, 3) and np.array_equal(found[1].frame, noise(20, 30))
    assert found[2].frame is None and "bad.png" in found[2].error
    deep = ImageSource([tmp_path], recursive=True)
    assert len(deep.names) == 4 and list(deep.frames(stop))[-1].frame.dtype == np.uint16
    around = list(islice(ImageSource([tmp_path], loop=True).frames(stop), 7))
    assert [each.name for each in around[3:6]] == [each.name for each in found]
    stop.set()
    assert not list(ImageSource([tmp_path], loop=True).frames(stop))


def test_a_watched_folder_gives_each_file_once_and_whole(tmp_path, stop):
    folder, beside = tmp_path / "in", tmp_path / "beside"
    folder.mkdir(), beside.mkdir()
    notes = []
    np.save(folder / "0.npy", noise(20, 30))
    watched = Collected(WatchedSource(folder, on_note=notes.append), stop)
    watched.wait_for(1)
    np.save(beside / "1.npy", noise(20, 30))
    os.replace(beside / "1.npy", folder / "1.npy")
    watched.wait_for(2)
    assert cv2.imwrite(str(beside / "2.png"), noise(200, 300))
    data = (beside / "2.png").read_bytes()
    with open(folder / "2.png", "wb", buffering=0) as stream:  # a slow writer
        for start in range(0, len(data), len(data) // 6 + 1):
            stream.write(data[start : start + len(data) // 6 + 1])
            time.sleep(0.2)
            assert len(watched.frames) == 2
    watched.wait_for(3)
    assert watched.frames[2].error == "" and watched.frames[2].frame.shape == (200, 300)
    watched.stays()
    (folder / "3.png").write_bytes(data[:500])
    (folder / ".4.png").write_bytes(data)
    (folder / "4.txt").write_bytes(data)
    watched.stays(1.0)  # it may be written on
    watched.wait_for(4)
    assert watched.frames[3].frame is None and "3.png" in watched.frames[3].error
    (folder / "3.png").write_bytes(data)
    watched.wait_for(5)
    assert watched.names() == ["0.npy", "1.npy", "2.png", "3.png", "3.png"] and watched.frames[4].error == ""
    assert not notes


def test_a_writer_that_pauses_within_a_file(tmp_path, stop):
    assert cv2.imwrite(str(tmp_path / "a.png"), noise(200, 300))
    data = (tmp_path / "a.png").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    watched = Collected(WatchedSource(folder), stop)
    with open(folder / "a.png", "wb", buffering=0) as stream:
        stream.write(data[:1000])
        time.sleep(0.9)  # longer than a file must be unchanged
        stream.write(data[1000:])
    watched.wait_for(1)
    assert watched.frames[0].error == "" and watched.frames[0].frame.shape == (200, 300)


def test_a_watched_folder_may_vanish_and_come_back(tmp_path, stop):
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    notes = []
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", noise(20, 30))
    watched = Collected(WatchedSource(folder, on_note=notes.append), stop)
    watched.wait_for(2)
    folder.rename(away)
    until = time.monotonic() + 5
    while not notes and time.monotonic() < until:
        time.sleep(0.01)
    assert "gone" in notes[0]
    folder.mkdir()  # a mount point without its mount
    watched.stays(0.5)
    folder.rmdir()
    shutil.copytree(away, folder)  # another inode, the same files
    watched.stays(1.0)
    np.save(folder / "c.npy", noise(20, 30))
    watched.wait_for(3)
    assert watched.names() == ["a.npy", "b.npy", "c.npy"] and "back" in notes[1]


def test_what_was_taken_is_forgotten_with_its_file(tmp_path, stop):
    source = WatchedSource(tmp_path)
    watched = Collected(source, stop)
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", noise(20, 30))
        watched.wait_for(index + 1)
        (tmp_path / f"{index}.npy").unlink()
    time.sleep(0.5)
    assert not source._taken and not source._pending


def test_watched_subfolders(tmp_path, stop):
    watched = Collected(WatchedSource(tmp_path, recursive=True), stop)
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "a.npy", noise(20, 30))
    watched.wait_for(1)


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("20x31", (20, 31), np.uint8),
        ("20x31x1", (20, 31), np.uint8),
        ("20x31x3", (20, 31, 3), np.uint8),
        ("7x3:uint16", (7, 3), np.uint16),
        ("7x3x3:uint8", (7, 3, 3), np.uint8),
    ],
)
def test_raw_frames(tmp_path, stop, text, shape, dtype):
    assert raw_format(text) == (shape, dtype)
    frames = [noise(*shape, seed=i, dtype=dtype) for i in range(3)]
    (tmp_path / "f.raw").write_bytes(b"".join(frame.tobytes() for frame in frames))
    source = source_of(str(tmp_path / "f.raw"), SourceOptions(raw=text), print)
    found = list(source.frames(stop))
    source.close()
    assert source.shape == shape and len(found) == 3
    assert all(np.array_equal(each.frame, frame) for each, frame in zip(found, frames, strict=True))


def test_raw_frames_in_pieces_and_a_truncated_one(monkeypatch, stop):
    frames = [noise(20, 31, seed=i) for i in range(2)]
    data = b"".join(frame.tobytes() for frame in frames)
    read, write = os.pipe()
    monkeypatch.setattr(os, "dup", lambda handle: read)
    source = RawSource("-", "20x31")
    found = Collected(source, stop)
    for start in range(0, len(data), 100):
        os.write(write, data[start : start + 100])
        time.sleep(0.005)
    os.write(write, data[:45])
    os.close(write)
    found.wait_for(3)
    assert [each.name for each in found.frames] == ["stdin#000000", "stdin#000001", "stdin#000002"]
    assert all(np.array_equal(each.frame, frame) for each, frame in zip(found.frames, frames, strict=False))
    assert found.frames[2].frame is None and "45 of 620 bytes" in found.frames[2].error
    found.thread.join(2)
    assert not found.thread.is_alive()
    source.close()
    source.close()


def test_raw_frames_that_never_come_do_not_hold_the_end_up(monkeypatch, stop):
    read, write = os.pipe()
    monkeypatch.setattr(os, "dup", lambda handle: read)
    found = Collected(RawSource("-", "20x31"), stop)
    os.write(write, bytes(100))
    time.sleep(0.3)
    stop.set()
    found.thread.join(1)
    assert not found.thread.is_alive() and not found.frames
    os.close(write)


@pytest.mark.parametrize(
    "text", ["", "20", "20x", "0x20", "20x65537", "20x30x2", "20x30:int8", "20x30:uint16 ", "-3x4"]
)
def test_raw_formats_that_are_none(text):
    with pytest.raises(InputError, match="--raw"):
        RawSource("-", text)


def video_file(path, count=6):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for index in range(count):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :, 2], frame[:, : 8 * index, 1] = 200, 250  # red, and a growing bar of green, in BGR
        writer.write(frame)
    writer.release()
    return path


def test_a_video_gives_its_frames_in_rgb(tmp_path, stop):
    source = source_of(str(video_file(tmp_path / "v.avi")), SourceOptions(), print)
    found = list(source.frames(stop))
    assert [each.name[-8:] for each in found] == [f"i#{index:06d}" for index in range(6)]
    assert source.shape == (48, 64, 3) and source.names is None
    for index, each in enumerate(found):
        red, green, blue = each.frame[:, 50].mean(axis=0)
        assert red > 150 and blue < 60 and green < 60
        assert (each.frame[:, :8, 1].mean() > 150) == (index >= 1)
    source.close()
    loop = VideoSource(tmp_path / "v.avi", loop=True)
    assert len(list(islice(loop.frames(stop), 15))) == 15
    loop.close()


def test_a_video_that_ends_early_is_told(tmp_path, stop, monkeypatch):
    notes = []
    source = VideoSource(video_file(tmp_path / "v.avi"), on_note=notes.append)
    reads = iter(range(3))
    real = video._read
    monkeypatch.setattr(video, "_read", lambda capture: real(capture) if next(reads, None) is not None else None)
    assert len(list(source.frames(stop))) == 4
    assert "ended after 4 of 6 frames" in notes[0]
    source.close()


def test_a_video_that_is_none(tmp_path):
    (tmp_path / "v.avi").write_bytes(b"RIFF" + bytes(500))
    with pytest.raises(InputError, match=r"v\.avi does not open"):
        VideoSource(tmp_path / "v.avi")


class FakeCamera:
    """A capture that gives numbered frames, and may be pulled out."""

    plugged, opened, number, period_s = True, 0, 0, 0.01

    def __init__(self, device):
        FakeCamera.opened += 1
        self.alive = FakeCamera.plugged

    def read(self):
        time.sleep(self.period_s)
        if not (self.alive and FakeCamera.plugged):
            self.alive = False  # once pulled out, only a new capture reads again
            return False, None
        FakeCamera.number += 1
        return True, np.full((48, 64, 3), FakeCamera.number % 256, np.uint8)

    def release(self):
        self.alive = False


@pytest.fixture
def camera(monkeypatch):
    FakeCamera.plugged, FakeCamera.opened, FakeCamera.number = True, 0, 0
    monkeypatch.setattr(video, "open_capture", FakeCamera)
    monkeypatch.setattr(video, "_BACKOFF_S", (0.05, 0.1))
    return FakeCamera


def test_a_camera_gives_its_newest_frame(camera, stop):
    source = source_of("0", SourceOptions(), print)
    taken = []
    for captured in source.frames(stop):
        taken.append(int(captured.frame[0, 0, 0]))
        time.sleep(0.06)
        if len(taken) == 6:
            break
    source.close()
    assert taken == sorted(set(taken)) and taken[-1] - taken[1] > 8  # old ones were passed over
    assert camera.number - 3 <= source.lost + len(taken) <= camera.number
    assert not source._thread.is_alive()


def test_a_camera_that_vanishes_comes_back(camera, stop):
    notes = []
    source = CameraSource(2, reconnect_s=10, on_note=notes.append)
    found = Collected(source, stop)
    time.sleep(0.2)
    camera.plugged = False
    time.sleep(0.4)
    before = len(found.frames)
    assert len(notes) == 1 and "camera 2 gives no frame any more" in notes[0] and camera.opened > 3
    camera.plugged = True
    time.sleep(0.4)
    assert len(found.frames) > before and notes[1] == "camera 2 is back"
    stop.set()
    found.thread.join(2)
    source.close()


def test_a_camera_that_stays_away_ends_the_stream(camera, stop):
    notes = []
    source = CameraSource("rtsp://me:secret@10.0.0.1/live", reconnect_s=0.3, on_note=notes.append)
    frames = source.frames(stop)
    next(frames)
    camera.plugged = False
    with pytest.raises(InputError, match=r"rtsp://10\.0\.0\.1/live gave no frame for 0\.3 s") as caught:
        list(frames)
    assert "secret" not in str(caught.value) + "".join(notes)
    source.close()


def test_a_camera_that_is_not_there(camera):
    camera.plugged = False
    with pytest.raises(InputError, match="camera 7 gives no frame"):
        source_of("7", SourceOptions(), print)


def test_sources_and_options_that_do_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", noise(20, 30))
    (tmp_path / "empty").mkdir()
    for text, options, words in (
        (tmp_path / "no", {}, "there is no source"),
        (tmp_path / "empty", {}, "holds no image"),
        (tmp_path, {"watch": True, "loop": True}, "--loop does not fit"),
        (tmp_path / "a.npy", {"watch": True}, "--watch does not fit"),
        (tmp_path, {"raw": "4x4"}, "cannot be read"),
        ("-", {}, "give it with --raw"),
        ("-", {"raw": "4x4", "loop": True}, "--loop does not fit"),
        ("rtsp://x", {"recursive": True}, "--recursive does not fit"),
    ):
        with pytest.raises(InputError, match=words):
            list(source_of(str(text), SourceOptions(**options), print).frames(threading.Event()))


def test_pace(tmp_path, stop):
    np.save(tmp_path / "a.npy", noise(20, 30))
    frames = ImageSource([tmp_path], loop=True).frames(stop)
    began = time.monotonic()
    assert len(list(islice(paced(frames, 50, stop), 11))) == 11
    assert 0.2 <= time.monotonic() - began < 2
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    assert len(list(paced(frames, 0.1, stop))) == 1
    assert time.monotonic() - began < 2
