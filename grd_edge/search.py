"""Images and FP32 model -> the precision that ships: which models are tried, and in which order.

Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from grd_edge.bundle import FINE_TUNED, RANGES
from grd_edge.calibrate import ranges_from_images
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import Config, ScoreConfig
from grd_edge.data.dataset import Sample, images_sha256
from grd_edge.equalize import channel_peaks, equalized
from grd_edge.errors import EngineError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.graph import forms
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
    outside,
    unable,
)
from grd_edge.qat import table_of_checkpoint
from grd_edge.quantize import qdq_from_onnx
from grd_edge.ranges import RangeTable
from grd_edge.recipes import DEFAULT_RECIPE, load_recipe
from grd_edge.selection import Selection, selection_from_samples, spread
from grd_edge.sensitivity import keep_order, layer_effects
from grd_edge.watch import SILENT, Watcher

MODEL = "models/int8-openvino.onnx"
STYLE = "openvino"


@dataclass(frozen=True)
class Source:
    """What INT8 models are written from: a serialized FP32 model and the ranges of its activations.

    Attributes:
        name: for people: `calibrated`, `equalized` or `fine-tuned`.
        same: whether the model's function is that of the checkpoint, so that a bundle can hold it as its FP32 model.
    """

    name: str
    model: bytes
    table: RangeTable
    same: bool = True


def choice_of_checkpoint(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    model: bytes,
    file: str,
    *,
    student: Checkpoint | None = None,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    recipe: str | Path = DEFAULT_RECIPE,
    watch: Watcher = SILENT,
) -> Choice:
    """As `choice_from_samples`, for a checkpoint: INT8 of the one that was fine-tuned from it. Where there is none, or
    it is outside the budget: with ranges by a recipe, of the checkpoint's model as it is and with channels equalized.

    Args:
        model: the exported checkpoint, serialized, and `file`, where a bundle holds it.
        student: of `checkpoint_from_qat`, with `checkpoint` as teacher.
        recipe: name or file.

    Raises:
        As `choice_from_samples`; InputError: `student` was not fine-tuned.
    """
    calibrated = calibrated_sources(model, samples, score=checkpoint.config.score, recipe=recipe, watch=watch)

    def fine_tuned(_: Selection) -> list[Source]:
        exported = onnx_from_checkpoint(student)
        table = table_of_checkpoint(student, exported)
        if table is None:
            raise InputError("the checkpoint of --qat was not fine-tuned; make one with: grd-edge train --qat")
        return [Source("fine-tuned", exported, table, same=False)]

    return choice_from_samples(
        model,
        file,
        samples,
        checkpoint.config,
        request=request,
        budget=budget,
        sources_of=fine_tuned if student else calibrated,
        otherwise_of=calibrated if student else None,
        watch=watch,
    )


def calibrated_sources(
    model: bytes, samples: Sequence[Sample], *, score: ScoreConfig, recipe: str | Path, watch: Watcher
) -> Callable[[Selection], list[Source]]:
    """`sources_of` of `choice_from_samples`: ranges by a recipe, of a model as it is and with channels equalized.

    Args:
        model: serialized, FP32.
        samples: that the selection is of.
        recipe: name or file.

    Raises:
        ConfigError: the recipe cannot be used.
    """
    described = load_recipe(recipe)

    def calibrated(selection: Selection) -> list[Source]:
        images = selection.images()
        chosen_images = (
            images if described.images is None else [images[i] for i in spread(len(images), described.images)]
        )
        graph = onnx.load_from_string(model)
        watch.stage("equalizing channels")
        models = [("calibrated", model)]
        like = equalized(graph, channel_peaks(graph, images))
        if like != graph:
            models.append(("equalized", like.SerializeToString(deterministic=True)))
        sources = []
        for name, exported in models:
            watch.stage(f"calibrating activation ranges by recipe {described.name}")
            table = ranges_from_images(
                exported,
                chosen_images,
                recipe=described,
                images_sha256=images_sha256(samples),
                score=score,
                on_progress=watch.progress,
            )
            sources.append(Source(name, exported, table))
        return sources

    return calibrated


def choice_from_samples(
    fp32: bytes,
    file: str,
    samples: Sequence[Sample],
    config: Config,
    *,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    sources_of: Callable[[Selection], Sequence[Source]],
    otherwise_of: Callable[[Selection], Sequence[Source]] | None = None,
    watch: Watcher = SILENT,
) -> Choice:
    """The precision that ships for the `cpu` target, measured on this machine.

    Args:
        fp32: serialized model, and `file`, where a bundle holds it.
        samples: good images of the training; the calibration split is for thresholds only.
        sources_of: what INT8 can be written from, given the patches of the selection.
        otherwise_of: the same, of models with the FP32 model's function, for when those of `sources_of` have another
            one and are outside the budget.

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
    watch.stage("scoring fp32")
    bench = Bench(Candidate("fp32", fp32, file), selection, config)
    tried: list[Tried] = []
    why = bench.blind() if request == "auto" else ""
    bf16 = _bf16(bench, watch) if request in ("auto", "bf16") and not why else None
    if bf16:
        tried.append(bf16)
    source, sources = None, ()
    if request in ("auto", "int8"):
        try:
            sources = sources_of(selection)
        except InputError as error:
            if request == "int8":
                raise
            tried.append(Tried(Candidate("int8", b"", MODEL), lost=f"it cannot be calibrated: {error}"))
    if why:
        return _with_ranges(only_fp32(file, why, tried), next(iter(sources), None), file)
    if sources:
        # What is kept is to be nearer than INT8: where all of it in BF16 is too far off, a part of it will be, too.
        with_bf16 = bool(bf16 and not bf16.lost and bf16.accuracy.inside(budget))
        source, found = _int8(
            bench,
            sources,
            budget,
            otherwise=partial(otherwise_of, selection) if otherwise_of else None,
            asked=request == "int8",
            with_bf16=with_bf16,
            watch=watch,
        )
        tried += found
    if request != "auto" and all(each.lost for each in tried):
        raise EngineError(f"{request} was asked for, but {tried[0].lost}; build with --precision auto")
    ready = [each for each in tried if not each.lost]
    if ready:
        watch.stage("timing precisions in turn")
        speeds = bench.race([each.candidate for each in ready])
        measured = {id(each): speed for each, speed in zip(ready, speeds, strict=True)}
        tried = [replace(each, speed=measured.get(id(each))) for each in tried]
    choice = chosen(bench, tried, budget=budget, request=request)
    return _with_ranges(choice, source, file)


