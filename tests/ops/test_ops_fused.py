"""The compiled operators against the reference; test_ops.py holds that to loops."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from dlu_mmdet import ops
from dlu_mmdet.ops import carafe, dlu, library, reference
from dlu_mmdet.utils.timing import peak_memory
from dlu_mmdet.utils.torch_compat import AT_LEAST_24

ROOT = Path(__file__).parents[2]
ALONE = """
import sys, types
package = types.ModuleType('dlu_mmdet')  # without mmdet, which takes its time
package.__path__ = ['dlu_mmdet']
sys.modules['dlu_mmdet'] = package
import dlu_mmdet.ops
"""
DEVICES = [
    d
    for d in ('cpu', 'cuda')
    if library.is_available(d) and (d == 'cpu' or torch.cuda.is_available())
]
needs_ops = pytest.mark.skipif(not DEVICES, reason='the extension is not built')
# not conftest's, which imports mmdet
needs_later_torch = pytest.mark.skipif(
    not AT_LEAST_24, reason='torch before 2.4 cannot do this'
)
needs_cpu_loops = pytest.mark.skipif(
    not library.cpu_loops(), reason='the CPU loops are not loaded'
)
on_devices = pytest.mark.parametrize('device', DEVICES)
on_devices_and_meta = pytest.mark.parametrize('device', [*DEVICES, 'meta'])

# (N, C, H, W, K, G, s): every size at its edge, W below, at and above a vector
CASES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 5, 3, 3, 1, 2),
    (1, 2, 7, 1, 5, 2, 2),
    (1, 12, 1, 9, 3, 4, 3),
    (0, 4, 3, 3, 5, 1, 2),
    (1, 5, 9, 40, 5, 1, 2),
    (2, 6, 4, 17, 7, 2, 1),
    (1, 3, 3, 4, 3, 1, 8),
    (1, 8, 6, 5, 5, 4, 4),
    (1, 70, 12, 37, 5, 1, 2),
    (2, 129, 5, 18, 3, 1, 2),
    (1, 4, 33, 16, 5, 2, 3),
    (1, 2, 3, 4, 15, 1, 2),
]
# unit roundoff of the dtype, with room for sums of a hundred terms
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New memory is NaN (torch 2.2 and later), so what is not written is seen."""
    torch.set_deterministic_debug_mode('warn')
    yield
    torch.set_deterministic_debug_mode('default')


def dlu_pack(*args, **kwargs):
    """The module, where mmdet is; the operators' tests need torch alone."""
    pytest.importorskip('mmdet')
    from dlu_mmdet.upsamplers.dlu import DLUPack

    return DLUPack(*args, **kwargs)


def make(
    n,
    c,
    h,
    w,
    k,
    g,
    s,
    dtype=torch.float32,
    device='cpu',
    layout=torch.contiguous_format,
    op='dlu',
    kernel_dtype=None,
):
    """Arguments and an output gradient; offsets are exact in every dtype."""
    torch.manual_seed(n + c + h + w + k + g + s)
    shapes = dict(
        dlu=[(n, g * k * k, h, w), (n, g * 2 * s * s, h, w)],
        carafe=[(n, g * k * k, h * s, w * s)],
        window_scores=[(n, c, h * s, w * s)],
    )[op]
    tensors = [
        torch.randn(n, c, h, w),
        torch.randn(shapes[0]).softmax(1),
        *((torch.randn(shape) * 96).round() / 32 for shape in shapes[1:]),
        torch.randn(n, c, h * s, w * s),
    ]
    dtypes = [dtype, kernel_dtype or dtype, dtype, dtype]
    tensors = [
        t.to(device, d).to(memory_format=layout) for t, d in zip(tensors, dtypes)
    ]
    return [t.requires_grad_() for t in tensors[:-1]], tensors[-1], (k, g, s)


def reference_of(op, inputs, grad, sizes):
    """Result and gradients in float64."""
    inputs = [t.detach().double().requires_grad_() for t in inputs]
    out = getattr(reference, op)(*inputs, *sizes)
    return out, torch.autograd.grad(out, inputs, grad.double())


def check_values(op, dtype, inputs, grad, sizes):
    """Values and dtypes of an operator and of its gradients are the reference's."""
    expected, expected_grads = reference_of(op, inputs, grad, sizes)
    out = getattr(library, op)(*inputs, *sizes)
    assert out.dtype == dtype
    assert_close(out, expected, dtype)
    grads = torch.autograd.grad(out, inputs, grad)
    for tensor, value, wanted in zip(inputs, grads, expected_grads):
        assert value.dtype == tensor.dtype
        assert_close(value, wanted, dtype)


