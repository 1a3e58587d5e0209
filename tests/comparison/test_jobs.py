"""Several runs at a time: who gets what, what fails, what is ended."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, as_arguments, shapes_config
from helpers.fake_tools import make_compare, make_tools

from dlu_mmdet.comparison import compare as execute
from dlu_mmdet.comparison import jobs, plan, processes, runs

SHAPES = [shapes_config(name) for name in ('nearest', 'bilinear', 'dlu')]


@pytest.fixture
def planned(small, tmp_path):
    return plan.plan(SHAPES, [0], tmp_path / 'work', small)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setenv('EPOCHS', '2')
    monkeypatch.setenv('SECONDS', '0.2')
    return make_tools(monkeypatch, tmp_path)


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
    assert jobs.device_slots(1, 8) == [{}]
    assert jobs.device_slots(3, 1) == [dict(OMP_NUM_THREADS='5')] * 3
    assert jobs.device_slots(2, 4) == [dict(OMP_NUM_THREADS='2')] * 2
    for given, each in (('1', '1'), ('12', '8')):
        monkeypatch.setenv('OMP_NUM_THREADS', given)
        assert jobs.device_slots(2, 1) == [dict(OMP_NUM_THREADS=each)] * 2
    with pytest.raises(ValueError, match='--jobs 17 .*17 cores.*this machine has 16'):
        jobs.device_slots(17, 1)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    own = [slot['CUDA_VISIBLE_DEVICES'] for slot in jobs.device_slots(2, 2)]
    assert own == ['0,1', '2,3']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,GPU-5e,6,7')
    own = [slot['CUDA_VISIBLE_DEVICES'] for slot in jobs.device_slots(4, 1)]
    assert own == ['4', 'GPU-5e', '6', '7']
    with pytest.raises(ValueError, match='--jobs 5 .*5 GPUs.*this machine has 4'):
        jobs.device_slots(5, 1)


def test_two_at_a_time_in_places_of_their_own(planned, tools):
    slots = [dict(CUDA_VISIBLE_DEVICES=number) for number in '01']
    events = list(jobs.run_here(planned, runs.Launch(), slots))
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
    events = jobs.run_here(planned, runs.Launch(), [{}, {}])
    assert [run.name for run in execute.run_all(planned, events, 2)] == ['bilinear']
    assert [run.state for run in planned] == ['finished', 'not started', 'finished']
    shown = capsys.readouterr()
    assert '[2/3 bilinear seed 0]' in shown.err and 'this run fails' in shown.err
    assert shown.out.count('done in') == 2
    # an eta of 0 is one
    assert 'left for all: Epoch(train) [1][1/1]' in shown.out


def test_left_in_the_middle_it_ends_all_processes(planned, tools, monkeypatch):
    """As by ctrl-C."""
    monkeypatch.setenv('SECONDS', '60')
    events = jobs.run_here(planned, runs.Launch(), [{}, {}])
    for _ in range(2):
        assert 'Epoch' in next(events).line
    assert alive(planned[0]) and alive(planned[1])
    events.close()
    assert not alive(planned[0]) and not alive(planned[1])
    assert not planned[2].work_dir.exists()


def family_of(run):
    """Numbers of the processes of a run's training."""
    return list(processes._family(started(run)[0]['pid']))


