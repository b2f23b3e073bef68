"""Activation ranges of the exported model on calibration images: what quantization starts from.

The values of an activation are never all in memory: activations are watched in groups, patch by patch, and what is kept
are extremes and histograms.
Source: docs/design/precision.md, "Calibration algorithms"; docs/method.md, section 8 (calibration images are never
training or test images).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from grd_edge.checkpoint import Checkpoint
from grd_edge.clipping import Histogram
from grd_edge.config import ScoreConfig
from grd_edge.data.dataset import Sample, images_sha256
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.errors import InputError
from grd_edge.files import sha256_hex
from grd_edge.heads import SCORE_MAP, head_of_shapes, scores_from_maps
from grd_edge.kernels import Scorer
from grd_edge.quantize import CHANNEL_AXIS, Style, layers_of, quantized, quantized_layers
from grd_edge.ranges import IMAGE, LEVELS, RangeTable
from grd_edge.recipes import Peaks, Percentile, Phi, Recipe

MIN_PATCHES = 8  # below it, extremes are those of single patches; a hundred or more hold for the line
WATCHED_BYTES = 512 << 20  # of activations fetched at once
_STYLE: Style = "openvino"  # quantizes most layers: its activations are those of all styles
_LEAST_TOP = LEVELS * float(np.finfo(np.float32).tiny)  # below it the scale of the grid is no float32


def ranges_from_images(
    model: bytes,
    patches: Iterable[np.ndarray],
    *,
    recipe: Recipe,
    images_sha256: str,
    score: ScoreConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    watched_bytes: int = WATCHED_BYTES,
) -> RangeTable:
    """Ranges of the activations that quantization needs, over all patches.

    Patches are run one by one, so the table depends neither on their grouping into images nor on `watched_bytes`.

    Args:
        model: serialized ONNX with one input x (batch, C, patch_h, patch_w) float32, BatchNorm folded.
        patches: arrays (N, C, patch_h, patch_w) float32 in [0, 1], one per image. They are read several times: a
            sized collection is streamed, anything else is held in memory. `recipe.images` is the caller's to apply.
        images_sha256: identity of the images, stored beside the ranges.
        score: what the recipe `phi` keeps; None: the defaults.
        on_progress: called with steps done and planned.
        watched_bytes: memory for the activations that are fetched at once; one alone may need more.

    Raises:
        InputError: a model without layers that can be quantized, or with weights that cannot be; fewer than
            MIN_PATCHES patches, of another shape or outside [0, 1]; an activation that is not finite, or 0 everywhere.
    """
    graph = onnx.load_from_string(model)
    tensors = _tensors(graph, recipe.keep)
    images = patches if isinstance(patches, Sized) else list(patches)
    groups = _groups(graph, tensors, watched_bytes)
    search = len(images) + len(tensors) * len(recipe.factors) if isinstance(recipe, Phi) else 0
    steps = _Steps(len(groups) * len(images) + search, on_progress)
    found = {tensor: Histogram(binned=recipe.algorithm not in ("minmax", "peaks")) for tensor in tensors}
    count = 0
    session = None
    for group in groups:
        del session  # before the next one is made
        session = session_of(watching(graph, group))
        count = 0
        for patch in _patches(images, graph, steps):
            count += 1
            for tensor, values in zip(group, session.run(group, {IMAGE: patch}), strict=True):
                found[tensor].add(values)
                if not math.isfinite(found[tensor].top):
                    raise InputError(
                        f"activation {tensor!r} is not finite on the calibration images; check the images and the model"
                    )
        if count < MIN_PATCHES:
            raise InputError(
                f"{count} calibration patches of {len(images)} images are too few for activation ranges, which take at "
                f"least {MIN_PATCHES} and better 100; add good images, or take more of those that there are"
            )
    _refuse_constant(graph, found)
    table = RangeTable(
        algorithm=recipe.algorithm,
        model_sha256=sha256_hex(model),
        images_sha256=images_sha256,
        images=len(images),
        patches=count,
        ranges={tensor: _clipped(histogram, _top(histogram, recipe)) for tensor, histogram in found.items()},
        keep=dict(recipe.keep),
        recipe=recipe.name,
    )
    if isinstance(recipe, Phi):
        search = _PhiSearch(graph, table, score or ScoreConfig())
        search.choose(_patches(images, graph, steps), count, recipe.patches)
        table = search.table(found, recipe.factors, steps)
    return table


def ranges_from_checkpoint(
    checkpoint: Checkpoint,
    model: bytes,
    samples: Sequence[Sample],
    *,
    recipe: Recipe,
    on_progress: Callable[[int, int], None] | None = None,
) -> RangeTable:
    """Activation ranges of an exported checkpoint by a recipe.

    Args:
        model: of `onnx_from_checkpoint`.
        samples: calibration images; the recipe says how many of them are used.

    Raises:
        InputError: an image that the model does not take; see `ranges_from_images`.
    """
    if recipe.images and recipe.images < len(samples):
        samples = [samples[index] for index in np.linspace(0, len(samples) - 1, recipe.images).astype(int)]
    return ranges_from_images(
        model,
        CalibrationPatches(checkpoint, samples),
        recipe=recipe,
        images_sha256=images_sha256(samples),
        score=checkpoint.config.score,
        on_progress=on_progress,
    )


class CalibrationPatches:
    """Patches (N, C, patch_h, patch_w) of each sample, as the network sees them; read whenever they are asked for."""

    def __init__(self, checkpoint: Checkpoint, samples: Sequence[Sample]) -> None:
        self.config, self.samples = checkpoint.config, samples
        self.grid = grid_from_config(checkpoint.config)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[np.ndarray]:
        for sample in self.samples:
            frame = read_frame(sample, self.config)
            try:
                patches = self.grid.cut(frame)
            except InputError as error:
                raise InputError(f"{sample.path}: {error}") from error
            yield patches


class _Steps:
    """Counts steps for a progress bar."""

    def __init__(self, planned: int, report: Callable[[int, int], None] | None) -> None:
        self.done, self.planned, self.report = 0, planned, report

    def __call__(self, steps: int = 1) -> None:
        self.done += steps
        if self.report:
            self.report(self.done, self.planned)


# ------------------------------------------------------------------------------------------ watching activations


def _tensors(model: onnx.ModelProto, keep: Collection[str]) -> list[str]:
    """Activations that need a range, in the order of the graph.

    Raises:
        InputError: no layer that can be quantized, or weights in operators that cannot be.
    """
    way = "export it with grd-edge build onnx, or deploy it in fp32"
    inputs = [value.name for value in model.graph.input]
    if inputs != [IMAGE]:
        raise InputError(f"the model's inputs are {', '.join(inputs)}; expected the image {IMAGE!r} alone: {way}")
    if not any(layer.op in CHANNEL_AXIS for layer in layers_of(model)):
        raise InputError(f"the model has no layer to quantize, which would be {', '.join(CHANNEL_AXIS)}; {way}")
    layers = quantized_layers(model, _STYLE, keep)
    return list(dict.fromkeys(layer.tensor for layer in layers if layer.tensor != IMAGE))


def _groups(model: onnx.ModelProto, tensors: list[str], watched_bytes: int) -> list[list[str]]:
    """Activations that are fetched together, within the memory; one of unknown size is fetched alone."""
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    if not shapes.keys() >= set(tensors):
        inferred = onnx.shape_inference.infer_shapes(model)
        shapes = {value.name: value.type.tensor_type.shape for value in inferred.graph.value_info}
    groups: list[list[str]] = [[]]
    used = 0
    for tensor in tensors:
        extents = [dim.dim_value for dim in shapes[tensor].dim[1:]] if tensor in shapes else [0]
        size = 4 * math.prod(extents) or watched_bytes
        if groups[-1] and used + size > watched_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def watching(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The part of a model that computes `tensors`, which are its outputs."""
    needed, nodes = set(tensors), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.input.extend(model.graph.input)
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    return part


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it keeps the most that was ever used
    options.enable_mem_pattern = False
    # No blocked layouts, in which every watched activation would exist once more.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # Quantization stays explicit, as its scales are inputs here; weights become floats again, once.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _patches(
    images: Iterable[np.ndarray], model: onnx.ModelProto, steps: Callable[[], None] = lambda: None
) -> Iterator[np.ndarray]:
    """Patches (1, C, patch_h, patch_w) of the images, checked.

    Args:
        steps: called after each image.

    Raises:
        InputError: another shape or type than the model takes, NaN, or values outside [0, 1].
    """
    expected = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    for index, group in enumerate(images):
        if group.dtype != np.float32 or group.shape[1:] != expected:
            raise InputError(
                f"calibration image {index} gives {group.dtype} patches of shape {group.shape}; the model takes "
                f"float32 (N, {', '.join(map(str, expected))}), so give images like those it was trained on"
            )
        low, high = (float(group.min()), float(group.max())) if group.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise InputError(
                f"calibration image {index} has values from {low:g} to {high:g}; expected [0, 1] without NaN, so "
                "divide by the sensor's full scale first"
            )
        for patch in group:
            yield np.ascontiguousarray(patch[None])
        steps()


