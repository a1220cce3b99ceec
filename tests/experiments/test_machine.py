import os
import subprocess
import sys

import jax
import pytest

from jaxleak import memory
from jaxleak.experiments import machine

REPORT = """
import jax
from jaxleak import memory
from jaxleak.experiments import machine
machine.prepare(devices={devices}, together=False)
jax.jit(lambda x: x + 1)(1.0)
print(jax.local_device_count(), jax.config.jax_compilation_cache_dir)
"""


def prepared(*, devices=None, **environment):
    """How many devices there are and where compiled programs go, in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "XDG_"))}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", REPORT.format(devices=devices)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
    )
    count, cache = ran.stdout.split()
    return int(count), cache


def test_each_core_is_a_device_and_programs_are_kept(tmp_path):
    cache = str(tmp_path / "jaxleak" / "compiled")
    assert prepared(XDG_CACHE_HOME=str(tmp_path)) == (memory.cores(), cache)
    assert os.path.isdir(cache)


def test_what_the_environment_says_holds(tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    assert prepared(JAX_NUM_CPU_DEVICES="3", JAX_COMPILATION_CACHE_DIR=elsewhere) == (3, elsewhere)
    flags = "--xla_force_host_platform_device_count=3"
    assert prepared(XLA_FLAGS=flags, JAX_COMPILATION_CACHE_DIR=elsewhere) == (3, elsewhere)


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert prepared(devices=1, XDG_CACHE_HOME=str(tmp_path / "file")) == (1, "None")


def test_devices_that_are_not_there_are_refused():
    count = jax.local_device_count()
    assert machine.use(None) == jax.local_devices()
    assert machine.use(1) == jax.local_devices()[:1]
    with pytest.raises(ValueError, match=f"devices={count + 1}: expected at most {count}"):
        machine.use(count + 1)
    with pytest.raises(ValueError, match="devices=0: expected >= 1"):
        machine.prepare(devices=0, together=False)