def are_gone(pids):
    """Whether processes end, at the latest in a moment."""

    def is_gone(pid):
        try:
            with open(f'/proc/{pid}/stat') as file:
                # nobody may be there to wait for a zombie
                return file.read().rpartition(')')[2].split()[0] == 'Z'
        except FileNotFoundError:
            return True

    end = time.monotonic() + 5
    while not all(map(is_gone, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    'number, stubborn',
    # a second signal kills what ignores the first, and what it has started
    [(signal.SIGTERM, False), (signal.SIGHUP, True)],
)
def test_a_signal_ends_the_trainings(
    small, tmp_path, monkeypatch, capsys, request, number, stubborn
):
    """Of tools/compare.py; the same command goes on."""
    # these tests may run under nohup
    request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, signal.SIG_DFL)
    compare = make_compare(monkeypatch, tmp_path, small)
    monkeypatch.setenv('SECONDS', '60')
    monkeypatch.setenv('STUBBORN', 'bilinear' if stubborn else 'none')
    monkeypatch.setattr(jobs, 'device_slots', lambda jobs, _: [{}] * jobs)
    planned = plan.plan(SHAPES, [0], tmp_path / 'work', small)
    at_work, families = planned[:2], []

    def send():
        while not all((r.work_dir / 'train.log').exists() for r in at_work):
            time.sleep(0.05)
        # each says so when it trains
        while not all((r.work_dir / 'train.log').read_text() for r in at_work):
            time.sleep(0.05)
        families.extend(map(family_of, at_work))
        os.kill(os.getpid(), number)
        if stubborn:
            time.sleep(1)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    begun = time.monotonic()
    assert compare(*SHAPES, '--jobs', 2) == 128 + number
    assert time.monotonic() - begun < 50
    assert f'interrupted by {number.name}; the same' in capsys.readouterr().err
    # the second, if it is stubborn, has a child
    assert [*map(len, families)] == [1, 1 + stubborn]
    assert all(map(are_gone, families))
    if not stubborn:
        monkeypatch.setenv('SECONDS', '0')
        assert compare(*SHAPES) == 0


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with execute.stopped_by_signals(processes.Children()):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)


@pytest.mark.slow
def test_a_signal_ends_torchrun_and_its_processes(small, tmp_path):
    """tools/compare.py as a process; two processes of a real training."""
    command = ['tools/compare.py', SHAPES[0], '--work-dir', tmp_path / 'work']
    command += ['--launcher', 'pytorch', '--processes', 2]
    options = {**small, 'train_cfg.max_epochs': 99, 'train_dataloader.num_workers': 1}
    command += as_arguments({**options, 'train_dataloader.batch_size': 2})
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.PIPE
    )
    log = tmp_path / 'work' / SHAPES[0].stem / 'seed0' / 'train.log'
    try:
        while not (log.exists() and 'Epoch(train)' in log.read_text()):
            assert process.poll() is None
            time.sleep(0.2)
        family = list(processes._family(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    # itself, torchrun, two trainings; workers of data loaders now and then
    assert len(family) >= 4 and are_gone(family[1:])
    assert b'the same command goes on' in process.stderr.read()
    process.stderr.close()


def test_a_full_disk_stops_all_runs(planned):
    closed = []

    def events():
        try:
            yield jobs.Event(planned[0], error=OSError(errno.ENOSPC, 'full'), over=True)
        finally:
            closed.append(True)

    with pytest.raises(OSError, match='full'):
        execute.run_all(planned, events(), 2)
    assert closed


def test_killed_its_children_hold_their_folders(planned, tools, monkeypatch):
    """kill -9 of the comparison alone: nobody else trains where they still do."""
    monkeypatch.setenv('SECONDS', '60')
    script = (
        'import sys\n'
        'from dlu_mmdet.comparison import jobs, plan, runs\n'
        'planned = plan.plan(sys.argv[3:], [0], sys.argv[1])\n'
        'launch = runs.Launch(commands=sys.argv[2])\n'
        'events = jobs.run_here(planned, launch, [{}, {}])\n'
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
                list(processes.execute(run))
    finally:
        for run in planned[:2]:
            os.kill(started(run)[0]['pid'], signal.SIGKILL)
    monkeypatch.setenv('SECONDS', '0')
    time.sleep(0.1)
    assert list(processes.execute(planned[0]))
    assert planned[0].state == 'finished'


def test_a_file_system_without_locks(planned, tools, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    work_dir = planned[0].work_dir.parents[1]
    with pytest.raises(ValueError, match='without locks .No locks available.'):
        plan.begin(work_dir, planned)
    assert not (work_dir / 'plan.json').exists()
