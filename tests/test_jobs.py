"""Several runs at a time: who gets what, what fails, what is ended."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import CONFIGS, load_tool
from fake_tools import make_tools

from dlu_mmdet.analysis import jobs, runs

SHAPES = [
    CONFIGS / 'shapes' / f'faster-rcnn_r18_fpn-{name}_shapes.py'
    for name in ('nearest', 'bilinear', 'dlu')
]


@pytest.fixture
def planned(small, tmp_path):
    return runs.plan(SHAPES, [0], tmp_path / 'work', small)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setenv('EPOCHS', '2')
    monkeypatch.setenv('SECONDS', '0.2')
    return make_tools(tmp_path / 'tools')


def started(run):
    """What the processes of a run noted."""
    lines = (run.work_dir / 'started.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def alive(run):
    """Whether the training of a run is at work."""
    pid = started(run)[0]['pid']
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_machine_is_divided(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(16))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    # one run has the machine as it is
    assert jobs.places(1, 8) == [{}]
    assert jobs.places(3, 1) == [dict(OMP_NUM_THREADS='5')] * 3
    assert jobs.places(2, 4) == [dict(OMP_NUM_THREADS='2')] * 2
    for given, each in (('1', '1'), ('12', '8')):
        monkeypatch.setenv('OMP_NUM_THREADS', given)
        assert jobs.places(2, 1) == [dict(OMP_NUM_THREADS=each)] * 2
    with pytest.raises(ValueError, match='--jobs 17 .*17 cores.*this machine has 16'):
        jobs.places(17, 1)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    own = [place['CUDA_VISIBLE_DEVICES'] for place in jobs.places(2, 2)]
    assert own == ['0,1', '2,3']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,GPU-5e,6,7')
    own = [place['CUDA_VISIBLE_DEVICES'] for place in jobs.places(4, 1)]
    assert own == ['4', 'GPU-5e', '6', '7']
    with pytest.raises(ValueError, match='--jobs 5 .*5 GPUs.*this machine has 4'):
        jobs.places(5, 1)


def test_two_at_a_time_in_places_of_their_own(planned, tools):
    places = [dict(CUDA_VISIBLE_DEVICES=number) for number in '01']
    events = list(jobs.run_here(planned, tools, runs.Launch(), places))
    assert all(run.state == 'finished' for run in planned)
    assert sum(event.over for event in events) == 3
    spans = {}
    for run in planned:
        train, ended, test = started(run)
        # training and test of a run are in one place
        assert train['CUDA_VISIBLE_DEVICES'] == test['CUDA_VISIBLE_DEVICES']
        spans[run.name] = train['time'], ended['ended'], train['CUDA_VISIBLE_DEVICES']
        assert [e.line for e in events if e.run is run and 'Epoch' in e.line]
    first, second, third = spans.values()
    assert second[0] < first[1] and {first[2], second[2]} == {'0', '1'}
    assert third[0] > min(first[1], second[1])


def test_a_run_that_fails_leaves_the_others_alone(planned, tools, monkeypatch, capsys):
    monkeypatch.setenv('FAIL', 'bilinear')
    tool = load_tool('compare')
    events = jobs.run_here(planned, tools, runs.Launch(), [{}, {}])
    assert [run.name for run in tool.run_all(planned, events, 2)] == ['bilinear']
    assert [run.state for run in planned] == ['finished', 'not started', 'finished']
    shown = capsys.readouterr()
    assert '[2/3 bilinear seed 0]' in shown.err and 'this run fails' in shown.err
    assert shown.out.count('done in') == 2
    # an eta of 0 is one
    assert 'left for all: Epoch(train) [1][1/1]' in shown.out


def test_left_in_the_middle_it_ends_all_processes(planned, tools, monkeypatch):
    """As by ctrl-C."""
    monkeypatch.setenv('SECONDS', '60')
    events = jobs.run_here(planned, tools, runs.Launch(), [{}, {}])
    for _ in range(2):
        assert 'Epoch' in next(events).line
    assert alive(planned[0]) and alive(planned[1])
    events.close()
    assert not alive(planned[0]) and not alive(planned[1])
    assert not planned[2].work_dir.exists()


def test_a_full_disk_stops_all_runs(planned):
    closed = []

    def events():
        try:
            yield jobs.Event(planned[0], error=OSError(errno.ENOSPC, 'full'), over=True)
        finally:
            closed.append(True)

    with pytest.raises(OSError, match='full'):
        load_tool('compare').run_all(planned, events(), 2)
    assert closed


def test_killed_its_children_hold_their_folders(planned, tools, monkeypatch):
    """kill -9 of the comparison alone: nobody else trains where they still do."""
    monkeypatch.setenv('SECONDS', '60')
    script = (
        'import sys\nfrom pathlib import Path\n'
        'from dlu_mmdet.analysis import jobs, runs\n'
        'planned = runs.plan(sys.argv[3:], [0], sys.argv[1])\n'
        'events = jobs.run_here(planned, Path(sys.argv[2]), runs.Launch(), [{}, {}])\n'
        'for event in events: print(event.line, flush=True)'
    )
    work_dir = planned[0].work_dir.parents[1]
    command = [sys.executable, '-c', script, work_dir, tools, *SHAPES]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        assert 'Epoch' in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    try:
        for run in planned[:2]:
            assert alive(run)
            with pytest.raises(RuntimeError, match='another process works in'):
                list(runs.execute(run, tools))
    finally:
        for run in planned[:2]:
            os.kill(started(run)[0]['pid'], signal.SIGKILL)
    monkeypatch.setenv('SECONDS', '0')
    time.sleep(0.1)
    assert list(runs.execute(planned[0], tools))
    assert planned[0].state == 'finished'


def test_a_file_system_without_locks(planned, tools, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    work_dir = planned[0].work_dir.parents[1]
    with pytest.raises(ValueError, match='without locks .No locks available.'):
        runs.begin(work_dir, planned)
    assert not (work_dir / 'plan.json').exists()
