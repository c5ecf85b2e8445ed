"""A bucket for measurements: `gs://` is a local folder, and every call takes as long as one over a network would.

As with a real bucket's library, a file that is opened is looked up first, and read ahead unless its reader switches that off.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator

import fsspec
from etils.epath import backend, gpath
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

PROTOCOLS = ("gs", "gcs")


@dataclasses.dataclass
class Network:
    """What calls cost, and what was asked.

    Attributes:
      latency: seconds of each call.
      call_bandwidth: bytes per second that one call carries at most.
      bandwidth: bytes per second that all calls of this process carry together.
      folder: the local folder that `gs://` stands for.
      calls, nbytes: calls made, and bytes of files that came.
      opened: files opened.
      reading, most: range requests in flight, and the most so far.
    """

    latency: float = 0.0
    call_bandwidth: float = float("inf")
    bandwidth: float = float("inf")
    folder: str = ""
    calls: int = 0
    nbytes: int = 0
    opened: int = 0
    reading: int = 0
    most: int = 0
    _free: float = 0.0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def wait(self, nbytes: int = 0) -> None:
        """Waits as long as a call takes that carries so many bytes."""
        with self._lock:
            now = time.monotonic()
            self.calls, self.nbytes = self.calls + 1, self.nbytes + nbytes
            self._free = max(self._free, now + self.latency) + nbytes / self.bandwidth
            end = max(self._free if nbytes else 0.0, now + self.latency + nbytes / self.call_bandwidth)
            self.reading += nbytes > 0
            self.most = max(self.most, self.reading)
        time.sleep(max(0.0, end - time.monotonic()))
        with self._lock:
            self.reading -= nbytes > 0


class SlowBucket(AbstractFileSystem):
    """The bucket, for reading."""

    protocol = PROTOCOLS
    cachable = False
    network = Network()

    def _name(self, path: str) -> str:
        return str(self._strip_protocol(path))

    def _local(self, path: str) -> str:
        return os.path.join(self.network.folder, self._name(path))

    def info(self, path: str, **_) -> dict:
        self.network.wait()
        local = self._local(path)
        if not os.path.exists(local):
            raise FileNotFoundError(path)
        kind = "directory" if os.path.isdir(local) else "file"
        return {"name": self._name(path), "size": os.path.getsize(local), "type": kind}

    def ls(self, path: str, detail: bool = True, **_) -> list:
        self.network.wait()
        names = [f"{self._name(path)}/{name}" for name in sorted(os.listdir(self._local(path)))]
        return [self.info(name) for name in names] if detail else names

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **options) -> "SlowFile":
        if mode != "rb":
            raise NotImplementedError("this bucket is for reading")
        self.network.opened += 1
        return SlowFile(self, path, mode, **options)


class SlowFile(AbstractBufferedFile):
    """A file of the bucket."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size or 0)
        with open(self.fs._local(self.path), "rb") as file:
            file.seek(start)
            values = file.read(end - start)
        self.fs.network.wait(len(values))
        return values


@contextlib.contextmanager
def in_use(network: Network) -> Iterator[Network]:
    """Makes `gs://` such a bucket in this process."""
    for protocol in PROTOCOLS:
        fsspec.register_implementation(protocol, SlowBucket, clobber=True)
    forget = backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    plain, gpath._is_tf_installed = gpath._is_tf_installed, lambda: False  # TensorFlow would read gs:// itself
    SlowBucket.network = network
    try:
        yield network
    finally:
        gpath._is_tf_installed = plain
        forget()
