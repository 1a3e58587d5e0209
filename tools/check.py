"""Check an upsampler of your own: python tools/check.py mine.py:Mine."""

import sys

from dlu_mmdet.cli.check import main

if __name__ == '__main__':
    sys.exit(main())
