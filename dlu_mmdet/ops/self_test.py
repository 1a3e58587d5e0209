"""Compare the operators that run here with the reference, and time them.

Needs torch alone. The reference is plain PyTorch, in float64 on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.timing import interleaved
from . import library, reference
from .functional import carafe, dlu, window_scores

#: Largest difference that rounding explains, as a share of the largest value.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}
# (N, C, H, W, K, G, s)
_QUICK = [(2, 6, 5, 7, 3, 2, 2), (1, 8, 9, 40, 5, 1, 2), (1, 3, 4, 1, 5, 1, 3)]
_CASES = [
    *_QUICK,
    (1, 1, 1, 1, 1, 1, 1),
    (0, 4, 3, 3, 5, 1, 2),
    (2, 6, 4, 17, 7, 2, 1),
    (1, 8, 6, 5, 5, 4, 4),
    (1, 70, 12, 37, 5, 1, 2),
    (2, 33, 5, 18, 9, 1, 2),
    (1, 4, 3, 4, 3, 1, 8),
]
_OPERATORS = {'dlu': dlu, 'carafe': carafe, 'window_scores': window_scores}


@dataclass(frozen=True)
class Result:
    """The comparison of one operator in one dtype and memory layout.

    Attributes:
        operator (str): 'dlu', 'carafe' or 'window_scores'.
        dtype (torch.dtype): Of all tensors.
        layout (str): Of :data:`LAYOUTS`.
        error (float): Largest difference, as a share of the tolerance; at most 1 where
            the numbers are right.
        first (str): The first call that differs, and how: the tensor and its
            difference, or the error that the call raised. Empty where none does.
    """

    operator: str
    dtype: torch.dtype
    layout: str
    error: float
    first: str


def backend_of(device: str) -> str:
    """'compiled', 'Triton' or 'plain PyTorch': what runs the operators on a device."""
    empty = torch.empty(0, device=device)
    if not library.handles(empty):
        return 'plain PyTorch'
    on_triton = empty.is_cuda and library.gpu_backend() == 'triton'
    return 'Triton' if on_triton else 'compiled'


def check_device(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        ValueError: If torch cannot use it.
    """
    available = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
    try:
        torch.zeros(1, device=device).cpu()  # meta has no data
    # of torch, in many words
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f'--device: {device!r} is not available; available: {", ".join(available)}'
        ) from error


def compare_with_reference(device: str, quick: bool = False) -> Iterator[Result]:
    """Compare output and gradients of every operator, dtype and layout.

    Args:
        device (str): Where the operators run, as 'cuda:0'.
        quick (bool): Whether to take three sizes in place of ten.

    Yields:
        Result: One for each operator, dtype and layout.
    """
    cases = _QUICK if quick else _CASES
    for operator, dtype, layout in itertools.product(_OPERATORS, TOLERANCE, LAYOUTS):
        errors, first = [0.0], ''
        for case in cases:
            n, c, h, w, k, g, s = case
            call = (
                f'features ({n}, {c}, {h}, {w}), kernel_size={k}, group_size={g}, '
                f'scale_factor={s}'
            )
            try:
                compared = list(_compare(operator, case, dtype, layout, device))
            except Exception as error:  # a GPU without code, Triton's compiler, memory
                errors.append(float('inf'))
                what = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
                first = first or f'{call}: {what}'
                continue
            for name, error in compared:
                errors.append(error)
                if not first and not error <= 1:
                    first = f'{name} of {call}: {error:.3g} times the tolerance'
        # NaN if one is
        yield Result(operator, dtype, layout, float(torch.tensor(errors).max()), first)


def _compare(
    operator: str, case: Sequence[int], dtype: torch.dtype, layout: str, device: str
) -> Iterator[tuple[str, float]]:
    """Error of the output and of each gradient, as a share of the tolerance."""
    named, grad, sizes = make_inputs(operator, case, dtype)
    found = _run(
        _OPERATORS[operator],
        [t.to(device, memory_format=LAYOUTS[layout]) for t in named.values()],
        grad.to(device, memory_format=LAYOUTS[layout]),
        sizes,
    )
    expected = _run(
        getattr(reference, operator),
        [t.double() for t in named.values()],
        grad.double(),
        sizes,
    )
    names = ['output', *(f'gradient of {name}' for name in named)]
    for name, got, wanted in zip(names, found, expected):
        if got.dtype != dtype or got.shape != wanted.shape:
            yield f'{name} ({got.dtype}, {tuple(got.shape)})', float('inf')
        elif wanted.numel():
            difference = (got.cpu().double() - wanted).abs().max()
            scale = TOLERANCE[dtype] * wanted.abs().max().clamp(min=1)
            yield name, float(difference / scale)


def _run(function, inputs: list[Tensor], grad: Tensor, sizes) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs, *sizes)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def make_inputs(
    operator: str, case: Sequence[int], dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor, tuple[int, int, int]]:
    """Random tensors of a call.

    Args:
        operator (str): 'dlu', 'carafe' or 'window_scores'.
        case (Sequence[int]): N, C, H, W, K, G and s.
        dtype (torch.dtype): Of all tensors.

    Returns:
        tuple: Tensors by name, gradient of the output, and (K, G, s).
    """
    n, c, h, w, k, g, s = case
    generator = torch.Generator().manual_seed(sum(case))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    fine, kernels = (n, c, h * s, w * s), g * k * k
    named = dict(features=normal(n, c, h, w))
    grad = normal(*fine)
    if operator == 'dlu':
        named['kernels'] = normal(n, kernels, h, w).softmax(1)
        # off the lattice, where the derivative of an offset jumps
        offsets = normal(n, g * 2 * s * s, h, w).mul(3).round()
        named['offsets'] = offsets + 0.375
    elif operator == 'carafe':
        named['masks'] = normal(n, kernels, h * s, w * s).softmax(1)
    else:
        named['queries'], grad = grad, normal(n, kernels, h * s, w * s)
    return {key: x.to(dtype) for key, x in named.items()}, grad.to(dtype), (k, g, s)


def time_operators(device: str, rounds: int = 20) -> list[tuple[str, float]]:
    """Time forward passes in float32: features of 256 x 50 x 84, K 5, G 1, s 2.

    Args:
        device (str): Where the operators run.
        rounds (int): Calls of each, one after the other in turn.

    Returns:
        list[tuple[str, float]]: Names and median milliseconds; interpolation first.
    """
    case = (1, 256, 50, 84, 5, 1, 2)
    made = {name: make_inputs(name, case, torch.float32) for name in ('dlu', 'carafe')}
    features = made['dlu'][0]['features'].to(device)
    actions = {
        'F.interpolate, nearest': lambda: F.interpolate(features, scale_factor=2),
        'F.interpolate, bilinear': lambda: F.interpolate(
            features, scale_factor=2, mode='bilinear'
        ),
    }
    for name, (named, _, sizes) in made.items():
        tensors = [tensor.to(device) for tensor in named.values()]
        actions[name] = lambda f=_OPERATORS[name], t=tensors, s=sizes: f(*t, *s)
    with torch.no_grad():
        times = interleaved([*actions.values()], rounds, torch.device(device))
    return [(name, 1e3 * median) for name, (median, _) in zip(actions, times)]
