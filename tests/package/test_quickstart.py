"""docs/quickstart.ipynb runs from an empty folder, and the functions that it calls."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from dlu_mmdet.comparison.runs import trained_models
from dlu_mmdet.explain.evaluate import explain_images
from dlu_mmdet.visualization.show import choose_images

NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'


def test_it_holds_no_outputs_and_its_links_lead_somewhere():
    """Outputs would be photographs that are not ours to publish."""
    cells = json.loads(NOTEBOOK.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert code and not any(c['outputs'] or c['execution_count'] for c in code)
    text = ''.join(line for cell in cells for line in cell['source'])
    links = re.findall(r'\]\(([^):]+)\)', text)
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_it_runs_from_an_empty_folder(coco_root, tmp_path):
    """On photographs; its own data set would have to be fetched."""
    nbformat = pytest.importorskip('nbformat')
    client = pytest.importorskip('nbclient')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    photos = tmp_path / 'photos'
    for name in (
        'train2017',
        'val2017',
        'annotations/instances_train2017.json',
        'annotations/instances_val2017.json',
    ):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).symlink_to(coco_root / name)
    environment = {
        **os.environ,
        'DLU_DATA': str(photos),
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    client.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name='python3',
        resources=dict(metadata=dict(path=str(tmp_path))),
    ).execute(env=environment)
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', ())
        if 'image/png' in output.get('data', ())
    ]
    assert len(pictures) == 4 and (tmp_path / 'upsampling.png').is_file()


def test_the_models_of_a_comparison(tmp_path):
    """In the order of their names, without what failed or diverged."""
    for name, result in (
        ('b', dict(AP=0.5)),
        ('a', dict(AP=0.4)),
        ('c', dict(diverged=dict(iteration=3, reason='the loss is nan'))),
        ('d', None),
    ):
        folder = tmp_path / name / 'seed0'
        folder.mkdir(parents=True)
        torch.save({}, folder / 'iter_1.pth')
        if result:
            (folder / 'result.json').write_text(json.dumps(result))
    assert trained_models(tmp_path) == [
        (str(tmp_path / n / 'seed0.py'), str(tmp_path / n / 'seed0' / 'iter_1.pth'))
        for n in 'ab'
    ]
    with pytest.raises(ValueError, match='no finished run; finish its comparison'):
        trained_models(tmp_path / 'd')


def test_images_may_be_paths(tmp_path):
    """pathlib's glob gives them."""
    image = tmp_path / '1.png'
    with pytest.raises(FileNotFoundError, match='1.png does not exist'):
        explain_images([], [image])
    with pytest.raises(FileNotFoundError, match='1.png does not exist'):
        choose_images(None, 1, [image], None)
    image.touch()
    (info,) = choose_images(None, 1, [Path(image)], None)
    assert info == dict(img_path=str(image), name='1')
