"""What the command line makes of the machine: its cores, a cache of compiled programs, other processes."""

import contextlib
import os
import pathlib

import jax

from jaxleak import distributed, memory, validate

MIB, GIB = 2**20, 2**30
REFUSED = 2  # the exit code of what could not be done

_ABORTED = (
    "jaxleak: error: another process is gone or could not be reached, see above; rows that were written are kept: the "
    "same command on all processes resumes"
)


def prepare(*, devices: int | None, together: bool) -> None:
    """Sets JAX up, before anything is computed.

    Args:
      devices: how many devices to use, or None for all; with CPUs each core is one.
      together: join the other processes of this run.

    Raises:
      ValueError: a number does not fit, or no other processes are known of.
      OSError: the port for the other processes is taken.
    """
    if devices is not None:
        validate.integer_at_least("devices", devices, 1)
    if together:
        distributed.when_aborted(REFUSED, _ABORTED)
        distributed.initialize()
    _divide_cpu(devices)
    _keep_compiled()


def use(devices: int | None) -> list[jax.Device]:
    """The devices of this process, or as many of them as are asked for.

    Raises:
      ValueError: there are fewer.
    """
    found = jax.local_devices()
    if devices is not None and devices > len(found):
        raise ValueError(f"devices={devices}: expected at most {len(found)}, which this process has")
    return found[:devices]


def _divide_cpu(devices: int | None) -> None:
    """Makes CPU devices of the cores, so that lanes spread over them, unless the environment says how many."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # Where JAX has started already, as in a test, it stays with the devices that it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", memory.cores() if devices is None else devices)


def _keep_compiled() -> None:
    """Keeps compiled programs for the next run, in the folder that JAX_COMPILATION_CACHE_DIR names or the user's."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # A run needs no cache: without a home or leave to write there it compiles as ever.
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache / "jaxleak" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