def _with_ranges(choice: Choice, source: Source | None, file: str) -> Choice:
    """Also where INT8 lost here, so that it can be built for another device."""
    if source:
        choice.files[RANGES] = source.table.to_bytes()
        # The model that the ranges belong to.
        choice.files[file if source.same else FINE_TUNED] = source.model
    return choice


def _bf16(bench: Bench, watch: Watcher) -> Tried:
    watch.stage("scoring bf16")
    candidate = Candidate("bf16", bench.fp32.model, bench.fp32.file)
    try:
        return Tried(candidate, bench.accuracy(candidate))
    except EngineError as error:
        return unable(candidate, error)


def _int8(
    bench: Bench,
    sources: Sequence[Source],
    budget: Budget,
    *,
    otherwise: Callable[[], Sequence[Source]] | None,
    asked: bool,
    with_bf16: bool,
    watch: Watcher,
) -> tuple[Source, list[Tried]]:
    """INT8 from the most accurate source, in the form that is fastest here; where that is outside the budget, from
    those of `otherwise`, and with the fewest layers in higher precision that is inside. Nothing more is measured of an
    INT8 that is not faster, but where it is `asked` for.

    Returns:
        The source, and all that was tried.
    """
    first = sources[0]
    watch.stage("timing the forms of INT8 in turn")
    wholes = [_candidate(first, form) for form in forms(onnx.load_from_string(first.model))]
    try:
        speeds = bench.race(wholes)
    except EngineError as error:
        return first, [unable(wholes[0], error)]
    raced = sorted(map(Tried, wholes, [None] * len(wholes), speeds), key=lambda each: -each.speed.speedup)
    fastest, others = raced[0], [_lost_to(raced[0], each) for each in raced[1:]]
    if not (fastest.speed.faster or asked):
        return first, [replace(fastest, lost=f"not faster: {fastest.speed.speedup:.2f} times fp32's speed"), *others]
    form = fastest.candidate.details["form"]
    source, found = _most_accurate(bench, sources, form, watch)
    if found[0].accuracy.inside(budget):
        return source, found + others
    if otherwise is None:
        return source, _kept(bench, source, form, budget, with_bf16, watch) + found + others
    # Layers in higher precision would bring a fine-tuned model nearer to its own FP32 form, not to the checkpoint's.
    calibrated, theirs = _most_accurate(bench, otherwise(), form, watch)
    if not theirs[0].accuracy.inside(budget):
        theirs = _kept(bench, calibrated, form, budget, with_bf16, watch) + theirs
    if theirs[0].accuracy.inside(budget):
        return calibrated, theirs + found + others
    beyond = (each.lost or f"outside the budget: {outside(each.accuracy, budget)}" for each in theirs)
    return source, found + [replace(each, lost=lost) for each, lost in zip(theirs, beyond, strict=True)] + others


