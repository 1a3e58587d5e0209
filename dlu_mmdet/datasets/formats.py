"""Recognize the format of a folder of images and annotations by its files."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

#: Words in a path that name its split.
SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}
#: Formats that :mod:`dlu_mmdet.datasets.convert` reads.
CONVERTIBLE = {'yolo': 'YOLO', 'voc': 'Pascal VOC', 'labelme': 'labelme'}
IMAGES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
# as many files are looked at, so that a whole disk does not take forever
_MOST = 200_000
# bytes at both ends of a file that tell what it is
_ENDS = 1 << 16
# files of one kind that are opened
_OPENED = 3
_EXPORT = 'export it in COCO format'

# what a JSON file is, by pieces of text that all occur at its ends; the first counts
_JSON_KINDS = (
    (r'\s*\[.*"coordinates"', f'a CreateML file; {_EXPORT}'),
    (r'\s*\[.*"image_id".*"score"', 'a list of detections, not of annotations'),
    (
        r'\s*\[.*"(data|annotations|predictions)"',
        'a list of tasks, as Label Studio\'s "JSON" is; export it as "COCO"',
    ),
    (r'\s*\[', f'a list, not a COCO file; {_EXPORT}'),
    (
        r'.*"(synset|neg_category_ids|not_exhaustive_category_ids)"',
        'an LVIS file, which has another evaluation than COCO; use a config of '
        "MMDetection's folder configs/lvis",
    ),
    (r'.*"_via_|.*"region_attributes"', f'a file of VGG Image Annotator; {_EXPORT}'),
    (r'.*"segments_info"', 'a COCO file of panoptic segments, not of objects'),
    (r'(?!.*"bbox").*"caption"', 'a COCO file of captions, not of objects'),
    (
        r'(?!.*"images").*("samples"|"sample_fields"|"media_type"|"classes".*"labels")',
        "a file of FiftyOne's own; export the dataset with "
        'dataset_type=fiftyone.types.COCODetectionDataset',
    ),
    (r'(?!.*"images").*"items"', f"a file of Datumaro's own; {_EXPORT}"),
)


@dataclass(frozen=True)
class Layout:
    """The files of a data set.

    Attributes:
        format (str): A key of :data:`CONVERTIBLE`.
        splits (dict[str, list[Path]]): By split ('train', 'val', 'test'; 'all' where
            the folder names none), the annotation files, or for YOLO the images.
        files (list[Path]): Every file of the folder.
    """

    format: str
    splits: dict[str, list[Path]]
    files: list[Path]


def list_files(root: Path) -> Iterable[Path]:
    """Every file of a folder, sorted, without hidden ones."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name[0] not in '._')
        yield from (Path(folder, name) for name in sorted(names) if name[0] != '.')


def words(path: str | os.PathLike) -> set[str]:
    """The words of a path, in lower case."""
    return set(re.findall('[a-z]+', str(path).lower()))


def command(*parts: object) -> str:
    """A command line, ready to paste."""
    return shlex.join(map(str, parts))


