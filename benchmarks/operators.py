"""Time the operators: python benchmarks/operators.py [--batch 1 8] [--out PNG].

With ``--no-detector`` it needs torch alone, and ``dlu_mmdet.ops`` and
``dlu_mmdet.utils`` in a package that may hold nothing else.
"""

import argparse
import platform
from dataclasses import asdict
from pathlib import Path

import op_benchmark
import torch

from dlu_mmdet.ops.self_test import check_device
from dlu_mmdet.utils.tables import to_json

CONFIG = (
    Path(__file__).resolve().parents[1]
    / 'configs/shapes/faster-rcnn_r18_fpn-dlu_shapes.py'
)
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
LAYOUTS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time DLU and CARAFE, fused and composed, beside bilinear and '
        'nearest interpolation: C 256, K 5, s 2; then every upsampler as a whole. '
        'Prints tables.'
    )
    parser.add_argument('--batch', nargs='+', type=int, default=[1, 8])
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=op_benchmark.parse_size,
        default=op_benchmark.SIZES,
        metavar='HEIGHTxWIDTH',
        help='source maps',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=15,
        help='runs of each, interleaved; medians are printed',
    )
    parser.add_argument(
        '--no-composed',
        dest='composed',
        action='store_false',
        help='leave out the slow ones made of PyTorch calls',
    )
    parser.add_argument(
        '--ours',
        action='store_true',
        help='time nothing but bilinear and the operators of this package',
    )
    parser.add_argument(
        '--no-detector',
        dest='detector',
        action='store_false',
        help='leave out every upsampler as a whole, UnifiedFPN at 800 x 1344 and the '
        'training of a small detector',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--layout', choices=LAYOUTS, default='nchw')
    parser.add_argument('--threads', type=int, help='CPU threads of torch')
    parser.add_argument(
        '--out',
        default='work_dirs/benchmark.png',
        help="plot of the times; '' for none",
    )
    parser.add_argument(
        '--json', type=Path, help='file for all figures, written after each size'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    check_device(args.device)
    device = torch.device(args.device)
    bandwidth = op_benchmark.copy_bandwidth(device, args.rounds)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == 'cuda'
        else f'{platform.machine()}, {torch.get_num_threads()} threads, '
        f'{torch.backends.cpu.get_cpu_capability()}'
    )
    title = f'{name}, torch {torch.__version__}, {args.dtype}, {args.layout}'
    print(f'{title}, copy bandwidth {bandwidth * 1e-9:.1f} GB/s', flush=True)
    print(op_benchmark.HEADER)
    rows = []
    for batch in args.batch:
        for size in args.sizes:
            measured = op_benchmark.measure(
                batch,
                size,
                args.rounds,
                args.device,
                DTYPES[args.dtype],
                LAYOUTS[args.layout],
                bandwidth,
                args.composed,
                args.ours,
            )
            print(op_benchmark.to_markdown(measured), flush=True)
            rows += measured
            if args.json:
                kept = dict(
                    title=title, bandwidth=bandwidth, rows=list(map(asdict, rows))
                )
                args.json.write_text(to_json(kept, indent=1))
    if args.detector:
        for size in args.sizes:
            print(
                op_benchmark.measure_upsamplers(size, args.rounds, args.device),
                flush=True,
            )
        print(op_benchmark.measure_neck(args.rounds, args.device), flush=True)
        print(op_benchmark.measure_training(str(CONFIG), args.rounds), flush=True)
    if not args.out:
        return
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    op_benchmark.plot(rows, str(out), title)
    print(f'plot: {out}')


if __name__ == '__main__':
    main()
