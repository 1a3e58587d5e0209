"""Random calls of the operators against the reference, on every CPU path.

    python tests/stress/operators.py [--calls 100000] [--seed 0] [--seconds 1800]
                                     [--isa avx512 avx2 generic] [--only CALL]

Forward and gradients of ``dlu_mmdet.ops.dlu`` and ``carafe``: shapes, groups, ratios,
a dtype and a memory layout for each argument, wild offsets, subsets that need a
gradient. Held to ``dlu_mmdet.ops.reference`` in float64 on the same rounded inputs;
that one in turn to the loops over pixels of loops.py (one call in LOOPS), and, in the
dtypes of the call, to itself in float64 (one call in PLAIN).

Features, kernels and gradients are finite: at an infinite feature the gradient of an
offset is infinite where the reference has NaN. Ends with status 1 on a difference and
prints the arguments, and the command that repeats the call.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import loops

from dlu_mmdet.ops import library, reference

ISAS = ('avx512', 'avx2', 'generic')
LOOPS, PLAIN = 50, 10
MOST_WORK = 1_000_000  # multiply-adds of a call: small calls find more in the same time
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WILD = (0.0, 1e-30, 1e30, 3e38, 1e300, float('inf'), float('nan'))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--calls', type=int, default=100_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seconds', type=float, default=1800, help='stop after these')
    widest = ISAS.index(library.cpu_loops() or ISAS[0])
    parser.add_argument(
        '--isa', nargs='+', choices=ISAS, default=ISAS[widest:], help='shares the calls'
    )
    parser.add_argument('--only', type=int, metavar='CALL', help='repeat one call')
    return parser.parse_args(argv)


def share_out(args: argparse.Namespace) -> int:
    """One process for each instruction set: it is chosen once a process."""
    start, status, totals = time.monotonic(), 0, [0, 0, 0]
    for number, isa in enumerate(args.isa):
        calls = range(args.calls)[number :: len(args.isa)]
        left = args.seconds - (time.monotonic() - start)
        command = [sys.executable, __file__, '--isa', isa, '--seed', str(args.seed)]
        command += ['--calls', str(len(calls))]
        command += ['--seconds', str(max(left, 0) / (len(args.isa) - number))]
        command += [] if args.only is None else ['--only', str(args.only)]
        env = {**os.environ, 'DLU_MMDET_ISA': isa, 'OMP_NUM_THREADS': '1'}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            print(line, end='', flush=True)
            if line.startswith('summary '):
                found = [int(word) for word in line.split() if word.isdigit()]
                totals = [a + b for a, b in zip(totals, found)]
        status = max(status, process.wait())
    print(
        'all: {} calls, {} comparisons, {} differences, {:.0f} s'.format(
            *totals, time.monotonic() - start
        )
    )
    return status


# ---- a call ------------------------------------------------------------------------


def draw_sizes(rng: random.Random) -> tuple[int, ...]:
    """N, C, H, W, K, G, s."""
    while True:
        n = rng.choices((0, 1, 2, 3), (1, 10, 5, 2))[0]
        c = rng.randint(1, 9) if rng.random() < 0.9 else rng.randint(10, 140)
        h = rng.randint(1, 9) if rng.random() < 0.9 else rng.randint(10, 30)
        w = rng.randint(1, 9) if rng.random() < 0.8 else rng.randint(10, 70)
        k = rng.choice((1, 3, 3, 5, 5, 7))
        g = rng.choice([d for d in range(1, c + 1) if c % d == 0])
        s = rng.choice((1, 2, 2, 2, 3, 4, 5)) if rng.random() < 0.97 else 8
        s = 16 if rng.random() < 0.01 else s
        if n * c * h * w * s * s * k * k <= MOST_WORK:
            return n, c, h, w, k, g, s


def draw_offsets(rng: random.Random, shape: tuple[int, ...]) -> torch.Tensor:
    """Offsets of one kind, a part of them of another, in float64."""
    h, w = shape[2:]

    def of_kind(kind: str) -> torch.Tensor:
        if kind == 'zeros':
            return torch.zeros(shape, dtype=torch.float64)
        if kind == 'lattice':
            return torch.randint(-w - 2, w + 3, shape).double()
        if kind == 'borders':  # a step to either side of them too
            steps = torch.randint(0, 3, shape).double() - 1
            place = torch.tensor([w - 1.0, h - 1.0])[torch.randint(0, 2, shape)]
            here = torch.arange(w).expand(shape) + torch.zeros(h, 1)
            return place * torch.randint(0, 2, shape) - here + steps * 2.0**-20
        if kind == 'wild':
            values = torch.tensor(WILD, dtype=torch.float64)
            signs = 1 - 2 * torch.randint(0, 2, shape)
            return values[torch.randint(0, len(WILD), shape)] * signs
        spread = dict(near=1.0, far=10.0)[kind]
        return torch.randn(shape, dtype=torch.float64) * spread

    kinds = ('near', 'near', 'far', 'zeros', 'lattice', 'borders', 'wild')
    first, second = of_kind(rng.choice(kinds)), of_kind(rng.choice(kinds))
    return torch.where(torch.rand(shape) < rng.choice((0.0, 0.1, 0.5)), second, first)


def lay_out(rng: random.Random, values: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The values, or those of one slice expanded, in a random memory layout."""
    kind = rng.choice(
        ('contiguous', 'channels_last', 'permuted', 'sliced', 'expanded', 'shifted')
    )
    if kind == 'channels_last':
        return kind, values.to(memory_format=torch.channels_last)
    if kind == 'permuted':
        order = rng.sample(range(4), 4)
        back = [order.index(axis) for axis in range(4)]
        return f'permuted {order}', values.permute(order).contiguous().permute(back)
    if kind == 'sliced':
        steps = [rng.choice((1, 1, 2, 3)) for _ in range(4)]
        begin = [rng.randint(0, 2) for _ in range(4)]
        sizes = [b + n * step for b, n, step in zip(begin, values.shape, steps)]
        # what lies between must not be read
        wide = torch.full(sizes, float('nan'), dtype=values.dtype)
        view = wide[tuple(slice(b, None, step) for b, step in zip(begin, steps))]
        return f'sliced from {begin} by {steps}', view.copy_(values)
    if kind == 'expanded':
        axes = rng.sample(range(4), rng.randint(1, 3))
        part = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(4))
        return f'expanded over {axes}', values[part].expand(values.shape)
    if kind == 'shifted':  # off the alignment of a vector
        by = rng.randint(1, 15)
        flat = torch.full((by + values.numel(),), float('nan'), dtype=values.dtype)
        view = flat[by:].view(values.shape)
        return f'shifted by {by}', view.copy_(values)
    return kind, values.contiguous()


