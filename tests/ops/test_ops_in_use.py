"""The operators as training uses them: CUDA graphs, streams, AMP, torch.compile.

Also tensors that are misaligned or have more than 2^31 elements. Needs torch alone, as
test_ops_fused.py. Without a GPU a test is skipped, or runs on the CPU at a small size.
"""

import itertools

import pytest
import torch
from test_ops_fused import (
    DEVICES,
    LAYOUTS,
    assert_close,
    make,
    needs_later_torch,
    needs_ops,
    on_devices,
    poisoned_memory,  # noqa: F401
    reference_of,
)
from torch import nn

from dlu_mmdet.ops import dlu, library
from dlu_mmdet.utils.timing import capture

pytestmark = needs_ops
on_cuda = pytest.mark.parametrize(
    'device',
    [
        pytest.param(
            'cuda',
            marks=pytest.mark.skipif('cuda' not in DEVICES, reason='needs a GPU'),
        )
    ],
)
both_ops = pytest.mark.parametrize('op', ['dlu', 'carafe'])
both_layouts = pytest.mark.parametrize('layout', LAYOUTS)


def evaluate(op, inputs, grad, sizes):
    """Result and gradients of the compiled operator."""
    out = getattr(library, op)(*inputs, *sizes)
    return out, *torch.autograd.grad(out, inputs, grad)


def expected_of(op, inputs, grad, sizes):
    out, grads = reference_of(op, inputs, grad, sizes)
    return out, *grads


def assert_all_close(actual, expected, dtype=torch.float32):
    for value, wanted in zip(actual, expected):
        assert_close(value, wanted, dtype)


