"""The pages in docs/: their commands and blocks of Python; make docs checks links."""

import re
from importlib import import_module

import pytest
from conftest import ROOT

from dlu_mmdet.cli import commands

PAGES = sorted([*ROOT.glob('docs/**/*.md'), ROOT / 'README.md'])


def blocks(name):
    """The blocks of Python of a page that import what they need."""
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    found = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    return [block for block in found if 'import ' in block]


@pytest.mark.parametrize(
    ('name', 'printed'),
    [
        ('quick-start.md', 'torch.Size([1, 256, 100, 168])'),
        ('use.md', "offset_init='subpixel'"),
    ],
)
def test_python_of_a_page_runs(name, printed, capsys):
    (block,) = blocks(name)
    exec(compile(block, name, 'exec'), {})
    assert printed in capsys.readouterr().out


def test_python_of_other_frameworks_runs(capsys):
    """Those blocks that need torch alone."""
    text = (ROOT / 'docs' / 'other-frameworks.md').read_text(encoding='utf-8')
    for code in blocks('other-frameworks.md')[:2]:
        exec(code, {})
        assert f'```text\n{capsys.readouterr().out}```' in text


HELP = {}


def help_of(name, capsys):
    """The help of a command, and of its subcommands."""
    if name not in HELP:
        parse_args = import_module(f'dlu_mmdet.cli.{name}').parse_args
        subcommands = ['detections', 'kernels', 'features', 'upsampling']
        for first in subcommands if name == 'visualize' else ['--help']:
            with pytest.raises(SystemExit):
                parse_args([first, '--help'])
            HELP[name] = HELP.get(name, '') + capsys.readouterr().out
    return HELP[name]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_flags_of_a_page_exist(page, capsys):
    """If it fails, a command of the page ends with an error."""
    text = re.sub(r' \\\n +', ' ', page.read_text(encoding='utf-8'))
    for line in re.findall(r'^    (?:\S+ )?dlu_mmdet (\w.*)$', text, re.M):
        name, _, rest = line.split(' # ')[0].partition(' ')
        assert name in commands(), line
        known = re.findall(r'--[a-z-]+', help_of(name, capsys))
        assert {*re.findall(r'(?<![\w-])(--[a-z-]+)', rest)} <= {*known}, line
