"""How a process learns its place among several: from a launcher's environment variables.

torchrun and ``accelerate launch --multi_gpu`` set them as Accelerate reads them. SLURM's are
translated here, so that ``srun`` needs no launcher beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mobileone_q.errors import TrainingError

PORTS = range(20000, 30000)  # below those that Linux gives to outgoing connections
FIRST_HOST = re.compile(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?")


def from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch.distributed reads, for a task of ``srun``; none outside of one.

    ``srun`` sets ``SLURM_STEP_NUM_TASKS``, which a batch script or a shell of ``salloc`` does not have.
    Variables that are set already stay: those of a launcher that ``srun`` has started on each machine,
    or a ``MASTER_ADDR`` and ``MASTER_PORT`` of the user's.
    Source: SLURM's manual page srun(1), section "OUTPUT ENVIRONMENT VARIABLES".

    Raises:
        TrainingError: SLURM does not say which machines take part.
    """
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environ or "SLURM_PROCID" not in environ or not tasks.isdigit() or int(tasks) < 2:
        return {}
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not hosts and "MASTER_ADDR" not in environ:
        raise TrainingError("SLURM names no machines (SLURM_STEP_NODELIST is not set); set MASTER_ADDR")
    job = re.sub(r"\D", "", environ.get("SLURM_JOB_ID", "")) or "0"
    found = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(hosts or ""),
        "MASTER_PORT": str(PORTS[int(job) % len(PORTS)]),
    }
    return {key: value for key, value in found.items() if key not in environ}


def first_host(hosts: str) -> str:
    """The first machine of SLURM's short form: ``node003`` of ``node[003-007,9],other``."""
    match = FIRST_HOST.match(hosts)
    return "".join(part or "" for part in match.groups()) if match else hosts


def refuse_dropped_processes(environ: Mapping[str, str], processes: int) -> None:
    """Check that a launcher has not quietly started one process where several were asked for.

    ``accelerate launch`` with ``--cpu``, or without ``--multi_gpu``, starts a single process whatever
    ``--num_processes`` says. It sets an address for others to meet at all the same.

    Raises:
        TrainingError: it has.
    """
    is_lone = processes == 1 and "WORLD_SIZE" not in environ
    if is_lone and "ACCELERATE_USE_CPU" in environ and "MASTER_ADDR" in environ:
        raise TrainingError(
            "accelerate launch was asked for several processes and has started one: with --cpu, or without "
            "--multi_gpu, it starts no more; write `accelerate launch --multi_gpu --num_processes N --module "
            "cli ... --device cpu`, or `torchrun --nproc_per_node N --module cli ... --device cpu`"
        )
