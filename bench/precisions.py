"""How fast the network alone is in each precision, in the engine that ships, beside PyTorch.

    python -m grd_edge.bench.precisions

Random weights: speed does not depend on them. All layers are quantized.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from grd_edge.bench.records import cell, write_record
from grd_edge.bench.timer import Timing, figures, interleaved
from grd_edge.bench.upsampling import random_checkpoint, sizes

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.engine.native import NativeEngine, frame_of
from grd_edge.errors import EngineError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.graph import blocked_output, quantized_before_moves
from grd_edge.quantize import layers_of, quantized
from grd_edge.ranges import IMAGE, RangeTable

BATCH = NativeEngine.BATCH
NAMES = {"torch": "PyTorch", "torch_channels_last": "channels last", "fp32": "fp32", "bf16": "bf16", "int8": "int8"}
BARS = {16: {"fp32": 2.7, "torch": 5.0}, 32: {"fp32": 3.5, "torch": 5.5}}  # times as fast as each: INT8, by base
COLUMNS = [
    {"key": "size", "name": "base, px", "format": "{base}, {patch_px}"},
    *(
        {"key": name, "name": shown, "format": f"{{{name}_p50_ms:.3s}} ({{{name}_min_ms:.3s}})"}
        for name, shown in NAMES.items()
    ),
    *(
        {
            "key": f"{name}_over_int8",
            "name": f"{NAMES[name]} / int8 (bar {', '.join(f'{bars[name]:g}' for bars in BARS.values())})",
            "format": f"{{{name}_over_int8_p50:.2f}} ({{{name}_over_int8_min:.2f}})",
        }
        for name in ("fp32", "torch")
    ),
]


class Network(NamedTuple):
    """A checkpoint with random weights, its ONNX model, and its INT8 form for OpenVINO."""

    checkpoint: Checkpoint
    fp32: bytes
    int8: bytes


def random_network(*, base: int, patch_px: int) -> Network:
    """A network that costs what a trained one costs, all of it quantized, in the form that is fastest on OpenVINO."""
    checkpoint = random_checkpoint(load_config(overrides=sizes(base, patch_px)))
    fp32 = onnx_from_checkpoint(checkpoint)
    return Network(checkpoint, fp32, int8_everywhere(fp32))


def int8_everywhere(fp32: bytes) -> bytes:
    """The INT8 form of a serialized FP32 model for OpenVINO, all layers quantized, with ranges that nobody measured."""
    graph = onnx.load_from_string(fp32)
    tensors = {layer.tensor for layer in layers_of(graph)} - {IMAGE}
    table = RangeTable("minmax", "", "", 0, 0, dict.fromkeys(tensors, (-4.0, 4.0)))
    return quantized_before_moves(quantized(blocked_output(graph), table, style="openvino")).SerializeToString()


def race_precisions(*, base: int = 16, patch_px: int = 128, rounds: int = 25) -> dict[str, float]:
    """Reconstruction of 8 patches: eager PyTorch, and the engine in fp32, bf16 and int8, in turn.

    Returns:
        `<name>_min_ms` and `<name>_p50_ms` of torch, torch_channels_last, fp32, bf16 (where this CPU has it) and int8.
    """
    network = random_network(base=base, patch_px=patch_px)
    patches = np.random.default_rng(0).integers(0, 256, (BATCH, patch_px, patch_px, 1), np.uint8)
    x = torch.from_numpy(patches.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    nets = {"torch": network.checkpoint.reconstructor()}
    nets["torch_channels_last"] = network.checkpoint.reconstructor().to(memory_format=torch.channels_last)
    spent: dict[str, list[float]] = {}
    with ExitStack() as stack:
        runs: dict[str, Callable] = {name: _eager(net, x) for name, net in nets.items()}
        for name, model in (("fp32", network.fp32), ("bf16", network.fp32), ("int8", network.int8)):
            try:
                engine = stack.enter_context(NativeEngine(model, name, network.checkpoint.config))
            except EngineError:
                continue  # bf16 on a CPU without it
            runs[name] = _inferred(engine, frame_of(patches), spent.setdefault(name, []))
        timings = interleaved(runs, rounds=rounds, warmup=3, settle_ms=10)
    # An inspection also cuts and scores; what counts here is what it spent in the network.
    timings |= {name: Timing(name, np.array(times[-rounds:])) for name, times in spent.items()}
    return figures(timings)


def _eager(net: torch.nn.Module, x: torch.Tensor) -> Callable:
    def run(_: object) -> None:
        with torch.inference_mode():
            net(x)

    return run


def _inferred(engine: NativeEngine, frame: np.ndarray, spent: list[float]) -> Callable:
    return lambda _: spent.append(engine.inspector.inspect(frame).times_ms["infer"])


def row_of(base: int, patch_px: int, race: dict[str, float]) -> dict[str, Any]:
    """A row of COLUMNS; what misses its bar by the median is marked."""
    row: dict[str, Any] = {"base": base, "patch_px": patch_px, **race}
    for name in ("fp32", "torch"):
        for statistic in ("p50", "min"):
            ratio = race[f"{name}_{statistic}_ms"] / race[f"int8_{statistic}_ms"]
            row[f"{name}_over_int8_{statistic}"] = ratio
    return row | {"missed": [f"{n}_over_int8" for n, bar in BARS[base].items() if row[f"{n}_over_int8_p50"] < bar]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--record", action="store_true", help="write the record `precisions` below bench/results, too")
    arguments = parser.parse_args()
    rows = []
    print(f"| {' | '.join(column['name'] for column in COLUMNS)} |", "|---" * len(COLUMNS) + "|", sep="\n")
    for base in BARS:
        for patch_px in (128, 256):
            rows.append(row_of(base, patch_px, race_precisions(base=base, patch_px=patch_px, rounds=arguments.rounds)))
            print(f"| {' | '.join(cell(column, rows[-1]) for column in COLUMNS)} |", flush=True)
    if arguments.record:
        command = f"python -m grd_edge.bench.precisions --rounds {arguments.rounds}"
        title = "The network alone, 8 patches, all layers in INT8"
        print(write_record("precisions", title=title, command=command, columns=COLUMNS, rows=rows))


if __name__ == "__main__":
    main()