def assert_close(actual, expected, dtype):
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


@needs_ops
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', CASES)
@on_devices
def test_same_as_reference(device, case, dtype, layout, op):
    check_values(op, dtype, *make(*case, dtype, device, layout, op))


@needs_ops
@pytest.mark.parametrize('layout', LAYOUTS)
@on_devices
def test_layout_of_features_is_kept(device, layout):
    inputs, grad, sizes = make(2, 6, 5, 7, 3, 1, 2, device=device, layout=layout)
    out = library.dlu(*inputs, *sizes)
    grads = torch.autograd.grad(out, inputs, grad)
    for tensor in (out, *grads):
        assert tensor.is_contiguous(memory_format=layout)


@needs_ops
@on_devices
def test_half_features_with_float32_kernels(device):
    # softmax returns float32 under autocast
    case = make(
        1, 6, 5, 20, 5, 2, 2, torch.bfloat16, device, kernel_dtype=torch.float32
    )
    inputs, grad, sizes = case
    expected, expected_grads = reference_of('dlu', inputs, grad, sizes)
    out = library.dlu(*inputs, *sizes)
    assert_close(out, expected, torch.bfloat16)
    grads = torch.autograd.grad(out, inputs, grad)
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    for value, wanted in zip(grads, expected_grads):
        assert_close(value, wanted, torch.bfloat16)


@needs_ops
@on_devices
def test_any_strides(device):
    inputs, grad, sizes = make(2, 4, 6, 18, 3, 1, 2, device=device)
    expected, expected_grads = reference_of('dlu', inputs, grad, sizes)
    strided = []
    for t in inputs:
        wide = torch.full(
            (*t.shape[:2], t.shape[2] + 3, 2 * t.shape[3]), torch.nan, device=device
        )
        view = wide[:, :, 1:-2, ::2]
        view.copy_(t.detach())
        strided.append(view.requires_grad_())
    out = library.dlu(*strided, *sizes)
    assert_close(out, expected, torch.float32)
    grads = torch.autograd.grad(out, strided, grad.mT.contiguous().mT)
    for value, wanted in zip(grads, expected_grads):
        assert_close(value, wanted, torch.float32)
    # the gradient of a sum is one number, expanded
    grads = torch.autograd.grad(library.dlu(*inputs, *sizes).sum(), inputs)
    wanted = reference_of('dlu', inputs, torch.ones_like(grad), sizes)[1]
    for value, want in zip(grads, wanted):
        assert_close(value, want, torch.float32)


WILD = st.one_of(
    st.floats(-60, 60, width=32),
    st.sampled_from([1e30, -1e30, 3e38, -3e38, torch.nan, torch.inf, -torch.inf, 0.0]),
)