def _refuse_constant(model: onnx.ModelProto, found: Mapping[str, Histogram]) -> None:
    """Raises InputError when activations have no range; names the layers that take them."""
    constant = [tensor for tensor, histogram in found.items() if histogram.top < _LEAST_TOP]
    if constant:
        layers = [layer.name for layer in layers_of(model) if layer.tensor in constant]
        raise InputError(
            f"activation {constant[0]!r} is 0 on all calibration images, which gives no range; add images that show "
            f"more of the part, or keep {', '.join(layers)} in higher precision ('keep' in the recipe)"
        )


def _top(histogram: Histogram, recipe: Recipe) -> float:
    """Magnitude beyond which an activation is clipped."""
    if isinstance(recipe, Peaks) or (isinstance(recipe, Phi) and recipe.start == "peaks"):
        return histogram.peak(recipe.percentile)
    if isinstance(recipe, Percentile | Phi):
        return histogram.percentile(recipe.percentile)
    return histogram.entropy() if recipe.algorithm == "entropy" else histogram.top


def _clipped(histogram: Histogram, top: float) -> tuple[float, float]:
    top = max(float(np.float32(top)), _LEAST_TOP)
    return max(histogram.low, -top), min(histogram.high, top)


# --------------------------------------------------------------------------------------------------- phi


