"""Compare the results of upsamplers across data sets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ..evaluation.average_precision import KINDS_OF_AP, MIN_IMAGES
from ..evaluation.significance import LEVEL, Difference, holm, seed_difference
from ..utils.plotting import GRAY, PALETTE, interval_key, legend_below, style
from ..utils.tables import to_markdown
from .inputs import data_hashes, differing
from .report import new_figure
from .runs import RunResult, score_name
from .summary import Spread

#: Metrics in the table of object sizes.
SIZES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')


def read_results(
    folder: str | Path, metric: str = 'bbox'
) -> dict[tuple[str, int], RunResult]:
    """Read the results of one data set.

    Args:
        folder (str | Path): Folder with ``result.json`` files of ``dlu_mmdet compare``
            at any depth, under any name that ends with .json.
        metric (str): What AP is of: 'bbox', 'segm' or 'boundary'.

    Returns:
        dict[tuple[str, int], RunResult]: Results by upsampler and seed.

    Raises:
        FileNotFoundError: If the folder does not exist or has no result.
        ValueError: If two files have the same upsampler and seed or differ in data, a
            file is damaged, or has no score in the metric.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{folder} is no folder; name those of dlu_mmdet compare, or copies of the '
            f'result.json files in them'
        )
    found: dict[tuple[str, int], RunResult] = {}
    files: dict[tuple[str, int], Path] = {}
    hashes: dict[Path, dict[str, str]] = {}
    for file in sorted(folder.rglob('*.json')):
        content = _read_result(file)
        if content is None:
            continue
        if metric != 'bbox':
            content = _in_metric(content, metric, file)
        key = content.upsampler, content.seed
        if key in found:
            raise ValueError(
                f'{files[key]} and {file} both hold {key[0]} with seed {key[1]}; keep '
                f'the results of one data set and detector to a folder'
            )
        hashes[file] = data_hashes(content.inputs or {})
        _refuse_other_data(file, hashes)
        found[key], files[key] = content, file
    if not found:
        raise FileNotFoundError(
            f'{folder} holds no result of a run (a result.json with upsampler, seed '
            f'and AP); name a folder of dlu_mmdet compare'
        )
    return found


