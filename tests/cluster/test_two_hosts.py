"""torchrun over two hosts, which are network namespaces of this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SHAPES_DLU, as_arguments

ADDRESS = '10.213.77.{}'
NETS = 'two_hosts_0', 'two_hosts_1'
LINKS = 'twohosts0', 'twohosts1'


def ip(*arguments):
    done = subprocess.run(
        ['ip', *map(str, arguments)], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def why_not():
    """Why there cannot be two hosts here; empty if there can."""
    if os.environ.get('CLUSTER_TESTS') != '1':
        return 'takes minutes: CLUSTER_TESTS=1 makes two network namespaces'
    if shutil.which('ip') is None:
        return 'no ip: apt-get install iproute2'
    if os.geteuid() != 0:
        return 'network namespaces are made by root'
    try:
        ip('netns', 'add', 'two_hosts_try')
        ip('netns', 'delete', 'two_hosts_try')
    except AssertionError as error:
        return f'no network namespaces: {error}'
    return ''


@pytest.fixture
def hosts():
    """Two hosts with a cable between them."""
    if reason := why_not():
        pytest.skip(reason)
    made = []
    try:
        for net in NETS:
            ip('netns', 'add', net)
            made.append(net)
        ip('link', 'add', LINKS[0], 'type', 'veth', 'peer', 'name', LINKS[1])
        for number, (net, link) in enumerate(zip(NETS, LINKS), 1):
            ip('link', 'set', link, 'netns', net)
            ip('-n', net, 'address', 'add', f'{ADDRESS.format(number)}/24', 'dev', link)
            for each in ('lo', link):
                ip('-n', net, 'link', 'set', each, 'up')
        yield
    finally:
        # their ends of the cable go with them
        for net in made:
            ip('netns', 'delete', net)


def start(rank, log, *flags):
    """dist_train.sh on one host, one process of two."""
    settings = dict(
        NNODES='2',
        NODE_RANK=str(rank),
        MASTER_ADDR=ADDRESS.format(1),
        PORT='29517',
        # else gloo takes the address that the name of the machine has
        GLOO_SOCKET_IFNAME=LINKS[rank],
        PYTHON=sys.executable,
        OMP_NUM_THREADS='1',
    )
    command = ['ip', 'netns', 'exec', NETS[rank]]
    command += ['bash', 'tools/dist_train.sh', SHAPES_DLU, 1, *flags]
    with log.open('w') as file:
        return subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **settings},
        )


def kill_host(rank):
    """kill -9 of all that runs on one host."""
    # torchrun's workers are in sessions of their own
    command = ['ip', 'netns', 'pids', NETS[rank]]
    found = subprocess.run(command, text=True, capture_output=True).stdout.split()
    for pid in map(int, found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_one_of_two_hosts_is_lost(hosts, small, tmp_path):
    """kill -9 of all that one runs: the other says so and ends; both go on."""
    work_dir = tmp_path / 'work'
    flags = ['--work-dir', work_dir, '--resume']
    epochs = {'train_cfg.max_epochs': 6, 'train_cfg.val_interval': 6}
    flags += as_arguments({**small, **epochs, 'train_dataloader.batch_size': 4})
    logs = [tmp_path / f'host{rank}.log' for rank in range(2)]
    processes = [start(rank, log, *flags) for rank, log in enumerate(logs)]
    try:
        deadline = time.monotonic() + 600
        while not (work_dir / 'last_checkpoint').exists():
            assert all(p.poll() is None for p in processes), logs[0].read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kill_host(1)
        assert processes[0].wait(600) != 0
    finally:
        for rank, process in enumerate(processes):
            kill_host(rank)
            process.wait()
    text = logs[0].read_text()
    assert 'another process of this training has ended' in text, text[-3000:]
    assert not (work_dir / 'epoch_6.pth').exists()

    processes = [start(rank, log, *flags) for rank, log in enumerate(logs)]
    try:
        statuses = [process.wait(1200) for process in processes]
    finally:
        for rank, process in enumerate(processes):
            kill_host(rank)
            process.wait()
    text = logs[0].read_text()
    assert statuses == [0, 0], text[-3000:]
    assert 'resumed epoch' in text and (work_dir / 'epoch_6.pth').exists()
