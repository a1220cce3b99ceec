"""Several processes, on one machine or on many, that run the lanes of one run together.

Each process runs lanes of its own on its own devices. All that passes between them is `gather`.
"""

import ctypes
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxleak import validate

PyTree = Any

_BY_HAND = "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID"

# What C code calls has to be held by Python for as long as it may be called.
_held: list[Any] = []


class Lost(RuntimeError):  # noqa: N818 - as `Interrupted`, it names what happened
    """Another process of this run is gone, so that this one cannot go on."""

    def __init__(self):
        super().__init__(
            f"another of the {count()} processes is gone (this is process {index()}); rows that were written are kept: "
            "the same command on all processes resumes"
        )


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = 120,
    heartbeat_timeout: int = 30,
) -> None:
    """Joins the processes of a run, before anything else is done with JAX.

    What is not given comes from the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, and else from what JAX finds out by itself on SLURM, Open MPI, Kubernetes and TPU pods.

    Args:
      coordinator_address: "host:port" of process 0, with a port that is free there.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      initialization_timeout: seconds to wait for the others; after them JAX aborts this process.
      heartbeat_timeout: seconds after which a process that is not heard of counts as gone.

    Raises:
      ValueError: something is missing, or does not fit.
      OSError: the port of process 0 is taken.
      RuntimeError: JAX was used before.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _integer("JAX_NUM_PROCESSES", num_processes)
    process = _integer("JAX_PROCESS_ID", process_id)
    if processes is not None:
        validate.integer_at_least("num_processes", processes, 1)
        if process is not None and not 0 <= process < processes:
            raise ValueError(f"process_id={process}: expected 0 to {processes - 1}")
    if address is not None:
        _check(address, listens=process == 0)
    # JAX would take SIGTERM for a notice of preemption, and not end by it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            processes,
            process,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        raise ValueError(f"no cluster that JAX knows, and not all of {_BY_HAND}: {error}") from error


def _integer(variable: str, given: int | None) -> int | None:
    """The given number, or that of an environment variable."""
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable}={text!r}: expected an integer") from None


def _check(address: str, *, listens: bool) -> None:
    """Refuses what is no address, and a port that is taken, on which JAX's runtime crashes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator_address={address!r}: expected HOST:PORT")
    if listens:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, address) from error


def index() -> int:
    """Which of the processes this is; process 0 alone prints and writes files."""
    return jax.process_index()


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def gather(tree: PyTree) -> PyTree:
    """What every process has, on every process; all of them have to call it.

    Args:
      tree: arrays on the host, of the same structure, shapes and dtypes on every process.

    Returns:
      The tree with numpy arrays whose leading axis is that of the processes.

    Raises:
      Lost: another process is gone.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    if count() == 1:
        return structure.unflatten([leaf[None] for leaf in leaves])
    # As bytes all dtypes pass as they are, and lengths that are powers of two are few programs to compile.
    joined = b"".join(leaf.tobytes() for leaf in leaves)
    rows = _exchange(np.frombuffer(joined.ljust(1 << len(joined).bit_length(), b"\0"), np.uint8))
    gathered, first = [], 0
    for leaf in leaves:
        part = np.ascontiguousarray(rows[:, first : first + leaf.nbytes])
        gathered.append(part.view(leaf.dtype).reshape(count(), *leaf.shape))
        first += leaf.nbytes
    return structure.unflatten(gathered)


def _same(rows: jax.Array) -> jax.Array:
    return rows


def _exchange(row: np.ndarray) -> np.ndarray:
    """The rows of all processes, by way of one device of each."""
    devices = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh([devices[process] for process in range(count())], ("processes",))
    apart, everywhere = NamedSharding(mesh, PartitionSpec("processes")), NamedSharding(mesh, PartitionSpec())
    own = jax.device_put(row[None], devices[index()])
    rows = jax.make_array_from_single_device_arrays((count(), len(row)), apart, [own])
    try:
        return np.asarray(jax.jit(_same, out_shardings=everywhere)(rows).addressable_data(0))
    except (ValueError, RuntimeError) as error:  # the first from gloo, between CPUs
        raise Lost from error


def part() -> None:
    """Leaves the other processes once all have come to their end; without others, does nothing.

    Raises:
      Lost: another process is gone.
    """
    if jax.distributed.is_initialized():
        # JAX's own way of waiting has a time limit, and process 0 may have much to write.
        gather(np.zeros(()))
        jax.distributed.shutdown()


def leave(code: int) -> NoReturn:
    """Ends this process at once: JAX's own way out waits for processes that may be gone, and then aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def when_aborted(code: int, message: str) -> None:
    """Ends this process with a code and a last line of ours where JAX's runtime aborts it.

    It does so, with no exception that could be caught, where process 0 is gone, and where others are while this one
    computes, or waits for them with its GPU. A handler of Python's own would run too late, hence one of C.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        os.write(sys.__stderr__.fileno(), f"{message}\n".encode())
        os._exit(code)

    _held.append(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, end)
