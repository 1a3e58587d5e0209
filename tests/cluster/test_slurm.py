"""Runs as jobs of Slurm: what is refused, and a real Slurm of one node."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHAPES_DLU, as_arguments, load_tool, shapes_config
from helpers.fake_tools import make_tools
from one_node import OneNode, why_not

from dlu_mmdet.comparison import plan, runs, slurm
from dlu_mmdet.comparison import summary as comparison

SHAPES = [shapes_config(name) for name in ('nearest', 'bilinear', 'deconv', 'dlu')]
#: What a job of these tests asks for.
GIVEN = dict(time='10', gpus_per_node='0')


@pytest.fixture
def planned(small, tmp_path):
    return plan.plan(SHAPES, [0], tmp_path / 'work', small)


def test_options_of_a_job(planned):
    given = {'time': '90', 'mem': '32G', 'cpus-per-task': '8'}
    found = slurm.sbatch_options(given, 4, planned[3])
    name = found.pop('job_name')
    assert name.startswith('dlu-seed0-') and name == slurm.job_name(planned[3])
    expected = dict(nodes='1', time='90', mem='32G')
    assert found == dict(expected, gpus_per_node='4', cpus_per_task='8')
    assert 'gpus_per_node' not in slurm.sbatch_options(GIVEN, 4, planned[0])
    # another folder is another comparison
    others = plan.plan(SHAPES, [0], planned[0].work_dir.parents[2] / 'other')
    assert len({slurm.job_name(run) for run in [*planned, *others]}) == 8
    for time_given in ({}, dict(time='1:00:00')):
        with pytest.raises(ValueError, match='--slurm time=.*in minutes'):
            slurm.sbatch_options(time_given, 1, planned[0])


def test_what_is_missing_is_said(planned, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None if name[0] == 's' else name)
    with pytest.raises(ValueError, match='sbatch, srun, squeue, scontrol not found'):
        slurm.check_available()
    monkeypatch.setattr(shutil, 'which', lambda name: name)
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(ValueError, match="needs submitit.*pip install 'submitit"):
        slurm.check_available()


def compare(*arguments):
    return load_tool('compare').main([*map(str, arguments)])


def test_dry_run_shows_the_jobs(small, tmp_path, capsys):
    """Without a Slurm and without a training on the machine where it is given."""
    command = [
        SHAPES_DLU,
        '--seeds',
        0,
        1,
        '--work-dir',
        tmp_path / 'work',
        '--dry-run',
    ]
    command += ['--launcher', 'slurm', '--slurm', 'time=60', 'partition=gpu']
    assert compare(*command, *as_arguments(small)) == 0
    output = capsys.readouterr().out
    assert output.count('sbatch --nodes=1 --gpus-per-node=1 --time=60') == 2
    assert output.count('--partition=gpu --job-name=dlu-seed') == 2
    assert 'to submit: 2 jobs, 2 in the queue at a time' in output
    assert not (tmp_path / 'work').exists()
    with pytest.raises(ValueError, match='--slurm is for jobs of --launcher slurm'):
        compare(SHAPES_DLU, '--slurm', 'time=60')
    with pytest.raises(SystemExit):
        compare(SHAPES_DLU, '--launcher', 'slurm', '--slurm', 'time')
    assert "'time' is not KEY=VALUE" in capsys.readouterr().err


# ---- a real Slurm ------------------------------------------------------------------

needs_slurm = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


def real(test):
    for mark in needs_slurm:
        test = mark(test)
    return test


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    # a socket's path has at most 107 characters
    folder = Path('/tmp', f'one_node_{os.getpid()}')
    try:
        with OneNode(folder) as node:
            yield node
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, 'POLL', 1)
    monkeypatch.setenv('EPOCHS', '2')
    monkeypatch.setenv('SECONDS', '3')
    # jobs find this checkout and the stand-in
    root = str(ROOT)
    path = os.environ.get('PYTHONPATH')
    monkeypatch.setenv('PYTHONPATH', f'{root}:{path}' if path else root)
    return make_tools(monkeypatch, tmp_path)


def trainings(run):
    """Command lines of the trainings of a run."""
    lines = (run.work_dir / 'started.jsonl').read_text().splitlines()
    commands = [json.loads(line).get('command', []) for line in lines]
    return [command for command in commands if command and '--out' not in command]


def follow(planned, tools, given=GIVEN, jobs=4, at=None):
    """All events, and what ``at`` does at the first that it takes."""
    events = []
    launch = runs.Launch(commands=tools)
    for event in slurm.run_in_slurm(planned, launch, jobs, given):
        events.append(event)
        if at is not None and at(event):
            at = None
    return events


def numbers_of(events):
    """Numbers of the jobs that were submitted."""
    words = [event.line.split() for event in events if 'submitted' in event.line]
    return [number for _, number, _ in words]


@real
def test_two_in_the_queue_and_one_of_four_cancelled(node, planned, tools):
    in_queue = []

    def cancel(event):
        in_queue.append(len(slurm.queued()))
        if event.run is planned[1] and 'RUNNING: Epoch(train) [1]' in event.line:
            node.ask('scancel', event.line.split()[1])
            return True

    plan.begin(planned[0].work_dir.parents[1], planned)
    events = follow(planned, tools, jobs=2, at=cancel)
    assert max(in_queue) == 2 and len(numbers_of(events)) == 4
    states = [run.state for run in planned]
    assert [s == 'finished' for s in states] == [True, False, True, True]
    (error,) = [str(e.error) for e in events if e.error]
    assert 'ended as CANCELLED' in error and 'submits it again' in error
    # the same again: one job, from the checkpoint where there is one
    events = follow(planned, tools)
    assert len(numbers_of(events)) == 1 and planned[1].state == 'finished'
    assert sum('finished already' in event.line for event in events) == 3
    assert len(trainings(planned[1])) == 2


@real
def test_killed_it_finds_its_jobs_again(node, planned, tools, small):
    """kill -9 of the submitting process: no job is submitted twice."""
    script = (
        'import json, sys\n'
        'from dlu_mmdet.comparison import plan, runs, slurm\n'
        'slurm.POLL = 1\n'
        'planned = plan.plan(sys.argv[4:], [0], sys.argv[1], json.loads(sys.argv[3]))\n'
        'plan.begin(sys.argv[1], planned)\n'
        f'given = {GIVEN}\n'
        'launch = runs.Launch(commands=sys.argv[2])\n'
        'for event in slurm.run_in_slurm(planned, launch, 2, given):\n'
        '    print(event.line, flush=True)\n'
    )
    work_dir = planned[0].work_dir.parents[1]
    command = [sys.executable, '-c', script, work_dir, tools, json.dumps(small)]
    command += SHAPES[:2]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all('submitted' in line for line in lines)
    events = follow(planned[:2], tools)
    assert not numbers_of(events)
    assert {e.line.split()[1] for e in events if e.line.startswith('job')} == {
        line.split()[1] for line in lines
    }
    for run in planned[:2]:
        assert run.state == 'finished' and len(trainings(run)) == 1


@real
def test_a_time_limit_is_gone_over(node, planned, tools, monkeypatch):
    """The job puts itself back in the queue and goes on from its checkpoint."""
    monkeypatch.setenv('EPOCHS', '6')
    monkeypatch.setenv('SECONDS', '20')
    # Slurm may send the signal a minute earlier
    given = {**GIVEN, 'time': '2', 'signal': 'USR2@20'}
    plan.begin(planned[0].work_dir.parents[1], planned)
    events = follow(planned[:1], tools, given)
    assert planned[0].state == 'finished' and len(numbers_of(events)) == 1
    first, *others = trainings(planned[0])
    assert '--resume' not in first
    assert others and all('--resume' in command for command in others)
    loss = json.loads(planned[0].result_file.read_text())['loss']
    assert [step for step, _ in loss] == list(range(1, 7))


@real
def test_a_node_that_comes_back(node, planned, tools, monkeypatch):
    monkeypatch.setenv('EPOCHS', '3')

    def down(event):
        if 'RUNNING: Epoch(train) [2]' in event.line:
            node.node('down')
            node.wait_for_state('down')
            node.node('resume')
            return True

    plan.begin(planned[0].work_dir.parents[1], planned)
    events = follow(planned[:1], tools, at=down)
    assert planned[0].state == 'finished' and len(numbers_of(events)) == 1
    assert any('PENDING' in event.line for event in events)
    assert '--resume' in trainings(planned[0])[-1]


@real
def test_a_partition_that_is_none(node, small, tools, tmp_path, monkeypatch, capfd):
    """Slurm's own words, once; nothing is submitted."""
    monkeypatch.setattr(comparison, 'check_before_training', lambda planned: None)
    command = [SHAPES_DLU, '--work-dir', tmp_path / 'work', '--launcher', 'slurm']
    command += ['--slurm', 'time=10', 'gpus_per_node=0', 'partition=none']
    # a finished run's job of the test before may be on its way out
    before = set(slurm.queued())
    with pytest.raises(ValueError) as info:
        compare(*command, *as_arguments(small))
    assert str(info.value).count('invalid partition specified: none') == 1
    assert 'invalid partition' not in capfd.readouterr().err
    assert set(slurm.queued()) <= before


@real
def test_a_job_whose_run_fails(node, planned, tools, monkeypatch):
    monkeypatch.setenv('FAIL', 'bilinear')
    plan.begin(planned[0].work_dir.parents[1], planned)
    events = follow(planned[:2], tools)
    assert planned[0].state == 'finished'
    (error,) = [str(event.error) for event in events if event.error]
    assert 'ended as FAILED' in error and 'this run fails' in error
