"""Files around the package name what is there."""

import re
from pathlib import Path

import pytest
import yaml

import dlu_mmdet

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
# a source distribution has none
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason='not a checkout')


def read(*names):
    return '\n'.join((ROOT / name).read_text() for name in names)


def test_one_version():
    assert yaml.safe_load(read('CITATION.cff'))['version'] == dlu_mmdet.__version__
    assert dlu_mmdet.__version__ in read('CHANGELOG.md')


def test_make_targets_exist():
    targets = set(re.findall(r'^([\w-]+):', read('Makefile'), re.MULTILINE))
    pages = ('CONTRIBUTING.md', '.github/pull_request_template.md', '.ci/run')
    # a command, not a word of a sentence
    command = re.compile(r'(?:run: |`|^ *)make ([\w-]+)', re.MULTILINE)
    named = set(command.findall(read(*pages, *WORKFLOWS)))
    assert {'test', 'lint', 'docs'} <= named <= targets


def test_scripts_exist():
    text = read('Makefile', 'pyproject.toml', 'CONTRIBUTING.md', *WORKFLOWS)
    named = set(re.findall(r'\btests/[\w/]+\.(?:py|sh)', text))
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_workflows_cover_the_supported_versions():
    matrix = yaml.safe_load(read('.github/workflows/ci.yml'))['jobs']['test']
    rows = matrix['strategy']['matrix']['include']
    minor = [int(row['python'].split('.')[1]) for row in rows]
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', read('pyproject.toml'))
    assert set(minor) == set(range(int(oldest.group(1)), max(minor) + 1))
    assert {row['torch'] for row in rows} >= {'2.1.2', '2.13.0'}


def test_issue_forms_ask_for_the_version():
    forms = sorted((ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml'))
    fields = [yaml.safe_load(form.read_text()).get('body') for form in forms]
    asked = [body for body in fields if body]
    assert len(asked) == 3
    for body in asked:
        labels = [field['attributes'].get('label') for field in body]
        assert 'dlu_mmdet --version' in labels
