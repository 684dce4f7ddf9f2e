"""Joins the other processes of a run, one on each host."""

import os

from stepaudio_jax.errors import ConfigError

DISTRIBUTED_FLAG = "--distributed"
_CPU_THREADS = 16


def initialize_distributed(argument: str) -> None:
    """Starts JAX's distributed runtime as the command line asks.

    Args:
        argument: "--distributed", where the cluster says who the processes are (Cloud TPU, GKE,
            Slurm, Open MPI), or "--distributed=HOST:PORT,COUNT,INDEX", the address of process 0,
            the number of processes and which one this is.

    Raises:
        ConfigError: it is written in another way, or the cluster does not say.
    """
    import jax

    # On a CPU a collective holds a thread until every device has reached it. With as few threads as
    # a small machine has cores, concurrent programs would hold all of them and deadlock.
    os.environ.setdefault("NPROC", str(max(_CPU_THREADS, os.cpu_count() or 1)))
    _, equals, value = argument.partition("=")
    if not equals:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ConfigError(
                f"{DISTRIBUTED_FLAG}: no cluster says who the processes are ({error}); write"
                f" {DISTRIBUTED_FLAG}=HOST:PORT,COUNT,INDEX"
            ) from None
        return
    parts = value.split(",")
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit() or ":" not in parts[0]:
        raise ConfigError(
            f"cannot read {argument!r}: write {DISTRIBUTED_FLAG}=HOST:PORT,COUNT,INDEX"
        )
    address, count, index = parts[0], int(parts[1]), int(parts[2])
    if not 0 <= index < count:
        raise ConfigError(
            f"{argument!r}: the index of one of {count} processes lies between 0 and {count - 1}"
        )
    jax.distributed.initialize(coordinator_address=address, num_processes=count, process_id=index)
