"""Every kind of bad input: one sentence with what failed and the way out, the right exit code, nothing lost.

One table: what is wrong -> how to make it, words of the sentence, words of the way out. The command line runs in this
process, since importing torch for every row would take minutes.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from grd_edge import _native
from grd_edge.bundle import MANIFEST, MODEL, read_bundle, sealed, write_decision
from grd_edge.cli import main
from tests.conftest import TINY

SETTINGS = [word for setting in TINY for word in ("--set", setting)]


class World:
    """The folder of one row, and things to break in it."""

    def __init__(self, folder: Path, stock: Path, monkeypatch) -> None:
        self.folder, self.stock, self.monkeypatch = folder, stock, monkeypatch

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def parts(self) -> Path:
        """Good and defective images in the MVTec layout."""
        return Path(shutil.copytree(self.stock / "parts", self / "parts"))

    def bundle(self, change=lambda bundle: None) -> Path:
        path = Path(shutil.copytree(self.stock / "part.grdb", self / "part.grdb", symlinks=True))
        change(path)
        return path

    def manifest(self, change) -> Path:
        """A bundle whose description was changed and sealed again."""

        def rewrite(bundle: Path) -> None:
            manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
            change(manifest)
            (bundle / MANIFEST).write_bytes(sealed(manifest))

        return self.bundle(rewrite)

    def checkpoint(self, change=None, **metadata: str) -> Path:
        """A checkpoint whose weights and metadata were changed."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        source, path = self.stock / "part.safetensors", self / "part.safetensors"
        with safe_open(source, framework="pt") as stream:
            found = stream.metadata()
            weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a mapping)
        if change:
            change(weights)
        save_file(weights, path, {**found, **metadata})
        return path

    def file(self, name: str, data: bytes = b"") -> Path:
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def image(self, name: str, array=None, keep: float = 1.0, parameters=()) -> Path:
        """An image, or the first part of its bytes."""
        array = pixels() if array is None else array
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, array, allow_pickle=array.dtype == object)
        else:
            assert cv2.imwrite(str(path), array, list(parameters))
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    def link(self, name: str, to) -> Path:
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(to)
        return path

    def pipe(self, name: str) -> Path:
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return path

    def train(self, data, *more) -> list:
        return ["train", "--data", data, "-o", self / "out.safetensors", *SETTINGS, *more]

    def infer(self, *images) -> list:
        return ["infer", self.stock / "part.grdb", *images]

    def stream(self, *words) -> list:
        return ["stream", self.stock / "part.grdb", *words]

    def bench(self, *more) -> list:
        quick = ("--rounds", "3", "--cold-starts", "0", "--against", "none")
        return ["bench", self.stock / "part.grdb", *quick, *more]

    def set(self, *settings: str) -> list:
        return ["validate-config", *(word for setting in settings for word in ("--set", setting))]

    def config(self, data: bytes) -> list:
        return ["validate-config", self.file("c.yaml", data)]


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape or (48, 48)).astype(dtype)


def without_configuration(w: World) -> Path:
    """A bundle that does not say how its network was configured; its thresholds would be another's."""
    bundle = w.manifest(lambda manifest: manifest["provenance"].pop("config"))
    (bundle / "decision.json").unlink()
    return bundle