def draw(seed: int, number: int) -> dict:
    """Everything of a call, from its number alone."""
    rng = random.Random(f'{seed} {number}')
    torch.manual_seed(rng.getrandbits(63))
    op = rng.choice(('dlu', 'dlu', 'carafe'))
    n, c, h, w, k, g, s = draw_sizes(rng)
    values = dict(features=torch.randn(n, c, h, w, dtype=torch.float64))
    if op == 'dlu':
        kernels = torch.randn(n, g * k * k, h, w, dtype=torch.float64)
        values.update(
            kernels=kernels.softmax(1) if rng.random() < 0.5 else kernels,
            offsets=draw_offsets(rng, (n, g * 2 * s * s, h, w)),
        )
    else:
        masks = torch.randn(n, g * k * k, h * s, w * s, dtype=torch.float64)
        values.update(masks=masks)
    values.update(grad=torch.randn(n, c, h * s, w * s, dtype=torch.float64))
    dtypes = {name: rng.choice(DTYPES) for name in values}
    dtypes['grad'] = dtypes['features']
    if rng.random() < 0.3:
        dtypes = dict.fromkeys(values, dtypes['features'])
    tensors, layouts = {}, {}
    for name, value in values.items():
        layouts[name], tensors[name] = lay_out(rng, value.to(dtypes[name]))
    grad = tensors.pop('grad')
    wanted = [name for name in tensors if rng.random() < 0.7]
    return dict(
        op=op,
        sizes=dict(N=n, C=c, H=h, W=w, K=k, G=g, s=s),
        dtypes=dtypes,
        layouts=layouts,
        gradients=wanted,
        tensors=tensors,
        grad=grad,
        geometry=(k, g, s),
    )


