"""A stand-in for the Hub on the loopback that takes commits: what `huggingface_hub` asks of it to push and download (see also hub_server)."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_of_the_tests"


@dataclasses.dataclass
class Repo:
    """A repository: the files of each commit by its hash, the last one first; `main` is the last."""

    private: bool = False
    commits: dict = dataclasses.field(default_factory=lambda: {"0" * 40: {".gitattributes": b""}})

    def files(self, revision):
        return self.commits.get(self.head if revision == "main" else revision)

    @property
    def head(self):
        return next(reversed(self.commits))

    def commit(self, files):
        new = self.files("main") | files
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(new)}".encode()).hexdigest()
        self.commits[commit] = new
        return commit


class Hub(http.server.ThreadingHTTPServer):
    """The server; `repos` holds what was pushed, `asked` the method and path of each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.objects, self.asked = {}, {}, []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def use(self, monkeypatch, home):
        """Makes this process, and those that it starts, ask this hub, with a cache and a token of their own."""
        from huggingface_hub import constants

        variables = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        here = {  # what the library has read of them
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in here.items():
            monkeypatch.setattr(constants, name, value)


@contextlib.contextmanager
def running():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, value, status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status, code, message):
        self._answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def _handle(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        length = self.headers.get("Content-Length")
        self.body = self.rfile.read(int(length)) if length else self._chunks()
        self.server.asked.append((self.command, path))
        for method, pattern, answer in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                if "POST" in method and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self._refuse(401, "Unauthorized", "Invalid credentials")
                return answer(self, **match.groupdict())
        self._refuse(404, "EntryNotFound", f"nothing at {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _chunks(self):
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    # --- what the Hub answers ---

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, Repo(asked.get("private") or asked.get("visibility") == "private"))
        self._answer({"url": f"{self.server.endpoint}/{repo}", "id": repo}, status)

    def validate(self):
        self._answer({"errors": [], "warnings": []})

    def info(self, repo, revision="main"):
        repository = self.server.repos.get(repo)
        files = repository and repository.files(revision)
        if repository is None or (repository.private and TOKEN not in self.headers.get("Authorization", "")):
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if files is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        sha = repository.head if revision == "main" else revision
        siblings = [{"rfilename": name} for name in sorted(files)]
        self._answer(
            {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def tree(self, repo, revision):
        repository = self.server.repos.get(repo)
        files = repository and repository.files(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        self._answer([{"type": "file", "path": name, "size": len(x), "oid": "0" * 40} for name, x in files.items()])

    def preupload(self, repo, revision):
        mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"
        names = [file["path"] for file in json.loads(self.body)["files"]]
        self._answer({"files": [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in names]})

    def batch(self, repo):
        address = lambda oid: {"upload": {"href": f"{self.server.endpoint}/objects/{oid}", "header": {}}}
        objects = [{**item, "actions": address(item["oid"])} for item in json.loads(self.body)["objects"]]
        self._answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self._answer(b"")

    def commit(self, repo, revision):
        files = {}
        for line in self.body.splitlines():
            item, value = (entry := json.loads(line))["key"], entry["value"]
            if item == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.repos[repo].commit(files)
        address = f"{self.server.endpoint}/{repo}/commit/{commit}"
        self._answer({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

    def resolve(self, repo, revision, file):
        repository = self.server.repos.get(repo)
        data = ((repository and repository.files(revision)) or {}).get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound", f"{file} not found")
        commit = repository.head if revision == "main" else revision
        self._answer(data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(data).hexdigest()}"')


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ({"POST"}, "/api/repos/create", _Handler.create),
    ({"POST"}, "/api/validate-yaml", _Handler.validate),
    ({"GET"}, f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ({"GET"}, f"/api/models/{_REPO}(?:/revision/(?P<revision>[^/]+))?", lambda self, repo, revision: self.info(repo, revision or "main")),
    ({"POST"}, f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ({"POST"}, f"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ({"POST"}, f"/{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ({"PUT"}, "/objects/(?P<oid>[0-9a-f]+)", _Handler.upload),
    ({"GET", "HEAD"}, f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]  # fmt: skip
