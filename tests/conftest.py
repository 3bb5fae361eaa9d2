"""Fixtures that every test may use."""

import os
from importlib import metadata
from pathlib import Path

# Before any import of jax or tensorflow: tests run on the CPU and say little.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("USE_TF", "0")
# Tests compile far more than they compute, in the processes that they start, too. The emitters
# that XLA has by default take five times as long to compile a program as the older ones do, and
# half of what is left goes into splitting small programs in parts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process over a flag unknown to it
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import collections
import gc
import sys

import hypothesis
import pytest

from dsi_jax.cli import terminal

gc.set_threshold(terminal.COLLECT_EVERY)  # as the commands do

# On a busy machine an example takes any time.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    # xdist would order files by their number of tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: no worker is left alone with one at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real corpora beside the checkout; absent elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The directory of real pretrained encoders beside the checkout; absent elsewhere."""
    directory = SHARED_DATA.parent / "models"
    if not directory.is_dir():
        pytest.skip(f"real encoders are not at {directory}")
    return directory


@pytest.fixture(scope="module", autouse=True)
def no_programs_kept():
    """The programs of a module are forgotten after it, or a worker grows by gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def compiled():
    """Grows by an entry with each program that is compiled during the test; clear it at will."""
    import jax

    events = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def own_registries(monkeypatch):
    """The test registers tasks and corpora into copies, which vanish after it."""
    import seqio

    from dsi_jax.data.corpora import registry

    for owner in (seqio.TaskRegistry, seqio.MixtureRegistry, registry):
        monkeypatch.setattr(owner, "_REGISTRY", dict(owner._REGISTRY))
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [])