def json_kind(path: Path) -> str:
    """What a JSON file is, other than a COCO file of objects, and what to do.

    Args:
        path (Path): The file.

    Returns:
        str: As in 'an LVIS file; ...'. Empty if it is not known.
    """
    text = _ends(path)
    if is_labelme(path):
        return 'a labelme file; convert its folder with dlu_mmdet convert'
    for pattern, kind in _JSON_KINDS:
        if re.match(pattern, text, re.DOTALL):
            return kind
    return ''


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has the keys of a COCO file of objects."""
    if json_kind(path):
        return False
    content = path.read_bytes()
    return all(f'"{key}"'.encode() in content for key in ('images', 'categories'))


def recognize(root: Path, files: list[Path] | None = None) -> str | None:
    """Tell which convertible format a folder has.

    Args:
        root (Path): The folder.
        files (list[Path], optional): Its files, where they are known.

    Returns:
        str, optional: A key of :data:`CONVERTIBLE`, or None.
    """
    files = _some(root) if files is None else files
    if any(_xml_root(p) == 'annotation' for p in _first(files, '.xml')):
        return 'voc'
    if any(map(is_labelme, _first(files, '.json'))):
        return 'labelme'
    stems = {p.with_suffix('') for p in files if p.suffix.lower() in IMAGES}
    labels = [p for p in files if p.suffix == '.txt' and _yolo_stem(p, stems)]
    if labels and any(map(_is_yolo, labels[:_OPENED])):
        return 'yolo'
    return None


def find_layout(root: Path, format: str) -> Layout:
    """List the files of a data set by split.

    The lists of the format itself name the splits: ``train`` and ``val`` of YOLO's
    data.yaml, and VOC's ``ImageSets/Main/train.txt``. Without them the folders' names
    do.

    Args:
        root (Path): The folder.
        format (str): A key of :data:`CONVERTIBLE`.

    Returns:
        Layout: The files.

    Raises:
        FileNotFoundError: If there are none.
    """
    files = list(list_files(root))
    if format == 'yolo':
        splits = _yolo_splits(root)
        found = [p for p in files if p.suffix.lower() in IMAGES]
    else:
        suffix = {'voc': '.xml', 'labelme': '.json'}[format]
        found = [p for p in files if p.suffix.lower() == suffix]
        splits = _voc_splits(files, found) if format == 'voc' else {}
    if not found:
        what = 'images' if format == 'yolo' else f'{suffix} files'
        raise FileNotFoundError(f'{root} has no {what}; name another folder')
    return Layout(format, splits or _splits_by_folder(root, found), files)


def advice(root: Path) -> str:
    """Say what a folder without usable COCO files holds, and what to do.

    Args:
        root (Path): The folder, or a file that was named in its place.

    Returns:
        str: The end of a sentence, as in 'is in YOLO format; convert it: ...'. Empty
        if nothing is recognized.
    """
    if root.is_file():
        return _file_advice(root)
    files = _some(root)
    if format := recognize(root, files):
        # of '.' and '..' the name is not in the path
        whole = root.resolve() if root.name in ('', '..') else root
        target = whole.with_name(f'{whole.name}-coco')
        parts = ['dlu_mmdet', 'convert', root, '--out', target]
        if 'val' not in find_layout(root, format).splits:
            parts += ['--val-fraction', '0.2']
        return f'is in {CONVERTIBLE[format]} format; convert it: {command(*parts)}'
    return _other_advice(root, files)


def _file_advice(path: Path) -> str:
    if _is_archive(path):
        return f'is an archive; unpack it, and name the folder: {_unpack(path)}'
    folder = path.parent
    if path.suffix == '.json':
        if kind := json_kind(path):
            return f'is {kind}'
        # of annotations alone; the images are beside it as a rule
        if folder.name == 'annotations':
            folder = folder.parent
        flags = ['--data', folder, '--train-json', path]
        return (
            f'is a file; --data takes the folder of the images, as in {command(*flags)}'
        )
    return f'is a file; name its folder: --data {shlex.quote(str(folder))}'


def _other_advice(root: Path, files: list[Path]) -> str:
    """As :func:`advice`, for what is not converted."""
    if not files:
        return 'is empty'
    if any(_xml_root(p) == 'annotations' for p in _first(files, '.xml')):
        return 'has an XML file of CVAT; export the task again as "COCO 1.0"'
    suffixes = Counter(p.suffix.lower() for p in files)
    if suffixes['.parquet'] or suffixes['.arrow'] or suffixes['.jsonl']:
        return (
            'has the files of a Hugging Face dataset (Parquet, Arrow or JSON lines); '
            'write its images and one COCO file'
        )
    if any('.tfrecord' in p.name or p.suffix == '.record' for p in files):
        return f'has TFRecord files; {_EXPORT}'
    names = {p.name for p in files}
    if {'samples.json', 'metadata.json'} <= names:
        return f'has {_JSON_KINDS[-2][1].replace("a file", "files")}'
    return _json_advice(root, files) or _image_advice(root, files, suffixes)


def _json_advice(root: Path, files: list[Path]) -> str:
    """What to do with a JSON file of another kind, or where nobody looks."""
    for path in _first(files, '.json'):
        # where --data looks for files
        if len(path.relative_to(root).parts) > 2 and looks_like_coco(path):
            folder = shlex.quote(str(path.parents[1]))
            return f'has a COCO file in a folder of it; name that: --data {folder}'
        if kind := json_kind(path):
            return f'has {path.relative_to(root).as_posix()}, {kind}'
    return ''


def _image_advice(root: Path, files: list[Path], suffixes: Counter) -> str:
    """What to do with images alone, or an archive."""
    images = sum(suffixes[suffix] for suffix in IMAGES)
    if images and not suffixes['.json']:
        if {p.relative_to(root).parts[0] for p in files} == {'data'}:
            return (
                "has FiftyOne's folder data and no labels.json; export the labels too, "
                'with dataset_type=fiftyone.types.COCODetectionDataset'
            )
        if suffixes['.csv']:
            return f'has images and a CSV file; {_EXPORT}'
        return (
            'has images and no annotations; draw boxes in CVAT, Label Studio or '
            'labelme and export them in COCO format, or name the file: --train-json'
        )
    if archives := [p for p in files if not images and _is_archive(p)]:
        return f'has an archive; unpack it: {_unpack(archives[0])}'
    return ''


def _is_archive(path: Path) -> bool:
    return re.search(r'\.(zip|tar|tgz|tar\.\w+)$', path.name.lower()) is not None


def _unpack(path: Path) -> str:
    module = 'zipfile' if path.suffix.lower() == '.zip' else 'tarfile'
    folder = path.parent / path.name.split('.')[0]
    return command('python', '-m', module, '-e', path, folder)


def _some(root: Path) -> list[Path]:
    return list(itertools.islice(list_files(root), _MOST))


def _first(files: Iterable[Path], suffix: str) -> list[Path]:
    """The first few files of a kind."""
    found = (p for p in files if p.suffix.lower() == suffix)
    return list(itertools.islice(found, _OPENED))


def _ends(path: Path) -> str:
    """Both ends of a text file."""
    with path.open('rb') as file:
        head = file.read(_ENDS)
        file.seek(max(len(head), path.stat().st_size - _ENDS))
        return (head + b'\n' + file.read()).decode('utf-8-sig', 'replace')


def _xml_root(path: Path) -> str:
    """The name of an XML file's first element."""
    found = re.search(r'<(\w+)', _ends(path))
    return found.group(1) if found else ''


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is one of labelme."""
    text = _ends(path)
    return '"shapes"' in text and ('"imagePath"' in text or '"shape_type"' in text)


def _yolo_stem(label: Path, stems: set[Path]) -> bool:
    """Whether a text file has an image, or lies in a folder of labels."""
    return label.with_suffix('') in stems or 'labels' in label.parts[:-1]


def _is_yolo(label: Path) -> bool:
    try:
        lines = [list(map(float, line.split())) for line in _ends(label).splitlines()]
    except ValueError:
        return False
    return all(len(line) > 4 for line in lines if line)


def label_of(image: Path) -> Path:
    """Where YOLO has the labels of an image: labels/ for images/, or beside it."""
    parts = list(image.with_suffix('.txt').parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == 'images':
            parts[index] = 'labels'
            found = Path(*parts)
            return found if found.is_file() else image.with_suffix('.txt')
    return image.with_suffix('.txt')


def yolo_yaml(root: Path) -> tuple[Path, dict] | None:
    """YOLO's data.yaml under any name, and its content."""
    files = [*root.glob('*.yaml'), *root.glob('*.yml')]
    for path in sorted(files, key=lambda p: (p.stem != 'data', p)):
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            message = ' '.join(str(error).split())
            raise ValueError(f'{path} is not a YAML file ({message})') from error
        if isinstance(content, dict) and 'names' in content:
            return path, content
    return None


