"""Results of several data sets side by side: does the order hold on all of them?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .inputs import data_hashes, differing
from .report import new_figure
from .runs import divergence
from .tables import to_markdown

#: Metrics in the table of object sizes.
SIZES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')


@dataclass(frozen=True)
class Difference:
    """A difference to the baseline with its 95 % interval.

    Attributes:
        value (float): The estimate.
        low (float): Lower end; NaN where nothing is left to tell it from.
        high (float): Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def real(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f'{self.value:+.3f}'
        return f'{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})'


def read_results(folder: str | Path) -> dict[tuple[str, int], dict]:
    """Read the results of one data set.

    Args:
        folder (str | Path): With the ``result.json`` of runs of ``tools/compare.py``
            at any depth, under any names that end with .json.

    Returns:
        dict: Results by upsampler and seed.

    Raises:
        FileNotFoundError: If there is no folder, or no result in it.
        ValueError: If two files hold the same upsampler and seed, or are of other data.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{folder} is no folder; name those of tools/compare.py, or copies of the '
            f'result.json files in them'
        )
    found: dict[tuple[str, int], dict] = {}
    files: dict[tuple[str, int], Path] = {}
    hashes: dict[Path, dict[str, str]] = {}
    for file in sorted(folder.rglob('*.json')):
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (json.JSONDecodeError, UnicodeDecodeError):
            # mmengine's scalars.json has an object a line
            continue
        if not isinstance(content, dict) or not {'upsampler', 'seed'} <= {*content}:
            continue
        if divergence(content):
            warnings.warn(f'{file} is of a run that diverged: left out', stacklevel=2)
            continue
        if 'AP' not in content:
            continue
        key = content['upsampler'], content['seed']
        if key in found:
            raise ValueError(
                f'{files[key]} and {file} both hold {key[0]} with seed {key[1]}; keep '
                f'the results of one data set and detector to a folder'
            )
        data = data_hashes(content.get('inputs') or {})
        for other, known in hashes.items():
            # detectors may read other parts of it
            common = sorted(data.keys() & known.keys())
            if lines := differing(*({k: d[k] for k in common} for d in (known, data))):
                raise ValueError(
                    f'{other} and {file} are of other data; keep the results of one '
                    f'data set to a folder. They differ in\n{lines}'
                )
        hashes[file] = data
        found[key], files[key] = content, file
    if not found:
        raise FileNotFoundError(
            f'{folder} holds no result of a run (a result.json with upsampler, seed '
            f'and AP); name a folder of tools/compare.py'
        )
    return found


def two_way(
    cells: Mapping[tuple[str, Hashable], float], baseline: str
) -> dict[str, Difference]:
    """Differences between treatments that were tried in the same blocks.

    Least squares of value = treatment + block + noise, where the noise has one
    size for all treatments, so that few blocks of many treatments tell it together.
    Treatments may lack blocks. With all of them in all blocks the estimate is the
    mean of the paired differences.

    Source: Montgomery, Design and Analysis of Experiments, randomized complete block
    design.

    Args:
        cells (Mapping[tuple[str, Hashable], float]): Value by treatment and block.
        baseline (str): The treatment that others are compared with.

    Returns:
        dict[str, Difference]: Of every other treatment, in the order given.

    Raises:
        ValueError: If the baseline has no value.
    """
    treatments = list(dict.fromkeys(treatment for treatment, _ in cells))
    blocks = list(dict.fromkeys(block for _, block in cells))
    if baseline not in treatments:
        raise ValueError(
            f'baseline {baseline!r} is none of {", ".join(treatments)}; name one'
        )
    others = [treatment for treatment in treatments if treatment != baseline]
    design = np.zeros((len(cells), len(blocks) + len(others)))
    for row, (treatment, block) in zip(design, cells):
        row[blocks.index(block)] = 1
        if treatment != baseline:
            row[len(blocks) + others.index(treatment)] = 1
    values = np.array(list(cells.values()))
    fit, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - rank
    width = np.full(len(others), np.nan)
    if freedom > 0:
        noise = np.sum((values - design @ fit) ** 2) / freedom
        spread = np.diag(np.linalg.pinv(design.T @ design))[len(blocks) :]
        width = stats.t.ppf(0.975, freedom) * np.sqrt(noise * spread)
    return {
        treatment: Difference(float(value), float(value - w), float(value + w))
        for treatment, value, w in zip(others, fit[len(blocks) :], width)
    }


def _cells(
    results: Mapping[tuple[str, int], dict], metric: str, category: str | None = None
) -> dict[tuple[str, int], float]:
    """A metric by upsampler and seed, where there is an object to find."""
    values = {}
    for key, result in results.items():
        value = result if category is None else result.get('classes', {}).get(category)
        value = (value or {}).get(metric)
        if value is not None:
            values[key] = value
    return values


def _means(cells: Mapping[tuple[str, int], float]) -> dict[str, np.ndarray]:
    """Values of every upsampler over its seeds."""
    grouped: dict[str, list[float]] = {}
    for (name, _), value in cells.items():
        grouped.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in grouped.items()}


@dataclass(frozen=True)
class Across:
    """Results of several data sets, and what they have in common.

    Args:
        sets (Mapping[str, Mapping]): What :func:`read_results` found, by the data
            sets' names.
        baseline (str): The upsampler that others are compared with. Defaults to
            'bilinear'.

    Raises:
        ValueError: If a set has no result of the baseline.
    """

    sets: Mapping[str, Mapping[tuple[str, int], dict]]
    baseline: str = 'bilinear'

    def __post_init__(self) -> None:
        for name, results in self.sets.items():
            if self.baseline not in {upsampler for upsampler, _ in results}:
                raise ValueError(
                    f'{name} has no result of the baseline {self.baseline}; it has '
                    f'{", ".join(sorted({upsampler for upsampler, _ in results}))}'
                )

    def values(self, metric: str = 'AP') -> dict[str, dict[str, np.ndarray]]:
        """Values over seeds, by data set and upsampler."""
        return {
            name: _means(_cells(results, metric)) for name, results in self.sets.items()
        }

    def differences(
        self, name: str, metric: str = 'AP', category: str | None = None
    ) -> dict[str, Difference]:
        """Differences to the baseline on one data set, with seeds as blocks."""
        cells = _cells(self.sets[name], metric, category)
        if not any(upsampler == self.baseline for upsampler, _ in cells):
            return {}
        return two_way(cells, self.baseline)

    def categories(self, name: str) -> list[str]:
        """Class names of a data set, of results that have them."""
        return list(
            dict.fromkeys(
                category
                for result in self.sets[name].values()
                for category in result.get('classes', {})
            )
        )

    def common(self, metric: str = 'AP') -> dict[str, Difference]:
        """Differences to the baseline over data sets, with data sets as blocks.

        Of the upsamplers that every data set has, each with its mean over seeds: the
        noise is how differently an upsampler fares from set to set, so the interval is
        about data sets like these.
        """
        values = self.values(metric)
        everywhere = set.intersection(*({*means} for means in values.values()))
        cells = {
            (upsampler, name): float(found.mean())
            for name, means in values.items()
            for upsampler, found in means.items()
            if upsampler in everywhere
        }
        return two_way(cells, self.baseline)

    @property
    def upsamplers(self) -> list[str]:
        """Names, the best mean difference in AP to the baseline first."""
        gains: dict[str, list[float]] = {self.baseline: [0.0]}
        for name in self.sets:
            for upsampler, found in self.differences(name).items():
                gains.setdefault(upsampler, []).append(found.value)
        return sorted(gains, key=lambda upsampler: -float(np.mean(gains[upsampler])))

    def rank_correlations(self) -> list[tuple[str, str, int, float, float]]:
        """Kendall's tau between the orders on two data sets.

        Returns:
            list[tuple]: Names of two sets, the number of upsamplers that both have,
            tau of their mean AP, and the exact probability of one as far from 0 for
            unrelated orders.
        """
        values, found = self.values(), []
        for one, other in combinations(self.sets, 2):
            shared = [name for name in values[one] if name in values[other]]
            means = [[values[s][name].mean() for name in shared] for s in (one, other)]
            if len(shared) > 2:
                tau = stats.kendalltau(*means)
                line = float(tau.statistic), float(tau.pvalue)
                found.append((one, other, len(shared), *line))
        return found

    def rows(self, name: str) -> list[dict]:
        """What :func:`~dlu_mmdet.analysis.report.plot_accuracy` takes, without costs.

        Args:
            name (str): Of a data set.

        Returns:
            list[dict]: ``name``, ``AP``, ``AP_std`` (None for one seed) and
            ``upsample_cfg`` of every upsampler, best first.
        """
        built = {key[0]: each['upsample_cfg'] for key, each in self.sets[name].items()}
        rows = [
            dict(
                name=upsampler,
                AP=float(found.mean()),
                AP_std=float(found.std(ddof=1)) if len(found) > 1 else None,
                upsample_cfg=built[upsampler],
            )
            for upsampler, found in self.values()[name].items()
        ]
        return sorted(rows, key=lambda row: -row['AP'])

    def accuracy_table(self) -> list[list[str]]:
        """Header and lines: AP on every data set, mean ± standard deviation (seeds)."""
        values = self.values()
        table = [['upsampler', *self.sets]]
        for upsampler in self.upsamplers:
            line = [upsampler]
            for name in self.sets:
                found = values[name].get(upsampler)
                if found is None:
                    line.append('-')
                    continue
                spread = f' ± {found.std(ddof=1):.3f}' if len(found) > 1 else ''
                line.append(f'{found.mean():.3f}{spread} ({len(found)})')
            table.append(line)
        return table

    def difference_table(self, metric: str = 'AP') -> list[list[str]]:
        """Header and lines: differences to the baseline, and over all data sets."""
        several = len(self.sets) > 1
        columns = {name: self.differences(name, metric) for name in self.sets}
        if several:
            columns['all sets'] = self.common(metric)
        table = [[f'{metric} minus {self.baseline}', *columns]]
        for upsampler in self.upsamplers:
            if upsampler != self.baseline:
                cells = [column.get(upsampler, '-') for column in columns.values()]
                table.append([upsampler, *map(str, cells)])
        return table

    def size_table(self) -> list[list[str]]:
        """Header and lines: differences by IoU threshold and size of the objects."""
        table = [['data set', 'upsampler', *SIZES]]
        for name in self.sets:
            columns = [self.differences(name, metric) for metric in SIZES]
            for upsampler in self.upsamplers:
                if upsampler in columns[0]:
                    cells = [_short(column.get(upsampler)) for column in columns]
                    table.append([name, upsampler, *cells])
        return table

    def class_table(self) -> list[list[str]]:
        """Header and lines: differences in AP by class, where there are several."""
        upsamplers = [name for name in self.upsamplers if name != self.baseline]
        table = [['data set', 'class', *upsamplers]]
        for name in self.sets:
            categories = self.categories(name)
            for category in categories if len(categories) > 1 else ():
                # empty where results of the baseline are without classes
                if found := self.differences(name, 'AP', category):
                    cells = [_short(found.get(upsampler)) for upsampler in upsamplers]
                    table.append([name, category, *cells])
        return table

    def rank_table(self) -> list[list[str]]:
        """Header and lines: agreement of the orders of two data sets."""
        return [['data sets', 'upsamplers', "Kendall's tau", 'p']] + [
            [f'{one}, {other}', str(number), f'{tau:+.2f}', f'{p:.3f}']
            for one, other, number, tau, p in self.rank_correlations()
        ]

    def markdown(self) -> str:
        """All tables, with what a reader has to know."""
        parts = []
        for table, texts in (
            (self.accuracy_table(), 1),
            (self.difference_table(), 1),
            (self.rank_table(), 1),
            (self.size_table(), 2),
            (self.class_table(), 2),
        ):
            head, *body = table
            if body:
                parts.append(to_markdown(head, body, texts))
        parts.append(
            f'AP of boxes as a fraction: mean ± standard deviation (number of seeds). '
            f'Differences to {self.baseline} with 95 % intervals from the least '
            f'squares of AP = upsampler + seed + noise, whose size is taken to be one '
            f'for all upsamplers of a data set; for all sets, of the mean AP = '
            f'upsampler + data set + noise. *: the interval leaves out 0; of twenty '
            f'true zeros one does.'
        )
        return '\n\n'.join(parts)


def _short(difference: Difference | None) -> str:
    if difference is None:
        return '-'
    return f'{difference.value:+.3f}{"*" if difference.real else ""}'


def plot(across: Across) -> Figure:
    """Data sets in columns, upsamplers in rows, differences with their intervals.

    Args:
        across (Across): The results.

    Returns:
        Figure: A small dot for each seed that the baseline has too.
    """
    names = [name for name in across.upsamplers if name != across.baseline]
    columns: Sequence[str] = [*across.sets]
    several = len(columns) > 1
    figure, axes = new_figure(
        len(columns) + several, 1.4 + 0.36 * len(names), width=3.2, sharey=True
    )
    for axis, name in zip(axes, columns):
        results = across.sets[name]
        _panel(axis, names, across.differences(name))
        for place, upsampler in enumerate(reversed(names)):
            seeds = [
                result['AP'] - results[across.baseline, seed]['AP']
                for (own, seed), result in results.items()
                if own == upsampler and (across.baseline, seed) in results
            ]
            axis.plot(seeds, [place - 0.25] * len(seeds), '.', ms=4, color='#777777')
        axis.set_title(name)
    if several:
        _panel(axes[-1], names, across.common(), colour='black')
        axes[-1].set_title('all sets')
    for axis in axes:
        axis.locator_params(axis='x', nbins=5)  # labels that do not touch
    axes[0].set_yticks(range(len(names)), names[::-1])
    axes[0].set_ylim(-0.6, len(names) - 0.4)
    figure.supxlabel(f'AP minus that of {across.baseline}', fontsize=10)
    return figure


def _panel(axis, names: Sequence[str], found: Mapping, colour: str = '#0072b2') -> None:
    """One data set's differences, the first name on top; hollow where 0 is inside."""
    for place, upsampler in enumerate(reversed(names)):
        if upsampler in found:
            each = found[upsampler]
            axis.plot([each.low, each.high], [place] * 2, color=colour)
            face = colour if each.real else 'white'
            axis.plot(each.value, place, 'o', color=colour, markerfacecolor=face)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.grid(axis='x', alpha=0.3)
