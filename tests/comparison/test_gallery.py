"""The images of report.html, in a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dlu_mmdet.comparison import gallery as module
from dlu_mmdet.comparison import report
from dlu_mmdet.comparison.details import Breakdown, Details
from dlu_mmdet.comparison.gallery import Gallery
from dlu_mmdet.comparison.runs import RunResult
from dlu_mmdet.comparison.summary import (
    Costs,
    Environment,
    Row,
    Spread,
    Summary,
    difference_sentence,
    tables,
)
from dlu_mmdet.datasets.coco_io import COCO
from dlu_mmdet.evaluation.average_precision import METRICS, MetricDifference
from dlu_mmdet.evaluation.error_types import KINDS
from dlu_mmdet.evaluation.instances import Detections, objects_of

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
MARKUP = '</script><script>alert(1)</script><b>&"\'<img src=x onerror=alert(1)>'
# what the page does at its end, so that a file shows it
DRIVER = """<pre id="driven"></pre><script>
window.alert = () => { document.title = 'escaped' };
const $ = (query) => [...document.querySelectorAll(query)];
const choose = (name, value) => {
  const select = document.querySelector(`select[name=${name}]`);
  select.value = value; select.dispatchEvent(new Event('change'));
};
const cards = () => $('.card').map((card) => card.dataset.image);
const result = {};
%s
result.overflow = document.documentElement.scrollWidth - innerWidth;
result.title = document.title;
document.getElementById('driven').textContent = JSON.stringify(result);
</script>"""


def drive(page, script, address='', width=1200):
    """What a script finds on the page in a headless browser."""
    driven = page.with_name('driven.html')
    driven.write_text(page.read_text().replace('</html>', DRIVER % script))
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
    command += ['--virtual-time-budget=5000']
    command += [f'--user-data-dir={page.parent / "profile"}', '--timeout=20000']
    command += [f'--window-size={width},800', f'{driven.as_uri()}{address}']
    text = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r'<pre id="driven">(.*?)</pre>', text, re.S)
    assert found, text[-2000:]
    found = found[1]
    for code, character in (('lt', '<'), ('gt', '>'), ('amp', '&')):
        found = found.replace(f'&{code};', character)
    return json.loads(found)


def made_up(folder, num_images, seeds=1):
    """A page of two detectors: 'old' finds every second object, 'new' all.

    With the other seeds both find nothing.

    An image has an object of the class MARKUP and one of the class 'b'. 'old' calls the
    second one of image 2 MARKUP, and 'new' has a false positive in image 3.
    """
    (folder / 'images').mkdir(parents=True)
    coco = COCO()
    coco.dataset = dict(info={}, images=[], annotations=[], categories=[])
    for number, name in enumerate((MARKUP, 'b'), 1):
        coco.dataset['categories'].append(dict(id=number, name=name))
    for i in range(1, num_images + 1):
        name = f'{i}<i>.png'
        coco.dataset['images'].append(dict(id=i, file_name=name, width=200, height=100))
        if i != 4:
            Image.new('RGB', (200, 100), (i, 90, 90)).save(folder / 'images' / name)
        for label, box in ((1, [10, 10, 20, 20]), (2, [50, 10, 90, 80])):
            each = dict(id=2 * i + label, image_id=i, category_id=label, bbox=box)
            each.update(area=box[2] * box[3], iscrowd=0)
            coco.dataset['annotations'].append(each)
    coco.createIndex()
    objects = objects_of(coco, [1, 2])
    gallery = Gallery(coco, [MARKUP, 'b'], objects, str(folder / 'images'))
    found = dict(old={}, new={})
    for i, truth in objects.items():
        first = Detections(truth.boxes[:1], truth.labels[:1], np.array([0.9]))
        found['old'][i] = first
        found['new'][i] = Detections(truth.boxes, truth.labels, np.array([0.9, 0.8]))
    boxes, labels = objects[2].boxes, np.array([0, 0])
    found['old'][2] = Detections(boxes, labels, np.array([0.9, 0.8]))
    far = np.r_[objects[3].boxes, [[160, 60, 15, 15]], [[0, 60, 15, 15]]]
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    found['new'][3] = Detections(far, np.array([0, 1, 1, 1]), scores)
    for name, each in found.items():
        for seed in range(seeds):
            run = f'runs/{name} {MARKUP[:1]}' + f'{seed}' * (seeds > 1)
            gallery.add(name, seed, run, each if seed == 0 else {})
    gallery.add('old', 7, 'runs/alone', {})
    return gallery


def summary_of(gallery):
    costs = Costs(0, 0, 0, 0, [100, 200], 'none', 1.0, 1.0)
    keys = (*METRICS, 'training_seconds', 'seconds_per_iteration')
    scores = dict.fromkeys(keys, Spread(0.5))
    count = {kind: dict(objects=8, images=4) for kind in KINDS}
    means = {n: dict.fromkeys(KINDS, 0.1) for n in ('old', 'new')}
    run = dict(seed=0, loss=[[1, 1.0], [2, 0.5]], validation=[])
    return Summary(
        baseline='old',
        num_images=len(gallery),
        rows=[Row(name, scores, costs) for name in ('old', 'new')],
        differences={},
        runs=[RunResult.from_json(dict(run, upsampler=n)) for n in ('old', 'new')],
        diverged=[],
        environment=Environment.here('none'),
        details=Details(
            Breakdown(count, means, {}), {}, Breakdown({}, {}, {}), gallery
        ),
    )


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gallery')
    return report.save(summary_of(made_up(folder, 6)), folder)


needs_browser = pytest.mark.skipif(not BROWSER, reason='chromium is not installed')


def test_text_of_data_is_escaped_and_lost_images_are_named(page):
    text = page.read_text()
    assert 'alert(1)' in text and '<script>alert' not in text and '<b>&' not in text
    assert '<img src=x' not in text
    assert '1 of 6 images are not shown' in text and '4&lt;i&gt;.png' in text
    assert text.count('data:image/jpeg;base64,') == 5
    assert 'src="http' not in text and 'import ' not in text


@needs_browser
def test_sort_filter_and_open(page):
    found = drive(
        page,
        """
        result.count = $('.count')[0].textContent;
        result.sorted = cards();
        choose('sort', 'gain'); result.gain = cards();
        choose('sort', 'name');
        choose('show', 'equal'); result.equal = cards();
        choose('show', 'better'); result.better = cards().length;
        choose('class', '0'); result.small = cards();
        choose('show', 'all'); choose('class', 'all');
        choose('kind', '1'); result.classification = cards();
        choose('kind', 'all'); choose('size', 'medium'); choose('show', 'worse');
        result.worse = cards();
        choose('size', 'all'); choose('show', 'all');
        $('.card')[1].click();
        result.open = $('dialog')[0].open;
        result.heads = $('figcaption').map((each) => each.textContent);
        result.titles = $('.panels title').map((each) => each.textContent);
        result.address = decodeURIComponent(location.hash);
        $('.panels rect')[1].dispatchEvent(new Event('click'));
        result.command = $('dialog pre')[0].textContent;
        result.chosen = $('.panels .chosen').length;
        result.hint = $('dialog > p').at(-1).textContent;
        $('.head button')[1].click();
        result.next = $('h3')[0].textContent;
        $('.head button')[2].click();
        result.closed = !$('dialog')[0].open;
        """,
    )
    assert found['count'] == '6 of 6 images. new makes fewer errors in 5, old in 0.'
    # image 2: one object found by new alone, and a false positive of old
    assert found['sorted'][0] == found['gain'][0] == '2'
    # image 3: a false positive of new and an object that old did not find
    assert found['equal'] == ['3'] and found['better'] == 5
    # in image 2 old has a false positive of the first class
    assert found['small'] == found['classification'] == ['2'] and found['worse'] == []
    assert found['open'] and found['closed']
    captions = ['2 objects', 'TP 1, FP 1, FN 1', 'TP 2, FP 0, FN 0']
    assert found['heads'][1::2] == captions
    assert found['heads'][0::2] == ['ground truth', 'old', 'new']
    assert f'{MARKUP} 0.80, classification error' in found['titles']
    assert 'b, not found' in found['titles']
    assert 'image=2' in found['address'] and 'sort=name' in found['address']
    kernels, features = found['command'].splitlines()
    runs = "'runs/new <' 'runs/old <' --image-ids 2"
    assert kernels == f'dlu_mmdet visualize kernels {runs} --at 95,50'
    assert features == f'dlu_mmdet visualize upsampling {runs}'
    assert found['hint'].startswith('b: the commands') and found['chosen'] == 1
    assert found['next'] == '3<i>.png'
    assert found['title'] == '2 detectors compared' and found['overflow'] <= 0


@needs_browser
def test_an_address_names_image_and_filters(page):
    found = drive(
        page,
        """
        result.open = $('dialog')[0].open && $('h3')[0].textContent;
        result.sort = $('select[name=sort]')[0].value;
        result.b = $('select[name=b]')[0].selectedOptions[0].textContent;
        """,
        '#image=3&sort=gain&b=new&kind=nonsense',
    )
    assert (found['open'], found['sort'], found['b']) == ('3<i>.png', 'gain', 'new')


@needs_browser
def test_a_narrow_screen(page):
    found = drive(
        page,
        """
        $('.card')[0].click();
        const widths = $('.panels figure').map((each) => each.getBoundingClientRect());
        const inside = ({ left, right }) => left >= 0 && right <= innerWidth;
        result.inside = widths.every(inside);
        result.columns = new Set(widths.map((each) => each.left)).size;
        """,
        width=500,
    )
    assert found['inside'] and found['columns'] == 1 and found['overflow'] <= 0


@needs_browser
def test_a_large_set_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MAX_EMBEDDED', 5)
    page = report.save(summary_of(made_up(tmp_path, 70)), tmp_path)
    assert 'data:image/jpeg' not in page.read_text()
    assert len([*tmp_path.glob('report_images/*.jpg')]) == 69
    found = drive(
        page,
        """
        result.shown = cards().length;
        $('#gallery > button')[0].click(); result.more = cards().length;
        $('.card')[0].click();
        const picture = $('.panels img')[0];
        result.source = picture.getAttribute('src');
        """,
    )
    assert (found['shown'], found['more']) == (60, 70)
    assert found['source'].startswith('report_images/')


@needs_browser
@pytest.mark.parametrize('embedded', [True, False])
def test_the_viewer_chooses_the_seed(tmp_path, monkeypatch, embedded):
    """Of a large set each has a file; of seeds that not all have there is none."""
    monkeypatch.setattr(module, 'MAX_EMBEDDED', 300 if embedded else 5)
    page = report.save(summary_of(made_up(tmp_path, 6, seeds=2)), tmp_path)
    assert (tmp_path / 'report_images' / 'found1.js').exists() is not embedded
    assert not (tmp_path / 'report_images' / 'found2.js').exists()
    choose = """
        result.seeds = [...$('select[name=seed] option')].map((o) => o.textContent);
        choose('seed', '1');
        const wait = () => {
          if ($('.count')[0].textContent === 'Loading.') return setTimeout(wait, 20);
          result.count = $('.count')[0].textContent;
          $('.card')[0]?.click();
          result.heads = $('figcaption').map((each) => each.textContent).slice(2, 4);
          $('.panels rect')[0]?.dispatchEvent(new Event('click'));
          result.command = $('dialog pre')[0].textContent;
          result.address = location.hash;
          document.getElementById('driven').textContent = JSON.stringify(result);
        };
        setTimeout(wait, 20);
    """
    found = drive(page, choose)
    assert found['seeds'] == ['0', '1'] and 'seed=1' in found['address']
    assert 'new makes fewer errors in 0, old in 0' in found['count']
    assert found['heads'] == ['old, seed 1', 'TP 0, FP 0, FN 2']
    assert "'runs/new <1' 'runs/old <1'" in found['command']
    if not embedded:
        (tmp_path / 'report_images' / 'found1.js').unlink()
        found = drive(page, choose)
        assert found['count'].startswith('report_images/found1.js cannot be read')


def test_photos_of_other_kinds(tmp_path):
    """16 bits, and a photo that a camera held sideways."""
    Image.fromarray(np.full((40, 60), 30000, np.uint16)).save(tmp_path / '16.png')
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (1200, 800)).save(tmp_path / 'photo.jpg', exif=exif)
    for name, size in (('16.png', (60, 40)), ('photo.jpg', (800, 1200))):
        with Image.open(tmp_path / name) as image:
            content, *found = module._shrink(image)
        assert tuple(found) == size
        (tmp_path / 'small.jpg').write_bytes(content)
        with Image.open(tmp_path / 'small.jpg') as small:
            assert (small.width > small.height) == (size[0] > size[1])
            assert max(small.size) <= module.SIDE


def difference(value, significant):
    return MetricDifference(
        value, value - 0.01, value + 0.01, 0.01, 0.01, significant, [value], 8, 40
    )


def test_a_figure_for_a_paper_and_a_sentence_a_table(page, tmp_path):
    summary = summary_of(made_up(tmp_path / 'data', 4))
    errors = summary.details.errors
    errors.differences['new'] = {k: difference(-0.02, k == 'missed') for k in KINDS}
    summary = replace(summary, differences=dict(new=dict(AP=difference(0.05, True))))
    report.save_figure(summary, tmp_path / 'paper.pdf')
    content = (tmp_path / 'paper.pdf').read_bytes()
    # the width of a column in points, and vectors alone
    width = re.search(rb'/MediaBox \[ 0 0 ([\d.]+)', content)[1]
    assert float(width) == pytest.approx(3.4 * 72) and b'/Subtype /Image' not in content
    report.save_figure(summary, tmp_path / 'paper.svg')
    text = (tmp_path / 'paper.svg').read_text()
    assert '>new<' in text and '>localization<' in text and '<image' not in text
    with pytest.raises(
        ValueError, match=r'--figure must end with \.pdf, .*paper\.docx'
    ):
        report.check_figure(tmp_path / 'paper.docx')
    sentences = [text for text, _, _ in tables(summary)]
    assert sentences[:3] == [
        'old has the highest mean AP, 0.500, and new the lowest, 0.500.',
        'The neck takes 1.0 ms with old.',
        '1 of the 1 tested differences to old is significant: new in AP (+0.050).',
    ]
    assert sentences[3].startswith(
        'The most AP50 is lost to localization errors, 0.100 on average. The largest '
        'differences to old: new at localization (-0.020).'
    )
    assert sentences[4] == (
        '1 of the 6 tested differences to old is significant: new in missed (-0.020).'
    )
    # without another upsampler, and with nothing significant
    alone = replace(summary, rows=summary.rows[:1], differences={}, details=None)
    report.save_figure(alone, tmp_path / 'alone.png')
    assert [text for text, _, _ in tables(alone)][0] == (
        'old has the highest mean AP, 0.500.'
    )
    found = dict(new=dict(AP=difference(0.001, False)))
    assert difference_sentence(found, 'old') == (
        'None of the 1 tested differences to old is significant.'
    )
