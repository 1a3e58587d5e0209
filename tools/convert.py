"""Convert a folder to COCO format: python tools/convert.py FOLDER --out FOLDER."""

from dlu_mmdet.datasets.convert import main
from dlu_mmdet.engine import print_anything

if __name__ == '__main__':
    print_anything()
    main()