def _yolo_splits(root: Path) -> dict[str, list[Path]]:
    """The images that data.yaml lists; empty if it lists none that are there."""
    path, content = yolo_yaml(root) or (root / 'data.yaml', {})
    splits: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        values = next((content[name] for name in names if content.get(name)), [])
        for value in [values] if isinstance(values, str) else values:
            found = _yolo_images(path.parent, str(content.get('path') or ''), value)
            splits.setdefault(split, []).extend(found)
    seen: set[Path] = set()
    for split in list(splits):
        # some files name the training images for validation too
        splits[split] = [p for p in splits[split] if p not in seen]
        seen.update(splits[split])
        if not splits[split]:
            del splits[split]
    return splits if 'train' in splits else {}


def _yolo_images(folder: Path, path: str, value: str) -> list[Path]:
    """The images of one entry of data.yaml: a folder, or a list of files."""
    # Roboflow writes ../train for train
    inside = re.sub(r'^(\.\./)+', '', value)
    places = [folder / path / value, folder / value, folder / inside]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        return []
    if place.is_dir():
        return [p for p in list_files(place) if p.suffix.lower() in IMAGES]
    lines = place.read_text(encoding='utf-8').split('\n')
    listed = [place.parent / line.strip() for line in lines if line.strip()]
    return [p for p in listed if p.is_file()]


def _voc_splits(files: list[Path], xmls: list[Path]) -> dict[str, list[Path]]:
    """The annotation files that ImageSets/Main lists; empty if there are no lists."""
    listed = {}
    for path in files:
        if path.parent.parts[-2:] != ('ImageSets', 'Main'):
            continue
        # what is not split yet is to train on
        whole = path.stem == 'trainval' and not path.with_stem('train').exists()
        split = 'train' if whole else path.stem
        if split in SPLITS:
            for line in map(str.strip, path.read_text(encoding='utf-8').split('\n')):
                listed[path.parents[2], line] = split
    splits: dict[str, list[Path]] = {}
    for path in xmls:
        if named := listed.get((path.parent.parent, path.stem)):
            splits.setdefault(named, []).append(path)
    return splits


def _splits_by_folder(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in files:
        found = words(path.relative_to(root).parent)
        names = (split for split, words in SPLITS.items() if found & {*words})
        splits.setdefault(next(names, 'all'), []).append(path)
    if len(splits) > 1:
        splits.setdefault('train', []).extend(splits.pop('all', []))
    return splits
