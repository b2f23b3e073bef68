"""`grd-edge bench`: what a bundle costs on this machine, and gates on it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from grd_edge.cli.common import BundlePath, Json, StageBar, print_json, print_rows, print_table, progress


class Against(StrEnum):
    torch = "torch"
    onnxruntime = "onnxruntime"
    none = "none"


def bench(
    bundle: BundlePath,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="METRIC=LIMIT", help="Such as p99_ms=20 or speedup=3; repeatable."),
    ] = None,
    patches: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Patches of a frame; default: 16, or what the scale allows.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Images, or folders of them, as frames; repeatable.")
    ] = None,
    against: Annotated[
        Against | None,
        typer.Option(
            "--against",
            help="Baseline of `speedup`. Default: torch where it is installed; onnxruntime where graphs score.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Frames timed; p99 needs 100, p99.9 1000.")] = 200,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="As many frames as take about so long, in place of --rounds.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of engine and baseline; 0: all cores.")] = 0,
    batch_limit: Annotated[int, typer.Option(min=1, max=1024, help="Patches per engine call.")] = 16,
    precision: Annotated[str | None, typer.Option(help="Precision of the engine; default: the bundle's.")] = None,
    target: Annotated[str, typer.Option(help="Target of the engine.")] = "cpu",
    cold_starts: Annotated[int, typer.Option(min=0, help="Fresh processes that open the bundle.")] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    json_: Json = False,
) -> None:
    """Time frames to decisions beside a baseline; exit 3 when a gate is missed or cannot be measured.

    The outputs are checked against the reference before anything is timed.
    """
    from grd_edge.errors import CheckFailedError, InputError
    from grd_edge.files import write_atomically
    from grd_edge.gates import failure, gates_from_texts
    from grd_edge.latency import LatencyOptions, measured, verdicts_of
    from grd_edge.results import json_document
    from grd_edge.watch import Watcher

    if patches and images:
        raise InputError("--patches is of frames that are made, and --images gives other ones; leave one of them out")
    gates = gates_from_texts(gate or ())
    options = LatencyOptions(
        target=target,
        precision=precision,
        threads=threads,
        batch_limit=batch_limit,
        patches=patches,
        images=tuple(images or ()),
        against=against and str(against),
        rounds=rounds,
        seconds=seconds,
        cold_starts=cold_starts,
    )
    with progress(live=False) as bar:
        steps = StageBar(bar, "bench")

        def begins(text: str) -> None:
            steps.begins(text)
            bar.refresh()

        def advances(done: int, total: int) -> None:
            steps.progress(done, total)
            bar.refresh()

        result = measured(bundle, options, gates, watch=Watcher(begins, advances))
    if json_:
        print_json(result)
    else:
        _print(result)
    if output:
        write_atomically(output, json_document(result))
    missed = failure(verdicts_of(result))
    if missed:
        raise CheckFailedError(missed)


def _print(result: dict[str, Any]) -> None:
    about, frame = result["bundle"], result["frame"]
    least, most = frame["patches"]
    kind = "made" if frame["made"] else "images"
    shapes = ", ".join("x".join(map(str, shape)) for shape in frame["shapes"][:3])
    print_rows(
        f"{about['path']}: {about['target']}-{about['precision']}, {about['engine']}",
        {
            "frames": f"{result['rounds']} timed of {frame['count']} {kind}, {shapes} px",
            "patches": f"{least} to {most} a frame, of {about['patch_h']}x{about['patch_w']} px",
            "checked": _checked(result["checked"], result["bundle"]["head"]),
            "machine": _machine(result["machine"]),
        },
    )
    _print_times(result)
    columns = ("batch", "frames_per_s", "patches_per_s")
    throughput = [[f"{row[column]:.4g}" for column in columns] for row in result["throughput"]]
    print_table("throughput", ("patches per call", "frames / s", "patches / s"), throughput)
    print_rows("costs", _costs(result))
    if result["gates"]:
        rows = [
            [
                gate["gate"],
                f"{gate['bound']} {gate['limit']:g}",
                "not measured" if gate["value"] is None else f"{gate['value']:.5g}",
                "holds" if gate["passed"] else "FAILS",
                gate["why"],
            ]
            for gate in result["gates"]
        ]
        print_table("gates", ("metric", "limit", "found", "", "why"), rows)


def _print_times(result: dict[str, Any]) -> None:
    """Frame in, decision out: the distribution of the engine and of its baseline."""
    from grd_edge.gates import METRICS

    baseline = result["baseline"]
    sides = {"engine": result["figures"]} | ({baseline["name"]: baseline["figures"]} if baseline else {})
    rows = []
    for name, metric in METRICS.items():
        if metric.quantile or name == "worst_ms":
            cells = (side[name] for side in sides.values())
            needed = f"needs {metric.rounds} frames"
            rows.append([name, *(needed if cell is None else f"{cell:.3g}" for cell in cells)])
    print_table("frame in, decision out (jitter is p99 - p50, and that over p50)", ("", *sides), rows)


def _costs(result: dict[str, Any]) -> dict[str, str]:
    """What else a bundle costs, by rows."""
    figures, why, stages = result["figures"], result["not_measured"], result["stages_ms"]
    baseline, sizes = result["baseline"], result["sizes_mb"]
    parts = ", ".join(f"{name} {value:.3g} ms" for name, value in stages.items())
    rows = {"a frame, median": f"{parts}; cutting and scoring {figures['kernels_share']:.2%}"}
    if baseline:
        rows["speedup"] = f"{figures['speedup']:.2f}x of {baseline['version']}, scored by {baseline['scoring']}"
    else:
        rows["speedup"] = f"not measured: {why['speedup']}"
    if "cold_start" in result:
        start, memory = result["cold_start"], result["memory_mb"]
        spans = {
            "open bundle to first decision": start["cold_start_ms"],
            "from the start of the process": start["process_ms"],
        }
        for name, span in spans.items():
            rows[name] = f"{span['median']:.0f} ms, at best {span['min']:.0f} ms, of {start['processes']} processes"
        told = ", ".join(f"{name} {value:.0f} MB" for name, value in memory.items() if value is not None)
        rows["resident memory"] = told or f"not measured: {why['memory_mb']}"
    rows["engine file"] = f"{sizes['engine_mb']:.2f} MB"
    library = "not there" if sizes["library_mb"] is None else f"{sizes['library_mb']:.2f} MB"
    rows["installed"] = f"{sizes['install_mb']:.0f} MB with runtime dependencies, libgrd_edge.so {library}"
    counters = result["energy"].get("counters", {})
    rows["energy"] = result["energy"].get("not_told") or "; ".join(
        f"{name}: {each['frame_joules']:.3g} J a frame, {each['watts']:.1f} W, idle {each['idle_watts']:.1f} W"
        for name, each in counters.items()
    )
    return rows


def _checked(checked: dict[str, Any], head: str) -> str:
    from grd_edge.heads import SCORE_MAP

    if head == SCORE_MAP:
        frames, reference = f"{checked['frames']} frames", checked["reference"]
        if reference is None:
            return f"{frames}: patches and decisions; no FP32 reference to hold scores against"
        return f"{frames}: scores within {checked['scores']:.2g}, maps within {checked['x_hat_max']:.2g} of {reference}"
    scores = f"scores within {checked['scores']:.1e} of float64"
    if checked["reference"] is None:
        return f"{checked['frames']} frames: {scores}; no FP32 reference to hold reconstructions against"
    return (
        f"{checked['frames']} frames: {scores}; reconstructions within {checked['x_hat_max']:.2g} of "
        f"{checked['reference']} (mean {checked['x_hat_mean']:.2g})"
    )


def _machine(machine: dict[str, Any]) -> str:
    limits = ", ".join(f"{name} {value:g}" for name, value in machine["limits"].items() if value is not None)
    told = [
        f"{machine['board'] or machine['cpu']}, {machine['cores']} of {machine['cores_online']} cores",
        machine["gpu"],
        machine["kernel"],
        machine["governor"] and f"governor {machine['governor']}",
        limits and f"limited to {limits}",
    ]
    return "; ".join(filter(None, told))