def _read_result(file: Path) -> RunResult | None:
    """The result of a finished run; None if the file is something else.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if file.name == 'result.json' or b'\0' in file.read_bytes():
            raise ValueError(
                f'{file} is damaged ({error}); copy it again, or remove it and '
                f'let dlu_mmdet compare --report-only make it anew'
            ) from error
        # mmengine's scalars.json has an object a line
        return None
    if not isinstance(content, dict) or not {'upsampler', 'seed'} <= {*content}:
        return None
    try:
        result = RunResult.from_json(content)
    except ValueError as error:
        raise ValueError(f'{file} is damaged ({error}); copy it again') from error
    if result.diverged:
        warnings.warn(f'{file} is of a run that diverged: left out', stacklevel=3)
        return None
    return result if 'AP' in result.scores else None


def _in_metric(result: RunResult, metric: str, file: Path) -> RunResult:
    """The result with the scores of masks or boundaries instead of boxes."""
    scores = {key: result.content.get(score_name(metric, key)) for key in SIZES}
    if scores['AP'] is None:
        raise ValueError(
            f'{file} has no {KINDS_OF_AP[metric]}; dlu_mmdet compare CONFIG... '
            f'--report-only --metric {metric} adds it'
        )
    # classes are scored by boxes
    return replace(result, scores=scores, classes={})


def _refuse_other_data(file: Path, hashes: Mapping[Path, dict[str, str]]) -> None:
    """Refuse a result whose data differ from those of earlier results."""
    for other, known in hashes.items():
        # detectors may read other parts of it
        common = sorted(hashes[file].keys() & known.keys())
        both = ({key: each[key] for key in common} for each in (known, hashes[file]))
        if lines := differing(*both):
            raise ValueError(
                f'{other} and {file} are of other data; keep the results of one '
                f'data set to a folder. They differ in\n{lines}'
            )


def _cells(
    results: Mapping[tuple[str, int], RunResult],
    metric: str,
    category: str | None = None,
) -> dict[tuple[str, int], float]:
    """A metric by upsampler and seed; without those that have no object."""
    values = {}
    for key, result in results.items():
        scores = result.scores if category is None else result.classes.get(category, {})
        if (value := scores.get(metric)) is not None:
            values[key] = value
    return values


def _means(cells: Mapping[tuple[str, int], float]) -> dict[str, np.ndarray]:
    """Values of every upsampler over its seeds."""
    grouped: dict[str, list[float]] = {}
    for (name, _), value in cells.items():
        grouped.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in grouped.items()}


@dataclass(frozen=True)
class CrossDatasetResults:
    """Results of upsamplers on several data sets.

    Args:
        sets (Mapping[str, Mapping]): Results of :func:`read_results` by data set.
        baseline (str): The upsampler that others are compared with. Defaults to
            'bilinear'.
        ap (str): What AP is called.

    Raises:
        ValueError: If a set has no result of the baseline.
    """

    sets: Mapping[str, Mapping[tuple[str, int], RunResult]]
    baseline: str = 'bilinear'
    ap: str = 'AP'

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
        """Differences to the baseline on one data set, by upsampler.

        Each is taken over the seeds that both upsamplers have; an upsampler without a
        common seed is left out. The intervals cover other seeds on the same test
        images, see :func:`~dlu_mmdet.evaluation.significance.seed_difference`.
        """
        cells = _cells(self.sets[name], metric, category)
        found = {}
        for upsampler in dict.fromkeys(upsampler for upsampler, _ in cells):
            seeds = [s for u, s in cells if u == upsampler]
            common = [s for s in seeds if (self.baseline, s) in cells]
            if upsampler != self.baseline and common:
                found[upsampler] = seed_difference(
                    [cells[upsampler, s] for s in common],
                    [cells[self.baseline, s] for s in common],
                )
                if self._images(name, metric) < MIN_IMAGES:
                    found[upsampler] = Difference(found[upsampler].value)
        return found

    def _images(self, name: str, metric: str) -> float:
        """Number of test images with objects of a metric; infinite if unknown."""
        counts = [
            r.images[metric] for r in self.sets[name].values() if metric in r.images
        ]
        return min(counts, default=np.inf)

    def categories(self, name: str) -> list[str]:
        """Class names of a data set, from its results."""
        return list(
            dict.fromkeys(
                category
                for result in self.sets[name].values()
                for category in result.classes
            )
        )

    def common(self, metric: str = 'AP') -> dict[str, Difference]:
        """Mean differences to the baseline over data sets, with paired t intervals.

        Of the upsamplers that all data sets have. The variance is that between data
        sets, so the interval covers other data sets like these.
        """
        columns = [self.differences(name, metric) for name in self.sets]
        everywhere = [u for u in columns[0] if all(u in column for column in columns)]
        sets = len(columns)
        found = {}
        for upsampler in everywhere:
            values = np.array([column[upsampler].value for column in columns])
            variance = [values.var(ddof=1) / sets] if sets > 1 else []
            found[upsampler] = Difference.from_variances(
                float(values.mean()), variance, [sets - 1]
            )
        return found

    @property
    def upsamplers(self) -> list[str]:
        """Names by descending mean difference in AP to the baseline.

        Upsamplers without a common seed come last.
        """
        gains: dict[str, list[float]] = {
            upsampler: [] for results in self.sets.values() for upsampler, _ in results
        }
        gains[self.baseline].append(0.0)
        for name in self.sets:
            for upsampler, found in self.differences(name).items():
                gains[upsampler].append(found.value)
        means = {name: np.mean(own) if own else -np.inf for name, own in gains.items()}
        return sorted(means, key=lambda upsampler: -means[upsampler])

    def rank_correlations(self) -> list[tuple[str, str, int, float, float]]:
        """Kendall's tau between the rankings on two data sets.

        Returns:
            list[tuple]: Names of two data sets, number of common upsamplers, tau of
            their mean AP, and its exact two-sided p-value.
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

    def accuracy(self, name: str) -> dict[str, tuple[Spread, dict]]:
        """AP and ``upsample_cfg`` of every upsampler on one data set.

        Args:
            name (str): The data set.

        Returns:
            dict[str, tuple[Spread, dict]]: By upsampler, highest mean AP first.
        """
        built = {key[0]: each.upsample_cfg for key, each in self.sets[name].items()}
        means = self.values()[name]
        order = sorted(means, key=lambda upsampler: -means[upsampler].mean())
        return {
            upsampler: (Spread.over(list(means[upsampler])), built[upsampler])
            for upsampler in order
        }

    def accuracy_table(self) -> list[list[str]]:
        """Header and rows: mean AP ± standard deviation (number of seeds)."""
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
        """Header and rows: differences to the baseline, by data set and overall."""
        several = len(self.sets) > 1
        columns = {name: self.differences(name, metric) for name in self.sets}
        if several:
            columns['all sets'] = self.common(metric)
        stars = [significant(column) for column in columns.values()]
        label = self.ap.replace('AP', metric)
        table = [[f'{label} minus {self.baseline}', *columns]]
        for upsampler in self.upsamplers:
            if upsampler != self.baseline:
                cells = [
                    f'{column[upsampler]}{"*" if upsampler in starred else ""}'
                    if upsampler in column
                    else '-'
                    for column, starred in zip(columns.values(), stars)
                ]
                table.append([upsampler, *cells])
        return table

    def size_table(self) -> list[list[str]]:
        """Header and rows: differences by IoU threshold and object size."""
        table = [['data set', 'upsampler', *(self.ap.replace('AP', m) for m in SIZES)]]
        for name in self.sets:
            columns = [self.differences(name, metric) for metric in SIZES]
            for upsampler in self.upsamplers:
                if upsampler in columns[0]:
                    cells = [_short(column.get(upsampler)) for column in columns]
                    table.append([name, upsampler, *cells])
        return table

    def class_table(self) -> list[list[str]]:
        """Header and rows: differences in AP by class, of sets with several."""
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
        """Header and rows: rank correlations between data sets."""
        found = self.rank_correlations()
        adjusted = holm([line[-1] for line in found])
        return [['data sets', 'upsamplers', "Kendall's tau", 'p (Holm)']] + [
            [f'{one}, {other}', str(number), f'{tau:+.2f}', f'{p:.3f}']
            for (one, other, number, tau, _), p in zip(found, adjusted)
        ]

    def markdown(self) -> str:
        """All tables with notes, as Markdown."""
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
            f'{"AP of boxes" if self.ap == "AP" else self.ap} as a fraction: mean ± '
            f'standard deviation (number of seeds). '
            f'Differences to {self.baseline} are means over the seeds that both '
            f"upsamplers have, with 95 % intervals by Welch's t. They are about other "
            f'seeds on the same test images; dlu_mmdet compare covers others too. '
            f'All sets: the mean of the differences, with the t interval of '
            f'their spread over sets. *: significant at 5 % after correction (Holm) '
            f'over the upsamplers of a column. By size and class: exploratory, without '
            f'correction; †: the interval leaves out 0.'
        )
        return '\n\n'.join(parts)


