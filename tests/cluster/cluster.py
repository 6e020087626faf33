"""A cluster of one head and two nodes on this machine, with real sshd, pdsh, munge, slurmctld and slurmd.

    python -m tests.cluster.cluster up --instance 3        # and `status`, `down`, `run --instance 3 node1 hostname`
    with Cluster(3) as cluster: cluster.run_on("node1", ["hostname"])

A machine is a set of Linux namespaces: network, host name, mounts, and on the nodes processes, so that `pkill` on one meets
nobody on the other, and `/etc/hosts` and the ssh client's configuration are the cluster's own. The network is a bridge inside the
head's namespace, with no way to this machine's network: several clusters have the same addresses. This machine sees all of
their processes. Everything a cluster writes is below /run/maskloom-cluster/INSTANCE, and `disk` there, on the cluster's machines
only, is a file system of a few MiB.

Whoever calls `up` owns the cluster. All of it dies with its owner, also by SIGKILL: what holds the namespaces is told by the
kernel (PR_SET_PDEATHSIG). `up` in a shell leaves an owner in the background.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HEAD = "head"
NODES = ("node1", "node2")
ROOT = Path("/run/maskloom-cluster")
TOOLS = (
    "ip",
    "unshare",
    "nsenter",
    "setpriv",
    "ssh",
    "ssh-keygen",
    "pdsh",
    "munged",
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
)
PACKAGES = "iproute2 openssh-client openssh-server pdsh munge slurmctld slurmd slurm-client"
SSHD = "/usr/sbin/sshd"
TOKEN = "MASKLOOM_TEST_CLUSTER"
"""Every process that is started in a cluster has this variable, its value one of this `up`."""
DISK_BYTES = 48 << 20
WAIT_S = 60.0
SLURM = """\
ClusterName=maskloom
SlurmctldHost=head({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CryptoType=crypto/munge
StateSaveLocation={folder}/slurmctld
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/slurmd-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
SlurmdTimeout=15
SlurmctldTimeout=15
InactiveLimit=0
MinJobAge=300
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SSH_CLIENT = """\
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 3
"""
SSH_SERVER = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""


class ClusterError(RuntimeError):
    """The cluster, or a command on it, failed."""


class InUse(ClusterError):
    """Another process owns a cluster of this number."""


@dataclass(frozen=True)
class Process:
    """A process as this machine sees it."""

    pid: int
    argv: tuple[str, ...]
    machine: str | None
    """Which machine of the cluster it is on."""


def lacking() -> str | None:
    """What this machine lacks for a cluster, in words; None where it has all."""
    if os.geteuid():
        return "root (network namespaces)"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if not Path(SSHD).exists():
        absent.append(SSHD)
    if absent:
        return f"{', '.join(absent)} (Debian packages: {PACKAGES})"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "network namespaces (unshare --net is not permitted)"
    return None


class Cluster:
    """See the module.

    Attributes:
        instance: number that tells clusters of one machine apart, 0 to 199.
        folder: everything that the cluster writes.
        disk: a folder of DISK_BYTES bytes that only the cluster's machines see; `outside` translates.
    """

    def __init__(self, instance: int = 0) -> None:
        self.instance = instance
        self.folder = ROOT / str(instance)
        self.disk = self.folder / "disk"
        self.network = f"10.77.{instance}"
        self.token = ""
        self._first: dict[str, int] = {}
        self._started: dict[str, subprocess.Popen[Any]] = {}
        self._lock: IO[str] | None = None

    # Up and down

    def up(self) -> Cluster:
        """Bring it up, in the place of what an earlier one of this number may have left."""
        ROOT.mkdir(mode=0o755, exist_ok=True)
        self._lock = (ROOT / f"{self.instance}.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise InUse(f"cluster {self.instance} is up: take another instance, or bring it down") from None
        try:
            self._clear()
            self.token = f"{self.instance}-{secrets.token_hex(8)}"
            self._write_files()
            self._start_machines()
            self._start_daemons()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """End every process of the cluster and take away what it wrote; may be called twice."""
        if self._lock is None:
            return
        with contextlib.suppress(ProcessLookupError):
            for name in NODES:  # process 1 of a node: the node ends with it
                if name in self._first:
                    os.kill(self._first[name], signal.SIGKILL)
        self._clear()
        for process in self._started.values():
            process.kill()
            process.wait()
        self._first, self._started = {}, {}
        self._lock.close()
        self._lock = None

    def __enter__(self) -> Cluster:
        return self.up()

    def __exit__(self, *error: object) -> None:
        self.down()

    @staticmethod
    def any_free() -> Cluster:
        """Bring up a cluster of a number that nobody uses, from 100 on."""
        for instance in range(100, 200):
            try:
                return Cluster(instance).up()
            except InUse:
                continue
        raise ClusterError("a hundred clusters are up")

    @staticmethod
    def attach(instance: int) -> Cluster:
        """A cluster that another process owns: everything but `down`, `start_slurmd` and `stop_slurmd`."""
        cluster = Cluster(instance)
        try:
            state = json.loads((cluster.folder / "state.json").read_text())
        except FileNotFoundError:
            raise ClusterError(f"cluster {instance} is not up") from None
        if _network(state["owner"]) == "":  # a zombie has no namespaces
            raise ClusterError(f"cluster {instance} is not up: its owner was killed")
        cluster.token, cluster._first = state["token"], state["first"]
        return cluster

    def _clear(self) -> None:
        """End the processes of this cluster, or of one whose owner was killed, and remove its folder."""
        state = self.folder / "state.json"
        if state.exists():
            token = json.loads(state.read_text())["token"]
            self._kill(lambda: [pid for pid in _pids() if _variable(pid, TOKEN) == token])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self, find: Callable[[], list[int]]) -> None:
        """Kill what `find` finds until it finds nothing."""
        deadline_s = time.monotonic() + WAIT_S
        while pids := find():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started.values():
                process.poll()
            if time.monotonic() > deadline_s:
                raise ClusterError(f"cluster {self.instance}: processes {pids} outlive SIGKILL")
            time.sleep(0.05)

    def _write_files(self) -> None:
        folder = self.folder
        folder.mkdir(mode=0o755)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd wants to be put before it knows who logs in
        for name in ("slurmctld", "disk", *(f"slurmd-{node}" for node in NODES)):
            (folder / name).mkdir()
        machines = (HEAD, *NODES)
        hosts = "".join(f"{self.address(name)} {name}\n" for name in machines)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        for key in ("key", "host_key"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / key)])
        public = (folder / "host_key.pub").read_text().strip()
        known = [f"{name},{self.address(name)} {public}\n" for name in machines]
        (folder / "known_hosts").write_text("".join(known))
        (folder / "ssh_config").write_text(SSH_CLIENT.format(folder=folder))
        (folder / "sshd_config").write_text(SSH_SERVER.format(folder=folder))
        (folder / "munge.key").touch(0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        nodes = [f"NodeName={name} NodeAddr={self.address(name)} CPUs=2 RealMemory=1000" for name in NODES]
        text = SLURM.format(folder=folder, network=self.network, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # No blank line and no comment: DeepSpeed fails on one.
        exported = {**self._training(), TOKEN: self.token}
        (folder / "deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in exported.items()))
        self._write_state()

    def _write_state(self) -> None:
        state = {"owner": os.getpid(), "token": self.token, "first": self._first}
        (self.folder / "state.json").write_text(json.dumps(state))

    def _start_machines(self) -> None:
        """The namespaces: the head's first, with mounts that the nodes take over; then the wires between them."""
        self._start_machine(HEAD, [])
        mounts = [
            ["mount", "--bind", str(self.folder / "hosts"), "/etc/hosts"],
            ["mount", "--bind", str(self.folder / "ssh_config"), "/etc/ssh/ssh_config"],
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(self.disk)],
        ]
        for command in mounts:
            _run([*self._enter(HEAD, "--mount"), *command])
        on_head = self._enter(HEAD, "--net")
        _run([*on_head, "ip", "link", "add", "bridge", "type", "bridge"])
        _run([*on_head, "ip", "address", "add", f"{self.address(HEAD)}/24", "dev", "bridge"])
        _run([*on_head, "ip", "link", "set", "bridge", "up"])
        for name in NODES:
            self._start_machine(name, [*self._enter(HEAD, "--mount")])
            pid = str(self._first[name])
            _run([*on_head, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid])
            _run([*on_head, "ip", "link", "set", name, "master", "bridge", "up"])
            on_node = self._enter(name, "--net")
            _run([*on_node, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0"])
            _run([*on_node, "ip", "link", "set", "eth0", "up"])
        self._write_state()

    def _start_machine(self, name: str, within: list[str]) -> None:
        own_processes = [] if name == HEAD else ["--pid", "--fork", "--kill-child", "--mount-proc"]
        program = [sys.executable, "-S", str(Path(__file__).with_name("machine.py")), name]
        command = [*within, "unshare", "--net", "--uts", "--mount", *own_processes, *program]
        process = self._spawn(name, command, stdout=subprocess.PIPE, text=True)
        if process.stdout is None or process.stdout.readline() != "up\n":
            raise ClusterError(
                f"the namespaces of {name} could not be made: {(self.folder / f'{name}.log').read_text()}"
            )
        pid = process.pid
        if own_processes:  # unshare stays, and process 1 of the node is its child
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        self._first[name] = pid

    def _start_daemons(self) -> None:
        folder = self.folder
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{suffix}" for option, suffix in munge.items()]
        self._spawn("munged", self.command(HEAD, ["munged", "--foreground", "--force", "--num-threads=2", *options]))
        self._until("munged answers", lambda: (folder / "munge.socket").exists())
        configuration = str(folder / "slurm.conf")
        self._spawn("slurmctld", self.command(HEAD, ["slurmctld", "-D", "-i", "-f", configuration]))
        for name in NODES:
            sshd = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
            self._spawn(f"sshd-{name}", self.command(name, sshd))
            self.start_slurmd(name)
        for name in NODES:
            probe = ["ssh", name, "hostname"]
            self._until(f"ssh to {name}", lambda probe=probe: not self.run_on(HEAD, probe, check=False).returncode)
        self._until("Slurm's nodes are idle", lambda: {self.node_state(name) for name in NODES} == {"idle"})

    def _spawn(self, name: str, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """A process that ends when the thread that called `up` does; its messages go to NAME.log."""
        with (self.folder / f"{name}.log").open("a") as log:
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL} | options
            environment = {**os.environ, TOKEN: self.token}
            self._started[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=environment, start_new_session=True, **options
            )
        return self._started[name]

    def _until(self, what: str, is_so: Any) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_so():
            if time.monotonic() > deadline_s:
                logs = "\n".join(
                    f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log"))
                )
                raise ClusterError(f"cluster {self.instance}: not within {WAIT_S:.0f} s: {what}\n{logs}")
            time.sleep(0.1)

    def _enter(self, name: str, *kinds: str) -> list[str]:
        return ["nsenter", "--target", str(self._first[name]), *kinds, "--"]

    # Commands

    def address(self, name: str) -> str:
        return f"{self.network}.{1 if name == HEAD else 11 + NODES.index(name)}"

    def hostfile(self, slots: int = 1, hosts: Sequence[str] = NODES) -> Path:
        """A hostfile with these hosts, in this order."""
        file = self.folder / f"hostfile-{'-'.join(hosts)}-{slots}"
        file.write_text("".join(f"{host} slots={slots}\n" for host in hosts))
        return file

    def environment(self) -> dict[str, str]:
        """Variables for commands on the cluster, beside those of this process: for training over gloo on CPUs, for
        DeepSpeed's launcher and for Slurm's tools."""
        return {
            **self._training(),
            "DS_ENV_FILE": str(self.folder / "deepspeed_env"),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            TOKEN: self.token,
        }

    def _training(self) -> dict[str, str]:
        return {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on a machine, in this process's folder. On the head it becomes `argv`, so that
        signals reach it; on a node it waits for a child of it."""
        kinds = ["--net", "--uts", "--mount"] + (["--pid"] if name != HEAD else [])
        return [*self._enter(name, *kinds), "env", f"--chdir={Path.cwd()}", *argv]

    def start(self, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start `argv` on a machine, with `environment()`; `options` are those of Popen (`env` is added to it)."""
        environment = {**os.environ, **self.environment(), **options.pop("env", {})}
        return subprocess.Popen(self.command(name, argv), env=environment, text=True, **options)

    def run_on(
        self, name: str, argv: Sequence[str], check: bool = True, timeout_s: float = WAIT_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on a machine to its end. Raises ClusterError where it fails and `check` is set."""
        process = self.start(name, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if check and process.returncode:
            raise ClusterError(f"{name}: {' '.join(argv)} ended with {process.returncode}:\n{output}{errors}")
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def outside(self, path: Path) -> Path:
        """Where this machine sees a file that only the cluster's machines mount, as on `disk`."""
        return Path(f"/proc/{self._first[HEAD]}/root{path}")

    # Faults

    def link(self, node: str, is_up: bool) -> None:
        """Connect a node's network, or take it away: what was sent is lost, and no connection is told."""
        _run([*self._enter(HEAD, "--net"), "ip", "link", "set", node, "up" if is_up else "down"])

    def bandwidth(self, rate: str | None) -> None:
        """Limit what each node sends, as `8mbit`: the pace of a run that costs no CPU time. None takes the limit away."""
        for name in NODES:
            shaping = [*self._enter(name, "--net"), "tc", "qdisc"]
            subprocess.run([*shaping, "del", "dev", "eth0", "root"], capture_output=True, check=False)
            if rate:
                _run([*shaping, "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s"])

    def stop_slurmd(self, node: str) -> None:
        """Kill a node's slurmd; its jobs' processes run on."""
        os.kill(self._pid_of_slurmd(node), signal.SIGKILL)
        self._started.pop(f"slurmd-{node}").wait()

    def start_slurmd(self, node: str) -> None:
        configuration = str(self.folder / "slurm.conf")
        self._spawn(f"slurmd-{node}", self.command(node, ["slurmd", "-D", "-N", node, "-f", configuration]))

    def _pid_of_slurmd(self, node: str) -> int:
        pids = [found.pid for found in self.processes("slurmd -D -N " + node) if found.argv[0].endswith("slurmd")]
        if len(pids) != 1:
            raise ClusterError(f"{len(pids)} slurmd on {node}")
        return pids[0]

    def node_state(self, node: str) -> str:
        """Slurm's word for a node: idle, alloc, mix, down, drain, ..., with `*` where it does not answer."""
        found = self.run_on(
            HEAD, ["sinfo", "--noheader", "--partition=main", f"--nodes={node}", "--format=%t"], check=False
        )
        return found.stdout.strip() or "unknown"

    def settle(self) -> None:
        """Undo faults: both nodes connected at full speed, their slurmd running, idle."""
        self.bandwidth(None)
        for name in NODES:
            self.link(name, True)
            if f"slurmd-{name}" not in self._started and self._lock:
                self.start_slurmd(name)
        jobs = self.run_on(HEAD, ["squeue", "--noheader", "--format=%i"], check=False).stdout.split()
        if jobs:
            self.run_on(HEAD, ["scancel", "--signal=KILL", "--full", *jobs], check=False)
            self.run_on(HEAD, ["scancel", *jobs], check=False)

        def all_idle() -> bool:
            for name in NODES:
                if self.node_state(name).rstrip("*") in ("down", "drain", "drng"):
                    self.run_on(HEAD, ["scontrol", "update", f"nodename={name}", "state=resume"], check=False)
            return {self.node_state(name) for name in NODES} == {"idle"}

        self._until("Slurm's nodes are idle again", all_idle)

    def end_runs(self) -> None:
        """Kill every process in the cluster but its own: what tests started, and what that left behind."""
        programs = ("munged", "slurmctld", "slurmd", "sshd", "slurmscriptd")

        def runs(process: Process) -> bool:
            program = Path(process.argv[0].lstrip("-: ").split(" ")[0].rstrip(":")).name
            wraps = program in ("nsenter", "unshare") and process.pid in own
            return not (wraps or program in programs or process.pid in self._first.values())

        own = {process.pid for process in self._started.values()}
        self._kill(lambda: [process.pid for process in self._processes("") if runs(process)])

    # What runs

    def processes(self, token: str) -> list[Process]:
        """Every process of the cluster whose command line or environment holds `token`, such as a run's folder."""
        return list(self._processes(token))

    def _processes(self, token: str) -> Iterator[Process]:
        networks = {_network(pid): name for name, pid in self._first.items()}
        for pid in _pids():
            machine = networks.get(_network(pid))
            if machine is None:
                continue
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes()
                variables = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            words = tuple(argv.decode(errors="replace").rstrip("\0").split("\0"))
            if words != ("",) and (token in " ".join(words) or token.encode() in variables):  # empty: a zombie
                yield Process(pid, words, machine)


def _network(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _pids() -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and int(entry.name) != os.getpid()
    ]


def _variable(pid: int, name: str) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), None)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# From a shell


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.cluster", description="A test cluster on this machine."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name in _ACTIONS:
        action = actions.add_parser(name)
        action.add_argument(
            "--instance", type=int, default=0, help="number of the cluster, so that several can be up (0)"
        )
        if name == "run":
            action.add_argument("words", nargs=argparse.REMAINDER, metavar="MACHINE COMMAND ...")
    options = parser.parse_args()
    if what := lacking():
        print(f"a cluster needs {what}", file=sys.stderr)
        return 1
    try:
        return _ACTIONS[options.action](options.instance, getattr(options, "words", []))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _up(instance: int, words: list[str]) -> int:
    """Start an owner in the background and wait until it has brought the cluster up."""
    log = Path(f"{ROOT}/{instance}.log")
    ROOT.mkdir(mode=0o755, exist_ok=True)
    with log.open("w") as output:
        command = [sys.executable, "-m", "tests.cluster.cluster", "own", "--instance", str(instance)]
        owner = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, start_new_session=True, text=True
        )
    if owner.stdout is None or owner.stdout.readline() != "up\n":
        owner.wait()
        raise ClusterError(log.read_text())
    return _status(instance, words)


def _own(instance: int, words: list[str]) -> int:
    with Cluster(instance):
        print("up", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


def _down(instance: int, words: list[str]) -> int:
    state = ROOT / str(instance) / "state.json"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(json.loads(state.read_text())["owner"], signal.SIGTERM)
    deadline_s = time.monotonic() + WAIT_S
    while state.exists() and time.monotonic() < deadline_s:
        try:
            Cluster.attach(instance)
        except ClusterError:  # the owner is gone: take away what it left
            Cluster(instance)._clear()
        time.sleep(0.1)
    return int(state.exists())


def _status(instance: int, words: list[str]) -> int:
    cluster = Cluster.attach(instance)
    for name in (HEAD, *NODES):
        state = "" if name == HEAD else f", Slurm: {cluster.node_state(name)}"
        print(f"{name}: {cluster.address(name)}, first process {cluster._first[name]}{state}")
    print(f"hostfile: {cluster.hostfile()}")
    print(f"run a command: python -m tests.cluster.cluster run --instance {instance} {HEAD} COMMAND ...")
    return 0


def _run_words(instance: int, words: list[str]) -> int:
    if len(words) < 2 or words[0] not in (HEAD, *NODES):
        raise ClusterError(f"run MACHINE COMMAND ..., with a machine of {HEAD}, {', '.join(NODES)}")
    return Cluster.attach(instance).start(words[0], words[1:]).wait()


_ACTIONS = {"up": _up, "down": _down, "status": _status, "run": _run_words, "own": _own}

if __name__ == "__main__":
    sys.exit(main())
