"""Where things live: imports go one way, and every room says what it is for."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'dlu_mmdet'
# a room imports from those before it, and from itself
ROOMS = (
    'utils',
    'ops',
    'upsamplers',
    'heads',
    'necks',
    'datasets',
    'config',
    'engine',
    'evaluation',
    'export',
    'visualization',
    'explain',
    'comparison',
    'cli',
)
# beside the rooms: what the installation, the registries and the command line need
BESIDE = {
    '__init__',
    '__main__',
    'collect_env',
    'cuda_toolkit',
    'openmmlab',
    'registry',
    'stacks',
}


def imported(path: Path):
    """The rooms that a module imports from, with the line."""
    here = path.relative_to(ROOT).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = [*base, *(node.module or '').split('.')]
            # from . import x, y
            ends = [[]] if node.module else [[alias.name] for alias in node.names]
            for end in ends:
                parts = [part for part in [*module, *end] if part]
                if parts[0] == 'dlu_mmdet' and len(parts) > 1:
                    yield parts[1], node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split('.')
                if parts[0] == 'dlu_mmdet' and len(parts) > 1:
                    yield parts[1], node.lineno


def test_tests_mirror_the_package():
    beside = {'benchmarks', 'cluster', 'cuda_emulation', 'helpers', 'package', 'stress'}
    folders = {path.parent.name for path in Path(ROOT, 'tests').glob('*/*.py')}
    assert folders == {*ROOMS, *beside}
    assert not [*Path(ROOT, 'tests').glob('test_*.py')]


def test_the_rooms_are_those_that_there_are():
    folders = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert folders == {*ROOMS}
    assert {path.stem for path in PACKAGE.glob('*.py')} == BESIDE


@pytest.mark.parametrize('room', ROOMS)
def test_imports_go_one_way(room):
    """A way back makes a circle, and a change below needs what is above."""
    allowed = {*ROOMS[: ROOMS.index(room) + 1]}
    climbing = [
        f'{path.relative_to(PACKAGE)}:{line} imports {found}'
        for path in PACKAGE.glob(f'{room}/**/*.py')
        for found, line in imported(path)
        if found in ROOMS and found not in allowed
    ]
    assert not climbing


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_says_what_it_is_for(room):
    text = (PACKAGE / room / '__init__.py').read_text()
    assert ast.get_docstring(ast.parse(text))
