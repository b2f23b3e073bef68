"""Students of a trained generator on the ELPV cells: what pruning and the teacher are worth, against training alone.

    python -m grd_edge.bench.distillation --teacher artifacts/demo/checkpoint.safetensors --steps 600 --record

All students have the same widths and steps; those of a row differ by their seed alone. Their checkpoints stay in --out,
and those that are there already are not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from grd_edge.bench.records import interval, write_record

from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.config import overlaid_config
from grd_edge.data.dataset import Dataset, Sample, dataset_from_elpv
from grd_edge.distill import Teacher, read_teacher, student_config
from grd_edge.engine.torch import TorchInspector
from grd_edge.metrics import auroc, bootstrap_interval, bootstrap_values, interval_of
from grd_edge.scored import scored_from_samples
from grd_edge.train import checkpoint_from_dataset

# What a student is trained with, by name; `alone` has neither the teacher nor its weights.
VARIANTS = {
    "pruned and distilled": (),
    "pruned, without distillation": ("distill.distillation=0",),
    "distilled from random weights": ("distill.start=random",),
    "alone": (),
}
COLUMNS = [
    {"key": "name", "name": "network"},
    {"key": "gmac", "name": "GMAC per patch", "digits": 3},
    {"key": "share", "name": "of the teacher's", "format": "{share:.1%}"},
    {"key": "auroc", "name": "image AUROC by seed", "format": "{auroc:.4f}"},
    {"key": "mean", "name": "mean", "digits": 4},
    {"key": "change", "name": "against the teacher, 95 %", "format": interval("change", "+", 4)},
]


def student_of(
    variant: str, teacher: Teacher, dataset: Dataset, share: float, steps: int, seed: int, out: Path
) -> Checkpoint:
    """The student of a variant and seed, trained where `out` does not hold it yet."""
    path = out / f"{variant.replace(' ', '-').replace(',', '')}-{share:g}-{steps}-{seed}.safetensors"
    if path.exists():
        return read_checkpoint(path)
    overrides = [f"train.steps={steps}", "train.seconds=null", f"train.seed={seed}"]
    config = student_config(teacher.config, share=share, overrides=[*VARIANTS[variant], *overrides])
    if variant == "alone":
        widths = f"model.widths={list(config.model.stage_widths)}"
        config = overlaid_config(teacher.config, overrides=[widths, *overrides])
    checkpoint = checkpoint_from_dataset(dataset, config, teacher=None if variant == "alone" else teacher)
    write_checkpoint(path, checkpoint)
    return checkpoint


def scores_of(checkpoint: Checkpoint, samples: Sequence[Sample]) -> np.ndarray:
    """(N,) scores of images."""
    return scored_from_samples(TorchInspector(checkpoint), samples).image_scores


def row_of(name: str, found: list[np.ndarray], teacher: np.ndarray, labels: np.ndarray) -> dict:
    """Mean AUROC over the seeds and its difference to the teacher's, resampled with the same images for all of them."""
    each = [auroc(scores, labels) for scores in found]
    drawn = np.mean([bootstrap_values(auroc, scores, labels) for scores in found], axis=0)
    change = interval_of(drawn - bootstrap_values(auroc, teacher, labels))
    mean = float(np.mean(each))
    return {
        "name": name,
        "auroc": each,
        "mean": mean,
        "change": mean - auroc(teacher, labels),
        "change_ci95": list(change),
    }


def compared(
    teacher: Teacher, dataset: Dataset, *, share: float, steps: int, seeds: int, variants: Iterable[str], out: Path
) -> tuple[list[dict], dict]:
    """Rows and figures of the record; each row is printed when it is done."""
    labels = np.array([sample.defective for sample in dataset.test])
    reference = scores_of(teacher.checkpoint, dataset.test)
    whole = teacher.costs(teacher.config)[1]
    own = auroc(reference, labels)
    first = {"name": "teacher", "auroc": [own], "mean": own, "gmac": whole / 1e9, "share": 1.0}
    rows, figures = [first], {"teacher_auroc": own, "steps": steps, "seeds": seeds}
    figures["teacher_auroc_ci95"] = list(bootstrap_interval(auroc, reference, labels))
    print(f"teacher: AUROC {own:.4f}, {whole / 1e9:.3f} GMAC", flush=True)
    for variant in variants:
        students = [student_of(variant, teacher, dataset, share, steps, seed, out) for seed in range(seeds)]
        cost = teacher.costs(students[0].config)[0]
        row = row_of(variant, [scores_of(each, dataset.test) for each in students], reference, labels)
        rows.append({**row, "gmac": cost / 1e9, "share": cost / whole})
        key = variant.replace(",", "").replace(" ", "_")
        figures |= {f"{key}_change": row["change"], f"{key}_change_ci95": row["change_ci95"]}
        low, high = row["change_ci95"]
        print(
            f"{variant}: AUROC {', '.join(f'{value:.4f}' for value in row['auroc'])}, mean {row['mean']:.4f}, "
            f"against the teacher {row['change']:+.4f} [{low:+.4f}, {high:+.4f}] at {cost / whole:.1%} of its cost",
            flush=True,
        )
    return rows, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint that was trained on ELPV with seed 0")
    parser.add_argument("--out", type=Path, default=Path("artifacts/distillation"))
    parser.add_argument("--prune-to", type=float, default=0.25, help="share of the teacher's multiply-adds")
    parser.add_argument("--steps", type=int, default=600, help="of each student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--record", action="store_true", help="write the record `distillation` below bench/results")
    arguments = parser.parse_args()
    teacher = read_teacher(arguments.teacher)
    dataset = dataset_from_elpv(seed=teacher.config.train.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, figures = compared(
        teacher,
        dataset,
        share=arguments.prune_to,
        steps=arguments.steps,
        seeds=arguments.seeds,
        variants=arguments.variants,
        out=arguments.out,
    )
    if arguments.record:
        title = (
            f"Students of {arguments.steps} steps on the ELPV cells, {arguments.seeds} seeds each, beside their teacher"
        )
        command = (
            f"python -m grd_edge.bench.distillation --teacher TEACHER --prune-to {arguments.prune_to:g} "
            f"--steps {arguments.steps} --seeds {arguments.seeds}"
        )
        if len(arguments.variants) < len(VARIANTS):
            command += " --variants " + " ".join(f"'{name}'" for name in arguments.variants)
        print(write_record("distillation", title=title, command=command, columns=COLUMNS, rows=rows, figures=figures))


if __name__ == "__main__":
    main()
