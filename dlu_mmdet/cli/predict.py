"""Draw detections into your images and videos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import register_all_modules
from . import run
from .arguments import add_cfg_options, add_upsampler, new_parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'predict',
        'Draw detections into images and videos, and write them as JSON.',
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        'inputs', nargs='+', metavar='INPUT', help='image, folder of images, or video'
    )
    parser.add_argument(
        '--out',
        default='work_dirs/predict',
        help='folder of the pictures, videos and predictions.json',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with a lower score',
    )
    parser.add_argument('--device', default='cpu', help='e.g. cuda:0')
    add_cfg_options(parser)
    add_upsampler(parser)
    # so that an INPUT may come after an option
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict as the arguments say."""
    values = vars(parse_args(argv))
    register_all_modules()
    from ..engine import use_safe_loaders
    from ..visualization.predict import predict

    use_safe_loaders()
    del values['traceback']
    predict(**values)


if __name__ == '__main__':
    run('predict')