def fix_frame_size(bundle: Path) -> None:
    regions = [{"name": "all", "threshold": 0.5, "areas": [[0, 0, 40, 40]]}]
    write_decision(bundle, {"frame_px": [40, 40], "regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})


def tiff_of_two_pages(w: World) -> Path:
    path = w / "pages.tiff"
    assert cv2.imwritemulti(str(path), [pixels(), pixels(seed=1)])
    return path


def second_kind(w: World, array) -> list:
    data = w.parts()
    w.image("parts/train/good/odd.png", array)
    return w.train(data)


def regions(w: World, text: str) -> list:
    data = w.parts()
    w.file("parts/regions.yaml", text.encode())
    return w.train(data)


def npy_header_of(shape) -> bytes:
    """An .npy that promises far more than it holds."""
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def png_of(h: int, w: int) -> bytes:
    """A PNG whose header promises far more than it holds."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", w, h, 8, 0, 0, 0, 0) + b"\0\0\0\0"


def pickled(w: World) -> Path:
    return w.file("p.safetensors", pickle.dumps({"weights": [1.0]}))


def lose(weights) -> None:
    del weights[sorted(weights)[0]]


def rename(weights) -> None:
    key = sorted(weights)[0]
    weights["their." + key] = weights.pop(key)


def doubled(weights) -> None:
    import torch

    key = next(key for key in sorted(weights) if weights[key].ndim == 4)
    weights[key] = torch.cat([weights[key], weights[key]])


def other_patches(w: World) -> str:
    from safetensors import safe_open

    with safe_open(w.stock / "part.safetensors", framework="pt") as stream:
        config = json.loads(stream.metadata()["config"])
    config["geometry"]["stride_y"] = 7
    return json.dumps(config)


def write_text(name: str, text: str):
    return lambda bundle: (bundle / name).write_text(text, encoding="utf-8")


def altered(bundle: Path) -> None:
    data = bytearray((bundle / MODEL).read_bytes())
    data[100] ^= 1
    (bundle / MODEL).write_bytes(bytes(data))


def away(name: str, *, back: str | None = None):
    """Moves a file of the bundle out of it; `back`: what then takes its place."""

    def change(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "away")
        if back == "link":
            (bundle / name).symlink_to(bundle.parent / "away")
        elif back == "pipe":
            os.mkfifo(bundle / name)
        elif back == "folder":
            (bundle / name).mkdir()

    return change


def foreign_decision(bundle: Path) -> None:
    decision = json.loads((bundle / "decision.json").read_text(encoding="utf-8"))
    decision["bundle"] = "ab" * 32
    (bundle / "decision.json").write_bytes(sealed(decision))


def list_outside(manifest: dict) -> None:
    manifest["files"]["../away"] = manifest["files"][MODEL]


def environment(w: World, **values) -> None:
    for name, value in values.items():
        w.monkeypatch.setenv(name, str(value))
    _native.library.cache_clear()


def without_library(w: World) -> list:
    environment(w, GRD_LIBRARY_DIR=w / "none")
    return w.infer(w.image("a.png"))


def without_backend(w: World) -> list:
    (w / "lib").mkdir()
    shutil.copy(_native.library_dir() / _native.LIBRARY, w / "lib")
    environment(w, GRD_LIBRARY_DIR=w / "lib")
    return w.infer(w.image("a.png"))


def without_vendor(w: World) -> list:
    (w / "vendor").mkdir()
    w.monkeypatch.setattr(_native, "openvino_dir", lambda: str(w / "vendor"))
    return w.infer(w.image("a.png"))


def forced(w: World) -> list:
    environment(w, GRD_FORCE_VARIANT="avx9000")
    return w.infer(w.image("a.png"))


def recalibrate(w: World, *more) -> list:
    return ["recalibrate", w.bundle(), "--good", w.parts() / "test" / "good", *more]


def onnx_to(w: World, path) -> list:
    return ["build", "onnx", w.stock / "part.safetensors", "-o", path]


def bundle_to(w: World, path) -> list:
    return ["build", "bundle", w.stock / "part.safetensors", "-o", path]


def overlapping(w: World) -> list:
    data = w.parts()
    shutil.copy(data / "train" / "good" / "000.png", data / "test" / "good" / "again.png")
    return w.train(data)


def linked_twice(w: World) -> list:
    data = w.parts()
    (data / "test" / "good" / "again.png").symlink_to(data / "train" / "good" / "000.png")
    return w.train(data)


def mask_of_nothing(w: World) -> list:
    data = w.parts()
    w.image("parts/ground_truth/spot/999_mask.png")
    return ["eval", w.stock / "part.grdb", "--data", data]


def roi(w: World, array) -> list:
    data = w.parts()
    w.image("parts/roi.png", array)
    return w.train(data)


def benchmark_root(w: World) -> list:
    shutil.copytree(w.stock / "parts", w / "sets" / "one")
    shutil.copytree(w.stock / "parts", w / "sets" / "two")
    return ["recalibrate", w.bundle(), "--good", w / "sets"]


def over_a_run(w: World) -> list:
    w.file("out.run/lock")
    w.file("out.run/last.safetensors", b"hours of work")
    return [*second_kind(w, pixels(48, 48, 3)), "--overwrite"]


def damaged_run(w: World) -> Path:
    w.file("out.run/lock")
    w.file("out.run/last.safetensors", b"x")
    return w.parts()


def results_of_another(w: World) -> list:
    w.file("out/results.csv", b"name,value\na,1\n")
    return [*w.infer(w.image("a.png")), "-o", w / "out"]


def seen_in_training(w: World) -> list:
    """Thresholds from an image that the model was made from."""
    good = w.image("good/a.png")
    seen = hashlib.sha256(good.read_bytes()).hexdigest()[:12]
    bundle = w.manifest(lambda m: m["provenance"].update(training={"seen": [seen]}))
    (bundle / "decision.json").unlink()
    return ["recalibrate", bundle, "--good", w / "good"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def few(w: World, count: int) -> list:
    for index in range(count):
        w.image(f"few/train/good/{index}.png", pixels(seed=index))
    return w.train(w / "few")


def calibrate(w: World, *more, change=None) -> list:
    checkpoint = w.checkpoint(change) if change else w.stock / "part.safetensors"
    data = w / "parts"
    return ["calibrate", checkpoint, "--data", data if data.exists() else w.parts(), "-o", w / "r.json", *more]


def one_to_calibrate(w: World, array) -> list:
    """Calibration images of one kind, beside the usual training images."""
    w.parts()
    w.image("parts/calibration/good/a.png", array)
    return calibrate(w)


def dead(weights) -> None:
    """The latent is 0 whatever the image."""
    for key in weights:
        if key.startswith("latent_down.") and key.endswith((".weight", ".bias")):
            weights[key].zero_()


def recipe(w: World, text: str) -> list:
    return calibrate(w, "--recipe", w.file("r.yaml", text.encode()))


def in_good(w: World, path: Path) -> list:
    (w / "good").mkdir(exist_ok=True)
    path.rename(w / "good" / path.name)
    return ["recalibrate", w.bundle(), "--good", w / "good"]


LONG = "x" * 300

# what is wrong -> (the command line in a fresh world, words of the sentence, words of the way out)
TABLE = {
    # folders
    "folder missing": (lambda w: w.train(w / "none"), "there is no folder", "give the folder"),
    "folder empty": (lambda w: w.train((w / "d").mkdir() or w / "d"), "train/good", "check the path"),
    "a file in place of the folder": (lambda w: w.train(w.file("d")), "there is no folder", "give the folder"),
    "folder is a link to nothing": (lambda w: w.train(w.link("d", w / "none")), "there is no folder", "give"),
    "folder is a loop of links": (lambda w: w.train(w.link("d", "d")), "there is no folder", "give the folder"),
    "folder with a name that is too long": (lambda w: w.train(w / LONG), "File name too long", "check path and disk"),
    "train/good empty": (
        lambda w: w.train((w / "d/train/good").mkdir(parents=True) or w / "d"),
        "holds no image",
        "png",
    ),
    "train/good missing": (
        lambda w: w.train((w / "d/test/good").mkdir(parents=True) or w / "d"),
        "train/good",
        "check",
    ),
    "images beside folders": (
        lambda w: w.train(w.image("d/a.png").parent if (w / "d/sub").mkdir(parents=True) is None else None),
        "unclear what is good",
        "put good images into train/good",
    ),
    "good images in a folder of folders": (benchmark_root, "holds no image", "expected files ending in"),
    "good images missing": (lambda w: ["recalibrate", w.bundle(), "--good", w / "no"], "there is no folder", "check"),
    "test split missing": (
        lambda w: ["eval", w.stock / "part.grdb", "--data", shutil.rmtree(w.parts() / "test") or w / "parts"],
        "there is no folder",
        "evaluation needs test/good",
    ),
    # images
    "image missing": (lambda w: w.infer(w / "no.png"), "no.png cannot be read", "check or remove it"),
    "image name too long": (lambda w: w.infer(w / f"{LONG}.png"), "File name too long", "check path and disk"),
    "image is a link to nothing": (lambda w: w.infer(w.link("a.png", "no")), "a.png cannot be read", "check"),
    "image is a loop of links": (lambda w: w.infer(w.link("a.png", "a.png")), "a.png cannot be read", "check"),
    "image is a pipe": (lambda w: w.infer(w.pipe("a.png")), "a.png", "remove it"),
    "a pipe among the images": (lambda w: w.infer(w.pipe("d/a.png").parent), "a.png", "remove it"),
    "a broken link among the images": (
        lambda w: w.infer(w.link("d/a.png", "no").parent),
        "link to nothing",
        "remove it",
    ),
    "a folder called a.png": (lambda w: w.infer((w / "a.png").mkdir() or w / "a.png"), "holds no image", "expected"),
    "image is a device": (lambda w: w.infer(w.link("a.png", "/dev/zero")), "a.png", "remove it"),
    "image empty": (lambda w: w.infer(w.file("a.png")), "a.png", "expected PNG"),
    "image is text": (lambda w: w.infer(w.file("a.png", b"hello\n")), "a.png", "expected PNG"),
    "image of another format": (lambda w: w.infer(w.file("a.png", b"GIF89a" + bytes(99))), "a.png", "expected PNG"),
    "png truncated": (lambda w: w.infer(w.image("a.png", keep=0.6)), "a.png", "remove it"),
    "jpeg truncated": (lambda w: w.infer(w.image("a.jpg", keep=0.6)), "a.jpg", "remove it"),
    "bmp truncated": (lambda w: w.infer(w.image("a.bmp", keep=0.6)), "a.bmp", "remove it"),
    "tiff truncated": (lambda w: w.infer(w.image("a.tiff", keep=0.6)), "a.tiff", "remove it"),
    "npy truncated": (lambda w: w.infer(w.image("a.npy", keep=0.6)), "a.npy", "remove it"),
    "png that promises a terabyte": (
        lambda w: w.infer(w.file("a.png", png_of(1 << 20, 1 << 20))),
        "a.png",
        "remove it",
    ),
    "npy that promises a terabyte": (
        lambda w: w.infer(w.file("a.npy", npy_header_of((1 << 20, 1 << 20)))),
        "a.npy",
        "it",
    ),
    "npy with a wild header": (lambda w: w.infer(w.file("a.npy", npy_header_of("__import__('os')"))), "a.npy", "it"),
    "npy of pickled objects": (lambda w: w.infer(w.image("a.npy", np.array([{}, []], object))), "a.npy", "expected"),
    "npy of float64": (lambda w: w.infer(w.image("a.npy", pixels(dtype=np.float64))), "float64", "expected"),
    "npy of int16": (lambda w: w.infer(w.image("a.npy", pixels(dtype=np.int16))), "int16", "expected"),
    "npy of bool": (lambda w: w.infer(w.image("a.npy", pixels() > 9)), "bool", "expected"),
    "npy with four axes": (lambda w: w.infer(w.image("a.npy", pixels(1, 48, 48, 3))), "(1, 48, 48, 3)", "expected"),
    "npy with one axis": (lambda w: w.infer(w.image("a.npy", pixels(48))), "(48,)", "expected"),
    "npy with two channels": (lambda w: w.infer(w.image("a.npy", pixels(48, 48, 2))), "(48, 48, 2)", "expected"),
    "npy without pixels": (lambda w: w.infer(w.image("a.npy", np.zeros((0, 48), np.uint8))), "0x48", "remove it"),
    "frame with NaN": (
        lambda w: w.infer(w.image("a.npy", np.full((48, 48), np.nan, np.float32))),
        "a.npy",
        "expected",
    ),
    "frame with Inf": (lambda w: w.infer(w.image("a.npy", np.full((48, 48), np.inf, np.float32))), "a.npy", "expected"),
    "frame out of [0, 1]": (lambda w: w.infer(w.image("a.npy", np.full((48, 48), 7, np.float32))), "a.npy", "expected"),
    "training frame with NaN": (
        lambda w: in_good(w, w.image("a.npy", np.full((48, 48), np.nan, np.float32))),
        "a.npy",
        "expected",
    ),
    "image smaller than a patch": (lambda w: w.infer(w.image("a.png", pixels(20, 48))), "a.png", "reflect"),
    "training image smaller than a patch": (lambda w: second_kind(w, pixels(48, 20)), "odd.png", "padding"),
    "transparent pixels": (lambda w: w.infer(w.image("a.png", pixels(48, 48, 4))), "transparent", "without an alpha"),
    "several pages": (lambda w: w.infer(tiff_of_two_pages(w)), "pages.tiff", "save"),
    "grey and color mixed": (lambda w: second_kind(w, pixels(48, 48, 3)), "3 channels but", "convert"),
    "bad images with --overwrite": (over_a_run, "3 channels but", "convert"),
    "8 and 16 bit mixed": (lambda w: second_kind(w, pixels(dtype=np.uint16)), "uint16", "convert"),
    # splits, masks, regions
    "one image": (lambda w: few(w, 1), "leaves", "add good images"),
    "two images": (lambda w: few(w, 2), "leaves", "add good images"),
    "a test image that is a training image": (overlapping, "same content", "must not overlap"),
    "a test image that is a link to a training image": (linked_twice, "same content", "must not overlap"),
    "a mask without its image": (mask_of_nothing, "belongs to no image", "name it after its image"),
    "a mask of interest of another size": (lambda w: roi(w, pixels(40, 48)), "40x48", "draw it on the image"),
    "regions file that is not YAML": (lambda w: regions(w, "regions: [unclosed"), "regions.yaml cannot be read", ""),
    "regions file with an unknown key": (lambda w: regions(w, "regions: []\nframe: [48, 48]"), "unknown key", "known:"),
    "regions file without regions": (lambda w: regions(w, "frame_px: [48, 48]"), "needs a list", "frame_px"),
    "an area outside the frame": (
        lambda w: regions(w, "frame_px: [48, 48]\nregions: [{name: a, areas: [[0, 0, 49, 1]]}]"),
        "does not lie in its frame",
        "correct the regions file",
    ),
    "two regions of one name": (lambda w: regions(w, "regions: [{name: a}, {name: a}]"), "a, a", "name of its own"),
    "regions of another frame size": (
        lambda w: regions(w, "frame_px: [60, 60]\nregions: [{name: a, areas: [[0, 0, 9, 9]]}]"),
        "48x48 px but the regions",
        "draw the regions again",
    ),
    # configuration
    "unknown section": (lambda w: w.set("trian.steps=1"), "trian", "did you mean 'train'?"),
    "unknown key": (lambda w: w.set("train.bacth=1"), "train.bacth", "did you mean 'batch'?"),
    "unknown key in a file": (lambda w: w.config(b"model: {chanels: 1}"), "model.chanels", "did you mean 'channels'?"),
    "unknown key that resembles none": (lambda w: w.set("score.qqqqqq=1"), "score.qqqqqq", "known: decides"),
    "unknown profile": (lambda w: ["validate-config", "--profile", "deepindustrial_s"], "no profile", "did you mean"),
    "a key below a value": (lambda w: w.set("train.batch.size=1"), "train.batch", "should be a valid integer"),
    "a value for a section": (lambda w: w.set("train=1"), "train", "found 1"),
    "batch of zero": (lambda w: w.set("train.batch=0"), "train.batch", "found 0"),
    "probability above one": (lambda w: w.set("perturbation.probability=1.5"), "probability", "found 1.5"),
    "text for a number": (lambda w: w.set("train.batch=many"), "train.batch", "found 'many'"),
    "NaN for a number": (lambda w: w.set("optimizer.lr=.nan"), "optimizer.lr", "found nan"),
    "infinite learning rate": (lambda w: w.set("optimizer.lr=.inf"), "optimizer.lr", "found inf"),
    "two bounds of a run": (lambda w: w.set("train.steps=5", "train.seconds=5"), "exactly one", "null for the other"),
    "patch that does not halve": (lambda w: w.set("model.patch_h=100"), "not a multiple of 16", "choose a multiple"),
    "a stride beyond the patch": (lambda w: w.set("geometry.stride_y=500"), "stride_y", "at most"),
    "setting without =": (lambda w: w.set("train.steps"), "has no '='", "section.key=value"),
    "setting that is not YAML": (lambda w: w.set("model.stages=[1"), "not YAML", ""),
    "setting with an empty name": (lambda w: w.set("=5"), "unknown setting", "known"),
    "configuration missing": (lambda w: ["validate-config", w / "no.yaml"], "cannot be read", "No such file"),
    "configuration is a folder": (lambda w: ["validate-config", w.folder], "cannot be read", "Is a directory"),
    "configuration not YAML": (lambda w: w.config(b"train: [unclosed"), "not YAML", "line"),
    "configuration not UTF-8": (lambda w: w.config(b"train: \xff\xfe"), "cannot be read", "utf-8"),
    "configuration is a list": (lambda w: w.config(b"- 1\n- 2\n"), "holds a list", "expected sections"),
    "configuration with Python objects": (lambda w: w.config(b"a: !!python/object:os.system {}"), "not YAML", "python"),
    # checkpoints
    "checkpoint missing": (lambda w: ["build", "onnx", w / "no.safetensors"], "there is no checkpoint", "train one"),
    "checkpoint is a folder": (lambda w: ["build", "onnx", w.folder], "there is no checkpoint", "train one"),
    "checkpoint empty": (lambda w: ["build", "onnx", w.file("c.safetensors")], "not a safetensors", "train again"),
    "checkpoint is a pickle": (lambda w: ["build", "onnx", pickled(w)], "pickled files are refused", "train again"),
    "checkpoint truncated": (
        lambda w: ["build", "onnx", w.file("c.safetensors", (w.stock / "part.safetensors").read_bytes()[:9999])],
        "not a safetensors",
        "train again",
    ),
    "checkpoint of another program": (
        lambda w: ["build", "onnx", w.file("c.safetensors", struct.pack("<Q", 2) + b"{}")],
        "another program",
        "expected one of grd-edge train",
    ),
    "checkpoint of a newer schema": (
        lambda w: ["build", "onnx", w.checkpoint(grd_edge_schema="999")],
        "schema 999",
        "update grd-edge",
    ),
    "checkpoint with damaged metadata": (
        lambda w: ["build", "onnx", w.checkpoint(config="{")],
        "damaged metadata",
        "train again",
    ),
    "checkpoint of an odd schema": (lambda w: ["build", "onnx", w.checkpoint(grd_edge_schema="x")], "damaged", "train"),
    "checkpoint whose settings are a list": (
        lambda w: ["build", "onnx", w.checkpoint(config="[]")],
        "damaged",
        "train",
    ),
    "checkpoint without a weight": (lambda w: ["build", "onnx", w.checkpoint(lose)], "lacks weights", "profile"),
    "checkpoint with a foreign weight": (lambda w: ["build", "onnx", w.checkpoint(rename)], "weights", "profile"),
    "checkpoint of another profile": (lambda w: ["build", "onnx", w.checkpoint(doubled)], "wrongly shaped", "profile"),
    # bundles, in the Python reader and in the native one
    **{
        f"bundle {what} ({verb})": (lambda w, make=make, verb=verb, args=args: [verb, make(w), *args], words, "")
        for what, make, words in (
            ("missing", lambda w: w / "no.grdb", "no.grdb"),
            ("is a file", lambda w: w.file("f.grdb"), "f.grdb"),
            ("without a description", lambda w: w.bundle(away(MANIFEST)), MANIFEST),
            ("without its model", lambda w: w.bundle(away(MODEL)), MODEL),
            ("with an altered model", lambda w: w.bundle(altered), "sha256"),
            ("with an extra file", lambda w: w.bundle(write_text("notes.txt", "x")), "notes.txt"),
            ("with a linked model", lambda w: w.bundle(away(MODEL, back="link")), "link"),
            ("with a linked folder", lambda w: w.bundle(away("models", back="link")), "link"),
            ("with a pipe for its model", lambda w: w.bundle(away(MODEL, back="pipe")), MODEL),
            ("with a pipe for its description", lambda w: w.bundle(away(MANIFEST, back="pipe")), "not a regular file"),
            ("that lists ../away", lambda w: w.manifest(list_outside), "../away"),
            ("with a huge description", lambda w: w.bundle(write_text(MANIFEST, " " * (1 << 20) + "{}")), "at most"),
            ("of a newer schema", lambda w: w.manifest(lambda m: m.update(schema=2)), "update grd-edge"),
            ("with an unknown key", lambda w: w.manifest(lambda m: m.update(extra=1)), "unknown key"),
            ("changed after sealing", lambda w: w.bundle(lambda b: append(b / MANIFEST, b" ")), "seal"),
            ("with thresholds of another", lambda w: w.bundle(foreign_decision), "grd-edge recalibrate"),
            ("with an empty decision", lambda w: w.bundle(write_text("decision.json", "")), "not valid JSON"),
        )
        for verb, args in (("inspect", []), ("infer", ["a.png"]))
    },
    "bundle whose name is no UTF-8": (
        lambda w: ["infer", os.fsdecode(os.fsencode(w.folder) + b"/b\xff.grdb"), "a.png"],
        "there is no bundle",
        "build one with",
    ),
    "gate on no metric": (
        lambda w: w.bench("--gate", "p98_ms=3"),
        "there is no metric 'p98_ms' to gate",
        "choose p50_ms, p90_ms",
    ),
    "gate without a limit": (lambda w: w.bench("--gate", "p99_ms"), "'p99_ms' is no metric with a limit", "p99_ms=20"),
    "gate on a limit below 0": (lambda w: w.bench("--gate", "p99_ms=-3"), "held to -3.0", "a number above 0"),
    "gate the wrong way round": (lambda w: w.bench("--gate", "speedup<=3"), "'speedup<=3'", "write speedup=3"),
    "bench of no bundle": (lambda w: ["bench", w / "no.grdb"], "no.grdb", "grd-edge build bundle"),
    "bench of an image that is missing": (
        lambda w: w.bench("--images", w / "no.png"),
        "no.png cannot be read",
        "check or remove it",
    ),
    "bench of an image smaller than a patch": (
        lambda w: w.bench("--images", w.image("a.npy", pixels(9, 9))),
        "9x9",
        "",
    ),
    "bench of made frames and images": (
        lambda w: w.bench("--images", w.image("a.npy"), "--patches", "4"),
        "--patches is of frames that are made",
        "leave one of them out",
    ),
    "bench written below a file": (
        lambda w: w.bench("-o", w.file("f") / "bench.json"),
        "bench.json cannot be written",
        "choose another folder",
    ),
    "precision that the bundle lacks": (
        lambda w: [*w.infer(w.image("a.png")), "--precision", "int8"],
        "int8",
        "fp32",
    ),
    # results, thresholds, runs and imports
    "mask of interest of another size for infer": (
        lambda w: [*w.infer(w.image("a.png")), "--roi", w.image("roi.png", pixels(40, 48))],
        "40x48 px",
        "draw it on the image",
    ),
    "mask of interest that marks nothing": (
        lambda w: [*w.infer(w.image("a.png")), "--roi", w.image("roi.png", pixels() * 0)],
        "0 everywhere",
        "mark the pixels that count",
    ),
    "pictures without a folder": (lambda w: [*w.infer(w.image("a.png")), "--heatmaps"], "need a folder", "-o OUT"),
    "results with other columns": (results_of_another, "holds other columns", "choose another folder"),
    "results below a file": (
        lambda w: [*w.infer(w.image("a.png")), "-o", w.file("f")],
        "cannot be written",
        "another folder",
    ),
    "pattern of products that is none": (
        lambda w: [*w.infer(w.image("a.png")), "--product-by", "("],
        "'('",
        "",
    ),
    "pattern of products without a group": (
        lambda w: [*w.infer(w.image("a.png")), "--product-by", "a"],
        "group",
        "",
    ),
    # streams
    "stream without a source": (lambda w: w.stream(), "give the source", "--slot-ms"),
    "stream of a source and of slots": (
        lambda w: w.stream(w.image("a.png"), "--slot-ms", 9),
        "give the source",
        "or else",
    ),
    "source missing": (lambda w: w.stream(w / "no.avi"), "there is no source", "give a folder"),
    "source that is no video": (lambda w: w.stream(w.file("v.avi", b"hello")), "v.avi does not open", "check it"),
    "watched folder missing": (lambda w: w.stream(w / "in", "--watch"), "there is no source", "give a folder"),
    "watched image": (lambda w: w.stream(w.image("a.png"), "--watch"), "--watch does not fit", "leave it out"),
    "folder without images": (lambda w: w.stream(w.file("d/a.txt").parent), "holds no image", "expected"),
    "camera that is not there": (lambda w: w.stream("63"), "camera 63 gives no frame", "check that it is connected"),
    "raw frames without a size": (lambda w: w.stream("-"), "without their size", "--raw 480x640"),
    "raw frames of a size that is none": (lambda w: w.stream("-", "--raw", "480"), "'480'", "write it as HxW"),
    "raw frames smaller than a patch": (
        lambda w: w.stream(w.file("f.raw", bytes(400)), "--raw", "20x20"),
        "20x20",
        "reflect",
    ),
    "list of CPUs that is none": (lambda w: w.stream(w.image("a.png"), "--cpus", "3-1"), "'3-1'", "write it as 0-3,5"),
    "CPUs that are not there": (lambda w: w.stream(w.image("a.png"), "--cpus", "9999"), "CPU 9999", "choose among"),
    "stream to a target without an engine": (
        lambda w: w.stream(w.image("a.png"), "--target", "rtx"),
        "rtx",
        "cpu",
    ),
    "pictures of a stream without a folder": (
        lambda w: w.stream(w.image("a.png"), "--images", "all"),
        "need a folder",
        "-o OUT",
    ),
    "products of a stream that nothing counts": (
        lambda w: w.stream(w.file("f.raw", bytes(4800)), "--raw", "40x40", "--product-by", "(f)"),
        "not counted before they come",
        "--product-frames",
    ),
    "slots of a frame that is not taken": (
        lambda w: ["stream", w.bundle(fix_frame_size), "--slot-ms", 50],
        "40x40 px",
        "choose fewer with --patches",
    ),
    "thresholds from images of the training": (seen_in_training, "was used to make this model", "not used before"),
    "regions file missing": (lambda w: recalibrate(w, "--regions", w / "no.yaml"), "no.yaml cannot be read", "No such"),
    "run agreement of a minority": (lambda w: recalibrate(w, "--run-agreement", 0.2), "0.2", "0.5"),
    "labels without defects": (
        lambda w: ["recalibrate", w.bundle(), "--labelled", w.image("l/good/a.png").parents[1]],
        "defect",
        "",
    ),
    "comparison with another model's patches": (
        lambda w: [
            "eval",
            w.stock / "part.grdb",
            "--data",
            w.parts(),
            "--against",
            w.checkpoint(config=other_patches(w)),
        ],
        "patch",
        "",
    ),
    "comparison with what there is not": (
        lambda w: ["eval", w.stock / "part.grdb", "--data", w.parts(), "--against", "onnxrutime"],
        "nothing called 'onnxrutime'",
        "did you mean 'onnxruntime'? choose torch",
    ),
    "comparison with an engine that was not built": (
        lambda w: ["eval", w.stock / "part.grdb", "--data", w.parts(), "--against", "tensorrt"],
        "part.grdb has no TensorRT engine",
        "build one with: grd-edge build engine",
    ),
    "comparison with a precision the bundle lacks": (
        lambda w: ["eval", w.stock / "part.grdb", "--data", w.parts(), "--against", "native:int8"],
        "no cpu engine of precision 'int8'",
        "it has fp32",
    ),
    "evaluation of a precision the bundle lacks": (
        lambda w: ["eval", w.stock / "part.grdb", "--data", w.parts(), "--precision", "bf16"],
        "no cpu engine of precision 'bf16'",
        "it has fp32",
    ),
    "comparison of a bundle that does not say its network": (
        lambda w: [
            "eval",
            without_configuration(w),
            "--data",
            w.parts(),
            "--against",
            "torch",
            "--no-untrained",
        ],
        "does not hold the configuration of its model",
        "give its checkpoint",
    ),
    "a run that is there": (
        lambda w: w.train(damaged_run(w)),
        "holds a run",
        "--resume",
    ),
    "a run that is damaged": (
        lambda w: w.train(damaged_run(w), "--resume"),
        "last.safetensors is not",
        "train again",
    ),
    "checkpoint over a folder": (
        lambda w: ["train", "--data", w.parts(), "-o", w.bundle(), *SETTINGS],
        "part.grdb is a folder",
        "give a name such as",
    ),
    "unknown precision of training": (
        lambda w: w.train(w.parts(), "--precision", "int4"),
        "train.precision",
        "16-mixed",
    ),
    "import of nothing": (lambda w: ["import", "grdnet", w / "no.pt", "-o", w / "c.safetensors"], "no.pt", ""),
    "import of a pickle that runs code": (
        lambda w: ["import", "grdnet", w.file("e.pt", pickle.dumps(Evil())), "-o", w / "c.safetensors"],
        "e.pt",
        "",
    ),
    # calibration
    "calibration recipe unknown": (
        lambda w: calibrate(w, "--recipe", "entropi"),
        "no calibration recipe",
        "did you mean",
    ),
    "calibration recipe missing": (lambda w: calibrate(w, "--recipe", w / "r.yaml"), "cannot be read", "No such file"),
    "calibration recipe not YAML": (lambda w: recipe(w, "algorithm: ["), "not YAML", "line"),
    "calibration recipe of an unknown algorithm": (lambda w: recipe(w, "algorithm: mimax"), "'mimax'", "'minmax'?"),
    "calibration recipe with an unknown key": (
        lambda w: recipe(w, "algorithm: phi\npatchs: 3"),
        "unknown setting patchs",
        "did you mean 'patches'?",
    ),
    "calibration recipe that keeps an unknown layer": (
        lambda w: recipe(w, "algorithm: minmax\nkeep: {decoder.last: coarse}"),
        "no layer 'decoder.last'",
        "layers are",
    ),
    "too few calibration images": (
        lambda w: one_to_calibrate(w, pixels(32, 32)),
        "1 calibration patches of 1 images are too few",
        "add good images",
    ),
    "calibration image smaller than a patch": (lambda w: one_to_calibrate(w, pixels(20, 48)), "20x48", "padding"),
    "calibration image of another depth": (
        lambda w: one_to_calibrate(w, pixels(dtype=np.uint16)),
        "uint16",
        "convert them",
    ),
    "calibration image of floats": (
        lambda w: w.parts() and w.image("parts/calibration/good/a.npy", np.ones((48, 48), np.float32)) and calibrate(w),
        "float32",
        "convert",
    ),
    "calibration of an activation that is 0": (
        lambda w: calibrate(w, change=dead),
        "is 0 on all calibration images",
        "keep latent_up.0 in higher precision",
    ),
    "range table over a folder": (lambda w: [*calibrate(w), "-o", w.folder], "cannot be written", "another folder"),
    # the machine
    "native library missing": (without_library, "cannot be loaded", "build it with"),
    "backend missing": (without_backend, "libgrd_backend_openvino.so", ""),
    "vendor library missing": (without_vendor, "holds no libopenvino_c.so", "name the folder"),
    "unknown scoring kernel forced": (forced, "avx9000", "GRD_FORCE_VARIANT"),
    # arguments and outputs
    "alpha above one": (lambda w: recalibrate(w, "--alpha", 2), "alpha", "expected a false-reject rate in (0, 1)"),
    "alpha of zero": (lambda w: recalibrate(w, "--alpha", 0), "alpha", "expected a false-reject rate in (0, 1)"),
    "alpha that is not a number": (
        lambda w: recalibrate(w, "--alpha", "nan"),
        "alpha",
        "expected a false-reject rate in (0, 1)",
    ),
    "more patches asked for than there are": (lambda w: recalibrate(w, "--k", 100), "9 patches", "k"),
    "bundle without .grdb": (lambda w: bundle_to(w, w / "part"), "ends in .grdb", "call it part.grdb"),
    "bundle over a folder of photos": (
        lambda w: bundle_to(w, w.file("photos.grdb/holiday.jpg").parent),
        "exists and is not a bundle",
        "choose another name",
    ),
    "bundle over a link": (lambda w: bundle_to(w, w.link("l.grdb", w.bundle())), "is not a bundle", "another name"),
    "bundle below a file": (lambda w: bundle_to(w, w.file("f") / "p.grdb"), "cannot be written", "another folder"),
    "model over a folder": (lambda w: onnx_to(w, w.folder), "cannot be written", "another folder"),
    "model below a file": (lambda w: onnx_to(w, w.file("f") / "m.onnx"), "cannot be written", "another folder"),
    "model where nothing can be written": (lambda w: onnx_to(w, "/proc/none/m.onnx"), "cannot be written", "another"),
    "model with a name too long": (lambda w: onnx_to(w, w / LONG), "File name too long", "another"),
}

# wrong usage: exit code 2 and typer's own words
USAGE = {
    "no verb that is known": ["nonsense"],
    "no argument": ["infer"],
    "steps of zero": ["train", "--data", "x", "--steps", "0"],
    "time budget of zero": ["train", "--data", "x", "--train-seconds", "0"],
    "negative seed": ["eval", "x.grdb", "--data", "x", "--seed", "-1"],
    "thresholds from no images": ["recalibrate", "x.grdb"],
    "resume and overwrite": ["train", "--data", "x", "--resume", "--overwrite"],
    "k of zero": ["recalibrate", "x.grdb", "--good", "x", "--k", "0"],
    "text for a number": ["infer", "x.grdb", "x", "--threads", "many"],
    "deadline below zero": ["stream", "x.grdb", "x", "--deadline-ms", "-1"],
    "overload policy that is none": ["stream", "x.grdb", "x", "--overload", "panic"],
    "two rounds": ["bench", "x.grdb", "--rounds", "2"],
    "a baseline that is none": ["bench", "x.grdb", "--against", "numpy"],
    "unknown option": ["inspect", "x.grdb", "--fast"],
}


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


@pytest.fixture(scope="module")
def stock(parts, tiny_bundle_files, tiny_checkpoint, tmp_path_factory):
    """What rows start from; no row may change it."""
    from grd_edge.checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(parts, folder / "parts")
    shutil.copytree(tiny_bundle_files, folder / "part.grdb")
    write_checkpoint(folder / "part.safetensors", tiny_checkpoint)
    return folder


def snapshot(*folders: Path) -> dict:
    """Everything below the folders: kind, permissions, and content or link target."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).digest()
            found[str(path)] = (status.st_mode, content)
    return found


def run_main(monkeypatch, capfd, argv) -> tuple[int, str]:
    """Exit code and stderr of the command line."""
    monkeypatch.setattr(sys, "argv", ["grd-edge", *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, capfd.readouterr().err


def only_sentence(stderr: str) -> str:
    assert "Traceback" not in stderr, stderr[-3000:]
    lines = [line for line in stderr.splitlines() if line.startswith("grd-edge: ")]
    assert len(lines) == 1, stderr[-3000:]
    assert stderr.rstrip().endswith(lines[0]), stderr[-3000:]
    return lines[0]


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_one_sentence_and_nothing_is_lost(name, stock, tmp_path, monkeypatch, capfd):
    make, words, way_out = TABLE[name]
    monkeypatch.chdir(tmp_path)
    try:
        argv = make(World(tmp_path, stock, monkeypatch))
        before = snapshot(tmp_path, stock)
        code, stderr = run_main(monkeypatch, capfd, argv)
    finally:
        _native.library.cache_clear()
    sentence = only_sentence(stderr)
    assert code == 1, stderr
    assert words in sentence and way_out in sentence, sentence
    assert snapshot(tmp_path, stock) == before


def test_the_table_has_at_least_60_kinds():
    assert len(TABLE) >= 60


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_exits_with_2_and_does_nothing(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code, stderr = run_main(monkeypatch, capfd, USAGE[name])
    assert code == 2 and "Usage:" in stderr and "Traceback" not in stderr
    assert snapshot(tmp_path) == {}


def test_a_defect_without_a_mask_stays_a_defect(stock, tmp_path, monkeypatch, capfd):
    data = World(tmp_path, stock, monkeypatch).parts()
    (data / "ground_truth" / "spot").mkdir(parents=True)
    assert cv2.imwrite(str(data / "ground_truth" / "spot" / "003_mask.png"), pixels())
    argv = ["eval", stock / "part.grdb", "--data", data, "--no-untrained", "--json"]
    monkeypatch.setattr(sys, "argv", ["grd-edge", *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    result = json.loads(capfd.readouterr().out)
    assert (result["images"], result["defective"]) == (24, 12)


def test_the_stock_itself_is_good(stock, tmp_path, monkeypatch, capfd):
    """So that no row fails for another reason than its own."""
    assert read_bundle(stock / "part.grdb").threshold is not None
    world = World(tmp_path, stock, monkeypatch)
    code, _ = run_main(monkeypatch, capfd, world.infer(world.image("a.png")))
    assert code == 0
    code, _ = run_main(monkeypatch, capfd, onnx_to(world, tmp_path / "m.onnx"))
    assert code == 0
