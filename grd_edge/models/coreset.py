"""Few rows that stand for many: greedy k-center selection, and the uniform sample that it starts from.

Source: PatchCore, arXiv 2106.08265, section 3.2 and algorithm 1; Sener and Savarese, arXiv 1708.00489.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

PROJECTED = 64  # dimensions in which distances between rows are compared
# Squared distance, beside that of the first step, below which a row is covered: rounding of float32.
COVERED = 1e-6


def sampled_rows(batches: Iterable[torch.Tensor], count: int, random: torch.Generator) -> tuple[torch.Tensor, int]:
    """At most `count` rows of all batches (n, C), each as likely, in the order that they came; memory for twice that.

    Returns:
        Rows (at most count, C), and how many there were.
    """
    kept, keys, total = torch.empty(0), torch.empty(0), 0
    for batch in batches:
        total += len(batch)
        drawn = torch.rand(len(batch), generator=random)
        kept = torch.cat([kept, batch]) if len(kept) else batch
        keys = torch.cat([keys, drawn])
        if len(kept) > 2 * count:
            kept, keys = _of_least_keys(kept, keys, count)
    return _of_least_keys(kept, keys, count)[0], total


def _of_least_keys(rows: torch.Tensor, keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = keys.argsort(stable=True)[:count].sort().values
    return rows[chosen], keys[chosen]


def greedy_coreset(rows: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Indices of at most `count` rows: the one nearest the mean, then always the one farthest from all chosen ones.

    Distances are those of a random projection to `PROJECTED` dimensions (Johnson and Lindenstrauss), as in the paper.
    A step costs one pass over the rows, and memory is one number per row besides. It ends early when every row is
    as good as equal to a chosen one.

    Args:
        rows: (n, C) float32.

    Returns:
        (k,) int64, in the order in which they were chosen.
    """
    if rows.shape[1] > PROJECTED:
        rows = rows @ (torch.randn(rows.shape[1], PROJECTED, generator=random) / PROJECTED**0.5)
    rows = rows - rows.mean(0)
    norms = rows.square().sum(1)
    chosen = [int(norms.argmin())]
    nearest = torch.full_like(norms, torch.inf)
    least = 0.0
    while len(chosen) < min(count, len(rows)):
        last = chosen[-1]
        distances = torch.addmv(norms, rows, rows[last], alpha=-2).add_(norms[last])
        torch.minimum(nearest, distances, out=nearest)
        nearest[last] = -torch.inf
        farthest = int(nearest.argmax())
        least = least or COVERED * float(nearest[farthest])
        if float(nearest[farthest]) <= least:
            break
        chosen.append(farthest)
    return torch.tensor(chosen)
