"""Train a segmentor of MMSegmentation with several upsamplers and compare their mIoU.

    python benchmarks/semantic_masks.py data/nuclei
    python benchmarks/compare_segmentors.py benchmarks/fpn-head_r18_nuclei.py \
        --upsamplers bilinear carafe dlu dysample --seeds 0 1 2 --out results

Each run leaves a JSON file in the folder and is not repeated. The first upsampler is
the baseline.
"""

import argparse
import gc
import json
from pathlib import Path

import numpy as np
from mmengine.registry import init_default_scope

from dlu_mmdet.config import load_config, upsampler_label
from dlu_mmdet.config.read import parse_upsampler
from dlu_mmdet.engine import build_runner
from dlu_mmdet.evaluation.significance import holm, seed_difference


def train(config: str, upsampler: dict, seed: int, work_dir: Path) -> dict:
    """The metrics of one run."""
    options = {'randomness.seed': seed}
    cfg = load_config(
        config, work_dir=work_dir, cfg_options=options, upsampler=upsampler, train=True
    )
    # the name of a run is that of its logger too
    cfg.experiment_name = work_dir.name
    runner = build_runner(cfg, 'train')
    runner.train()
    scalars = runner.message_hub.log_scalars
    names = ('mIoU', 'mAcc', 'aAcc')
    return {name: round(float(scalars[f'val/{name}'].current()), 2) for name in names}


def table(found: dict[str, dict[int, dict]]) -> str:
    """mIoU in percent, and the differences to the first upsampler."""
    values = {
        name: np.array([runs[seed]['mIoU'] for seed in sorted(runs)])
        for name, runs in found.items()
    }
    baseline, *others = values
    differences = {
        name: seed_difference(values[name], values[baseline]) for name in others
    }
    p = dict(zip(others, holm([each.p for each in differences.values()])))
    rows = [
        f'| upsampler | mIoU, % | each seed | minus {baseline} | p (Holm) |',
        '|---|--:|--:|--:|--:|',
    ]
    for name, each in values.items():
        seeds = ', '.join(f'{value:.2f}' for value in each)
        row = [name, f'{each.mean():.2f} ± {each.std(ddof=1):.2f}', seeds]
        if name == baseline:
            row += ['-', '-']
        else:
            d = differences[name]
            row += [f'{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})', f'{p[name]:.3f}']
        rows.append(f'| {" | ".join(row)} |')
    return '\n'.join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('--upsamplers', nargs='+', required=True)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    init_default_scope('mmseg')
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[int, dict]] = {text: {} for text in args.upsamplers}
    for seed in args.seeds:
        for text in args.upsamplers:
            upsampler = parse_upsampler(text)
            name = f'{upsampler_label(upsampler)}-seed{seed}'
            file = args.out / f'{name}.json'
            if not file.exists():
                work_dir = Path('work_dirs') / Path(args.config).stem / name
                metrics = train(args.config, upsampler, seed, work_dir)
                record = dict(upsample_cfg=upsampler, seed=seed, **metrics)
                file.write_text(json.dumps(record, indent=1) + '\n')
                print(name, metrics, flush=True)
                gc.collect()  # the workers of the dataloaders
            found[text][seed] = json.loads(file.read_text())
    print(table(found))


if __name__ == '__main__':
    main()
