"""Images and FP32 model -> the precision that ships: which models are tried, and in which order.

Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from grd_edge.calibrate import ranges_from_images
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.errors import EngineError, InputError
from grd_edge.files import sha256_hex
from grd_edge.precision import (
    DEFAULT_BUDGET,
    REQUESTS,
    Bench,
    Budget,
    Candidate,
    Choice,
    Request,
    Tried,
    chosen,
    only_fp32,
    unable,
)
from grd_edge.qat import table_of_checkpoint
from grd_edge.quantize import quantized
from grd_edge.ranges import RangeTable
from grd_edge.recipes import DEFAULT_RECIPE, load_recipe
from grd_edge.selection import Selection, selection_from_samples
from grd_edge.sensitivity import keep_order, layer_effects

MODEL = "models/int8-openvino.onnx"
RANGES = "models/ranges.json"
STYLE = "openvino"


@dataclass(frozen=True)
class Watcher:
    """What a front end is told: the step that begins, and how far it is."""

    stage: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


SILENT = Watcher()


def choice_of_checkpoint(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    model: bytes,
    file: str,
    *,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    recipe: str | Path = DEFAULT_RECIPE,
    watch: Watcher = SILENT,
) -> Choice:
    """As `choice_from_samples`, for a checkpoint: ranges by a recipe, or those that it was fine-tuned for.

    Args:
        model: the exported checkpoint, serialized, and `file`, where a bundle holds it.
        recipe: name or file.

    Raises:
        As `choice_from_samples`.
    """
    described = load_recipe(recipe)

    def table_of(selection: Selection) -> RangeTable:
        watch.stage(f"calibrating activation ranges ({described.name})")
        chosen_patches = selection.part(described.images) if described.images else selection
        table = ranges_from_images(
            model,
            chosen_patches.images(),
            recipe=described,
            images_sha256=sha256_hex("\n".join(sorted(sample.sha256 for sample in samples)).encode()),
            score=checkpoint.config.score,
            on_progress=watch.progress,
        )
        return table_of_checkpoint(checkpoint, model, table) or table

    return choice_from_samples(
        model, file, samples, checkpoint.config, request=request, budget=budget, table_of=table_of, watch=watch
    )


def choice_from_samples(
    fp32: bytes,
    file: str,
    samples: Sequence[Sample],
    config: Config,
    *,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    table_of: Callable[[Selection], RangeTable],
    watch: Watcher = SILENT,
) -> Choice:
    """The precision that ships for the `cpu` target, measured on this machine.

    Args:
        fp32: serialized model, and `file`, where a bundle holds it.
        samples: good images of the training; the calibration split is for thresholds only.
        table_of: activation ranges on the patches of a selection.

    Raises:
        InputError: an unknown request, images or ranges that cannot be used.
        EngineError: `bf16` or `int8` was asked for and this machine cannot run it.
    """
    if request not in REQUESTS:
        raise InputError(f"there is no precision {request!r}; choose {', '.join(REQUESTS)}")
    if request == "fp32":
        return only_fp32(file, "fp32 was asked for")
    watch.stage("choosing patches to judge precisions by")
    selection = selection_from_samples(samples, config)
    bench = Bench(Candidate("fp32", fp32, file), selection, config, watch.stage)
    tried: list[Tried] = []
    bf16 = _bf16(bench, watch) if request in ("auto", "bf16") else None
    if bf16:
        tried.append(bf16)
    table = table_of(selection) if request in ("auto", "int8") else None
    if table:
        tried += _int8(bench, table, budget, with_bf16=bool(bf16 and not bf16.lost), watch=watch)
    if request != "auto" and all(each.lost for each in tried):
        raise EngineError(f"{request} was asked for, but {tried[0].lost}; build with --precision auto")
    ready = [each for each in tried if not each.lost]
    if ready:
        watch.stage("timing precisions in turn")
        speeds = bench.race([each.candidate for each in ready])
        measured = {id(each): speed for each, speed in zip(ready, speeds, strict=True)}
        tried = [replace(each, speed=measured.get(id(each))) for each in tried]
    choice = chosen(bench, tried, budget=budget, request=request)
    if MODEL in choice.files:
        choice.files[RANGES] = table.to_bytes()
    return choice


def _bf16(bench: Bench, watch: Watcher) -> Tried:
    watch.stage("scoring bf16")
    candidate = Candidate("bf16", bench.fp32.model, bench.fp32.file)
    try:
        return Tried(candidate, bench.accuracy(candidate))
    except EngineError as error:
        return unable(candidate, error)


def _int8(bench: Bench, table: RangeTable, budget: Budget, *, with_bf16: bool, watch: Watcher) -> list[Tried]:
    """INT8 as a whole; where that is outside the budget, with the fewest layers in higher precision that is inside."""
    model = onnx.load_from_string(bench.fp32.model)

    def candidate(precision: str, keep: Sequence[str]) -> Candidate:
        data = quantized(model, table, style=STYLE, keep=keep).SerializeToString()
        return Candidate(precision, data, MODEL, {"style": STYLE, "keep": [*table.keep, *keep]})

    whole = candidate("int8", ())
    watch.stage("scoring int8")
    try:
        accuracy = bench.accuracy(whole)
    except EngineError as error:
        return [unable(whole, error)]
    tried = [Tried(whole, accuracy)]
    if accuracy.inside(budget):
        return tried
    watch.stage("measuring what each layer costs")
    order = keep_order(layer_effects(bench, model, table, style=STYLE, on_progress=watch.progress))
    mixed = "int8-bf16" if with_bf16 else "int8"
    found: dict[int, Tried] = {}

    def inside(kept: int) -> bool:
        watch.stage(f"scoring int8 with {kept} of {len(order)} layers in higher precision")
        each = candidate(mixed, order[:kept])
        found[kept] = Tried(each, bench.accuracy(each))
        return found[kept].accuracy.inside(budget)

    low, high = 1, len(order)  # all of them is no INT8
    while low < high:
        middle = (low + high) // 2
        if inside(middle):
            high = middle
        else:
            low = middle + 1
    if high == len(order):
        return tried
    tried.append(found[high])
    if with_bf16:  # in FP32 what is kept is slower, but nearer
        plain = candidate("int8", order[:high])
        watch.stage("scoring int8 with the same layers in fp32")
        tried.append(Tried(plain, bench.accuracy(plain)))
    return tried
