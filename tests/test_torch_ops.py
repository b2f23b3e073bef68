"""`torch.ops.grd_edge.score_patches`: the native kernels, as PyTorch and `torch.compile` see them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from grd_edge import kernels, torch_ops
from grd_edge.errors import InputError
from grd_edge.score import score_patches_f64

score = torch.ops.grd_edge.score_patches
VARIANTS = [name for name, supported in kernels.variants().items() if supported]


@pytest.fixture(autouse=True)
def no_leftovers():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


def pair(n=3, c=1, h=33, w=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(n, c, h, w, generator=random)
    return x, (x + 0.05 * torch.randn(x.shape, generator=random)).clamp(0, 1)


def expected(x, x_hat, roi=None, **options):
    found = kernels.score_patches(x.numpy(), x_hat.numpy(), None if roi is None else roi.numpy(), **options)
    maps = torch.from_numpy(found.heatmap).unsqueeze(1)
    ends = [torch.from_numpy(values) for values in (found.residual_min, found.residual_max)]
    return torch.from_numpy(found.phi), torch.from_numpy(found.phi_local), maps, *ends


def assert_same(found, wanted):
    assert len(found) == len(wanted) == 5
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype == torch.float32 and a.shape == b.shape
        assert np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("window", ["gaussian", "box"])
def test_scores_are_those_of_the_runtime_and_of_float64(variant, window):
    for n, c, h, w in ((1, 1, 11, 11), (3, 1, 33, 40), (2, 3, 17, 65), (5, 1, 64, 64)):
        for local in (21, 5):
            x, y = pair(n, c, h, w)
            found = score(x, y, window=window, local_window_px=local, variant=variant)
            assert_same(found, expected(x, y, window=window, local_window_px=local, variant=variant))
            exact = score_patches_f64(x.numpy(), y.numpy(), window=window, local_window_px=local)
            for ours, right in zip(found[:3], exact, strict=True):
                assert np.abs(ours.numpy() - right).max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype_hat", [torch.float16, torch.float32])
def test_types_are_read_as_stored(dtype, dtype_hat):
    x, y = pair()
    x = (x * 255).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)
    y = y.to(dtype_hat)
    found = score(x, y)
    assert_same(found, expected(x, y))
    stored = x.float() / 255 if dtype == torch.uint8 else x
    exact = score_patches_f64(stored.numpy(), y.numpy())
    assert np.abs(found[0].numpy() - exact.phi).max() <= 1e-6
    assert np.abs(found[1].numpy() - exact.phi_local).max() <= 1e-6


def test_strides_do_not_matter_and_nothing_is_written():
    x, y = pair(2, 3, 40, 90)
    wanted = score(x[..., 3:40].contiguous(), y[..., 3:40].contiguous())
    before = x.clone()
    for a in (x[..., 3:40], x.to(memory_format=torch.channels_last)[..., 3:40], x.mT.contiguous().mT[..., 3:40]):
        assert_same(score(a, y[..., 3:40]), wanted)
    assert torch.equal(x, before)
    every_other = torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]
    assert_same(score(every_other, y), score(x, y))
    one = torch.full((1, 1, 1, 1), 0.5).expand(2, 3, 40, 90)  # all strides 0
    assert_same(score(one, y), score(one.contiguous(), y))
    row = x[:1].expand(2, 3, 40, 90)
    assert_same(score(row, y), score(row.contiguous(), y))


def test_masks_of_interest():
    x, y = pair()
    roi = torch.zeros(3, 1, 33, 40, dtype=torch.bool)
    roi[0, 0, 5:20, 7:30] = roi[1, 0, 3, 4] = True
    found = score(x, y, roi)
    assert_same(found, expected(x, y, roi))
    assert_same(score(x, y, roi.to(torch.uint8)), found)
    exact = score_patches_f64(x[:2].numpy(), y[:2].numpy(), roi=roi[:2, 0].numpy())
    assert np.abs(found[0][:2].numpy() - exact.phi).max() <= 1e-6
    assert found[0][2].isnan() and found[1][2].isnan()
    assert_same(score(x, y, roi[:1]), score(x, y, roi[:1].expand(3, 1, 33, 40)))
    ones = torch.ones(3, 1, 33, 40, dtype=torch.bool)
    assert_same(score(x, y, ones[:1, :, :1, :1].expand(ones.shape)), score(x, y, ones))
    assert_same(score(x, y, ones), score(x, y))


def test_outputs_are_the_callers_own():
    x, y = pair()
    first = score(x, y)
    kept = [t.clone() for t in first]
    score(y, x.flip(0))
    assert_same(first, kept)


def test_without_patches_or_heatmap():
    x, y = pair()
    assert [t.shape for t in score(x[:0], y[:0])] == [(0,), (0,), (0, 1, 33, 40), (0,), (0,)]
    found = score(x, y, heatmap=False)
    assert found[2].shape == (0, 1, 33, 40)
    assert torch.equal(found[0], score(x, y)[0]) and torch.equal(found[4], score(x, y)[4])
    assert_same(score(x, y, local_window_px=2**32 + 1), score(x, y, local_window_px=1000))


def test_threads_change_nothing():
    x, y = pair(7)
    torch.set_num_threads(1)
    wanted = score(x, y)
    for threads in (2, 3, 1, 2):
        torch.set_num_threads(threads)
        assert_same(score(x, y), wanted)
    barrier = threading.Barrier(4)

    def run(_):
        barrier.wait()
        return [score(x, y) for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        for results in threads.map(run, range(4)):
            for found in results:
                assert_same(found, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_opens_a_pool_of_its_own():
    code = """if True:
        import os, torch
        from grd_edge import torch_ops
        torch.set_num_threads(2)
        x = torch.linspace(0, 1, 4 * 400).view(4, 1, 20, 20)
        wanted = torch_ops.score_patches(x, x.flip(0))[0]
        child = os.fork()
        found = torch_ops.score_patches(x, x.flip(0))[0]
        assert torch.equal(found, wanted)
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_pytorchs_own_checks_of_an_operator():
    x, y = pair(2, 1, 16, 16)
    torch.library.opcheck(score, (x, y))
    torch.library.opcheck(score, (x.half(), y.half(), torch.ones(1, 1, 16, 16, dtype=torch.bool), "box", 5, False))
    torch.library.opcheck(torch_ops.score_patches, ((x * 255).byte(), y.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@torch.no_grad()
def test_compiled_without_a_graph_break_for_any_batch(backend):
    # no other operator in the graph: inductor compiles nothing in C++ and the test stays quick
    torch._dynamo.config.error_on_recompile, before = True, torch._dynamo.config.error_on_recompile
    try:
        compiled = torch.compile(lambda a, b: score(a[..., 2:], b[..., 2:]), fullgraph=True, backend=backend)
        for n in (3, 2, 6):
            x, y = pair(n, seed=n)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(y, 0)
            assert_same(compiled(x, y), score(x[..., 2:], y[..., 2:]))
    finally:
        torch._dynamo.config.error_on_recompile = before


@torch.no_grad()
def test_compiled_behind_a_network():
    net = torch.nn.Conv2d(1, 1, 3, padding=1).to(memory_format=torch.channels_last).eval()

    def distance(x):
        phi, phi_local, *_ = torch_ops.score_patches(x, net(x).sigmoid(), heatmap=False)
        return torch.maximum(phi, phi_local)

    x, _ = pair()
    compiled = torch.compile(distance, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), distance(x))
    assert torch._dynamo.explain(distance)(x).graph_break_count == 0


def test_gradients_are_refused_where_they_would_be_needed():
    x, y = pair()
    needs = y.clone().requires_grad_()
    with pytest.raises(InputError, match=r"has none; call it under torch\.no_grad"):
        score(x, needs)
    with torch.no_grad():
        assert_same(score(x, needs), score(x, y))
    with torch.inference_mode():
        assert_same(score(x, needs), score(x, y))


BAD = {
    "double": (lambda x, y: (x.double(), y), r"x is torch\.float64; expected one of torch\.uint8"),
    "bfloat16": (lambda x, y: (x, y.bfloat16()), r"x_hat is torch\.bfloat16; expected one of torch\.float16"),
    "byte reconstruction": (lambda x, y: (x, y.byte()), r"x_hat is torch\.uint8"),
    "shapes": (lambda x, y: (x, y[:2]), r"shape \(3, 1, 33, 40\) and reconstructions \(2, 1, 33, 40\)"),
    "axes": (lambda x, y: (x[0], y[0]), r"expected equal \(N, C, H, W\)"),
    "small": (lambda x, y: (x[..., :10], y[..., :10]), "at least 11 px a side"),
    "mask shape": (lambda x, y: (x, y, torch.ones(3, 33, 40, dtype=torch.bool)), r"expected \(3, 1, 33, 40\) or \(1,"),
    "mask type": (lambda x, y: (x, y, torch.ones(3, 1, 33, 40)), r"roi is torch\.float32; expected one of torch\.bool"),
    "window": (lambda x, y: (x, y, None, "hann"), "window is 'hann'"),
    "local window": (lambda x, y: (x, y, None, "box", 0), "local_window_px is 0"),
    "variant": (lambda x, y: (x, y, None, "box", 21, True, "neonx"), "known: scalar"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_one_sentence(name):
    make, sentence = BAD[name]
    with pytest.raises(InputError, match=sentence) as caught:
        score(*make(*pair()))
    assert "\n" not in str(caught.value)


def test_other_devices_are_refused_in_a_sentence():
    with FakeTensorMode():  # needs no device
        x = torch.empty(3, 1, 33, 40, device="cuda")
        with pytest.raises(InputError, match=r"x is on cuda:0 .* move it with \.cpu\(\)"):
            score(x, x)
