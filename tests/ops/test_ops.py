import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import loops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dlu_mmdet import ops as fused
from dlu_mmdet.ops import carafe, dlu, reference

# (N, C, H, W, K, G, s): every size at least once at its edge
CASES = [
    (1, 4, 3, 5, 3, 1, 2),
    (2, 6, 4, 3, 5, 2, 2),
    (1, 4, 5, 4, 7, 4, 3),
    (2, 3, 2, 2, 1, 1, 4),
    (1, 4, 1, 6, 3, 2, 2),
    (1, 2, 6, 1, 3, 1, 2),
    (2, 3, 1, 1, 5, 3, 3),
    (1, 5, 4, 4, 3, 1, 1),
    (1, 2, 3, 3, 3, 2, 8),
    (0, 4, 3, 5, 3, 1, 2),
]


def make_dlu(n, c, h, w, k, g, s, spread=3.0, dtype=torch.float64):
    torch.manual_seed(n + c + h + w + k + g + s)
    x = torch.randn(n, c, h, w, dtype=dtype)
    kernels = torch.randn(n, g, k * k, h, w, dtype=dtype).softmax(2)
    offsets = torch.randn(n, g * 2 * s * s, h, w, dtype=dtype) * spread
    return x, kernels.flatten(1, 2), offsets


def make_masks(n, c, h, w, k, g, s, dtype=torch.float64):
    torch.manual_seed(n + c + h + w + k + g + s)
    x = torch.randn(n, c, h, w, dtype=dtype)
    return x, torch.randn(n, g * k * k, h * s, w * s, dtype=dtype)


BACKENDS = pytest.mark.parametrize(
    'ops', [reference, fused], ids=['reference', 'fused']
)


@BACKENDS
@pytest.mark.parametrize('case', CASES)
def test_dlu_is_the_formula(case, ops):
    x, kernels, offsets = make_dlu(*case)
    expected = loops.dlu(x.numpy(), kernels.numpy(), offsets.numpy(), *case[4:])
    out = ops.dlu(x, kernels, offsets, *case[4:])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize('case', CASES)
def test_carafe_is_the_formula(case, ops):
    x, masks = make_masks(*case)
    expected = loops.carafe(x.numpy(), masks.numpy(), *case[4:])
    out = ops.carafe(x, masks, *case[4:])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize(
    'case', [(1, 2, 3, 4, 3, 1, 2), (1, 4, 2, 3, 3, 2, 3), (1, 2, 1, 3, 5, 1, 2)]
)
def test_gradients_away_from_lattice_points(case, ops):
    x, kernels, offsets = make_dlu(*case)
    # fractions in [0.2, 0.8]: no finite difference crosses a lattice point
    offsets = offsets.floor() + 0.2 + 0.6 * torch.rand_like(offsets)
    tensors = [t.requires_grad_() for t in (x, kernels, offsets)]
    assert torch.autograd.gradcheck(lambda *t: ops.dlu(*t, *case[4:]), tensors)
    tensors = [t.requires_grad_() for t in make_masks(*case)]
    assert torch.autograd.gradcheck(lambda *t: ops.carafe(*t, *case[4:]), tensors)


def numeric_gradients(case, spread):
    """Central differences of the loop, for a random cotangent."""
    arrays = [t.numpy() for t in make_dlu(*case, spread=spread)]
    arrays[2] = np.floor(arrays[2]) + 0.2 + 0.6 * (arrays[2] % 1)
    cotangent = np.random.RandomState(0).randn(*loops.dlu(*arrays, *case[4:]).shape)
    grads, eps = [], 1e-5
    for array in arrays:
        grad = np.zeros_like(array)
        for at in itertools.product(*map(range, array.shape)):
            kept, values = array[at], []
            for sign in (1, -1):
                array[at] = kept + sign * eps
                values.append((loops.dlu(*arrays, *case[4:]) * cotangent).sum())
            array[at] = kept
            grad[at] = (values[0] - values[1]) / (2 * eps)
        grads.append(grad)
    return arrays, cotangent, grads


