"""How fast the network alone is in each precision, in the engine that ships, beside PyTorch.

    python -m grd_edge.bench.precisions

Random weights: speed does not depend on them. All layers are quantized.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import onnx
import torch
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


class Network(NamedTuple):
    """A checkpoint with random weights, its ONNX model, and its INT8 form for OpenVINO."""

    checkpoint: Checkpoint
    fp32: bytes
    int8: bytes


def random_network(*, base: int, patch_px: int) -> Network:
    """A network that costs what a trained one costs, all of it quantized, in the form that is fastest on OpenVINO."""
    checkpoint = random_checkpoint(load_config(overrides=sizes(base, patch_px)))
    fp32 = onnx_from_checkpoint(checkpoint)
    graph = onnx.load_from_string(fp32)
    tensors = {layer.tensor for layer in layers_of(graph)} - {IMAGE}
    table = RangeTable("minmax", "", "", 0, 0, dict.fromkeys(tensors, (-4.0, 4.0)))
    int8 = quantized_before_moves(quantized(blocked_output(graph), table, style="openvino"))
    return Network(checkpoint, fp32, int8.SerializeToString())


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    print("| base, px | torch | channels last | fp32 | bf16 | int8 | int8 / fp32 | int8 / torch |")
    print("|---|---|---|---|---|---|---|---|")
    for base in (16, 32):
        for patch_px in (128, 256):
            race = race_precisions(base=base, patch_px=patch_px, rounds=rounds)
            times = [
                f"{race[f'{name}_p50_ms']:.1f} ({race[f'{name}_min_ms']:.1f})" if f"{name}_p50_ms" in race else ""
                for name in ("torch", "torch_channels_last", "fp32", "bf16", "int8")
            ]
            ratios = [
                " ".join(f"{race[f'{name}_{s}'] / race[f'int8_{s}']:.2f}" for s in ("p50_ms", "min_ms"))
                for name in ("fp32", "torch")
            ]
            print(f"| {base}, {patch_px} | {' | '.join((*times, *ratios))} |", flush=True)


if __name__ == "__main__":
    main()
