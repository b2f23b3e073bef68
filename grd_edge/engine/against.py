"""What an engine is held against: a backend on the bundle's own FP32 model, another of its precisions, a checkpoint.

Source: docs/design/precision.md.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge.bundle import MODEL, Bundle
from grd_edge.errors import (
    BundleError,
    CheckFailedError,
    CheckpointError,
    ConfigError,
    EngineMismatchError,
    InputError,
    MissingExtraError,
)
from grd_edge.heads import RECONSTRUCTION, output_shape
from grd_edge.runtime import Inspector
from grd_edge.scored import FrameInspector
from grd_edge.shipped import config_of, opened_bundle

BACKENDS = ("torch", "onnxruntime", "openvino", "native", "tensorrt")


@dataclass(frozen=True)
class Backend:
    """One of `BACKENDS`; `native` with the precision of the bundle's engine.

    Attributes:
        engine: of `tensorrt`, TARGET-PRECISION; "" is the one that fits this machine.
    """

    name: str
    precision: str = "fp32"
    engine: str = ""

    def __str__(self) -> str:
        which = self.precision if self.name == "native" else self.engine
        return f"{self.name}:{which}" if which else self.name


def against_from_text(text: str) -> Backend | Path:
    """What `--against` names: a backend, one with what it runs, or else the path of a checkpoint or a folder of them.

    Raises:
        InputError: a name that is none of these; the nearest backend is named.
    """
    name, separator, which = text.partition(":")
    if name in BACKENDS and (name in ("native", "tensorrt") or not separator) and bool(which) == bool(separator):
        return Backend(name, engine=which) if name == "tensorrt" else Backend(name, which or "fp32")
    if Path(text).suffix or os.sep in text or Path(text).exists():
        return Path(text)
    close = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    raise InputError(
        f"there is nothing called {text!r} to compare with{meant} choose {', '.join(BACKENDS)}, native:PRECISION, "
        "tensorrt:TARGET-PRECISION or a checkpoint.safetensors"
    )


def reference_inspector(bundle: Bundle, against: Backend | Path, *, threads: int = 0, **options: Any) -> FrameInspector:
    """An inspector, to be closed, that decides as the bundle does, on the network of `against`.

    Args:
        threads: of `onnxruntime` and `openvino`; 0: all cores.
        options: more of `ReferenceInspector`, where the backend runs the bundle's FP32 model.

    Raises:
        BundleError: the bundle lacks what the backend needs: the FP32 model, its configuration, the precision.
        CheckpointError: a checkpoint cannot be read, or belongs to a model that sees other patches than the bundle.
        MissingExtraError: a backend whose package is not installed.
        EngineError: see `Inspector` and `TensorRtEngine`.
    """
    if isinstance(against, Path):
        return _of_checkpoint(bundle, against)
    if against.name == "tensorrt":
        return _tensorrt(bundle, against.engine)
    if against.name == "native":
        return _native(bundle, against.precision)
    if MODEL not in bundle.files:
        raise BundleError(f"{bundle.path} holds no {MODEL}, which {against} runs; compare with native or a checkpoint")
    from grd_edge.engine.inspector import ReferenceInspector, decision_of_bundle, geometry_of_bundle

    if against.name == "torch":
        engine = _torch_engine(bundle)
    elif against.name == "onnxruntime":
        from grd_edge.engine.onnxruntime import OnnxRuntimeEngine

        engine = OnnxRuntimeEngine(bundle.files[MODEL], threads)
    else:
        from grd_edge.engine.openvino import OpenVinoEngine

        engine = OpenVinoEngine(bundle.files[MODEL], "fp32", threads)
    return ReferenceInspector(
        engine.reconstruct, engine.version, **geometry_of_bundle(bundle), **decision_of_bundle(bundle), **options
    )


def _of_checkpoint(bundle: Bundle, path: Path) -> FrameInspector:
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.engine.torch import TorchInspector

    inspector = TorchInspector.of_bundle(read_checkpoint(path), bundle)
    geometry = bundle.manifest["geometry"]
    seen = (inspector.grid, inspector.scale_px, inspector.channels, inspector.head)
    if seen != (bundle.grid, geometry["scale_px"], geometry["channels"], bundle.manifest["head"]):
        raise CheckpointError(
            f"{path} was trained on other patches than {bundle.path} inspects, or by another method; "
            "give the checkpoint that the bundle was built from"
        )
    return inspector


def _native(bundle: Bundle, precision: str) -> Inspector:
    check_precision(bundle, precision)
    inspector, opened = opened_bundle(bundle.path, precision=precision)
    if opened.seal != bundle.seal:
        inspector.close()
        raise BundleError(f"{bundle.path} was replaced while it was opened; run this again")
    return inspector


def _tensorrt(bundle: Bundle, which: str) -> FrameInspector:
    from grd_edge.engine.fingerprint import fingerprint_of
    from grd_edge.engine.inspector import ReferenceInspector, decision_of_bundle, geometry_of_bundle
    from grd_edge.engine.tensorrt import TensorRtEngine

    entry = _tensorrt_entry(bundle, which)
    engine = TensorRtEngine(bundle.files[entry["file"]], fingerprint_of(entry), entry["target"])
    geometry = bundle.manifest["geometry"]
    seen = geometry["channels"], geometry["patch_h"], geometry["patch_w"]
    again = f"build it again with: grd-edge build engine {bundle.path} --target {entry['target']}"
    if engine.patch_shape != seen:
        engine.close()
        raise BundleError(
            f"the engine {_label(entry)} of {bundle.path} takes patches {engine.patch_shape} and the bundle cuts "
            f"{seen}; {again}"
        )
    if engine.output_shape != output_shape(bundle.head, *seen):
        engine.close()
        raise BundleError(
            f"the engine {_label(entry)} of {bundle.path} gives {engine.output_shape} a patch, and a {bundle.head} "
            f"model gives {output_shape(bundle.head, *seen)}; {again}"
        )
    return ReferenceInspector(
        engine.reconstruct,
        f"{engine.version}, {_label(entry)}",
        **geometry_of_bundle(bundle),
        **decision_of_bundle(bundle),
        close=engine.close,
    )


def _tensorrt_entry(bundle: Bundle, which: str) -> dict[str, Any]:
    """The engine that is named, or the only one that fits this machine.

    Raises:
        BundleError: none, or none of that name, or several that fit.
        EngineMismatchError: none that fits.
        EngineError: several to choose from, and no driver that tells what this machine is.
    """
    from grd_edge.engine.device import device_here
    from grd_edge.engine.fingerprint import check_fits, fingerprint_of
    from grd_edge.engine.library import library_of
    from grd_edge.targets import CLASSIC, RTX, TARGETS, target_named

    known = {_label(entry): entry for entry in bundle.manifest["engines"] if entry["backend"] in (RTX, CLASSIC)}
    if not known:
        raise BundleError(
            f"{bundle.path} has no TensorRT engine; build one with: grd-edge build engine {bundle.path} --target "
            f"{'|'.join(TARGETS)}"
        )
    if which and which not in known:
        raise BundleError(
            f"{bundle.path} has no TensorRT engine {which!r}; it has {', '.join(known)}, others are built with: "
            f"grd-edge build engine {bundle.path} --target TARGET --precision PRECISION"
        )
    if which or len(known) == 1:
        return known[which or next(iter(known))]
    device, fit, refusals = device_here(), [], []
    for label, entry in known.items():
        try:
            version = library_of(target_named(entry["target"])).__version__
            check_fits(fingerprint_of(entry), entry["target"], device, version)
        except (EngineMismatchError, MissingExtraError) as error:
            refusals.append(error)
        else:
            fit.append(label)
    if not fit:
        raise refusals[0]
    if len(fit) > 1:
        raise BundleError(
            f"{bundle.path} has several TensorRT engines that fit this machine: {', '.join(fit)}; name one, such as "
            f"--against tensorrt:{fit[0]}"
        )
    return known[fit[0]]


def _label(entry: dict[str, Any]) -> str:
    return f"{entry['target']}-{entry['precision']}"


def _torch_engine(bundle: Bundle):
    """The bundle's FP32 model as a network in PyTorch, checked against ONNX Runtime."""
    import numpy as np

    from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
    from grd_edge.engine.torch import TorchEngine, network_from_onnx
    from grd_edge.export import check_reconstruction

    if bundle.manifest["head"] != RECONSTRUCTION:
        raise BundleError(
            f"{bundle.path} holds the graph of its network but not the network; give the checkpoint that it was built "
            "from, --against NAME.safetensors, or compare with onnxruntime"
        )
    try:
        model = config_of(bundle).model
        engine = TorchEngine(network_from_onnx(bundle.files[MODEL], model))
        x = np.random.default_rng(0).random((2, model.channels, model.patch_h, model.patch_w), np.float32)
        found = OnnxRuntimeEngine(bundle.files[MODEL]).reconstruct(x)
        check_reconstruction(found, engine.reconstruct(x), x, engine.net, MODEL)
    except (BundleError, ConfigError, CheckFailedError) as error:
        raise BundleError(
            f"the network of {bundle.path} cannot be loaded into PyTorch ({error}); give its checkpoint instead: "
            "--against NAME.safetensors"
        ) from error
    return engine


def check_precision(bundle: Bundle, precision: str, target: str = "cpu") -> None:
    """Raises BundleError when a bundle has no engine of a precision for a target; names those that it has."""
    found = [engine["precision"] for engine in bundle.manifest["engines"] if engine["target"] == target]
    if precision not in found:
        raise BundleError(
            f"{bundle.path} has no {target} engine of precision {precision!r}; it has {', '.join(found) or 'none'}, "
            "others are built with: grd-edge build bundle"
        )