@BACKENDS
@pytest.mark.parametrize('case', [(1, 2, 3, 3, 3, 2, 2), (1, 1, 2, 4, 3, 1, 3)])
def test_backward_is_the_derivative_of_the_loop(case, ops):
    arrays, cotangent, grads = numeric_gradients(case, spread=1.0)
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    out = ops.dlu(*tensors, *case[4:])
    out.backward(torch.from_numpy(cotangent))
    for tensor, grad in zip(tensors, grads):
        np.testing.assert_allclose(tensor.grad.numpy(), grad, rtol=1e-5, atol=1e-7)


@BACKENDS
def test_agrees_with_grid_sample(ops):
    """The authors sample with grid_sample; their weights must mean the same here."""
    n, c, h, w, k, s = 2, 4, 5, 7, 5, 2
    x, kernels, offsets = make_dlu(n, c, h, w, k, 1, s)
    ys, xs = torch.meshgrid(torch.arange(h * 1.0), torch.arange(w * 1.0), indexing='ij')
    out = torch.empty(n, c, h * s, w * s, dtype=x.dtype)
    patches = F.unfold(x, k, padding=k // 2).view(n, c, k * k, h, w)
    for i, j in itertools.product(range(s), range(s)):
        dx, dy = offsets[:, i * s + j], offsets[:, s * s + i * s + j]
        grid = torch.stack(
            [2 * (xs + dx) / (w - 1) - 1, 2 * (ys + dy) / (h - 1) - 1], -1
        )
        sampled = F.grid_sample(
            kernels, grid, padding_mode='border', align_corners=True
        )
        out[:, :, i::s, j::s] = torch.einsum('nkhw,nckhw->nchw', sampled, patches)
    torch.testing.assert_close(ops.dlu(x, kernels, offsets, k, 1, s), out)


@BACKENDS
def test_offset_gradient_at_lattice_points_and_borders(ops):
    """DLU starts with offsets of zero: this is its first gradient."""
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    kernels = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]], dtype=torch.float64)
    offsets = torch.zeros(1, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    ops.dlu(x, kernels, offsets, 1, 1, 1).sum().backward()
    # right-hand difference inside, 0 at both borders; H = 1 clamps y
    assert offsets.grad[0, 0, 0].tolist() == [0, 2, 4, 0]
    assert offsets.grad[0, 1, 0].tolist() == [0, 0, 0, 0]


def test_the_authors_derivative_at_zero_depends_on_rounding():
    """Ours is the right-hand one at every pixel, as the docstring says."""
    w = 84
    kernels = torch.arange(w, dtype=torch.float32) ** 2
    right = (kernels[2:] - kernels[1:-1]).tolist()
    # positions from -1 to 1, as the authors have them for grid_sample
    offsets = torch.zeros(w, requires_grad=True)
    x = torch.linspace(-1, 1, w) + offsets / (w - 1) * 2
    sampled = F.grid_sample(
        kernels.expand(1, 1, 2, w),
        torch.stack([x, torch.zeros(w)], -1)[None, None],
        padding_mode='border',
        align_corners=True,
    )
    (theirs,) = torch.autograd.grad(sampled.sum(), offsets)
    same = [round(a) == b for a, b in zip(theirs[1:-1].tolist(), right)]
    assert any(same) and not all(same)
    offsets = torch.zeros(1, 2, 1, w, requires_grad=True)
    out = reference.dlu(
        torch.ones(1, 1, 1, w), kernels.view(1, 1, 1, w), offsets, 1, 1, 1
    )
    (ours,) = torch.autograd.grad(out.sum(), offsets)
    assert ours[0, 0, 0, 1:-1].tolist() == right


@BACKENDS
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_a_bad_offset_spoils_its_own_pixel_only(bad, ops):
    case = (1, 2, 3, 4, 3, 1, 2)
    x, kernels, offsets = make_dlu(*case)
    clean = ops.dlu(x, kernels, offsets, *case[4:])
    offsets[0, 1, 2, 3] = bad  # i = 0, j = 1 of source pixel (2, 3)
    out = ops.dlu(x, kernels, offsets, *case[4:])
    spoilt = torch.zeros(1, 2, 6, 8, dtype=torch.bool)
    spoilt[:, :, 4, 7] = True
    assert out[spoilt].isnan().all()
    assert torch.equal(out[~spoilt], clean[~spoilt])


@BACKENDS
def test_huge_offsets_clamp_to_the_border(ops):
    case = (1, 2, 3, 4, 3, 1, 2)
    x, kernels, offsets = make_dlu(*case)
    big = ops.dlu(x, kernels, torch.full_like(offsets, 1e30), *case[4:])
    corner = kernels[:, :, -1:, -1:].expand_as(kernels)
    expected = ops.dlu(x, corner, torch.zeros_like(offsets), *case[4:])
    torch.testing.assert_close(big, expected)


@BACKENDS
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_samples_at_exact_positions(dtype, ops):
    """Half precision cannot hold a coordinate of 300.5; positions must not
    be computed in it."""
    x, kernels, offsets = make_dlu(1, 1, 1, 600, 3, 1, 2, spread=1.0)
    x, kernels, offsets = (t.to(dtype) for t in (x, kernels, offsets))
    out = ops.dlu(x, kernels, offsets, 3, 1, 2)
    assert out.dtype == dtype
    exact = ops.dlu(x.double(), kernels.double(), offsets.double(), 3, 1, 2)
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    assert (out.double() - exact).abs().max() <= rounding


@BACKENDS
def test_layout_of_the_input_is_kept(ops):
    x, kernels, offsets = make_dlu(2, 8, 3, 5, 3, 2, 2)
    expected = ops.dlu(x, kernels, offsets, 3, 2, 2)
    last = x.to(memory_format=torch.channels_last)
    out = ops.dlu(last, kernels, offsets, 3, 2, 2)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    torch.testing.assert_close(out, expected)
    strided = x.repeat_interleave(2, dim=3)[..., ::2]
    torch.testing.assert_close(ops.dlu(strided, kernels, offsets, 3, 2, 2), expected)


@pytest.mark.parametrize('s', [1, 2])
def test_no_intermediate_is_larger_than_the_output(s):
    """An unfolded map or upsampled kernels would be K*K times as large."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in tree_flatten(out)[0]:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    self.numel = max(self.numel, storage.nbytes() // tensor.itemsize)
            return out

    x, kernels, offsets = make_dlu(1, 64, 32, 32, 5, 1, s, dtype=torch.float32)
    masks = torch.rand(1, 25, 32 * s, 32 * s)
    for call in (
        lambda: reference.dlu(x, kernels, offsets, 5, 1, s),
        lambda: reference.carafe(x, masks, 5, 1, s),
    ):
        with Largest() as largest:
            out = call()
        padded = 64 * 36 * 36
        assert largest.numel <= max(out.numel(), padded)


X, KERNELS, OFFSETS = make_dlu(1, 4, 3, 5, 3, 1, 2)


@pytest.mark.parametrize(
    'arguments, error, words',
    [
        ((X, KERNELS, OFFSETS, 4, 1, 2), ValueError, ['kernel_size', '4', 'odd']),
        ((X, KERNELS, OFFSETS, 3, 3, 2), ValueError, ['group_size', '3', '4 channels']),
        ((X, KERNELS, OFFSETS, 3, 1, 0), ValueError, ['scale_factor', '0']),
        ((X, KERNELS, OFFSETS, 3, 1, 2.0), TypeError, ['scale_factor', '2.0']),
        (
            (X, KERNELS[:, :8], OFFSETS, 3, 1, 2),
            ValueError,
            ['kernels', '(1, 9, 3, 5)', '(1, 8, 3, 5)'],
        ),
        (
            (X, KERNELS, OFFSETS[..., 1:], 3, 1, 2),
            ValueError,
            ['offsets', '(1, 8, 3, 5)', '(1, 8, 3, 4)'],
        ),
        (
            (X[0], KERNELS, OFFSETS, 3, 1, 2),
            ValueError,
            ['features', '4 dimensions', '(4, 3, 5)'],
        ),
        ((X.int(), KERNELS, OFFSETS, 3, 1, 2), TypeError, ['features', 'torch.int32']),
        (
            (X, KERNELS.to('meta'), OFFSETS, 3, 1, 2),
            ValueError,
            ['kernels', 'device', 'meta'],
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    with pytest.raises(error) as info:
        dlu(*arguments)
    for word in words:
        assert word in str(info.value)


def test_wrong_masks_are_named():
    with pytest.raises(ValueError, match=r'masks.*\(1, 9, 6, 10\).*\(1, 9'):
        carafe(X, KERNELS, 3, 1, 2)
