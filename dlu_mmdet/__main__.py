"""``python -m dlu_mmdet COMMAND``, the same as ``dlu_mmdet COMMAND``."""

from .cli import main

if __name__ == '__main__':
    main()
