"""Upsamplers in any torch.nn.Module, found by a run on an example."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from .builder import upsampler_class
from .resize import trial_of
from .sites import Recorder, Site, build_at_site, find_site, wrap_class

if TYPE_CHECKING:
    from torch.nn import Module as _Upsampler
else:
    _Upsampler = object


class UpsamplingReport(NamedTuple):
    """What :func:`replace_upsampling` did.

    Attributes:
        replaced (dict[str, nn.Module]): The upsamplers, by their names in the model.
        left (list[tuple[str, str]]): Modules that still interpolate, each with the
            reason.
    """

    replaced: dict[str, nn.Module]
    left: list[tuple[str, str]]


class _Call(NamedTuple):
    """A call of ``interpolate``: its map, its record, and the modules around it."""

    given: Tensor
    record: tuple[torch.Size, torch.Size, str]  # as find_site takes it
    scale_factor: Any
    # outermost first, each with how often it ran before
    running: tuple[tuple[nn.Module, int], ...]

    @property
    def module(self) -> nn.Module:
        """The ``nn.Upsample`` that makes the call, or the module that has it."""
        return self.running[-1][0]


class _CallRecorder(Recorder):
    """Records every call of ``interpolate`` with the modules that are running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._running: list[tuple[nn.Module, int]] = []
        self.runs: Counter = Counter()
        self._modules = [
            module
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]

    def __enter__(self) -> _CallRecorder:
        self._handles = []
        for module in self._modules:
            self._handles += [
                module.register_forward_pre_hook(self._begin),
                module.register_forward_hook(self._end, always_call=True),
            ]
        return super().__enter__()

    def __exit__(self, *args: object) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*args)

    def _begin(self, module: nn.Module, args: object) -> None:
        self._running.append((module, self.runs[module]))
        self.runs[module] += 1

    def _end(self, *args: object) -> None:
        self._running.pop()

    def call(self, input: Tensor, size=None, scale_factor=None, *args, **kwargs):
        out = super().call(input, size, scale_factor, *args, **kwargs)
        running = (*self._running,)
        self.calls.append(_Call(input, self.records[-1], scale_factor, running))
        return out


class ScriptableMixin(_Upsampler):
    """An upsampler that ``torch.jit.script`` takes, by way of a trace."""

    upsampling_site: Site

    def __prepare_scriptable__(self) -> torch.jit.ScriptModule:
        weight = next(self.parameters(), torch.empty(0))
        x = weight.new_zeros(1, self.upsampling_site.channels, 8, 8)
        return torch.jit.trace(self, x, check_trace=False)


