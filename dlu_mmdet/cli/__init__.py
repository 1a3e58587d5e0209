"""The commands of the package, one module each: ``dlu_mmdet COMMAND``.

A module has ``parse_args`` and ``main``, and begins with a line that says what the
command does. What takes time to import, PyTorch and MMDetection, is imported when the
arguments are known.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

#: Environment variable that asks for tracebacks, as the flag ``--traceback`` does.
TRACEBACK = 'DLU_MMDET_TRACEBACK'
# no commands
_SHARED = ('__init__', 'arguments')


def commands() -> dict[str, str]:
    """What each command does, by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob('*.py')):
        if path.stem not in _SHARED:
            text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
            found[path.stem] = (text or '').partition('\n')[0].rstrip('.')
    return found


def overview() -> str:
    """The help of ``dlu_mmdet``: a line for each command."""
    lines = [f'  {name:<11}{what}' for name, what in commands().items()]
    return '\n'.join(
        [
            'usage: dlu_mmdet COMMAND [arguments]',
            '',
            'Dynamic Lightweight Upsampling for MMDetection 3.x',
            '',
            *lines,
            '',
            'dlu_mmdet COMMAND --help  shows the arguments of a command',
            'dlu_mmdet --version       shows versions and compiled operators',
        ]
    )


@contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """End without a traceback when the reader of a pipe, as ``head``, is gone."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # what is still in the buffer is written at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@until_the_reader_leaves()
def run(name: str) -> None:
    """Run a command with the arguments of this process, and end it.

    A mistake of the user ends it with a sentence; ``--traceback``, or
    ``DLU_MMDET_TRACEBACK=1``, shows where it was raised.

    Args:
        name (str): A module of this package.
    """
    make_output_encoding_safe()
    # escapes in docstrings of MMDetection, on Python 3.12
    warnings.filterwarnings('ignore', category=SyntaxWarning)
    main = import_module(f'{__name__}.{name}').main
    if '--traceback' in sys.argv or os.environ.get(TRACEBACK, '0') != '0':
        sys.exit(main())
    try:
        status = main()
    except BrokenPipeError:
        raise
    except Exception as error:
        if not _is_of_the_user(error):
            raise
        # a KeyError puts its text in quotes
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f'dlu_mmdet {name}: error: {text}', file=sys.stderr)
        status = 1
    sys.exit(status)


def _is_of_the_user(error: Exception) -> bool:
    """Whether an error is about what the user gave, not a fault of the code.

    This package raises errors about nothing else, nor do the parts of mmengine that
    read configs and look up what they name.
    """
    frame = error.__traceback__
    module = ''
    while frame:
        module = frame.tb_frame.f_globals.get('__name__', '')
        frame = frame.tb_next
    if isinstance(error, ImportError):
        # of an optional package, which the text names
        return True
    names = (__package__.partition('.')[0], 'mmengine.config', 'mmengine.registry')
    return any(f'{module}.'.startswith(f'{name}.') for name in names)


def make_output_encoding_safe() -> None:
    """Print characters that the terminal's encoding lacks as escapes.

    Without it, names in another script end a command under ``LC_ALL=C`` or
    ``PYTHONIOENCODING=ascii``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


@until_the_reader_leaves()
def main() -> None:
    """``dlu_mmdet``: run the command that the first argument names."""
    make_output_encoding_safe()
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(overview())
    elif name == '--version':
        from ..collect_env import versions

        print('\n'.join(f'{key}: {value}' for key, value in versions().items()))
    elif name in commands():
        sys.argv = [f'dlu_mmdet {name}', *sys.argv[2:]]
        run(name)
    else:
        near = difflib.get_close_matches(name, commands(), n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        sys.exit(f'dlu_mmdet: there is no command {name!r}{hint}\n\n{overview()}')