class _Scored(NamedTuple):
    """A patch (1, C, patch_h, patch_w) with its FP32 reconstruction and deciding score."""

    x: np.ndarray
    x_hat: np.ndarray
    phi: float


class _PhiSearch:
    """The error of the deciding score as a function of the clipping of every activation.

    One session serves all candidates: the scales of the activations are inputs of its model.

    Args:
        table: ranges to start from.
    """

    def __init__(self, model: onnx.ModelProto, table: RangeTable, score: ScoreConfig) -> None:
        self.start, self.score, self.output = table, score, model.graph.output[0].name
        self.fp32, self.scored = session_of(model), list[_Scored]()
        shape, output = (
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
            for value in (model.graph.input[0], model.graph.output[0])
        )
        self.head = head_of_shapes(shape, output)
        self.scorer = Scorer((1, *shape), window=score.window, local_window_px=score.local_window_px, heatmap=False)
        result = quantized(model, table, style=_STYLE)
        scales = {f"{tensor}/scale" for tensor in table.ranges}
        constants = [tensor for tensor in result.graph.initializer if tensor.name not in scales]
        del result.graph.initializer[:]
        result.graph.initializer.extend(constants)
        for scale in sorted(scales):
            result.graph.input.append(onnx.helper.make_tensor_value_info(scale, onnx.TensorProto.FLOAT, []))
        self.int8 = session_of(result)

    def choose(self, patches: Iterable[np.ndarray], count: int, wanted: int) -> None:
        """Keeps the patches that candidates are scored on: half of them the worst at the start, half spread evenly.

        A mean over patches that all do well says nothing of the few that clipping ruins.
        """
        worst: list[tuple[float, int, _Scored]] = []
        spread = set(np.linspace(0, count - 1, wanted - wanted // 2).astype(int).tolist())
        for index, x in enumerate(patches):
            x_hat = self.fp32.run([self.output], {IMAGE: x})[0]
            each = _Scored(x, x_hat, self._phi(x, x_hat))
            if index in spread:
                self.scored.append(each)
            elif wanted // 2:
                push = heapq.heappush if len(worst) < wanted // 2 else heapq.heappushpop
                push(worst, (self.error(self.start, [each])[0], index, each))
        self.scored.extend(each for _, _, each in sorted(worst, key=lambda item: item[1]))

    def _phi(self, x: np.ndarray, x_hat: np.ndarray) -> float:
        scores = scores_from_maps(x_hat) if self.head == SCORE_MAP else self.scorer(x, x_hat)
        return float(getattr(scores, self.score.decides)[0])

    def error(self, table: RangeTable, scored: Collection[_Scored] = ()) -> tuple[float, float]:
        """Mean |difference| to FP32 of the score, and of the reconstruction, which decides between equals.

        Args:
            scored: patches; default: the chosen ones.
        """
        scales = {f"{tensor}/scale": np.array(table.grid(tensor).scale, np.float32) for tensor in table.ranges}
        errors = []
        for x, x_hat, phi in scored or self.scored:
            found = self.int8.run([self.output], {IMAGE: x, **scales})[0]
            errors.append((abs(self._phi(x, found) - phi), float(np.abs(found - x_hat).mean())))
        scores, pixels = np.mean(errors, axis=0)
        return float(scores), float(pixels)

    def table(self, found: Mapping[str, Histogram], factors: Collection[float], steps: _Steps) -> RangeTable:
        """Coordinate descent, activation by activation: unclipped, then wider and narrower while it gets better."""
        best = self.start
        least = self.error(best)
        for tensor, histogram in found.items():
            top = max(map(abs, best.ranges[tensor]))
            wider, narrower = sorted(f for f in factors if f > 1), sorted((f for f in factors if f < 1), reverse=True)
            for way in ([math.inf], wider, narrower):
                for factor in way:
                    candidate = _clipped(histogram, min(factor * top, histogram.top))
                    if candidate == best.ranges[tensor]:  # nothing is clipped already
                        break
                    table = replace(best, ranges={**best.ranges, tensor: candidate})
                    error = self.error(table)
                    if error >= least:
                        break
                    best, least = table, error
            steps(len(factors))
        return best