def evaluate(function, call: dict, exact: bool) -> dict[str, torch.Tensor]:
    """Result and gradients of a call, in its dtypes or in float64."""
    inputs = {
        name: t.detach()
        .to(torch.float64 if exact else t.dtype)
        .requires_grad_(name in call['gradients'])
        for name, t in call['tensors'].items()
    }
    out = function(*inputs.values(), *call['geometry'])
    found = dict(output=out.detach())
    if call['gradients']:
        grads = torch.autograd.grad(
            out,
            [inputs[name] for name in call['gradients']],
            call['grad'].double() if exact else call['grad'],
        )
        found.update(zip((f'grad of {name}' for name in call['gradients']), grads))
    return found


def rounded_positions(call: dict) -> dict:
    """The call with offsets that give, in float64, the positions that it rounds to.

    Positions are in float32 unless features or offsets are float64: x + dx is rounded,
    and the derivative jumps where that crosses a lattice point.
    """
    tensors = dict(call['tensors'])
    offsets = tensors.get('offsets')
    dtypes = [
        call['dtypes'][name] for name in ('features', 'offsets') if name in tensors
    ]
    if offsets is None or torch.float64 in dtypes:
        return call
    n, _, h, w = offsets.shape
    g, s = call['geometry'][1:]
    dx, dy = offsets.float().reshape(n, g, 2, s * s, h, w).unbind(2)
    xs, ys = torch.arange(w), torch.arange(h)[:, None]
    u, v = (xs + dx).double() - xs, (ys + dy).double() - ys
    tensors['offsets'] = torch.stack([u, v], 2).reshape(offsets.shape)
    return dict(call, tensors=tensors)