def _most_accurate(bench: Bench, sources: Sequence[Source], form: str, watch: Watcher) -> tuple[Source, list[Tried]]:
    """INT8 of all layers from each source: the source of the most accurate, and all, that one first."""
    whole = []
    for each in sources:
        watch.stage(f"scoring int8, {each.name}")
        candidate = _candidate(each, form)
        whole.append(Tried(candidate, bench.accuracy(candidate)))
    best = min(range(len(sources)), key=lambda index: whole[index].accuracy.phi_diff_std)
    source, found = sources[best], whole.pop(best)
    deviation = found.accuracy.phi_diff_std
    return source, [
        found,
        *(
            replace(
                each, lost=f"less accurate than {source.name}: {each.accuracy.phi_diff_std:.4f} against {deviation:.4f}"
            )
            for each in whole
        ),
    ]


def _kept(bench: Bench, source: Source, form: str, budget: Budget, with_bf16: bool, watch: Watcher) -> list[Tried]:
    """INT8 with the fewest layers in higher precision that is inside the budget; none: no number of them is."""
    watch.stage("measuring what each layer costs")
    graph = onnx.load_from_string(source.model)
    order = keep_order(layer_effects(bench, graph, source.table, style=STYLE, on_progress=watch.progress))
    found: dict[int, Tried] = {}

    def inside(kept: int) -> bool:
        watch.stage(f"scoring int8 with {kept} of {len(order)} layers in higher precision")
        each = _candidate(source, form, order[:kept], with_bf16=with_bf16)
        found[kept] = Tried(each, bench.accuracy(each))
        return found[kept].accuracy.inside(budget)

    kept = _least(1, len(order), inside)  # all of them is no INT8
    if kept == len(order):
        return []
    tried = [found[kept]]
    if with_bf16:  # in FP32 what is kept is slower, but nearer
        watch.stage("scoring int8 with the same layers in fp32")
        plain = _candidate(source, form, order[:kept])
        tried.append(Tried(plain, bench.accuracy(plain)))
    return tried


def _candidate(source: Source, form: str, keep: Sequence[str] = (), *, with_bf16: bool = False) -> Candidate:
    """INT8 in a form of the graph, less the layers to keep, which run in BF16 or FP32."""
    table = source.table
    written = qdq_from_onnx(source.model, table, style=STYLE, keep=keep, form=form)
    details = {
        "from": source.name,
        "style": STYLE,
        "form": form,
        "ranges": table.algorithm,
        "keep": [*table.keep, *keep],
    }
    return Candidate("int8-bf16" if with_bf16 else "int8", written, MODEL, details)


def _lost_to(best: Tried, other: Tried) -> Tried:
    form, speed = best.candidate.details["form"], best.speed.speedup
    return replace(other, lost=f"slower than the form {form}: {other.speed.speedup:.2f} against {speed:.2f} times fp32")


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number from `low` on that `holds` is true of, by bisection; `high` is not asked."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
