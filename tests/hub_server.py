"""Stand-ins on loopback: a bucket of files, and as much of the Hub as the unmodified clients talk to."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from tipsomaly import ModelError, Pipeline

V1 = "tips-l14-hr"
V2 = "tipsv2-b14"
VISION = "tips_oss_l14_highres_distilled_vision.npz"


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, the next `times` times.

    method: "GET"; or "" for all, where `kind` is a status.
    kind: "cut" (half of the body, then the connection ends), "flip" (a wrong byte), "longer" (bytes too many),
    "slow" (waits for `event`), or a status code.
    """

    path: str
    kind: str | int
    times: int = 10**9
    event: threading.Event | None = None
    method: str = ""


class FileServer:
    """Serves `files`, path to content, with Range, ETag and the hash headers of Google's bucket."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, Range header) of every request so far."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.handle(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._closed = False
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self._http.shutdown()
        self._http.server_close()

    def fail(self, path: str, kind: str | int, times: int = 10**9, **more) -> None:
        self.faults.append(Fault(path, kind, times, **more))

    def asked(self, part: str, method: str = "GET") -> list[str | None]:
        """The Range headers of the requests for paths that contain `part`."""
        return [range_ for m, path, range_ in self.requests if part in path and m == method]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        if self._closed:  # a connection that the client kept open
            request.close_connection = True
            return
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        fault = self._fault(path, request.command)
        if fault and fault.event:
            fault.event.wait(30)
        if fault and isinstance(fault.kind, int):
            self.send(request, fault.kind, b"", {"Retry-After": "0"})
        else:
            self.answer(request, path, fault)

    def answer(self, request: BaseHTTPRequestHandler, path: str, fault: Fault | None) -> None:
        if path not in self.files:
            self.send(request, 404, b"no such object")
            return
        body = self.files[path]
        headers = {
            "ETag": f'"{hashlib.md5(body).hexdigest()}"',
            "x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(hashlib.md5(body).digest()).decode()}",
        }
        self.send_file(request, body, headers, fault)

    def send_file(self, request: BaseHTTPRequestHandler, body: bytes, headers: dict, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if kind == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if kind == "longer":
            body += b"and more"
        status, start = 200, 0
        if range_ := request.headers.get("Range"):
            start = int(range_.removeprefix("bytes=").split("-")[0])
            status = 206
            headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        self.send(request, status, body[start:], headers, cut=kind == "cut")

    def send(self, request, status: int, body: bytes, headers: dict | None = None, cut: bool = False) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            request.close_connection = True

    def _fault(self, path: str, method: str) -> Fault | None:
        for fault in self.faults:
            wanted = fault.method or ("" if isinstance(fault.kind, int) else "GET")
            if fault.path in path and fault.times > 0 and wanted in ("", method):
                fault.times -= 1
                return fault
        return None


class HubServer(FileServer):
    """Repositories of one commit each: `repositories["org/name"]` is file name to content, "spaces/org/name" a Space.
    Large files are LFS files, as on the Hub; uploads arrive in commits."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []

    def commit(self, repository: str) -> str:
        digest = hashlib.sha1(repository.encode())
        for name, content in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def answer(self, request: BaseHTTPRequestHandler, path: str, fault: Fault | None) -> None:
        if request.command == "POST":
            self._write(request, path, json_lines(request))
        elif path.startswith(("/api/models/", "/api/spaces/")):
            self._describe(request, path.removeprefix("/api/").removeprefix("models/"))
        else:
            self._resolve(request, path, fault)

    def _describe(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.split("/")
        owner = 2 if path.startswith("spaces/") else 1
        repository, (action, *revision) = "/".join(parts[: owner + 1]), parts[owner + 1 : owner + 3] or [""]
        if not self._exists(request, repository, revision[0] if revision else "main"):
            return
        files = self.repositories[repository]
        if action == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                | ({"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 100}} if lfs(name) else {})
                for name, content in files.items()
            ]
            self.send_json(request, entries)
        else:
            siblings = [{"rfilename": name} for name in files]
            self.send_json(request, {"id": repository, "sha": self.commit(repository), "siblings": siblings})

    def _resolve(self, request: BaseHTTPRequestHandler, path: str, fault: Fault | None) -> None:
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if not self._exists(request, repository, revision):
            return
        body = self.repositories[repository].get(name)
        headers = {"X-Repo-Commit": self.commit(repository)}
        if body is None:
            self.send(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        headers["ETag"] = f'"{sha256(body) if lfs(name) else hashlib.sha1(body).hexdigest()}"'
        self.send_file(request, body, headers, fault)

    def _exists(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> bool:
        if repository not in self.repositories:  # the Hub does not tell strangers whether it is private or missing
            self.send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", self.commit(repository)):
            self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _write(self, request: BaseHTTPRequestHandler, path: str, lines: list[dict]) -> None:
        if not request.headers.get("Authorization"):
            self.send(request, 401, b"")
        elif path == "/api/repos/create":
            self.created.append(lines[0])
            kind = "spaces/" if lines[0].get("type") == "space" else ""
            name = f"{kind}{lines[0]['organization']}/{lines[0]['name']}"
            self.repositories.setdefault(name, {})
            self.send_json(request, {"url": f"{self.url}/{name}"})
        elif path.startswith("/api/validate-yaml"):
            self.send_json(request, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in lines[0]["files"]]
            self.send_json(request, {"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in path:
            name = path.split("/commit/")[0].removeprefix("/api/").removeprefix("models/")
            for line in lines:
                if line["key"] == "file":
                    self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.repositories[name][line["value"]["path"]]
            commit = self.commit(name)
            self.send_json(request, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit})
        else:
            self.send(request, 404, b"")

    def send_json(self, request: BaseHTTPRequestHandler, content: object) -> None:
        self.send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def json_lines(request: BaseHTTPRequestHandler) -> list[dict]:
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        body = b""
        while size := int(request.rfile.readline(), 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    else:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
    return [json.loads(line) for line in body.splitlines() if line]


def lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".model"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(world, golden, repository="acme/" + V1) -> dict[str, bytes]:
    """Put the golden model folder on the Hub, with files that nobody should fetch."""
    paths = [path for path in golden.folder.rglob("*") if path.is_file()]
    files = {path.relative_to(golden.folder).as_posix(): path.read_bytes() for path in paths}
    files |= {"README.md": b"# A card", "modeling_tips.py": b"raise SystemExit('ran')", "pytorch_model.bin": b"pickle"}
    world.hub.repositories[repository] = files
    return files


def score(pipe: Pipeline, golden) -> tuple:
    result = pipe.with_options(image_size=golden.case["inference_size"])(golden.images[0], "nut")
    return result.score, result.anomaly_map.tobytes()


def fails(name: str, match: str, **options) -> None:
    """Loading fails with one clear line."""
    with pytest.raises(ModelError, match=match) as caught:
        Pipeline.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


def leftovers(world) -> list[str]:
    """What is in our cache beside locks."""
    return sorted(
        p.relative_to(world.cache).as_posix() for p in world.cache.rglob("*") if p.suffix != ".lock" and p.is_file()
    )
