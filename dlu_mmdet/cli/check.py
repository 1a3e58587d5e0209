"""Check this installation, or an upsampler of your own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from . import run
from .arguments import new_parser, upsampler_argument


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'check',
        'Without NAME: compare the operators that are here, compiled, in Triton and in '
        'plain PyTorch, with the reference, in every dtype and memory layout, forward '
        'and gradients, and time them beside F.interpolate. With NAME: check what '
        'necks and tools ask of an upsampler: sizes, gradients, mixed precision, empty '
        'batches, memory layouts, checkpoints, copies, compilation, export. The exit '
        'status is 1 if anything fails.',
    )
    parser.add_argument(
        'upsampler',
        nargs='?',
        type=upsampler_argument,
        metavar='NAME[:KEY=VALUE,...]',
        help='a class in a file, as in path/to/mine.py:Mine or mine.py:Mine:key=value, '
        'mine for ./mine.py, or a registered name',
    )
    parser.add_argument('--device', help='of the operators, as cuda (default: cpu)')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='fewer sizes, and only of the operators that are in use',
    )
    parser.add_argument(
        '--channels', type=int, help='of the features of NAME (default: 32)'
    )
    parser.add_argument(
        '--guide-channels',
        type=int,
        help='of the guide, for a guided upsampler (default: those of the features)',
    )
    args = parser.parse_args(argv)
    numbers = {
        '--channels': args.channels,
        '--guide-channels': args.guide_channels,
    }
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f'{flag} must be at least 1, got {value}')
    given = [flag for flag, value in numbers.items() if value is not None]
    if args.upsampler is None and given:
        raise ValueError(f'{given[0]} is for an upsampler; name one, or leave it out')
    given = ['--device'] * (args.device is not None) + ['--quick'] * args.quick
    if args.upsampler is not None and given:
        raise ValueError(f'{given[0]} is for the operators; leave out the upsampler')
    return args


def check_operators(device: str = 'cpu', quick: bool = False) -> int:
    """Print a table of the operators on a device and, if all are right, their times.

    Args:
        device (str): As torch names it.
        quick (bool): Whether to take three sizes in place of ten.

    Returns:
        int: 1 if numbers of the operators in use differ from the reference, else 0.

    Raises:
        ValueError: If the device is not available.
    """
    from ..collect_env import versions
    from ..ops import self_test

    self_test.check_device(device)
    found = versions()
    print(', '.join(f'{key} {found[key]}' for key in ('dlu_mmdet', 'Python', 'torch')))
    print(f'{device}: {self_test.backend_of(device)} operators')
    print(f'\n{"largest error / tolerance":32}{"NCHW":>8}{"channels_last":>15}')
    rows: dict[tuple[str, str], list[str]] = {}
    failures = []
    for each in self_test.compare_with_reference(device, quick):
        dtype = str(each.dtype).rpartition('.')[2]
        text = f'{each.error:.3f}' if each.error <= 1 else 'FAILED'
        row = rows.setdefault((each.operator, dtype), [])
        row.append(text)
        if each.first:
            failures.append(f'{each.operator}, {dtype}, {each.layout}: {each.first}')
        if len(row) == len(self_test.LAYOUTS):
            head = f'{each.operator}, {dtype}'
            print(f'{head:32}{row[0]:>8}{row[1]:>15}', flush=True)
    if not failures:  # what raises an error has no times
        times = self_test.time_operators(device, 5 if quick else 20)
        unit = times[0][1]
        print(f'\n{"forward, 256 x 50 x 84, float32":32}{"ms":>8}{"x nearest":>15}')
        for name, milliseconds in times:
            print(f'{name:32}{milliseconds:8.2f}{milliseconds / unit:15.1f}')
    for failure in failures:
        print(f'FAILED: {failure}')
    print(f'\n{len(failures) or "no"} difference{"s" * (len(failures) != 1)}')
    return int(bool(failures))


def check_other_operators(device: str, quick: bool = False) -> int:
    """Print the same for the operators that are on a device and not in use.

    Each kind runs in a new process, since a process loads one.

    Args:
        device (str): As torch names it.
        quick (bool): As :func:`check_operators`.

    Returns:
        int: 1 if any numbers differ from the reference, else 0.
    """
    from ..ops.library import other_backends

    command = [sys.executable, '-m', 'dlu_mmdet', 'check', '--device', device]
    command += ['--quick'] * quick
    status = 0
    for variables in other_backends(device.partition(':')[0]):
        print(flush=True)
        env = {**os.environ, **variables}
        status |= subprocess.run(command, env=env).returncode
    return int(status != 0)


def check_upsampler_class(
    upsampler: dict, channels: int | None = None, guide_channels: int | None = None
) -> int:
    """Print the checks of the contract for an upsampler.

    Args:
        upsampler (dict): ``upsample_cfg`` of the command line.
        channels (int, optional): Of the features. Defaults to 32.
        guide_channels (int, optional): Of the guide. Defaults to ``channels``.

    Returns:
        int: 1 if a check failed, else 0.
    """
    from ..upsamplers import resolve_upsampler
    from ..upsamplers.contract import check_upsampler

    cfg = resolve_upsampler(upsampler)
    failed = number = 0
    for title, problem in check_upsampler(cfg, channels or 32, guide_channels):
        print(f'{title:15}', f'FAILED: {problem}' if problem else 'ok', flush=True)
        number += 1
        failed += problem is not None
    print(f'{cfg["type"]}: {number - failed} of {number} checks passed')
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Check as the arguments say."""
    args = parse_args(argv)
    if args.upsampler is None:
        device = 'cpu' if args.device is None else args.device
        status = check_operators(device, args.quick)
        return status if args.quick else status | check_other_operators(device)
    from .. import register_all_modules

    register_all_modules()
    return check_upsampler_class(args.upsampler, args.channels, args.guide_channels)


if __name__ == '__main__':
    run('check')
