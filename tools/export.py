"""Export a detector: python tools/export.py CONFIG CHECKPOINT --out model.onnx."""

import argparse
import time

import torch

from dlu_mmdet.analysis import op_benchmark
from dlu_mmdet.analysis.export_benchmark import (
    OnnxModel,
    check_sizes,
    difference,
    summary,
    time_table,
)
from dlu_mmdet.engine import (
    PARTS,
    add_cfg_options,
    add_upsampler,
    check_out,
    check_packages,
    choose_part,
    describe,
    export_onnx,
    load_detector,
    print_anything,
    use_safe_loaders,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write the neck of a detector, its backbone, neck and head, or '
        'all of it up to its boxes, as an ONNX model of standard operators whose '
        'batch, height and width are open'
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', required=True, help='.onnx file')
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='detector',
        help="'detector', a normalised image to the maps of the head; 'boxes', the "
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
        '--time',
        nargs='+',
        type=op_benchmark.parse_size,
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
    return parser.parse_args()


def main() -> None:
    print_anything()
    use_safe_loaders()
    args = parse_args()
    check_packages()
    check_out(args.out)
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
    export_onnx(part, args.out, describe(model))
    took, worked = time.perf_counter() - began, time.process_time() - worked
    print(f'{args.out}: exported in {took:.1f} s, {worked:.1f} s of processor time')
    print(summary(args.out))
    found = difference(part, OnnxModel(args.out), batch=1, height=3, width=1)
    size = f'{3 * part.divisor} x {part.divisor}'
    print(f'largest difference to PyTorch at {size}, which was not traced: {found:.1e}')
    if args.time:
        print(time_table(part, args.out, args.time, args.rounds))


if __name__ == '__main__':
    main()
