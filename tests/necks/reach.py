"""How many configs of another package take an upsampler, and what is in the way.

    python tests/necks/reach.py mmrotate
    python tests/necks/reach.py mmseg

Prints a row for each type of neck or decode head. With mmrotate a rotated RetinaNet
trains an iteration; with mmseg every distinct head is held to its own numbers.
"""

import functools
import sys
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from dlu_mmdet.necks import with_upsampler
from dlu_mmdet.upsamplers import build_upsampler

# what the interpolation of a head does not depend on
FREE = {'num_classes', 'loss_decode', 'loss_cls', 'ignore_index', 'init_cfg'}
FREE |= {'pretrained', 'dropout_ratio', 'drop_path_rate', 'sampler', 'with_cp'}
FREE |= {'train_cfg', 'test_cfg', 'norm_eval'}
BASE = 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'


def configs(package):
    return Path(import_module(package).__file__).parent / '.mim' / 'configs'


def read_models(package):
    """``model`` of every config that can be read."""
    for path in sorted(configs(package).glob('**/*.py')):
        if '_base_' in path.parts:
            continue
        try:
            cfg = Config.fromfile(path, import_custom_modules=False).get('model')
        except (OSError, ImportError):  # a base that is missing
            continue
        if cfg:
            yield cfg


def plain(part):
    """A part of a model without what is FREE; ResNets of 50 layers and more alike."""
    if isinstance(part, dict):
        part = {k: plain(v) for k, v in part.items() if k not in FREE}
        return {**part, 'depth': 50} if part.get('depth', 0) > 50 else part
    return [plain(each) for each in part] if isinstance(part, (list, tuple)) else part


def as_list(parts):
    return parts if isinstance(parts, list) else [parts]


def put_upsampler(cfg):
    """The config with an upsampler, found by shapes alone where the model allows it."""
    # transformers read the rates of their layers from one
    linspace = functools.partial(torch.linspace, device='cpu')
    try:
        with torch.device('meta'), patch.object(torch, 'linspace', linspace):
            return with_upsampler(cfg, dict(type='nearest'))
    except Exception as error:
        if 'it has no site' in str(error) and 'cannot be tried' not in str(error):
            raise
        print('not by shapes:', str(error)[:160], file=sys.stderr, flush=True)
    return with_upsampler(cfg, dict(type='nearest'))


def count(package, key):
    """Print what takes an upsampler; returns the decode heads that do."""
    numbers, models = Counter(), {}
    for cfg in read_models(package):
        backbone = key == 'decode_head' and cfg.get('backbone')
        part = str(plain((cfg.get(key), backbone, cfg.get('neck'))))
        numbers[part] += 1
        models.setdefault(part, cfg)
    rows, taken = defaultdict(Counter), []
    for part, number in numbers.items():
        cfg = models[part]
        name = ' + '.join(
            getattr(each, 'type', 'none') for each in as_list(cfg.get(key))
        )
        try:
            ours = as_list(put_upsampler(cfg)[key])
            changed = [each for each in ours if 'upsample_cfg' in each]
            reason = 'yes' if changed else 'only its neck'
            taken += [each for each in changed if 'input_maps' in each]
        except (ValueError, ImportError) as error:
            reason = ' '.join(str(error).split())[:160]
        rows[name][reason] += number
        print(f'{name}: {reason}', file=sys.stderr, flush=True)
    for name, row in sorted(rows.items(), key=lambda each: -sum(each[1].values())):
        reasons = '; '.join(reason for reason in row if reason != 'yes')
        print(f'| `{name}` | {sum(row.values())} | {row["yes"]} | {reasons} |')
    total = sum(row['yes'] for row in rows.values())
    print(f'{total} of {sum(numbers.values())} configs take an upsampler in {key}')
    return taken


def train_rotated():
    """One iteration of a rotated RetinaNet with DLU."""
    from mmdet.structures import DetDataSample
    from mmrotate.structures.bbox import RotatedBoxes

    cfg = Config.fromfile(configs('mmrotate') / BASE).model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512]
    model = MODELS.build(with_upsampler(cfg, dict(type='dlu'))).train()
    size = (128, 128)
    sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size))
    boxes = RotatedBoxes(torch.tensor([[64.0, 64, 40, 20, 0.3]]))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    data = dict(inputs=[torch.randint(256, (3, *size))], data_samples=[sample])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total = sum(sum(v) if isinstance(v, list) else v for v in losses.values())
    total.backward()
    optimizer.step()
    grads = [
        each.kernel_space_generator.weight.grad.abs().sum().item()
        for each in model.neck.upsample_modules
    ]
    assert all(grad > 0 for grad in grads), grads
    print(f'trained an iteration: loss {total:.3f}, {len(grads)} upsamplers learn')


class Modes(torch.overrides.TorchFunctionMode):
    """Keeps the interpolation that each call of a head asks for."""

    def __init__(self):
        super().__init__()
        self.cfgs = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.interpolate:
            cfg = dict(type=kwargs.get('mode', 'nearest'))
            if cfg['type'] == 'bilinear':
                cfg['align_corners'] = bool(kwargs.get('align_corners'))
            self.cfgs.append(cfg)
        return func(*args, **(kwargs or {}))


def equal_sizes(head):
    """Whether a head with its own interpolation gives what mmseg's gives.

    At even and at odd sizes of the image.
    """
    args = {k: v for k, v in head.items() if k not in ('upsample_cfg', 'input_maps')}
    theirs = MODELS.build({**args, 'type': args['type'].removeprefix('dlu_mmdet.')})
    ours = MODELS.build(head).eval()
    ours.load_state_dict(theirs.eval().state_dict(), strict=False)
    return [is_equal(ours, theirs, head['input_maps'], odd) for odd in (0, 1)]


def is_equal(ours, theirs, input_maps, odd):
    side = 2 * max(stride for _, stride in input_maps) + odd
    maps = [torch.randn(1, c, -(-side // s), -(-2 * side // s)) for c, s in input_maps]
    torch.manual_seed(0)  # some heads draw numbers
    with torch.no_grad(), Modes() as modes:
        expected = theirs(maps)
    sites = [i for i, site in enumerate(ours.upsample_calls) if site]
    for k, i in enumerate(sites):
        ours.upsample_modules[k] = build_upsampler(
            modes.cfgs[i], *ours.upsample_calls[i]
        )
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.equal(ours(maps), expected)


if __name__ == '__main__':
    (package,) = sys.argv[1:]
    import_module(f'{package}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(package)
    if package == 'mmrotate':
        count('mmrotate', 'neck')
        train_rotated()
    else:
        taken = count('mmseg', 'decode_head')
        heads = {str(plain(head)): head for head in taken}.values()
        equal = [equal_sizes(head) for head in heads]
        for kind, each in zip(('even', 'odd'), zip(*equal)):
            print(f"{sum(each)} of {len(each)} heads equal mmseg's at {kind} sizes")
        assert all(map(all, equal))