def bounds(call: dict) -> dict[str, torch.Tensor]:
    """How far rounding alone may take each result of a call.

    A sum of n products is off by a few sqrt(n) roundings (to the accumulation's dtype)
    of the sum of their magnitudes. These are bounded with the largest kernel value.
    """
    c, h, w = (call['sizes'][name] for name in 'CHW')
    k, g, s = call['geometry']
    x = call['tensors']['features'].double().abs()
    grad = call['grad'].double().abs()
    weights = call['tensors']['kernels' if call['op'] == 'dlu' else 'masks'].double()
    largest = weights.abs().amax() if weights.numel() else 0.0

    def box(t: torch.Tensor, side: int, stride: int) -> torch.Tensor:
        padding = side // 2 if stride == 1 else 0
        return F.avg_pool2d(t, side, stride, padding, divisor_override=1)

    def repeat(t: torch.Tensor) -> torch.Tensor:
        return t.repeat_interleave(s, 2).repeat_interleave(s, 3)

    def errors(terms: int, summed_as: str = 'features') -> float:
        dtype = torch.promote_types(call['dtypes'][summed_as], torch.float32)
        # equal summands round alike: their errors add up
        alike = any('expanded' in layout for layout in call['layouts'].values())
        most = terms if alike else min(terms, 4 * terms**0.5)
        return (most + 8) * torch.finfo(dtype).eps / 2

    n = x.shape[0]
    summed = box(grad, s, s)  # over the sub-pixels of a source pixel
    found = dict(output=errors(k * k) * largest * repeat(box(x, k, 1)))
    found['grad of features'] = errors(k * k * s * s) * largest * box(summed, k, 1)
    if call['op'] == 'carafe':
        taps = F.unfold(x, k, padding=k // 2).reshape(n, g, c // g, k * k, h, w)
        full = repeat(taps.flatten(0, 2)).reshape(n, g, c // g, k * k, h * s, w * s)
        full = full * grad.reshape(n, g, c // g, 1, h * s, w * s)
        found['grad of masks'] = errors(c // g) * full.sum(2).flatten(1, 2)
        return found
    # each d k~ is shared out among four places, which offsets choose: all of a plane
    # may meet in one
    taps = F.unfold(x, k, padding=k // 2).reshape(n, g, c // g, k * k, h, w)
    taps = (taps * summed.reshape(n, g, c // g, 1, h, w)).sum((2, 4, 5))
    # ... and added in float32, unless features and kernels are float64
    most = errors(c // g)
    most += max(errors(h * w * s * s, name) for name in ('features', 'kernels'))
    found['grad of kernels'] = most * taps.reshape(n, g * k * k, 1, 1)
    slopes = (grad * repeat(box(x, k, 1))).reshape(n, g, c // g, h, s, w, s).sum(2)
    slopes = slopes.permute(0, 1, 3, 5, 2, 4).reshape(n, g, 1, s * s, h, w)
    slopes = 2 * errors(c // g * k * k) * largest * slopes.expand(-1, -1, 2, -1, -1, -1)
    found['grad of offsets'] = slopes.reshape(n, g * 2 * s * s, h, w)
    return found


def differs(actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> str:
    """How a result differs from the expected one, '' if it does not."""
    if actual.shape != expected.shape:
        return f'shape {tuple(actual.shape)} instead of {tuple(expected.shape)}'
    info = torch.finfo(actual.dtype)
    spacing = info.smallest_normal * info.eps
    bound = bound + expected.abs() * (0.501 * info.eps) + spacing
    wrong = ~((actual.double() - expected).abs() <= bound)
    wrong &= ~(actual.isnan() & expected.isnan())
    if not wrong.any():
        return ''
    at = tuple(wrong.nonzero()[0].tolist())
    return (
        f'{int(wrong.sum())} of {wrong.numel()} values, at {at} '
        f'{actual[at].item()!r} instead of {expected[at].item()!r}, allowed '
        f'{bound.expand(expected.shape)[at].item():.3g}'
    )


def check(call: dict, number: int) -> tuple[int, list[str]]:
    """Number of comparisons of a call, and the differences found."""
    op = call['op']
    exact = evaluate(getattr(reference, op), rounded_positions(call), True)
    bound = bounds(call)
    backends = dict(fused=library)
    if number % PLAIN == 0:
        backends['plain PyTorch'] = reference
    compared, problems = 0, []
    for title, backend in backends.items():
        for name, actual in evaluate(getattr(backend, op), call, False).items():
            source = 'features' if name == 'output' else name.removeprefix('grad of ')
            compared += 1
            if actual.dtype != call['dtypes'][source]:
                problems.append(f'{title}: {name} is {actual.dtype}')
            elif problem := differs(actual, exact[name], bound[name]):
                problems.append(f'{title}: {name}: {problem}')
    if number % LOOPS == 0 and exact['output'].numel() * call['geometry'][0] < 4000:
        arrays = [
            t.double().numpy() for t in rounded_positions(call)['tensors'].values()
        ]
        with np.errstate(all='ignore'):
            slow = getattr(loops, op)(*arrays, *call['geometry'])
        compared += 1
        # both in float64, each a sum in an order of its own
        bound64 = dict(call, dtypes=dict.fromkeys(call['dtypes'], torch.float64))
        bound64 = bounds(bound64)['output']
        if problem := differs(exact['output'], torch.from_numpy(slow), bound64):
            problems.append(f'reference against the loops: {problem}')
    return compared, problems


def run(args: argparse.Namespace) -> int:
    """All calls of one instruction set."""
    torch.set_num_threads(1)
    if not library.is_available('cpu'):
        print('the extension is not built, so there is nothing to compare')
        return 1
    isa, start, reported = args.isa[0], time.monotonic(), time.monotonic()
    calls = compared = different = 0
    # every instruction set has calls of its own
    first = ISAS.index(isa) * 10**9
    numbers = [args.only] if args.only is not None else range(first, first + args.calls)
    for number in numbers:
        now = time.monotonic()
        if now - start > args.seconds:
            print(f'stopped after {args.seconds:.0f} s, as --seconds asks')
            break
        if now - reported > 15:
            reported = now
            print(
                f'{isa}: {calls} of {len(numbers)} calls, {now - start:.0f} s',
                flush=True,
            )
        call = draw(args.seed, number)
        if args.only is not None:
            describe(call)
        count, problems = check(call, number)
        calls, compared, different = (
            calls + 1,
            compared + count,
            different + len(problems),
        )
        if problems:
            print(*problems, sep='\n')
            describe(call)
            print(
                f'again: python tests/stress/operators.py --isa {isa} --seed '
                f'{args.seed} --only {number}',
                flush=True,
            )
    print(
        f'summary of {isa}: {calls} calls , {compared} comparisons , {different} '
        f'differences , {time.monotonic() - start:.1f} s',
        flush=True,
    )
    return 1 if different else 0


def describe(call: dict) -> None:
    for key in ('op', 'sizes', 'dtypes', 'layouts', 'gradients'):
        print(f'  {key}: {call[key]}')


def main() -> int:
    args = parse_args()
    if [os.environ.get('DLU_MMDET_ISA')] == list(args.isa):
        return run(args)
    return share_out(args)


if __name__ == '__main__':
    sys.exit(main())
