"""A real Slurm of one node on this machine, for as long as a test needs it.

It needs root and the commands of Debian's slurm-wlm, slurmd and munge, and touches
no other Slurm: configuration, sockets, ports and state are its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ('munged', 'slurmctld', 'slurmd')
COMMANDS = ('sbatch', 'srun', 'squeue', 'scontrol', 'scancel')


def why_not() -> str:
    """Why it cannot be started here; empty if it can."""
    if os.environ.get('CLUSTER_TESTS') != '1':
        return 'takes minutes a case: CLUSTER_TESTS=1 starts a Slurm of one node'
    missing = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name) is None]
    if missing:
        return f'no {", ".join(missing)}: apt-get install slurm-wlm slurmd munge'
    return '' if os.geteuid() == 0 else 'slurmd and munged must be started by root'


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


class OneNode:
    """The daemons, from ``with`` to its end.

    Args:
        folder (Path): For their files; its path must be short, for a socket.
        cpus (int): That the node says it has. A job takes one where it asks for no
            more, so this is the number of jobs at a time.
    """

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.name = socket.gethostname().split('.')[0]
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> OneNode:
        munge = self.folder / 'munge'
        munge.mkdir(mode=0o755, parents=True)
        key = munge / 'key'
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for name in ('state', 'spool'):
            (self.folder / name).mkdir()
        config = self.folder / 'slurm.conf'
        config.write_text(
            f"""ClusterName=test
SlurmctldHost={self.name}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=0
SlurmdParameters=config_overrides
KillWait=5
NodeName={self.name} NodeAddr=127.0.0.1 CPUs={self.cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        os.environ['SLURM_CONF'] = str(config)
        paths = {'key-file': key, 'socket': munge / 'socket'}
        paths.update({f'{n}-file': munge / n for n in ('log', 'pid', 'seed')})
        options = [f'--{name}={path}' for name, path in paths.items()]
        try:
            self._start('munged', '--foreground', '--force', *options)
            self._start('slurmctld', '-D')
            self._start('slurmd', '-D', '-N', self.name)
            self.wait_for_state('idle')
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, *command: str) -> None:
        with (self.folder / f'{command[0]}.out').open('w') as file:
            self._processes.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            )

    def __exit__(self, *_: object) -> None:
        if len(self._processes) == len(DAEMONS):
            subprocess.run(['scancel', '--me'], capture_output=True)
            deadline = time.monotonic() + 30
            while self.ask('squeue', '--noheader') and time.monotonic() < deadline:
                time.sleep(0.5)
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.pop('SLURM_CONF', None)

    def ask(self, *command: object) -> str:
        """Output of a command of Slurm."""
        done = subprocess.run([*map(str, command)], text=True, capture_output=True)
        return done.stdout.strip()

    def wait_for_state(self, state: str, seconds: float = 120) -> None:
        """Wait until the node is idle, down, ..."""
        deadline = time.monotonic() + seconds
        while self.ask('sinfo', '--noheader', '--format=%T').rstrip('*') != state:
            if time.monotonic() > deadline or any(
                process.poll() is not None for process in self._processes
            ):
                logs = sorted(self.folder.glob('*.out')) + sorted(
                    self.folder.glob('*.log')
                )
                ends = '\n'.join(f'{log}:\n{log.read_text()[-2000:]}' for log in logs)
                raise RuntimeError(f'the node is not {state}:\n{ends}')
            time.sleep(0.2)

    def node(self, state: str) -> None:
        """Put the node down, or let it resume, as an administrator would."""
        subprocess.run(
            ['scontrol', 'update', f'NodeName={self.name}', f'State={state}']
            + ['Reason=test'],
            check=True,
        )