@needs_ops
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 2),
    c=st.integers(1, 6),
    h=st.integers(1, 6),
    w=st.integers(1, 36),
    k=st.sampled_from([1, 3, 5, 7]),
    s=st.sampled_from([1, 2, 3, 4]),
    last=st.booleans(),
    wild=st.lists(WILD, min_size=1, max_size=8),
)
def test_wild_offsets(n, c, h, w, k, s, last, wild):
    for device in DEVICES:
        inputs, grad, sizes = make(
            n, c, h, w, k, 1, s, torch.float64, device, LAYOUTS[last]
        )
        offsets = inputs[2].detach().flatten()
        offsets[: offsets.numel() // 3] = torch.tensor(
            wild, dtype=torch.float64
        ).repeat(offsets.numel())[: offsets.numel() // 3]
        inputs[2] = offsets.reshape(inputs[2].shape).requires_grad_()
        expected, expected_grads = reference_of('dlu', inputs, grad, sizes)
        out = library.dlu(*inputs, *sizes)
        assert_close(out, expected, torch.float64)
        for value, wanted in zip(
            torch.autograd.grad(out, inputs, grad), expected_grads
        ):
            assert_close(value, wanted, torch.float64)


@needs_ops
@pytest.mark.parametrize('feature_dtype', [torch.float16, torch.float32])
@on_devices
def test_float64_offsets_beside_narrower_features(device, feature_dtype):
    """Narrowed first, 1e300 would be infinite and spoil its pixel, and 1e-300 at a
    border would lose its gradient."""
    case = (1, 2, 3, 4, 3, 1, 2)
    inputs, grad, sizes = make(*case, feature_dtype, device)
    values = torch.tensor([1e300, -1e300, 1e-300, -1e-300], dtype=torch.float64)
    offsets = values.repeat(24).reshape(inputs[2].shape).to(device)
    inputs[2] = offsets.requires_grad_()
    expected, expected_grads = reference_of('dlu', inputs, grad, sizes)
    for backend in (library, reference):
        out = backend.dlu(*inputs, *sizes)
        assert_close(out, expected, feature_dtype)
        grads = torch.autograd.grad(out, inputs, grad)
        for value, wanted in zip(grads, expected_grads):
            assert_close(value, wanted, feature_dtype)


@needs_ops
def test_random_calls_differ_nowhere():
    """A short run of the script, so that it stays able to run."""
    command = [sys.executable, ROOT / 'tests' / 'stress' / 'operators.py']
    output = subprocess.run(
        [*command, '--calls', '300', '--isa', 'generic', '--seconds', '60'],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert re.search(r'all: \d+ calls, \d+ comparisons, 0 differences', output)


@needs_ops
@on_devices
def test_gradcheck(device):
    inputs, _, sizes = make(1, 4, 3, 4, 3, 2, 2, torch.float64, device)
    # away from lattice points, where the derivative jumps
    inputs[2] = (inputs[2].detach() + 1 / 77).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: library.dlu(*t, *sizes), inputs)
    inputs, _, sizes = make(1, 4, 3, 4, 3, 2, 2, torch.float64, device, op='carafe')
    assert torch.autograd.gradcheck(lambda *t: library.carafe(*t, *sizes), inputs)


@needs_ops
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
@needs_later_torch
@on_devices
def test_opcheck(device, op, layout):
    inputs, grad, sizes = make(2, 4, 5, 6, 3, 2, 2, device=device, layout=layout, op=op)
    operators = torch.ops.dlu_mmdet
    torch.library.opcheck(getattr(operators, op).default, (*inputs, *sizes))
    detached = [t.detach() for t in inputs]
    for name in dict(dlu=('features', 'kernels'), carafe=('features', 'masks'))[op]:
        torch.library.opcheck(
            getattr(operators, f'{op}_backward_{name}').default,
            (grad, *detached, *sizes),
        )


@needs_ops
@needs_later_torch
@on_devices
def test_compiles_without_graph_break(device):
    torch.manual_seed(0)
    module = dlu_pack(8, compressed_channels=4).to(device)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(1, 8, 6, 7, device=device, requires_grad=True)
    out, expected = compiled(x), module(x)
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(grad, wanted)


@needs_ops
@on_devices
def test_autocast_gives_half_precision(device):
    module = dlu_pack(8, compressed_channels=4).to(device)
    x = torch.randn(1, 8, 6, 7, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = module(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert_close(out, module(x).double(), torch.bfloat16)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@needs_ops
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
def test_threads_do_not_change_a_bit(op):
    inputs, grad, sizes = make(2, 37, 19, 41, 5, 1, 2, op=op)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out = getattr(library, op)(*inputs, *sizes)
            results.append((out, *torch.autograd.grad(out, inputs, grad)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@needs_ops
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@on_devices
def test_extra_memory_is_small(device, dtype):
    # what a detector pays: the s*s times larger kernels alone would be 10 % more
    inputs, grad, sizes = make(1, 256, 25, 42, 5, 1, 2, dtype, device)
    where = torch.device(device)
    extra = peak_memory(lambda: library.dlu(*inputs, *sizes), where) - grad.nbytes
    assert extra <= 0.1 * grad.nbytes
    out = library.dlu(*inputs, *sizes)
    gradients = sum(t.nbytes for t in inputs)
    extra = peak_memory(lambda: torch.autograd.grad(out, inputs, grad), where)
    assert extra - gradients <= 0.25 * gradients


# ---- derivatives of any order, by every way that torch has ---------------------


def forward_over_reverse(f, args, tangents):
    """With dual numbers, and the other way round."""
    args = [t.clone().requires_grad_() for t in args]
    with forward_ad.dual_level():
        out = loss_of(f)(*map(forward_ad.make_dual, args, tangents))
        grads = torch.autograd.grad(out, args, create_graph=True)
        first = [forward_ad.unpack_dual(grad).tangent for grad in grads]
        return first, torch.autograd.grad(forward_ad.unpack_dual(out).tangent, args)


def penalty(f, args, tangents):
    """A third derivative: that of a gradient penalty of a gradient penalty."""
    args = [t.clone().requires_grad_() for t in args]
    value = loss_of(f)(*args)
    for _ in range(3):
        grads = torch.autograd.grad(value, args, create_graph=True)
        value = sum(grad.square().sum() for grad in grads)
    return grads


def loss_of(f):
    return lambda *t: f(*t).square().sum()


def every(args):
    return tuple(range(len(args)))


def batch_of(args):
    return [torch.stack([t, 2 * t, -t], dim=1) for t in args]


WAYS = dict(
    jvp=lambda f, args, tangents: func.jvp(f, args, tangents),
    jvp_of_jvp=lambda f, args, tangents: func.jvp(
        lambda *t: func.jvp(f, t, tangents)[1], args, tangents
    ),
    linearize=lambda f, args, tangents: func.linearize(f, *args)[1](*tangents),
    grad=lambda f, args, tangents: func.grad(loss_of(f), every(args))(*args),
    grad_of_jvp=lambda f, args, tangents: func.grad(
        lambda *t: func.jvp(loss_of(f), t, tangents)[1], every(args)
    )(*args),
    vjp_of_grad=lambda f, args, tangents: func.vjp(
        func.grad(loss_of(f), every(args)), *args
    )[1](tangents),
    hessian=lambda f, args, tangents: func.hessian(loss_of(f), every(args))(*args),
    jacobians=lambda f, args, tangents: (
        func.jacfwd(f, every(args))(*args),
        func.jacrev(f, every(args))(*args),
    ),
    vmap=lambda f, args, tangents: func.vmap(f, 1, 2)(*batch_of(args)),
    vmap_of_one=lambda f, args, tangents: func.vmap(lambda x: f(x, *args[1:]), 1)(
        batch_of(args)[0]
    ),
    vmap_of_grad=lambda f, args, tangents: func.vmap(
        func.grad(loss_of(f), every(args)), 1
    )(*batch_of(args)),
    forward_over_reverse=forward_over_reverse,
    penalty=penalty,
)


@needs_ops
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('op', ['dlu', 'carafe', 'window_scores'])
@on_devices
def test_derivatives_of_any_order(device, op, way):
    """An operator that leaves tangents out gives zeros, and no error."""
    args, _, sizes = make(1, 2, 2, 3, 3, 2, 2, torch.float64, device, op=op)
    args = tuple(t.detach() for t in args)
    if op == 'dlu':  # away from lattice points, where the derivative jumps
        args = (*args[:2], args[2] + 1 / 77)
    tangents = tuple(torch.randn_like(t) for t in args)

    def derivative(backend):
        return WAYS[way](lambda *t: getattr(backend, op)(*t, *sizes), args, tangents)

    with warnings.catch_warnings():  # before torch 2.5 vmap takes one after the other
        warnings.simplefilter('ignore')
        actual, expected = derivative(ops), derivative(reference)
    torch.testing.assert_close(actual, expected)


@needs_ops
@needs_later_torch
@pytest.mark.parametrize('op', ['dlu', 'carafe', 'window_scores'])
def test_compiled_tangents(op):
    """A compiled graph enters forward mode without Python's counter of levels."""
    args, _, sizes = make(1, 2, 2, 3, 3, 2, 2, torch.float64, op=op)
    args = tuple(t.detach() + 1 / 77 for t in args)

    def f(*t):
        return getattr(ops, op)(*t, *sizes)

    def by_jvp(*t):
        return func.jvp(f, t, args)[1]

    def by_dual_numbers(*t):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(*map(forward_ad.make_dual, t, args)))[1]

    for way in (by_jvp, by_dual_numbers):
        for backend in ('eager', 'aot_eager'):
            torch._dynamo.reset()
            compiled = torch.compile(way, backend=backend)
            torch.testing.assert_close(compiled(*args), way(*args))


@needs_ops
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
def test_every_operator_has_tangents(op):
    """Those that are called for gradients too, and by their names in torch.ops."""
    inputs, grad, sizes = make(1, 2, 2, 3, 3, 1, 2, torch.float64, op=op)
    inputs[1:] = [(t.detach() + 1 / 77).requires_grad_() for t in inputs[1:]]
    for name in [op, *(n for n in library._SCHEMAS if n.startswith(f'{op}_'))]:
        tensors = [grad.requires_grad_(), *inputs] if name != op else inputs
        call = getattr(torch.ops.dlu_mmdet, name)
        assert torch.autograd.gradcheck(
            lambda *t, call=call: call(*t, *sizes),
            tensors,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            fast_mode=True,
        )


@needs_ops
def test_saved_tensors_are_freed_by_the_backward():
    inputs, grad, sizes = make(1, 2, 3, 4, 3, 1, 2)
    features = inputs[0] * 1
    gone = weakref.ref(features)
    with forward_ad.dual_level():
        out = library.dlu(features, *inputs[1:], *sizes)
    del features
    out.backward(grad)
    assert gone() is None


@needs_ops
@on_devices
def test_no_deterministic_claim_on_cuda(device):
    inputs, grad, sizes = make(1, 2, 3, 4, 3, 1, 2, device=device)
    out = library.dlu(*inputs, *sizes)
    torch.use_deterministic_algorithms(True)
    try:
        if device == 'cpu' and library.cpu_loops():  # not emulated CUDA
            torch.autograd.grad(out, inputs, grad)
        else:
            with pytest.raises(RuntimeError, match='deterministic'):
                torch.autograd.grad(out, inputs, grad)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_ops
def test_flop_counters():
    inputs, _, sizes = make(1, 6, 5, 7, 5, 1, 2)
    reassembly = 2 * 5 * 7 * 4 * 25 * 6
    sampling = 8 * 5 * 7 * 4 * 25
    with FlopCounterMode(display=False) as counter:
        out = dlu(*inputs, *sizes)
    assert counter.get_total_flops() == reassembly + sampling
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * (reassembly + sampling)
    inputs, _, sizes = make(1, 6, 5, 7, 5, 1, 2, op='carafe')
    with FlopCounterMode(display=False) as counter:
        carafe(*inputs, *sizes)
    assert counter.get_total_flops() == reassembly


@needs_ops
def test_mmengine_counts_the_module():
    module = dlu_pack(16, compressed_channels=4)
    from mmengine.analysis import get_model_complexity_info

    flops = get_model_complexity_info(
        module, (16, 5, 7), show_table=False, show_arch=False
    )['flops']
    # multiply-adds per source pixel: 1x1, two 3x3 heads, reassembly, sampling
    heads = 16 * 4 + 9 * 4 * (25 + 8)
    assert flops >= 35 * (heads + 4 * 25 * 16 + 4 * 4 * 25)
    assert flops <= 1.05 * 35 * (heads + 4 * 25 * 16 + 4 * 4 * 25)


@needs_ops
@pytest.mark.parametrize(
    'change, message',
    [
        (lambda x, k, o: (x, k[:, :-1], o), 'kernels must have shape'),
        (lambda x, k, o: (x, k, o[..., :-1]), 'offsets must have shape'),
        (lambda x, k, o: (x[0], k, o), 'features must (be|have 4 dimensions)'),
        (lambda x, k, o: (x.int(), k, o), 'floating-point'),
    ],
)
@on_devices_and_meta
def test_bad_tensors_raise_in_the_extension_too(device, change, message):
    inputs, _, sizes = make(1, 2, 3, 4, 3, 1, 2, device=device)
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.dlu_mmdet.dlu(*change(*(t.detach() for t in inputs)), *sizes)


@needs_ops
@needs_later_torch
@pytest.mark.parametrize('name', library._SCHEMAS)
def test_fake_and_meta_tensors_are_checked_alike(name):
    """Every operator, for every argument: what fails when it runs fails before."""
    inputs, grad, sizes = make(1, 2, 3, 4, 3, 1, 2, op=name.split('_')[0])
    args = [t.detach() for t in ([grad, *inputs] if 'backward' in name else inputs)]
    call = getattr(torch.ops.dlu_mmdet, name)
    changes = (
        lambda t: t[:, :, :-1],
        lambda t: t[0],
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.repeat(2, 1, 1, 1),
    )
    wrong = [
        ([*args[:i], change(args[i]), *args[i + 1 :]], sizes)
        for i in range(len(args))
        for change in changes
    ]
    wrong += [(args, bad) for bad in ((4, 1, 2), (3, 3, 2), (3, 1, 0), (5, 1, 2))]
    for tensors, numbers in wrong:
        with pytest.raises((ValueError, TypeError)) as real:
            call(*tensors, *numbers)
        with pytest.raises((ValueError, TypeError)) as meta:
            call(*(t.to('meta') for t in tensors), *numbers)
        with FakeTensorMode() as mode, pytest.raises(real.type) as fake:
            call(*map(mode.from_tensor, tensors), *numbers)
        assert str(real.value) == str(meta.value) == str(fake.value)
    with (
        FakeTensorMode() as mode,
        pytest.raises(ValueError, match='must be on the dev'),
    ):
        fakes = [mode.from_tensor(t) for t in args]
        call(fakes[0], *(t.to('meta') for t in fakes[1:]), *sizes)


@needs_cpu_loops
@pytest.mark.parametrize('flush', [False, True])
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
def test_denormals_count_as_zero_in_the_operators_alone(op, flush):
    """They slow arithmetic down a hundredfold; the caller's own mode stays."""
    inputs, grad, sizes = make(2, 3, 5, 18, 5, 1, 2, op=op)
    inputs[0] = (inputs[0].detach() * 1e-39).requires_grad_()
    expected, expected_grads = reference_of(op, inputs, grad, sizes)
    threads, one = torch.get_num_threads(), torch.full((1,), 1e-39)
    torch.set_num_threads(2)
    torch.set_flush_denormal(flush)
    try:
        out = getattr(ops, op)(*inputs, *sizes)
        grads = torch.autograd.grad(out, inputs, grad)
        assert ((one * 0.5).item() == 0) == flush
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    for value, wanted in zip((out, *grads), (expected, *expected_grads)):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-36)
    # of the features, whose gradient does not depend on them
    assert [bool(value.any()) for value in (out, *grads[:2])] == [False, True, False]


@needs_cpu_loops
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_half_keeps_its_value(layout):
    """Its subnormal numbers too, which are widened by way of denormal floats."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    halves = bits.view(torch.float16).reshape(1, 16, 64, 64)
    ones = torch.ones(1, 1, 64, 64)
    out = ops.carafe(halves.to(memory_format=layout), ones, 1, 1, 1)
    torch.testing.assert_close(out, halves, rtol=0, atol=0, equal_nan=True)


@needs_cpu_loops
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
def test_a_kernel_checks_its_arguments_once(op, monkeypatch):
    """In a training step: the forward and each of the two backward kernels."""
    checked = []

    def check(features, sizes, grad=None, **others):
        checked.append((grad is not None, *others))

    monkeypatch.setattr('dlu_mmdet.ops.backend.check_arguments', check)
    inputs, grad, sizes = make(1, 2, 3, 4, 3, 1, 2, op=op)
    others = ('kernels', 'offsets') if op == 'dlu' else ('masks',)
    out = getattr(ops, op)(*inputs, *sizes)
    assert checked == [(False, *others)]
    torch.autograd.grad(out, inputs, grad)
    assert checked == [(False, *others), (True, *others), (True, *others)]


@needs_ops
@needs_later_torch
def test_compiles_for_any_size():
    call = torch.compile(
        lambda *t: library.dlu(*t, 3, 1, 2),
        fullgraph=True,
        dynamic=True,
        backend='eager',
    )
    for height in (3, 5):
        inputs, _, sizes = make(1, 2, height, 4, 3, 1, 2)
        torch.testing.assert_close(call(*inputs), library.dlu(*inputs, *sizes))


@needs_ops
@pytest.mark.parametrize('isa', ['avx2', 'generic'])
def test_narrower_instruction_sets(isa):
    if isa == 'avx2' and library.cpu_loops() == 'generic':
        pytest.skip('this processor has no AVX2')
    # the widest one is what every other test runs; chosen once a process
    code = """
import torch
from dlu_mmdet.ops import library, reference
torch.manual_seed(0)
for last in (False, True):
    x, k = torch.randn(1, 19, 6, 37), torch.randn(1, 25, 6, 37)
    o, g = torch.randn(1, 8, 6, 37), torch.randn(1, 19, 12, 74)
    if last:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for backend in (library, reference):
        inputs = [t.clone().requires_grad_() for t in (x, k, o)]
        out = backend.dlu(*inputs, 5, 1, 2)
        results.append((out, *torch.autograd.grad(out, inputs, g)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
"""
    subprocess.run(
        [sys.executable, '-c', ALONE + code],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'DLU_MMDET_ISA': isa},
    )


def test_switched_off_runs_on_the_reference():
    code = """
import warnings
warnings.simplefilter('error', UserWarning)
from dlu_mmdet.ops import carafe, library
import torch
assert not library.is_available('cpu')
assert carafe(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), 1, 1, 2).sum() == 16
"""
    subprocess.run(
        [sys.executable, '-c', ALONE + code],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'DLU_MMDET_NO_EXT': '1'},
    )


@pytest.mark.parametrize(
    'name, value, words',
    [
        ('ISA', 'nonsense', 'ValueError: .*avx512 or avx2 or generic.*nonsense'),
        ('NO_EXT', 'yes', 'ValueError: .*DLU_MMDET_NO_EXT must be 0 or 1.*yes'),
        ('BACKEND', 'rocm', 'ValueError: .*cuda or triton or plain.*rocm'),
        ('LIBRARY', 'no.so', 'FileNotFoundError: .*DLU_MMDET_LIBRARY .*no.so'),
        ('LIBRARY', __file__, 'ValueError: .*DLU_MMDET_LIBRARY .*does not load'),
    ],
)
def test_unknown_settings_are_refused(name, value, words):
    """A benchmark of the loops that were asked for would be one of others."""
    process = subprocess.run(
        [sys.executable, '-c', ALONE],
        cwd=ROOT,
        env={**os.environ, f'DLU_MMDET_{name}': value},
        text=True,
        stderr=subprocess.PIPE,
    )
    assert process.returncode and re.search(words, process.stderr.splitlines()[-1])


@needs_cpu_loops
def test_loops_that_do_not_run_here_are_refused(monkeypatch):
    monkeypatch.setattr(library, '_ISA', 'those of another processor')
    with pytest.raises(ValueError, match='DLU_MMDET_ISA asks for those of another'):
        library._load_cpu()


@pytest.fixture
def warned(tmp_path, monkeypatch):
    """A folder in the place of the package's, beside a GPU; what is said of it."""
    monkeypatch.setattr(library, '_FOLDER', tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    for name, value in dict(_NO_EXT=False, _BACKEND='').items():
        monkeypatch.setattr(library, name, value)
    monkeypatch.setattr(library, 'triton_problem', lambda: 'Triton is not installed')

    def of(load, returns):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            assert load() == returns
        (message,) = (str(w.message) for w in caught)
        assert message.startswith('dlu_mmdet runs on its plain PyTorch operators')
        return message

    return of


def test_no_extension_is_one_sentence(warned):
    assert 'with a C++ compiler' in warned(library._load_cpu, None)
    assert 'built for the CPU only; install the CUDA' in warned(
        library._load_gpu, 'plain'
    )


def test_a_file_that_is_no_library_is_one_sentence(warned, tmp_path):
    (tmp_path / '_C.abi3.so').write_text('half a download')
    message = warned(library._load_cpu, None)
    assert '_C.abi3.so' in message and 'rebuild' in message


@pytest.mark.parametrize('name', ['the one asked for', '_C_cuda_torch_1_0.so'])
def test_cuda_of_another_torch_is_one_sentence(warned, tmp_path, monkeypatch, name):
    def fail(path):
        raise OSError(f'{path}: undefined symbol: _ZN3c106detail')

    monkeypatch.setattr(torch.ops, 'load_library', fail)
    if name == 'the one asked for':
        release = '_'.join(torch.__version__.split('.')[:2])
        suffix = sysconfig.get_config_var('EXT_SUFFIX')
        name = f'_C_cuda_torch_{release}{suffix}'
    (tmp_path / name).touch()
    message = warned(library._load_gpu, 'plain')
    assert 'another torch' in message and 'rebuild' in message
    assert '_ZN' not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    'source', sorted(path.name for path in ROOT.glob('csrc/cuda/*.cu'))
)
def test_cuda_sources_compile(tmp_path, source):
    nvcc = shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    if not os.path.exists(nvcc):
        pytest.skip('no nvcc')
    from torch.utils.cpp_extension import include_paths

    known = subprocess.run(
        [nvcc, '--list-gpu-code'], check=True, text=True, stdout=subprocess.PIPE
    ).stdout.split()
    # the oldest GPU that the toolkit knows is the strictest; spills are told of sm_90
    command = [
        nvcc,
        '-std=c++20',
        *(f'-gencode=arch=compute_{sm[3:]},code={sm}' for sm in (known[0], 'sm_90')),
        '-Xptxas=-v',
        '-c',
        '-o',
        tmp_path / 'o.o',
        '--expt-relaxed-constexpr',
        '-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE',
        *(f'-I{path}' for path in include_paths()),
        ROOT / 'csrc/cuda' / source,
    ]
    log = subprocess.run(command, check=True, text=True, stderr=subprocess.PIPE).stderr
    kernels = re.findall(
        r"entry function '(\w+)' for 'sm_90'.*?(\d+) bytes spill", log, re.S
    )
    # docs/cuda.md: instances of two kernels spill a register or two, with nvcc 13.0
    assert kernels
    for name, spilled in kernels:
        may = 'forward_planes' in name or 'backward_kernels_planes' in name
        assert int(spilled) <= 8 * may, (name, spilled)


@needs_ops
@pytest.mark.slow
def test_sanitizers_find_nothing():
    """Wild offsets on small maps: a read outside would be somebody's crash."""
    compiler = os.environ.get('CXX', 'g++')
    for library_name in ('libasan.so', 'libubsan.so'):
        found = subprocess.run(
            [compiler, f'-print-file-name={library_name}'],
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.strip()
        if not os.path.isabs(found):
            pytest.skip(f'{compiler} comes without {library_name}')
    script = ROOT / 'tests' / 'helpers' / 'sanitize.sh'
    subprocess.run(['bash', script, sys.executable], check=True)


@on_devices_and_meta
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_a_gradient_of_another_dtype_is_refused(device, dtype):
    """Read as if it were the features', it would give 1e20 or run past the end."""
    x, k, o = (torch.randn(1, c, 3, 4, device=device) for c in (2, 9, 8))
    m, grad = (torch.randn(1, c, 6, 8, device=device) for c in (9, 2))
    operators = torch.ops.dlu_mmdet
    for call, arguments in (
        (operators.dlu_backward_features, (x, k, o)),
        (operators.dlu_backward_kernels, (x, k, o)),
        (operators.carafe_backward_features, (x, m)),
        (operators.carafe_backward_masks, (x, m)),
    ):
        call(grad, *arguments, 3, 1, 2)
        with pytest.raises(TypeError, match='grad must have the dtype of features'):
            call(grad.to(dtype), *arguments, 3, 1, 2)


@on_devices_and_meta
@pytest.mark.parametrize('index', [0, 1, 2])
def test_eight_bits_are_refused(device, index):
    inputs = [torch.randn(1, c, 3, 4, device=device) for c in (2, 9, 8)]
    inputs[index] = inputs[index].to(torch.uint8).view(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match='float32, float64, float16 or bfloat16'):
        torch.ops.dlu_mmdet.dlu(*inputs, 3, 1, 2)


@on_devices_and_meta
def test_sizes_beyond_int_are_refused(device):
    """Cut to int, W = 2^32 + 5 would be 5 columns."""
    torch.set_deterministic_debug_mode('default')  # nobody fills 17 GB with NaN
    one = torch.zeros(1, 1, 1, 1, device=device)
    wide = [one.expand(1, c, 1, 2**32 + 5) for c in (1, 1, 2)]
    with pytest.raises(ValueError, match=r'less than 2\^31.* got 4294967301'):
        torch.ops.dlu_mmdet.dlu(*wide, 1, 1, 1)
    many = [one.new_empty(0, c * 2**32, 1, 1) for c in (1, 1, 2)]
    with pytest.raises(ValueError, match=r'less than 2\^31'):
        torch.ops.dlu_mmdet.dlu(*many, 1, 2**32, 1)


@needs_ops
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
def test_scratch_beyond_64_bits_is_refused(op):
    """The product of its sizes would wrap around: too little memory, or a crash."""
    k, s = 46339, 16384
    one = torch.zeros(1, 1, 1, 1, dtype=torch.float16)
    shapes = dict(dlu=[(k * k, 1, 1), (2 * s * s, 1, 1)], carafe=[(k * k, s, s)])[op]
    inputs = [one, *(one.expand(1, *shape) for shape in shapes)]
    with pytest.raises(
        ValueError, match=f'kernel_size={k}.* scale_factor={s} .*64 bits'
    ):
        getattr(torch.ops.dlu_mmdet, op)(*inputs, k, 1, s)


@pytest.mark.skipif(
    not hasattr(torch, '_lazy_clone'), reason='this torch has no lazy copies'
)
@pytest.mark.parametrize('device', DEVICES)
def test_lazy_copies_stay_lazy(device):
    """Reading an input does not make the copy that it stands for."""
    inputs = [torch.randn(1, c, 3, 4, device=device) for c in (2, 9, 8)]
    lazy = [torch._lazy_clone(tensor) for tensor in inputs]
    out = torch.ops.dlu_mmdet.dlu(*lazy, 3, 1, 2)
    # the CPU's operators take addresses, and Tensor.data_ptr makes the copy
    in_python = device == 'cpu' and library.cpu_loops()
    if not in_python or hasattr(torch.Tensor, 'const_data_ptr'):
        assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy)
    assert torch.equal(out, torch.ops.dlu_mmdet.dlu(*inputs, 3, 1, 2))