# parameters that are made in inference mode cannot be trained
@torch.inference_mode(False)
def replace_upsampling(
    model: nn.Module, upsample_cfg: dict, *example_inputs: Any
) -> UpsamplingReport:
    """Put upsamplers where a model enlarges maps by interpolation, in place.

    The model runs on the example, in eval mode and without gradients. An
    ``nn.Upsample`` with a whole ratio is replaced as a module. Other calls of
    ``torch.nn.functional.interpolate`` that enlarge a map by a whole ratio are replaced
    in the module whose forward makes them, by its new ``upsample_modules``. A second
    run, on the example at twice its size, finds ratios that depend on the size of the
    input; a model that refuses it is taken by the first run alone.

    Args:
        model (nn.Module): Any model.
        upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`, for an
            upsampler without a guide. A ``start`` of 'neck' is the interpolation of
            each site.
        *example_inputs (Any): What ``model.forward`` takes. The sides of images should
            be multiples of the largest stride.

    Returns:
        UpsamplingReport: The upsamplers, and what still interpolates.

    Raises:
        FileNotFoundError: As :func:`dlu_mmdet.upsamplers.upsampler_class`.
        TypeError: If ``model`` is no module, or as
            :func:`dlu_mmdet.upsamplers.build_upsampler`.
        ValueError: If the model does not run on the example, is compiled or
            interpolates nowhere by a whole ratio, or the upsampler does not fit a
            site. Then nothing is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f'model must be a torch.nn.Module, got {" ".join(repr(model).split())} of '
            f'type {type(model).__name__}'
        )
    upsampler_class(upsample_cfg)
    for module in model.modules():
        compiled = getattr(module, '_compiled_call_impl', None) is not None
        if compiled or hasattr(module, '_orig_mod'):
            raise ValueError(
                f'{type(getattr(module, "_orig_mod", module)).__name__} is compiled; '
                'replace its upsampling first, and compile it then'
            )
    if old := [module for module in model.modules() if hasattr(module, 'wrapped')]:
        raise ValueError(
            f'{type(model).__name__} has upsamplers of this package already, as in '
            f'{type(old[0]).__name__}; build it anew to replace its interpolation'
        )
    names = {module: name for name, module in model.named_modules()}
    recorder = _run(model, example_inputs)
    calls = recorder.calls
    why, alone = _why_left(model, calls, example_inputs), _find_modules(model, calls)
    modules = [i for i, reason in enumerate(why) if alone[i] and not reason]
    others = [
        None if alone[i] or why[i] else find_site(call.record)
        for i, call in enumerate(calls)
    ]
    owners = _find_owners(recorder, others, why)
    left = [(names[call.module], reason) for call, reason in zip(calls, why) if reason]
    left += [
        (name, 'the example does not reach it')
        for module, name in names.items()
        if _is_upsample(module) and module not in {call.module for call in calls}
    ]
    if not modules and not owners:
        reasons = [f'{name or "forward"}: {reason}' for name, reason in left]
        raise ValueError(
            f'{type(model).__name__} has no site for an upsampler: '
            + ('; '.join(reasons) or 'it calls neither nn.Upsample nor interpolate')
        )

    # every upsampler before anything is changed
    built = {
        i: _build(names[calls[i].module] or 'forward', upsample_cfg, calls[i])
        for i in (*modules, *(i for indices in owners.values() for i in indices))
    }
    replaced = {names[calls[i].module]: built[i] for i in modules}
    for i in modules:
        built[i].upsampling_site = find_site(calls[i].record)
        made: Any = type(built[i])
        built[i].__class__ = wrap_class(made, ScriptableMixin)
        _take_place(model, calls[i].module, built[i])
    if owners:
        _wrap(model, example_inputs, calls, owners, built)
    for owner, indices in owners.items():
        prefix = f'{names[owner]}.' if names[owner] else ''
        for k, i in enumerate(indices):
            replaced[f'{prefix}upsample_modules.{k}'] = built[i]
    return UpsamplingReport(replaced, left)


def _run(model: nn.Module, inputs: Sequence) -> _CallRecorder:
    """Run a model and record its calls."""
    try:
        with trial_of(model), _CallRecorder(model) as recorder:
            model(*inputs)
    except Exception as error:  # whatever a model says to inputs not its own
        shapes = ', '.join(
            str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__
            for each in tree_flatten(list(inputs))[0]
        )
        raise ValueError(
            f'{type(model).__name__} does not run on example_inputs ({shapes}): '
            f'{type(error).__name__}: {" ".join(str(error).split())}; give what its '
            'forward takes'
        ) from error
    return recorder


def _is_upsample(module: nn.Module) -> bool:
    """Whether a module does nothing but interpolate."""
    # in this order: the forward of a scripted module cannot be asked for
    return (
        isinstance(module, nn.Upsample) and type(module).forward is nn.Upsample.forward
    )


def _find_modules(model: nn.Module, calls: Sequence[_Call]) -> list[bool]:
    """Which calls are those of an ``nn.Upsample`` that can be replaced itself."""
    counts = Counter(call.module for call in calls)
    return [
        _is_upsample(call.module)
        and call.module is not model
        and call.module.size is None
        and counts[call.module] == 1
        for call in calls
    ]


def _why_left(model: nn.Module, calls: Sequence[_Call], inputs: Sequence) -> list[str]:
    """The reason why a call cannot be replaced; '' for a site."""

    def double(x: Any) -> Any:
        is_map = isinstance(x, Tensor) and x.dim() >= 3
        return x.repeat(*(1,) * (x.dim() - 2), 2, 2) if is_map else x

    try:
        larger: Sequence[_Call] = _run(model, tree_map(double, list(inputs))).calls
    except ValueError:
        larger = []
    larger = larger if len(larger) == len(calls) else calls
    return [_why(*both) for both in zip(calls, larger)]


def _why(call: _Call, larger: _Call) -> str:
    source, target, _ = call.record
    if len(source) != 4 or not call.given.is_floating_point():
        return (
            f'its map is {call.given.dtype} {tuple(source)}, not a float (N, C, H, W)'
        )
    ratios = call.scale_factor
    ratios = ratios if isinstance(ratios, (tuple, list)) else (ratios,)
    is_whole = all(ratio is None or ratio == int(ratio) for ratio in ratios)
    if find_site(call.record) is None or not is_whole:
        (h, w), (out_h, out_w) = source[2:], target[2:]
        by = '' if call.scale_factor is None else f' by scale_factor={ratios[-1]}'
        return f'{h} x {w} to {out_h} x {out_w}{by} is no whole ratio of at least 2'
    if find_site(call.record, larger.record) is None:
        return 'its ratio depends on the size of the input'
    return ''


def _find_owners(
    recorder: _CallRecorder, sites: list[Site | None], why: list[str]
) -> dict[nn.Module, list[int]]:
    """The modules whose calls are replaced, each with the sites of one of its runs.

    One that runs inside another leaves its calls to that one. Where the runs of a
    module differ, its calls are no sites, and ``why`` gets the reason.
    """
    calls = recorder.calls
    callers = {_caller(call) for call, site in zip(calls, sites) if site} - {None}
    runs: dict = defaultdict(lambda: defaultdict(list))
    for i, call in enumerate(calls):
        outermost = next((each for each in call.running if each[0] in callers), None)
        if outermost is None and sites[i]:
            why[i] = 'only an nn.Sequential calls it; put it into another module'
        elif outermost:
            runs[outermost[0]][outermost[1]].append(i)
    owners = {}
    for owner, by_run in runs.items():
        same = {tuple(sites[i] for i in indices) for indices in by_run.values()}
        if hasattr(owner, 'upsample_modules'):
            reason = f'{type(owner).__name__} has upsample_modules already'
        elif len(same) > 1 or len(by_run) != recorder.runs[owner]:
            reason = f'{type(owner).__name__} runs several times, each with other maps'
        else:
            owners[owner] = [i for i in by_run[0] if sites[i]]
            continue
        for i in (i for indices in by_run.values() for i in indices if sites[i]):
            why[i] = reason
    return owners


def _caller(call: _Call) -> nn.Module | None:
    """The module whose forward makes a call, or has the ``nn.Upsample`` that does.

    A Sequential would run upsamplers that it is given.
    """
    for module, _ in reversed(call.running):
        if not _is_upsample(module) and not isinstance(module, nn.Sequential):
            return module
    return None


def _build(name: str, upsample_cfg: dict, call: _Call) -> nn.Module:
    """An upsampler for a call, on its device and of its dtype."""
    site: Any = find_site(call.record)
    upsampler = build_at_site(name, upsample_cfg, site)
    upsampler.to(call.given.device, call.given.dtype)
    return upsampler.train(call.module.training)


def _take_place(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module where another is, with its hooks and attributes of the user's."""
    own = vars(nn.Upsample())
    for key, value in vars(old).items():
        if key not in own:
            vars(new).setdefault(key, value)
        elif 'forward' in key or 'backward' in key:
            vars(new)[key] = value
    for parent in [*model.modules()]:
        for key, child in parent.named_children():
            if child is old:
                setattr(parent, key, new)


def _wrap(
    model: nn.Module,
    inputs: Sequence,
    calls: Sequence[_Call],
    owners: dict[nn.Module, list[int]],
    built: dict[int, nn.Module],
) -> None:
    """Let modules call their upsamplers."""
    new = {*built.values()}
    in_owners = {i for indices in owners.values() for i in indices}
    # what is left of the calls, and those that new modules make
    rest = iter([i for i in range(len(calls)) if i in in_owners or i not in built])
    again = [
        (call, None if new.intersection(dict(call.running)) else next(rest))
        for call in _run(model, inputs).calls
    ]
    for owner, indices in owners.items():
        owner.upsample_calls = [
            find_site(calls[i].record) if i in indices else None
            for call, i in again
            if (owner, 0) in call.running
        ]
        owner.upsample_modules = nn.ModuleList(built[i] for i in indices)
        made: Any = type(owner)
        owner.__class__ = wrap_class(made)
