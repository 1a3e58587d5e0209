"""Export a detector, or a part of it, to ONNX."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import register_all_modules
from . import run
from .arguments import add_cfg_options, add_upsampler, new_parser, size

if TYPE_CHECKING:
    from torch import nn

    from ..export.onnx import Part
    from ..export.verify import Agreement

# dlu_mmdet.export.PARTS
PARTS = ('detector', 'neck', 'boxes')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'export',
        'Write the neck of a detector, its backbone, neck and head, or '
        'all of it up to its boxes, as an ONNX model of standard operators whose '
        'batch, height and width are open',
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', required=True, help='.onnx file')
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='detector',
        help="'detector', a normalized image to the maps of the head; 'boxes', the "
        "same to its boxes, scores and labels; 'neck', the maps of the backbone to "
        'those of the pyramid',
    )
    parser.add_argument(
        '--divisor',
        type=int,
        help='pixels of which height and width will be multiples; defaults to '
        'data_preprocessor.pad_size_divisor of the config, 32 at least',
    )
    parser.add_argument(
        '--opset',
        type=int,
        help="version of ONNX's operators, 18 or later (default: that of torch)",
    )
    parser.add_argument(
        '--time',
        nargs='+',
        type=size,
        default=[],
        metavar='HEIGHTxWIDTH',
        help='time onnxruntime and PyTorch on images of these sizes',
    )
    parser.add_argument(
        '--rounds', type=int, default=5, help='runs of --time; medians are printed'
    )
    parser.add_argument('--threads', type=int, help='CPU threads of --time')
    add_upsampler(parser)
    add_cfg_options(parser)
    return parser.parse_args(argv)


def describe_sizes(part: Part, model: nn.Module) -> str:
    """Which inputs an exported model takes, and what happens with others."""
    from mmdet.utils import get_test_pipeline_cfg

    from ..export.onnx import guard_name

    lines = [
        f'batch 1 or more, height and width multiples of {part.divisor}; for others '
        f'onnxruntime stops at its node {guard_name(part)}'
    ]
    # a config may leave out the data
    known = model.cfg.get('test_dataloader')
    for step in get_test_pipeline_cfg(model.cfg.copy()) if known else ():
        scale = step.get('scale')
        if (
            str(step['type']).endswith('Resize')
            and isinstance(scale, (list, tuple))
            and not step.get('keep_ratio', False)
            and any(length % part.divisor for length in scale)
        ):
            width, height = scale
            lines.append(
                f'the test pipeline makes images of {height} x {width}, no multiples '
                f'of {part.divisor}: resize to multiples, or give a --divisor of both'
            )
    return '\n'.join(lines)


def describe_agreement(part: Part, agreement: Agreement) -> str:
    """How far onnxruntime and PyTorch agree."""
    from ..export.verify import SIZES, TOLERANCE

    sizes = ' and '.join(
        f'{batch} x {part.divisor * height} x {part.divisor * width}'
        for batch, height, width in SIZES
    )
    if agreement.detections == 0:
        return (
            f'NOT VERIFIED: PyTorch and onnxruntime find nothing in random images of '
            f'{sizes}, so no box was compared; compare both on a photo'
        )
    over = f', {agreement.detections} detections' if part.detects else ''
    return (
        f'largest difference to PyTorch at {sizes}, which were not traced{over}: '
        f'{agreement.difference:.1e}, of {TOLERANCE:g} that pass'
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    import torch

    from ..engine import load_detector, use_safe_loaders
    from ..export import check_out, check_packages, choose_part, describe, export_onnx
    from ..export.onnx import check_opset
    from ..export.timing import check_sizes, summary, time_table

    use_safe_loaders()
    check_packages()
    check_out(args.out)
    if args.opset is not None:
        check_opset(args.opset)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_detector(
        args.config,
        args.checkpoint,
        cfg_options=args.cfg_options,
        upsampler=args.upsampler,
    )
    part = choose_part(model, args.part, args.divisor)
    check_sizes(part, args.time or [])
    began, worked = time.perf_counter(), time.process_time()
    agreement = export_onnx(part, args.out, describe(model), args.opset)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    print(f'{args.out}: exported in {took:.1f} s, {worked:.1f} s of processor time')
    print(summary(args.out))
    print(describe_sizes(part, model))
    if part.left_out:
        print(f'not in the model: {", ".join(part.left_out)}')
    print(describe_agreement(part, agreement))
    if args.time:
        print(time_table(part, args.out, args.time, args.rounds))


if __name__ == '__main__':
    run('export')
