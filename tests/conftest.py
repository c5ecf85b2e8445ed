"""Every test runs on one CPU device, whatever the shell's environment; tests of meshes start their own processes."""

import atexit
import os
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # shared by tests and the commands that they start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="adalink-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Compiling small programs takes most of the time; `make test-slow` compiles them as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
is_quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
# Each saves a quarter of the compiler's time; the second as small programs are not worth splitting over threads.
quick_flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = quick_flags if is_quick else ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The TPU compiler, installed for planning, looks for a TPU and complains without one.
os.environ |= {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}

import shape_checks  # noqa: E402

shape_checks.install()

import gin  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
import small_digits  # noqa: E402
from launch_cases import fake, make_files, path_with  # noqa: E402

from adalink_jax.configuration import modules  # noqa: E402


def pytest_addoption(parser):
    """Adds --attention."""
    words = "what ATTENTION = 'auto' means in the tests; processes that they start keep auto"
    parser.addoption("--attention", choices=("reference", "blockwise", "pallas"), help=words)


def pytest_configure(config):
    """Applies --attention."""
    if kind := config.getoption("--attention"):
        from attention_kinds import let_auto_be

        let_auto_be(kind, pytest.MonkeyPatch())


@pytest.fixture(autouse=True)
def no_settings_of_other_tests():
    """Clears gin's bindings, and what is not imported without consent: those of a command would hold in later tests."""
    gin.clear_config()
    modules.refuse(None)
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def few_scenes():
    """Leaves few scenes of each bundled task, see small_digits.py."""
    from adalink_jax.data import digits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "SCENES", {**small_digits.SCENES})
        yield


@pytest.fixture
def exact_matmuls():
    """Multiplies float32 matrices in float32, even where the platform's default is less."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes a user's folder the current one, with fakes in place of the cluster's programs."""
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("gcloud", "kubectl", "sbatch", "squeue", "sacct", "scancel"):
        fake(tmp_path / "fakes", name, 'echo "not expected" >&2; exit 9')
    monkeypatch.setenv("PATH", path_with(tmp_path / "fakes"))
    return tmp_path
