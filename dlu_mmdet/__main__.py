"""The tools from any folder: ``dlu_mmdet TOOL``, or ``python -m dlu_mmdet TOOL``.

``dlu_mmdet train CONFIG`` is ``python tools/train.py CONFIG``. The tools travel in the
package's folder ``.mim``, as MMDetection's do; in a checkout that is not installed
they are beside the package.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find_tools() -> dict[str, Path]:
    """The tools by name."""
    folders = (PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools')
    folder = next(filter(Path.is_dir, folders))
    return {path.stem: path for path in sorted(folder.glob('*.py'))}


def main() -> None:
    """Run the tool that the first argument names, with the others."""
    tools = find_tools()
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name == '--version':
        from .collect_env import main as collect_env

        collect_env()
    elif name in tools:
        sys.argv = [str(tools[name]), *sys.argv[2:]]
        runpy.run_path(str(tools[name]), run_name='__main__')
    else:
        usage = f'usage: dlu_mmdet {{{",".join(tools)}}} [arguments] | --version'
        if name not in ('-h', '--help'):
            sys.exit(f'dlu_mmdet: there is no tool {name!r}\n{usage}')
        print(usage)


if __name__ == '__main__':
    main()