class Head(nn.Module):
    """DLU with its convolutions; DLUPack needs mmdet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.reduce = nn.Conv2d(8, 8, 1)
        self.kernels = nn.Conv2d(8, 9, 3, padding=1)
        self.offsets = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.reduce(x)
        return dlu(x, self.kernels(x).softmax(1), self.offsets(x), 3, 1, 2)


@pytest.mark.parametrize('k', [3, 5, 7, 9, 11, 13, 15])
@on_cuda
def test_every_kernel_size(device, k):
    """What fits into shared memory depends on all of them; on a CPU nothing does."""
    scales = ((2, 4), (3, 1), (4, 4))
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    for (s, g), dtype, op in itertools.product(scales, dtypes, ('dlu', 'carafe')):
        case = (1, 4 * g, 5, 35, k, g, s, dtype, device)
        expected = expected_of(op, *make(*case, op=op))
        for layout in LAYOUTS:
            made = make(*case, layout=layout, op=op)
            assert_all_close(evaluate(op, *made), expected, dtype)


@both_ops
@both_layouts
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@on_cuda
def test_a_graph_replays_on_new_inputs(device, dtype, layout, op):
    """A launch on another stream, or one that waits for the GPU, ends the capture."""
    inputs, grad, sizes = make(2, 8, 12, 37, 5, 2, 2, dtype, device, layout, op)
    graph, results = capture(lambda: evaluate(op, inputs, grad, sizes))
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(tensor.flip(0))
    for _ in range(2):  # what is added atomically starts from zero each time
        graph.replay()
    assert_all_close(results, expected_of(op, inputs, grad, sizes), dtype)


@both_ops
@both_layouts
@on_cuda
def test_a_side_stream_is_followed(device, layout, op):
    """On the default stream a kernel would read inputs that are not written yet."""
    inputs, grad, sizes = make(
        2, 8, 12, 37, 5, 2, 2, device=device, layout=layout, op=op
    )
    expected = expected_of(op, inputs, grad, sizes)
    late = [torch.zeros_like(tensor) for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # clocks
        for to, tensor in zip(late, inputs):
            to.copy_(tensor.detach())
        results = evaluate(op, [t.requires_grad_() for t in late], grad, sizes)
    torch.cuda.current_stream().wait_stream(stream)
    assert_all_close(results, expected)


@pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'), reason='torch before 2.3 has no such scaler'
)
@on_devices
def test_an_overflow_skips_the_step_and_halves_the_scale(device):
    """An overflow that ends as a finite gradient would spoil the weights."""
    inputs, grad, sizes = make(1, 6, 5, 20, 5, 2, 2, torch.float16, device)
    inputs = [t.detach().float().requires_grad_() for t in inputs]
    optimizer = torch.optim.SGD(inputs, 1e-3)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    for factor, scale in ((1e6, 512), (1.0, 512)):
        before = [t.detach().clone() for t in inputs]
        features, kernels, offsets = inputs
        # as under autocast, whose softmax gives float32
        out = library.dlu(features.half(), kernels, offsets.half(), *sizes)
        loss = (out.float() * grad * factor).sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if factor == 1:
            expected = expected_of('dlu', inputs, grad, sizes)[1:]
            assert_all_close([t.grad for t in inputs], expected, torch.float16)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == scale
        kept = [torch.equal(a, b) for a, b in zip(before, inputs)]
        assert kept == [factor != 1] * 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@needs_later_torch
@on_devices
def test_autocast_differs_by_its_rounding(device, dtype):
    head, x = Head().to(device), torch.randn(2, 8, 9, 13, device=device)
    wanted = head(x)
    with torch.autocast(device, dtype):
        out = head(x)
    assert out.dtype == dtype
    assert (out.float() - wanted).norm() <= 0.03 * wanted.norm()
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@needs_later_torch
@pytest.mark.parametrize('options', [{}, dict(mode='reduce-overhead')], ids=str)
@on_devices
def test_compiled_training_step(device, options):
    """reduce-overhead runs the kernels in CUDA graphs that torch captures."""
    if device == 'cpu':
        if options:
            pytest.skip('a mode for GPUs')
        options = dict(backend='aot_eager')  # the default compiles C++ for a minute
    # in float64 convolutions are not rounded to TF32
    head = Head().to(device, torch.float64)
    compiled = torch.compile(head, fullgraph=True, **options)
    for _ in range(3):  # a graph is captured in the second call
        x = torch.randn(2, 8, 9, 13, device=device, dtype=torch.float64)
        results = []
        for module in (head, compiled):
            out = module(x)
            grads = torch.autograd.grad(out.square().sum(), list(head.parameters()))
            results.append((out.clone(), *grads))
        torch.testing.assert_close(*results)


@both_ops
@both_layouts
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('by', [1, 2, 3])
@on_devices
def test_slices_off_the_alignment(device, by, dtype, layout, op):
    """A vector of four, or a pair of sub-pixels, may not be loaded at once there."""
    inputs, grad, sizes = make(2, 8, 5, 18, 5, 2, 2, dtype, device, layout, op)
    shifted = []
    for tensor in (*inputs, grad):
        flat = tensor.new_full((tensor.numel() + by,), torch.nan)
        view = flat.as_strided(tensor.shape, tensor.stride(), by)
        assert view.is_contiguous(memory_format=layout)
        shifted.append(view.copy_(tensor.detach()))
    views = [view.requires_grad_() for view in shifted[:-1]]
    expected = expected_of(op, inputs, grad, sizes)
    assert_all_close(evaluate(op, views, shifted[-1], sizes), expected, dtype)


@both_ops
@both_layouts
@on_devices
def test_more_than_2_31_elements(device, layout, op):
    """Counted in 32 bits, the last image would be written over the first."""
    n, c, h, w, k, s, some = 3, 12, 4, 6, 5, 2, 4
    if device == 'cuda':
        n, c, h, w = 8, 256, 400, 672
        assert n * c * h * w * s * s > 2**31
        if torch.cuda.mem_get_info()[0] < 24 << 30:
            pytest.skip('needs 24 GiB of free GPU memory')
    torch.manual_seed(0)

    def random(*shape):
        made = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return made.normal_().contiguous(memory_format=layout)

    shapes = dict(
        dlu=[(n, k * k, h, w), (n, 2 * s * s, h, w)],
        carafe=[(n, k * k, h * s, w * s)],
    )[op]
    inputs = [random(*shape).requires_grad_() for shape in [(n, c, h, w), *shapes]]
    grad = random(n, c, h * s, w * s)
    out, *grads = evaluate(op, inputs, grad, (k, 1, s))
    for image in (0, n - 1):
        last = slice(image, image + 1)
        # a channel's result and gradient take the kernels and no other channel
        part = [inputs[0][last, -some:], *(t[last] for t in inputs[1:])]
        expected = expected_of(op, part, grad[last, -some:], (k, 1, s))
        actual = (out[last, -some:], grads[0][last, -some:])
        assert_all_close(actual, expected[:2], torch.bfloat16)
        # those of kernels and offsets are sums over all channels
        alone = evaluate(op, [t[last] for t in inputs], grad[last], (k, 1, s))
        for value, wanted in zip(grads[1:], alone[2:]):
            assert_close(value[last], wanted.double(), torch.bfloat16)
