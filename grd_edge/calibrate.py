"""Activation ranges of the exported model on good images: what quantization starts from.

Source: docs/method.md, section 8 (calibration images are never training or test images).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime

from grd_edge.errors import InputError
from grd_edge.files import sha256_hex

BATCH = 8


def ranges_from_images(model: bytes, patches: Iterable[np.ndarray], *, images_sha256: str) -> dict[str, Any]:
    """Minimum and maximum of every activation of `model` over all patches, streamed batch by batch.

    Args:
        model: serialized ONNX with one input x (batch, C, patch_h, patch_w) float32.
        patches: arrays (N, C, patch_h, patch_w) float32, one per image.
        images_sha256: identity of the images, stored beside the ranges.

    Returns:
        JSON-ready table: `algorithm`, `patches`, `model_sha256`, `images_sha256`, and `ranges` from tensor name to
        [minimum, maximum] as float32 values.

    Raises:
        InputError: no patches, or NaN or Inf in an activation.
    """
    graph = onnx.load_from_string(model)
    watched = [value.name for value in graph.graph.input]
    watched += [name for node in graph.graph.node if node.op_type != "Constant" for name in node.output if name]
    outputs = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched[1:] if name not in outputs)
    options = onnxruntime.SessionOptions()
    # Fusions would hide the tensors that are being watched.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    low, high, count = {}, {}, 0
    for group in patches:
        for start in range(0, len(group), BATCH):
            x = np.ascontiguousarray(group[start : start + BATCH], np.float32)
            values = dict(zip(watched, [x, *session.run(watched[1:], {watched[0]: x})], strict=True))
            for name, value in values.items():
                least, most = float(value.min()), float(value.max())
                if not (np.isfinite(least) and np.isfinite(most)):
                    raise InputError(
                        f"activation {name} is not finite on the calibration images; check the images and the model"
                    )
                low[name] = min(least, low.get(name, least))
                high[name] = max(most, high.get(name, most))
            count += len(x)
    if not count:
        raise InputError("there are no calibration patches; give a folder with good images")
    return {
        "algorithm": "minmax",
        "patches": count,
        "model_sha256": sha256_hex(model),
        "images_sha256": images_sha256,
        "ranges": {name: [low[name], high[name]] for name in watched},
    }