def significant(column: Mapping[str, Difference]) -> set[str]:
    """The upsamplers of a column whose difference is significant, Holm-corrected."""
    adjusted = holm([difference.p for difference in column.values()])
    return {upsampler for upsampler, p in zip(column, adjusted) if p < LEVEL}


def _short(difference: Difference | None) -> str:
    if difference is None:
        return '-'
    return f'{difference.value:+.3f}{"†" if difference.p < LEVEL else ""}'


@style()
def plot(across: CrossDatasetResults) -> Figure:
    """Plot differences with their intervals: a column a data set, a row an upsampler.

    Args:
        across (CrossDatasetResults): The results.

    Returns:
        Figure: Small dots are the seeds that the baseline has too.
    """
    names = [name for name in across.upsamplers if name != across.baseline]
    columns: Sequence[str] = [*across.sets]
    several = len(columns) > 1
    figure, axes = new_figure(
        len(columns) + several, 1.8 + 0.34 * len(names), width=2.5, sharey=True
    )
    for axis, name in zip(axes, columns):
        cells = _cells(across.sets[name], 'AP')
        _panel(axis, names, across.differences(name))
        for y, upsampler in enumerate(reversed(names)):
            seeds = [
                value - cells[across.baseline, seed]
                for (own, seed), value in cells.items()
                if own == upsampler and (across.baseline, seed) in cells
            ]
            axis.plot(seeds, [y - 0.25] * len(seeds), '.', ms=4, color=GRAY)
        axis.set_title(name)
    if several:
        _panel(axes[-1], names, across.common())
        axes[-1].set_title('all sets')
    for axis in axes:
        axis.locator_params(axis='x', nbins=5)  # labels that do not touch
    axes[0].set_yticks(range(len(names)), names[::-1])
    axes[0].set_ylim(-0.6, len(names) - 0.4)
    figure.suptitle(f'{across.ap} minus that of {across.baseline}')
    legend_below(figure, interval_key())
    return figure


def _panel(axis, names: Sequence[str], found: Mapping, color: str = PALETTE[0]) -> None:
    """Draw one data set's differences; significant ones have filled markers."""
    starred = significant(found)
    for y, upsampler in enumerate(reversed(names)):
        if upsampler in found:
            each = found[upsampler]
            axis.plot([each.low, each.high], [y] * 2, color=color)
            face = color if upsampler in starred else 'white'
            axis.plot(each.value, y, 'o', color=color, markerfacecolor=face)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.grid(False, axis='y')
