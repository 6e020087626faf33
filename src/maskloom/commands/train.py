"""Train, on this machine or on the hosts of a hostfile. A run that exists in run_dir resumes.

On this machine it starts one process a GPU, or --processes on the CPU. On the hosts of --hostfile (lines such as
`node1 slots=8`) it starts them through deepspeed's launcher, over pdsh and ssh. SIGTERM, SIGUSR2, Ctrl-C and the file
RUN/stop end the run after a step, with a checkpoint and exit code 75. The same command resumes it. Without a launcher
of ours: `deepspeed --module maskloom.train CONFIG ...`, torchrun, or srun (launcher/slurm.sbatch).

example:
  maskloom train configs/quickstart.yaml run_dir=runs/first phases.0.steps=200
  maskloom train configs/quickstart.yaml run_dir=runs/first --profile 10
  maskloom train configs/bert_base.yaml --hostfile hosts --max-restarts 20 run_dir=/shared/runs/base
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from maskloom.commands.arguments import natural, positive
from maskloom.config import RunConfig, Timeouts
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.hardware import cores
from maskloom.live import live_line
from maskloom.program import add_overrides
from maskloom.progress import show_json
from maskloom.world import World

PROFILE = Path("profile")
STOP_GRACE_S = 10.0  # for ranks that are profiled: they have nothing to save


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)
    add("--processes", type=positive, help="default: one a GPU; 1 where there is none")
    add("--hostfile", metavar="FILE", help="machines to run on, and how many processes on each")
    add(
        "--max-restarts",
        type=natural,
        default=0,
        help="start again so often after a fault, without hosts that are not fit; ends early after three attempts without "
        "progress (default: %(default)s)",
    )
    add("--ssh-config", metavar="FILE", help="ssh_config file for the hosts (default: yours)")
    add(
        "--master-addr",
        help="address of the first host as the others reach it (default: what ssh_config or the hostfile says)",
    )
    add(
        "--profile",
        type=positive,
        metavar="N",
        help="do not train: take N steps from where the run stands, print where their time goes, write traces for Perfetto, "
        "and leave the run as it was",
    )
    add("--out", type=Path, help="folder for the traces of --profile (default: profile)")
    add("--show-deepspeed", action="store_true", help="print the DeepSpeed configuration that is derived, and stop")


def run(options: argparse.Namespace) -> int:
    from maskloom.train.__main__ import main as train_as_rank

    arguments = [*_profile_options(options), options.config, *options.overrides]
    if World.discover().size > 1:  # by somebody's launcher: this is one rank of it
        return train_as_rank(arguments)
    if options.hostfile is None and (options.ssh_config or options.master_addr):
        raise UserError("--ssh-config and --master-addr are for --hostfile, which is not given")
    if options.out and not options.profile:
        raise UserError("--out is for the traces of --profile, which is not given")
    config = load_config(options.config, options.overrides)
    if not options.show_deepspeed:
        from maskloom.train.run_lock import refuse_in_use

        refuse_in_use(Path(config.run_dir))
    if options.profile:
        return _profile(options, config)
    if options.hostfile is not None:
        return _on_hosts(options, config, arguments)

    with live_line("loading torch", not options.show_deepspeed):
        import torch

        from maskloom.train.setup import deepspeed_settings, prepare

        processes = options.processes or max(torch.cuda.device_count(), 1)
        if options.show_deepspeed:
            world = World(size=processes)
            show_json(deepspeed_settings(*prepare(config, world), world), indent=2)
            return 0
        with live_line("checking the settings and the data"):
            # Here, so that bad input is said once, and not by every rank.
            prepare(config, World(size=processes, local_size=processes))
        if processes == 1 and not options.max_restarts:
            return train_as_rank(arguments)
    return _on_this_machine(processes, options.max_restarts, Path(config.run_dir), config.timeouts, arguments)


def _profile_options(options: argparse.Namespace) -> list[str]:
    """As a rank takes them."""
    return ["--profile", str(options.profile), "--out", str(options.out or PROFILE)] if options.profile else []


def _profile(options: argparse.Namespace, config: RunConfig) -> int:
    """Profile on this machine; the ranks are ended with this process, and nothing of the run is written."""
    from maskloom.train.__main__ import main as train_as_rank
    from maskloom.train.profiling import refuse_foreign_out

    if options.hostfile or options.max_restarts:
        raise UserError(
            "--profile runs on this machine, once: leave --hostfile and --max-restarts out. On several hosts start its ranks "
            "with torchrun or srun: -m maskloom.train --profile N --out FOLDER CONFIG"
        )
    out = options.out or PROFILE
    refuse_foreign_out(out, Path(config.run_dir))

    import torch

    from maskloom.launch.ending import Stop
    from maskloom.launch.local import run_ranks
    from maskloom.launch.probe import free_port, preferred_port
    from maskloom.train.setup import prepare

    processes = options.processes or max(torch.cuda.device_count(), 1)
    prepare(config, World(size=processes, local_size=processes))  # bad input is said once, and not by every rank
    arguments = [*_profile_options(options), options.config, *options.overrides]
    if processes == 1:
        return train_as_rank(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    command = [sys.executable, "-u", "-m", "maskloom.train", *arguments]
    with Stop() as stop:
        ended = run_ranks(command, processes, free_port(preferred_port(out, 1)), stop, STOP_GRACE_S)
    if ended.code:
        why = f"stopped by {stop.signal.name}" if stop.signal else ended.what
        raise UserError(f"the profile was not taken: {why}")
    return 0


def _on_this_machine(processes: int, max_restarts: int, run: Path, timeouts: Timeouts, arguments: list[str]) -> int:
    from maskloom.launch.ending import Stop
    from maskloom.launch.supervisor import OnThisMachine, supervise

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    command = [sys.executable, "-u", "-m", "maskloom.train", *arguments]
    with Stop() as stop:
        return supervise(OnThisMachine(command, processes, run, timeouts.grace_s), run, max_restarts, stop)


def _on_hosts(options: argparse.Namespace, config: RunConfig, arguments: list[str]) -> int:
    import shutil

    from maskloom.data.plan import DataPlan, open_corpora
    from maskloom.launch.ending import Stop
    from maskloom.launch.hostfile import read_hostfile
    from maskloom.launch.ssh import Ssh
    from maskloom.launch.supervisor import OnHosts, supervise
    from maskloom.models.warm_start import tokenizer_of
    from maskloom.train.checkpoint.fit import stored_tokenizing
    from maskloom.train.resume import check_model, reconcile
    from maskloom.train.setup import deepspeed_settings, prepare

    if options.processes:
        raise UserError("--processes is for this machine: a hostfile says how many each host has, as slots=N")
    hosts, ssh = read_hostfile(options.hostfile), Ssh.of(options.ssh_config)
    world = World(size=sum(host.slots for host in hosts), local_size=hosts[0].slots)
    if options.show_deepspeed:
        world = World(size=world.size)  # here there need not be the hosts' GPUs
        show_json(deepspeed_settings(*prepare(config, world), world), indent=2)
        return 0
    if missing := [tool for tool in ("pdsh", "ssh") if not shutil.which(tool)]:
        raise UserError(
            f"--hostfile needs {' and '.join(missing)} on this machine: install it, or use launcher/slurm.sbatch"
        )
    # All but the devices: this machine need not have those of the hosts.
    known = reconcile(config)
    tokenizer = tokenizer_of(known.tokenizer, known.model.init)
    run = Path(config.run_dir)
    check_model(run, known.from_, known.model, tokenizer, known.seq_lens)
    begun = stored_tokenizing(run, known.from_)
    DataPlan.of(
        known.data, known.phases, known.masking, known.seed, open_corpora(known.data), tokenizer, begun
    ).check_world(world)
    launch = OnHosts(hosts, arguments, run, config.timeouts.grace_s, ssh, options.master_addr)
    with Stop() as stop:
        return supervise(launch, run, options.max_restarts, stop)
