"""Instructions per pixel of the kernels, counted by callgrind: a gate for speed that no busy machine disturbs.

After a change that is meant: `.venv/bin/python -m pytest tests/native/test_instructions.py -rP` prints the counts; put
the count plus 5 % into the table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from grd_edge.kernels import variants

# Instructions per pixel at most: of one 256x256 patch scored (phi, phi_local, heatmap), of each pixel cut from a
# 300x300 uint8 frame into four 256x256 patches. FP32; gcc 12.2 -O3, valgrind 3.19, 2026-11-25, plus 5 %. valgrind does
# not know AVX-512.
LIMITS = {
    ("score", "scalar"): 471,
    ("score", "avx2"): 39,
    ("cut", "scalar"): 8.71,
    ("cut", "avx2"): 1.23,
}
PIXELS = {"score": 256 * 256, "cut": 4 * 256 * 256}
FUNCTIONS = {"score": "grd_score_patches", "cut": "grd_cut_frame"}


def instructions_per_pixel(program, what: str, variant: str, folder) -> float:
    """Instructions of one call, its callees included, over the pixels that it writes."""
    counts = folder / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--toggle-collect={FUNCTIONS[what]}", f"--callgrind-out-file={counts}"]
    environment = {**os.environ, "GRD_FORCE_VARIANT": variant}
    done = subprocess.run([*command, str(program), what], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    total = re.search(r"^(?:summary|totals): (\d+)$", counts.read_text(encoding="utf-8"), re.M)
    assert total and int(total[1]) > PIXELS[what], "callgrind's output holds no count of the call"
    return int(total[1]) / PIXELS[what]


@pytest.mark.parametrize(("what", "variant"), LIMITS)
def test_no_kernel_takes_more_instructions_than_its_limit(native_build, tmp_path, what, variant):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed; it counts the instructions")
    if not variants().get(variant):
        pytest.skip(f"this CPU or this build has no variant {variant}")
    found = instructions_per_pixel(native_build / "kernels" / "test" / "count_instructions", what, variant, tmp_path)
    print(f"{what} {variant}: {found:.2f} instructions per pixel, limit {LIMITS[what, variant]}")
    assert found <= LIMITS[what, variant]
