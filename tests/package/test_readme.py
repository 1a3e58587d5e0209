"""README.md: its length, its links, its quick start and its config."""

import contextlib
import io
import re

from conftest import ROOT
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from dlu_mmdet.config import read_config

TEXT = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', TEXT, re.M | re.S)


def test_it_fits_on_one_page():
    lines = TEXT.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 100


def test_its_links_lead_somewhere():
    for path in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', TEXT):
        assert (ROOT / path).is_file(), path


def test_the_quick_start_prints_the_shape_that_it_says():
    (block,) = (block for block in BLOCKS if 'build_upsampler' in block)
    assert len([line for line in block.splitlines() if line]) == 4
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(block, {})
    assert output.getvalue().strip() == block.rpartition('# ')[2].strip()


def test_the_config_has_the_upsampler(tmp_path):
    (block,) = (block for block in BLOCKS if '_base_' in block)
    path = tmp_path / 'config.py'
    path.write_text(block)
    init_default_scope('mmdet')
    neck = MODELS.build(read_config(path).model.neck)
    assert {type(m).__name__ for m in neck.upsample_modules} == {'DLUPack'}
