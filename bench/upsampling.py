"""Forms of the upsampling, and of the output convolution, raced in OpenVINO on the CPU, in fp32 and INT8.

The weights are random and the ranges those of noise: speed does not depend on them, and accuracy is not measured here.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from grd_edge.bench.timer import Timing, interleaved

from grd_edge.calibrate import MIN_PATCHES, ranges_from_images
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import Config, load_config
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import CheckFailedError
from grd_edge.export import TOLERANCE, onnx_from_checkpoint
from grd_edge.graph import forms, in_form, quantized_before_moves
from grd_edge.models.generator import Reconstructor
from grd_edge.quantize import quantized
from grd_edge.recipes import Minmax

INT8_SHARE = 0.5  # of the spread of the outputs, allowed as mean error of INT8; a wrong form is off by all of it


def sizes(base: int, patch_px: int) -> list[str]:
    """Settings of a network of this width on square patches."""
    values = {"base": base, "patch_h": patch_px, "patch_w": patch_px}
    return [f"model.{name}={value}" for name, value in values.items()]


def random_checkpoint(config: Config) -> Checkpoint:
    """Random weights; BatchNorm statistics of noise let the network tell images apart."""
    model = config.model
    torch.manual_seed(0)
    net = Reconstructor(model).train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches, not one that forgets
    with torch.no_grad():
        net(torch.rand(8, model.channels, model.patch_h, model.patch_w))
    return Checkpoint(config, net.state_dict(), {})


def race_upsampling(*, base: int = 16, patch_px: int = 128, batch: int = 8, rounds: int = 30) -> dict[str, Timing]:
    """`race_forms` of a random network."""
    config = load_config(overrides=sizes(base, patch_px))
    model = onnx.load_from_string(onnx_from_checkpoint(random_checkpoint(config)))
    return race_forms(model, batch=batch, rounds=rounds)


def race_forms(model: onnx.ModelProto, *, batch: int = 8, rounds: int = 30, settle_ms: float = 5) -> dict[str, Timing]:
    """Times of reconstructing a batch, interleaved: `fp32 <form>` and `int8 <form>` for each of grd_edge.graph.forms.

    Raises:
        CheckFailedError: a form in fp32 does not give what the first one does, or one in INT8 is off by more than its
            rounding explains.
    """
    _, *shape = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    images = np.random.default_rng(0).integers(0, 256, (max(batch, MIN_PATCHES), *shape))
    x = (images / 255).astype(np.float32)
    recipe = Minmax(algorithm="minmax")
    table = ranges_from_images(model.SerializeToString(), [x], recipe=recipe, images_sha256="")
    contenders = {}
    for form in forms(model):
        rewritten = in_form(model, form)
        int8 = quantized_before_moves(quantized(rewritten, table, style="openvino"))
        for precision, contents in (("fp32", rewritten), ("int8", int8)):
            engine = OpenVinoEngine(contents.SerializeToString(), precision)
            contenders[f"{precision} {form}"] = engine.reconstruct

    def check(outputs: dict[str, np.ndarray]) -> None:
        exact = outputs["fp32 transposed"]
        for name, output in outputs.items():
            off = np.abs(output - exact)
            bad = off.max() > TOLERANCE if name.startswith("fp32") else off.mean() > INT8_SHARE * exact.std()
            if bad or exact.std() < 100 * TOLERANCE:
                raise CheckFailedError(
                    f"{name} is off by {off.max():.1e} (mean {off.mean():.1e}) where outputs spread by "
                    f"{exact.std():.1e}; a wrong result is not timed"
                )

    return interleaved(contenders, rounds=rounds, inputs=(x[:batch],), settle_ms=settle_ms, check=check)


def table_of(timings: dict[str, Timing]) -> str:
    """Markdown: a line for each form, ms per batch as median (minimum), and INT8 against `fp32 transposed`."""
    lines = ["| form | fp32 ms | INT8 ms | faster than fp32 transposed |", "|---|---|---|---|"]
    for name in timings:
        precision, _, form = name.partition(" ")
        if precision == "fp32":
            fp32, int8 = timings[name], timings[f"int8 {form}"]
            ratio = timings["fp32 transposed"].p50_ms / int8.p50_ms
            cells = [f"{timing.p50_ms:.1f} ({timing.min_ms:.1f})" for timing in (fp32, int8)]
            lines.append(f"| {form} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)
