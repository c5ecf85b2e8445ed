"""A base in a bucket is read by several threads, each byte once; one of the Hub is downloaded once to a host."""

import functools
import http.server
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils.epath import backend
from hub_server import hub
from read_program import digest_of, model
from safetensors.numpy import load_file

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.checkpoints import t5x_format
from adalink_jax.files import leaves, network_calls, ranges
from adalink_jax.models import paths
from adalink_jax.training.abstract import abstract_leaves
from benchmarks import slow_bucket


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A native base in a folder."""
    folder = tmp_path_factory.mktemp("bucket")
    shapes, rng = paths.flatten(parallel.unbox(abstract_params(model(False)))["backbone"]), np.random.default_rng(0)
    values = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    checkpoints.save_base(str(folder / "base"), paths.unflatten(values), "tiny", {})
    return folder / "base"


@pytest.fixture
def network(base, monkeypatch):
    monkeypatch.setattr(leaves, "BLOCK_BYTES", 2**14)
    with slow_bucket.in_use(slow_bucket.Network(latency=0.02, folder=str(base.parent))) as network:
        yield network


def loaded(path):
    leaves = abstract_leaves(model(True), parallel.make_mesh(), parallel.logical_axis_rules())
    return checkpoints.load_base(path, paths.unflatten(leaves)["backbone"])


def test_blocks_of_a_base_in_a_bucket_are_read_at_once_and_each_byte_once(base, network):
    size = (base / "model.safetensors").stat().st_size
    config = (base / "base_config.json").stat().st_size
    found = loaded("gs://base")
    assert digest_of(paths.unscan(found.leaves)) == digest_of(load_file(base / "model.safetensors"))
    assert network.nbytes == size + config
    assert network_calls.AT_ONCE / 2 < network.most <= network_calls.AT_ONCE
    assert network.opened <= network_calls.AT_ONCE + 2  # a header's, and the configuration


def test_a_bucket_that_fails_ends_the_load_with_its_error(network, monkeypatch):
    fetch = slow_bucket.SlowFile._fetch_range

    def failing(self, start, end):
        if start > 2**20:
            raise OSError("The network is gone.")
        return fetch(self, start, end)

    monkeypatch.setattr(slow_bucket.SlowFile, "_fetch_range", failing)
    with pytest.raises(OSError, match="The network is gone."):
        loaded("gs://base")


def test_a_base_in_a_bucket_is_converted(base, network, tmp_path):
    mark = checkpoints.convert(checkpoints.open_source("gs://base"), tmp_path / "new", "native", None)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert mark == loaded("gs://base").fingerprint
    assert network.most > 1


def test_a_bucket_that_only_tensorflow_reads_is_read_range_by_range(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorflow")

    class Path:  # `gs://` as epath has it where TensorFlow is installed
        __fspath__ = lambda self: "gs://bucket/file"
        open = lambda self, mode: backend.tf_backend.open(str(tmp_path / "file"), mode)

    def missing(path):
        raise ImportError("Please install gcsfs")

    (tmp_path / "file").write_bytes(b"0123456789")
    monkeypatch.setattr(ranges.fsspec, "url_to_fs", missing)
    ranges._note_tensorflow.cache_clear()
    file = ranges.Ranges(Path())
    assert file.at_once == 1 and [file.read(7, 2), file.read(1, 3), file.read(9, 5)] == [b"78", b"123", b"9"]
    assert "pip install 'adalink-jax[gcs]'" in caplog.text


class Served(http.server.SimpleHTTPRequestHandler):
    """Sends files slowly, and counts how many at a time: tensorstore has its own code for gs://, which needs a network."""

    sending, most = 0, 0
    lock = threading.Lock()

    def do_GET(self):
        with Served.lock:
            Served.sending += 1
            Served.most = max(Served.most, Served.sending)
        time.sleep(0.01)
        super().do_GET()
        with Served.lock:
            Served.sending -= 1

    def log_message(self, *_):
        pass


def test_arrays_of_t5x_in_a_bucket_are_opened_and_read_at_once(base, network, monkeypatch):
    monkeypatch.setattr(t5x_format, "_CHUNK_BYTES", 2**14)
    checkpoints.convert(checkpoints.open_source(base), base.parent / "checkpoint_1", "t5x", None)
    served = functools.partial(Served, directory=str(base.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        here = lambda path: {"driver": "http", "base_url": address, "path": str(path).removeprefix("gs:/") + "/"}
        monkeypatch.setattr(t5x_format, "kvstore", here)
        source = checkpoints.open_source("gs://checkpoint_1")
        opened, Served.most = Served.most, 0
        name, leaf = max(source.leaves.items(), key=lambda item: item[1].size)
        values = leaf.whole()
        server.shutdown()
    assert opened > 4 and 4 < Served.most <= network_calls.AT_ONCE
    np.testing.assert_array_equal(values, load_file(base / "model.safetensors")[name])


DOWNLOAD = "import sys; from adalink_jax.checkpoints import hugging_face; print(hugging_face.download(sys.argv[1]))"


def test_processes_of_one_host_download_a_repository_once(base, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "someone" / "tiny"
    repository.mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    (repository / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with hub(tmp_path / "hub", monkeypatch, delay=1.0) as asked:
        address = pytest.importorskip("huggingface_hub.constants").ENDPOINT
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", DOWNLOAD, "hf://someone/tiny"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
        outputs = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0] and len(set(outputs)) == 1
    sent = [path.split("/")[-1] for path in asked if path.endswith(" whole")]
    assert sorted(sent) == ["config.json whole", "model.safetensors whole"]
