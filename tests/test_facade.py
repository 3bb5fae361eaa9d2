"""What `import dsi_jax` gives, and what it costs."""

import subprocess
import sys

import pytest

import dsi_jax

HEAVY = ("jax", "numpy", "flax", "tensorflow", "seqio", "gin")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_package_loads_no_library():
    loaded = run(
        f"import sys, dsi_jax; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == ""


def test_every_public_name_is_found_and_none_loads_tensorflow_seqio_or_gin():
    loaded = run(
        "import sys, dsi_jax\n"
        "for name in dsi_jax.__all__: getattr(dsi_jax, name)\n"
        f"print(*[name for name in {HEAVY[3:]!r} if name in sys.modules])"
    )
    assert loaded == ""
    assert set(dsi_jax.__all__) <= set(dir(dsi_jax))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'dsi_jax' has no attribute 'Retreiver'"):
        _ = dsi_jax.Retreiver
