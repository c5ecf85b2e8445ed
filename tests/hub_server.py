"""A stand-in for the Hub's HTTP API on the loopback: repositories are folders, and what was asked of it is recorded."""

import contextlib
import functools
import hashlib
import http.server
import importlib
import json
import pathlib
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import pytest

COMMIT = "a" * 40


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, root: pathlib.Path, gated: Collection[str], asked: list[str], delay: float, *args: Any):
        self.root, self.gated, self.asked, self.delay = root, gated, asked, delay
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        parts = path.split("/")
        is_api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if is_api else parts[:2])
        folder = self.root / repository
        file, ranged = folder / "/".join(parts[4:]), self.headers.get("Range")
        is_sent = with_body and not is_api and repository not in self.gated and file.is_file()
        self.asked.append(path + (f" {ranged or 'whole'}" if is_sent else ""))
        if repository in self.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        if not folder.is_dir():
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        if is_api:
            files = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
            tree = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": "0"} for name in files
            ]
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self._send(
                200, json.dumps(tree if {"tree", "paths-info"} & set(parts) else info).encode(), {}, with_body
            )
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if with_body:
            time.sleep(self.delay)
        if ranged:
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        return self._send(206 if ranged else 200, content, headers, with_body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextlib.contextmanager
def hub(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, gated: Collection[str] = (), delay: float = 0
) -> Iterator[list[str]]:
    """Serves the folders `OWNER/NAME` in `root`; yields the paths that are asked for, in their order, with the range of bytes
    or "whole" for a file that is read.

    Within it `huggingface_hub` asks this server, and has an empty cache.

    Args:
      root: where the repositories are; the cache is beside it.
      monkeypatch: pytest's fixture.
      gated: repositories that are refused.
      delay: seconds before a file is sent.
    """
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, root, gated, asked, delay))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, constants = f"http://127.0.0.1:{server.server_port}", pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.with_name("hub_cache")))
    importlib.import_module("huggingface_hub").HfFileSystem.clear_instance_cache()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
