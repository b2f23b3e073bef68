"""What an engine is held against: a backend on the bundle's own FP32 model, another of its precisions, a checkpoint.

Source: docs/design/precision.md.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from grd_edge.bundle import MODEL, Bundle
from grd_edge.errors import BundleError, CheckFailedError, CheckpointError, ConfigError, InputError, MissingExtraError
from grd_edge.runtime import Inspector
from grd_edge.scored import FrameInspector
from grd_edge.shipped import opened_bundle

BACKENDS = ("torch", "onnxruntime", "openvino", "native", "tensorrt")


@dataclass(frozen=True)
class Backend:
    """One of `BACKENDS`; `native` with the precision of the bundle's engine."""

    name: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.name}:{self.precision}" if self.name == "native" else self.name


def against_from_text(text: str) -> Backend | Path:
    """What `--against` names: a backend, `native:PRECISION`, or else the path of a checkpoint or of a folder of them.

    Raises:
        InputError: a name that is none of these; the nearest backend is named.
    """
    name, separator, precision = text.partition(":")
    if name in BACKENDS and (name == "native" or not separator) and bool(precision) == bool(separator):
        return Backend(name, precision or "fp32")
    if Path(text).suffix or os.sep in text or Path(text).exists():
        return Path(text)
    close = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    raise InputError(
        f"there is nothing called {text!r} to compare with{meant} choose {', '.join(BACKENDS)}, native:PRECISION or a "
        "checkpoint.safetensors"
    )


def reference_inspector(bundle: Bundle, against: Backend | Path) -> FrameInspector:
    """An inspector, to be closed, that decides as the bundle does, on the network of `against`.

    Raises:
        BundleError: the bundle lacks what the backend needs: the FP32 model, its configuration, the precision.
        CheckpointError: a checkpoint cannot be read, or belongs to a model that sees other patches than the bundle.
        MissingExtraError: a backend that cannot be used here.
        EngineError: see `Inspector`.
    """
    if isinstance(against, Path):
        return _of_checkpoint(bundle, against)
    if against.name == "tensorrt":
        raise MissingExtraError(
            f"the TensorRT engine is not written yet; compare with {', '.join(BACKENDS[:-1])} or a checkpoint"
        )
    if against.name == "native":
        return _native(bundle, against.precision)
    if MODEL not in bundle.files:
        raise BundleError(f"{bundle.path} holds no {MODEL}, which {against} runs; compare with native or a checkpoint")
    from grd_edge.engine.inspector import ReferenceInspector, decision_of_bundle, geometry_of_bundle

    if against.name == "torch":
        engine = _torch_engine(bundle)
    elif against.name == "onnxruntime":
        from grd_edge.engine.onnxruntime import OnnxRuntimeEngine

        engine = OnnxRuntimeEngine(bundle.files[MODEL])
    else:
        from grd_edge.engine.openvino import OpenVinoEngine

        engine = OpenVinoEngine(bundle.files[MODEL], "fp32")
    return ReferenceInspector(
        engine.reconstruct, engine.version, **geometry_of_bundle(bundle), **decision_of_bundle(bundle)
    )


def _of_checkpoint(bundle: Bundle, path: Path) -> FrameInspector:
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.engine.torch import TorchInspector

    inspector = TorchInspector.of_bundle(read_checkpoint(path), bundle)
    geometry = bundle.manifest["geometry"]
    seen = (inspector.grid, inspector.scale_px, inspector.channels)
    if seen != (bundle.grid, geometry["scale_px"], geometry["channels"]):
        raise CheckpointError(
            f"{path} was trained on other patches than {bundle.path} inspects; "
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


def _torch_engine(bundle: Bundle):
    """The bundle's FP32 model as a network in PyTorch, checked against ONNX Runtime."""
    import numpy as np

    from grd_edge.config import config_from_mapping
    from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
    from grd_edge.engine.torch import TorchEngine, network_from_onnx
    from grd_edge.export import check_reconstruction

    config = bundle.manifest["provenance"].get("config")
    try:
        if not isinstance(config, dict):
            raise ConfigError("the bundle does not hold the configuration of its model")
        model = config_from_mapping(config).model
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
