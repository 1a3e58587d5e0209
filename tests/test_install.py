"""What users install: old Python and torch, builds, packages, names from any folder."""

import ast

import pytest
from conftest import ROOT

SOURCES = [
    *ROOT.glob('*.py'),
    *(
        f
        for top in ('dlu_mmdet', 'tools', 'tests')
        for f in ROOT.glob(f'{top}/**/*.py')
    ),
]


def newer_than_39(tree):
    """Lines that Python 3.9 compiles, and fails on where they run."""
    lazy = any(
        isinstance(n, ast.ImportFrom) and n.module == '__future__' for n in tree.body
    )
    annotations = set()
    for node in ast.walk(tree) if lazy else ():
        for name in ('annotation', 'returns'):
            annotations |= set(ast.walk(getattr(node, name, None) or ast.Pass()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == 'zip' and any(k.arg == 'strict' for k in node.keywords):
                yield node.lineno
            if node.func.id in ('isinstance', 'issubclass'):
                if isinstance(node.args[-1], ast.BinOp):
                    yield node.lineno
        elif isinstance(node, ast.BinOp) and node not in annotations:
            sides = (node.left, node.right)
            if isinstance(node.op, ast.BitOr) and any(
                isinstance(side, ast.Constant) and side.value is None for side in sides
            ):
                yield node.lineno


def test_python_39_can_run_the_sources():
    """The package would install under Python 3.9 and fail on import or in a run."""
    found = []
    for file in SOURCES:
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        found += [f'{file.relative_to(ROOT)}:{line}' for line in newer_than_39(tree)]
    assert not found


@pytest.mark.parametrize(
    'source',
    [
        'zip(a, b, strict=True)',
        'isinstance(a, int | str)',
        'def f(a: int | None): ...',
    ],
)
def test_what_python_39_lacks_is_found(source):
    """The test above would pass whatever the sources hold."""
    assert list(newer_than_39(ast.parse(source)))
