"""The hub's double: a server on the loopback that answers what the hub's clients ask, and fails as the hub does on demand.

`with Hub(root) as hub:` serves root/models/OWNER/NAME and root/datasets/OWNER/NAME as repositories; a process started
with `hub.environment` takes it for the hub. What is committed to it lies under root afterwards. By hand:
`python -m tests.places.hub --root FOLDER` prints its address and serves until it is interrupted.

What it cannot show: Xet transfers, branches, history (only a repository's newest commit is there), and TLS.
"""

import argparse
import base64
import dataclasses
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

# Kept in the storage beside git, as the hub's own .gitattributes has it; whatever is larger than 10 MB is kept there too.
LARGE = {".safetensors", ".parquet", ".arrow", ".gguf", ".bin", ".pt", ".pth", ".model", ".zip", ".gz", ".npz"}
LARGE_BYTES = 10_000_000
KINDS = "models|datasets"
ID = r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)"
# Some of the licences that a card's metadata may name (huggingface.co/docs/hub/repositories-licenses).
LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "llama3.1", "other", "unknown"}


@dataclasses.dataclass
class Fault:
    """What goes wrong with the requests in whose "METHOD /path" the pattern is found; what lies in the storage has a
    path that begins with /storage/. `times` None: with all of them."""

    pattern: str
    times: int | None = None
    status: int = 0  # this answer instead of the right one
    says: str = ""  # with this X-Error-Message
    headers: dict = dataclasses.field(default_factory=dict)
    delay_seconds: float = 0.0
    silent: bool = False  # no answer at all, while the connection stays open
    break_after: int | None = None  # bytes of the body, after which the connection ends
    damaged: bool = False  # as many bytes as announced, one of them another
    cut_off: int = 0  # so many bytes fewer than the hub announced, in an answer that is whole by itself


@dataclasses.dataclass(frozen=True)
class Request:
    """One line of the log: what was asked, whether with a token, for which bytes, and the status of the answer, 0: none."""

    method: str
    path: str
    token: bool
    range: str
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.range or '-'} {self.status}"


class Refusal(Exception):
    """An answer other than what was asked for, in the hub's own headers: X-Error-Code and X-Error-Message.

    `commit` names the commit that lacks something, and `moved` says where to ask instead.
    """

    def __init__(self, status: int, code: str, message: str, **also):
        super().__init__(message)
        self.status, self.code, self.message, self.also = status, code, message, also


class Repository:
    """A folder as the hub would show it."""

    def __init__(self, kind: str, id: str, folder: Path):
        self.kind, self.id, self.folder = kind, id, folder

    @property
    def url(self) -> str:
        """Its path on the hub's site: models stand at the top."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def files(self) -> list[str]:
        found = (file for file in self.folder.rglob("*") if file.is_file())
        return sorted(file.relative_to(self.folder).as_posix() for file in found)

    def file(self, path: str) -> Path:
        """The file of that path in the repository, whether it is there or not; nothing above the folder."""
        file = self.folder / path
        if ".." in Path(path).parts or not file.is_relative_to(self.folder):
            raise Refusal(400, "", "Invalid path")
        return file

    def commit(self) -> str:
        """The name of the newest commit: it changes with every file."""
        content = "\n".join(f"{path} {git_hash(self.file(path))}" for path in self.files())
        return hashlib.sha1(content.encode()).hexdigest()

    def entry(self, path: str) -> dict:
        """A file or a folder, as api/.../tree and api/.../paths-info list it."""
        file = self.file(path)
        if file.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        size = file.stat().st_size
        entry = {"type": "file", "path": path, "size": size, "oid": git_hash(file)}
        if is_large(path, size):
            entry["lfs"] = {"oid": sha256(file), "size": size, "pointerSize": 134}
        return entry

    def tree(self, below: str, recursive: bool) -> list[dict]:
        top = self.file(below) if below else self.folder
        if not top.is_dir():
            raise Refusal(404, "EntryNotFound", f"{below} does not exist", commit=self.commit())
        found = top.rglob("*") if recursive else top.iterdir()
        return [self.entry(path) for path in sorted(item.relative_to(self.folder).as_posix() for item in found)]


def is_large(path: str, size: int) -> bool:
    return Path(path).suffix in LARGE or size > LARGE_BYTES


_hashes: dict[tuple, str] = {}


def _hash(file: Path, algorithm: str, begin: bytes = b"") -> str:
    """The hash of a file, computed once for each state of it."""
    about = file.stat()
    key = (algorithm, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
    if key not in _hashes:
        digest = hashlib.new(algorithm, begin)
        with file.open("rb") as content:
            for piece in iter(lambda: content.read(1 << 20), b""):
                digest.update(piece)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def sha256(file: Path) -> str:
    return _hash(file, "sha256")


def git_hash(file: Path) -> str:
    """What git calls a file's content."""
    return _hash(file, "sha1", f"blob {file.stat().st_size}\0".encode())


class Hub:
    """The server, from `with` to the end of its block. Its second port is the storage, which gets no token.

    `users`: who a token belongs to; other tokens are refused.
    """

    def __init__(self, root: Path, users: dict[str, str] | None = None, port: int = 0):
        self.root, self.users = Path(root).resolve(), users or {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.renamed: dict[str, str] = {}
        self.gated: dict[str, set[str]] = {}  # id -> the users who have access
        self.private: set[str] = set()
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.objects = self.root / ".objects"  # uploaded, and not yet committed
        self._servers = [_Server(("127.0.0.1", number), _Answers) for number in (port, 0)]
        for server in self._servers:
            server.hub, server.is_storage = self, server is self._servers[1]
        # The storage has another host's name, as the hub's has: some clients follow a way only within one host.
        ports = [server.server_address[1] for server in self._servers]
        self.address, self.storage = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the hub; HF_HOME, where it keeps its downloads, is its own affair."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.stopped.set()  # lets go of who waits for an answer that never comes
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def folder(self, id: str, kind: str = "models") -> Path:
        """Where a repository's files lie."""
        return self.root / kind / id

    def rename(self, old: str, new: str) -> None:
        """From now on the repository has another id, and the old one leads to it."""
        self.folder(new).parent.mkdir(parents=True, exist_ok=True)
        self.folder(old).rename(self.folder(new))
        self.renamed[old] = new

    def gate(self, id: str, *users: str) -> None:
        """From now on only these users may load the repository's files."""
        self.gated[id] = set(users)

    def asked(self, pattern: str) -> list[Request]:
        """What was asked so far, in order, of which the pattern is found in "METHOD /path"."""
        return [request for request in self.log if re.search(pattern, f"{request.method} {request.path}")]

    def write(self, file: Path, content: bytes) -> None:
        """Put a file in its place whole: a served file may be a hard link, and its other name must keep its content."""
        for folder in (file.parent, self.objects):
            folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.objects)
        with os.fdopen(handle, "wb") as new:
            new.write(content)
        os.replace(name, file)

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, f"{method} {path}"):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error of the hub's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words) -> None:
        """Nothing on the terminal: hub.log has it."""

    def log_request(self, code="-", size="-") -> None:
        told = (self.command, self.at, "Authorization" in self.headers, self.headers.get("Range", ""), int(code))
        self.hub.log.append(Request(*told))

    # --- one request ----------------------------------------------------------------------------------------------

    def answer(self) -> None:
        self.hub, asked = self.server.hub, urllib.parse.urlsplit(self.path)
        self.at = ("/storage" if self.server.is_storage else "") + urllib.parse.unquote(asked.path)
        self.query = {name: values[0] for name, values in urllib.parse.parse_qs(asked.query).items()}
        self.body = self._read_body()
        self.fault = self.hub.fault_for(self.command, self.at) or Fault("")
        if self.fault.silent:
            self.log_request(0)
        if self.hub.stopped.wait(None if self.fault.silent else self.fault.delay_seconds):
            self.close_connection = True
            return
        try:
            if self.fault.status:
                raise Refusal(self.fault.status, "", self.fault.says)
            self._route()
        except Refusal as refusal:
            told = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            told |= {"X-Repo-Commit": refusal.also.get("commit"), "Location": refusal.also.get("moved")}
            told |= self.fault.headers
            self.send({"error": refusal.message} | refusal.also, refusal.status, {k: v for k, v in told.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _route(self) -> None:
        for method, pattern, does in ROUTES:
            found = re.fullmatch(pattern, self.at)
            if found and method == ("GET" if self.command == "HEAD" else self.command):
                return does(self, **found.groupdict())
        raise Refusal(501, "", "The hub's double does not know this yet")

    def send(self, what, status: int = 200, headers: dict | None = None) -> None:
        content = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (told | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- who asks, and for what -----------------------------------------------------------------------------------

    def user(self) -> str | None:
        """Whom the token belongs to; None without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def repository(self, kind: str | None, owner: str, name: str, files: bool = False) -> Repository:
        """The repository, if it is there for this user; with `files`, what is gated is refused too."""
        kind, id, user = (kind or "models").rstrip("/"), f"{owner}/{name}", self.user()
        if id in self.hub.renamed:
            raise Refusal(307, "", "", moved=self.path.replace(id, self.hub.renamed[id], 1))
        folder = self.hub.folder(id, kind)
        if not folder.is_dir() or (id in self.hub.private and user != owner):
            if user is None:  # who is not logged in is not told whether it is there
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if files and id in self.hub.gated and user not in self.hub.gated[id]:
            closed = f"Access to model {id} is restricted"
            if user is None:
                closed += ". You must have access to it and be authenticated to access it. Please log in."
                raise Refusal(401, "GatedRepo", closed)
            page = f"{self.hub.address}/{id}"
            closed += f" and you are not in the authorized list. Visit {page} to ask for access."
            raise Refusal(403, "GatedRepo", closed)
        return Repository(kind, id, folder)

    def writable(self, kind: str | None, owner: str, name: str) -> Repository:
        repository = self.repository(kind, owner, name)
        if self.user() != owner:
            raise Refusal(403, "", f"Forbidden: you don't have the rights to write to {owner}/{name}")
        return repository

    @staticmethod
    def revision(repository: Repository, revision: str) -> str:
        """The commit that a revision means: the newest one, for there is no other."""
        commit = repository.commit()
        if urllib.parse.unquote(revision) not in ("main", "refs/heads/main", commit):
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}", commit=commit)
        return commit

    # --- reading --------------------------------------------------------------------------------------------------

    def about(self, kind, owner, name, revision="main") -> None:
        repository = self.repository(kind, owner, name)
        commit, entries = self.revision(repository, revision), map(repository.entry, repository.files())
        siblings = [{"rfilename": entry["path"]} for entry in entries]
        date = "2026-01-01T00:00:00.000Z"
        told = {"id": repository.id, "author": owner, "sha": commit, "private": repository.id in self.hub.private}
        told |= {"gated": "auto" if repository.id in self.hub.gated else False, "disabled": False, "tags": []}
        told |= {"downloads": 0, "likes": 0, "lastModified": date, "createdAt": date, "siblings": siblings}
        self.send(told)

    def tree(self, kind, owner, name, revision, below=None) -> None:
        repository = self.repository(kind, owner, name)
        self.revision(repository, revision)
        self.send(repository.tree(below or "", self.query.get("recursive", "").lower() == "true"))

    def paths_info(self, kind, owner, name, revision) -> None:
        repository = self.repository(kind, owner, name)
        self.revision(repository, revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
        paths = [path.rstrip("/") for path in paths]
        self.send([repository.entry(path) for path in paths if path and repository.file(path).exists()])

    def refs(self, kind, owner, name) -> None:
        commit = self.repository(kind, owner, name).commit()
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
        self.send({"branches": [main], "tags": [], "converts": []})

    def resolve(self, kind, owner, name, revision, path) -> None:
        """A file: a small one at once, for a large one the way to the storage."""
        repository = self.repository(kind, owner, name, files=True)
        commit, file = self.revision(repository, revision), repository.file(path)
        if not file.is_file():
            raise Refusal(404, "EntryNotFound", "Entry not found", commit=commit)
        size, told = file.stat().st_size, {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not is_large(path, size):
            return self.send_file(file, told | {"ETag": f'"{git_hash(file)}"'})
        told |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{sha256(file)}"'}
        told["Location"] = f"{self.hub.storage}/{repository.kind}/{repository.id}/{urllib.parse.quote(path)}"
        return self.send(b"", 302, told)

    def stored(self, kind, owner, name, path) -> None:
        """A large file, for whoever was sent here."""
        file = Repository(kind, f"{owner}/{name}", self.hub.folder(f"{owner}/{name}", kind)).file(path)
        if not file.is_file():
            raise Refusal(404, "", "NoSuchKey")
        self.send_file(file, {"Accept-Ranges": "bytes", "ETag": f'"{sha256(file)}"'})

    def send_file(self, file: Path, headers: dict) -> None:
        size = file.stat().st_size - self.fault.cut_off
        begin, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and any(asked.groups()):
            status = 206
            begin = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
            end = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}
            if begin >= size:
                raise Refusal(416, "", "Requested range is not satisfiable")
        self.send_response(status)
        told = {"Content-Type": "application/octet-stream", "Content-Length": str(end - begin)}
        for name, value in (told | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_bytes(file, begin, end)

    def _send_bytes(self, file: Path, begin: int, end: int) -> None:
        left = end - begin if self.fault.break_after is None else min(end - begin, self.fault.break_after)
        flaw = file.stat().st_size // 2 if self.fault.damaged else -1  # the byte that is another
        with file.open("rb") as content:
            content.seek(begin)
            while left > 0 and (piece := content.read(min(1 << 20, left))):
                at = content.tell() - len(piece)
                if at <= flaw < at + len(piece):
                    piece = piece[: flaw - at] + bytes([piece[flaw - at] ^ 0x40]) + piece[flaw - at + 1 :]
                self.wfile.write(piece)
                left -= len(piece)
        if self.fault.break_after is not None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    # --- writing --------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        token = {"displayName": "test", "role": "write", "createdAt": "2026-01-01T00:00:00.000Z"}
        self.send({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [],
                   "auth": {"type": "access_token", "accessToken": token}})  # fmt: skip

    def create(self) -> None:
        asked, user = json.loads(self.body), self.user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        owner, kind = asked.get("organization") or user, f"{asked.get('type') or 'model'}s"
        if owner != user:
            raise Refusal(403, "", f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        repository = Repository(kind, f"{owner}/{asked['name']}", self.hub.folder(f"{owner}/{asked['name']}", kind))
        url = f"{self.hub.address}/{repository.url}"
        with self.hub.lock:
            if repository.folder.is_dir():
                raise Refusal(409, "", "You already created this repo", url=url)
            repository.folder.mkdir(parents=True)
            if asked.get("visibility") == "private":
                self.hub.private.add(repository.id)
        self.send({"url": url, "name": repository.id, "id": repository.id})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [{"message": message} for message in card_faults(content)]
        status = 400 if errors else 200
        self.send({"errors": errors, "warnings": [], "error": "\n".join(e["message"] for e in errors)}, status)

    def preupload(self, kind, owner, name, revision) -> None:
        repository, answers = self.writable(kind, owner, name), []
        self.revision(repository, revision)
        for asked in json.loads(self.body)["files"]:
            large, file = is_large(asked["path"], asked["size"]), repository.file(asked["path"])
            oid = (sha256(file) if large else git_hash(file)) if file.is_file() else None
            mode = "lfs" if large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send({"files": answers})

    def lfs_batch(self, kind, owner, name) -> None:
        """Where to put each large file; no place for one that is stored already."""
        repository, answers = self.writable(kind, owner, name), []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if not (self.hub.objects / asked["oid"]).is_file():
                put = {"href": f"{self.hub.storage}/put/{asked['oid']}", "header": {}}
                verify = {"href": f"{self.hub.address}/{repository.url}/lfs-verify", "header": {}}
                answer |= {"authenticated": True, "actions": {"upload": put, "verify": verify}}
            answers.append(answer)
        self.send({"transfer": "basic", "objects": answers})

    def put(self, oid) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "The content does not have the hash that was announced")
        self.hub.write(self.hub.objects / oid, self.body)
        self.send(b"")

    def lfs_verify(self, kind, owner, name) -> None:
        self.writable(kind, owner, name)
        asked = json.loads(self.body)
        stored = self.hub.objects / asked["oid"]
        if not stored.is_file() or stored.stat().st_size != asked["size"]:
            raise Refusal(404, "", "Object was not uploaded")
        self.send({})

    def take_commit(self, kind, owner, name, revision) -> None:
        repository = self.writable(kind, owner, name)
        with self.hub.lock:
            self.revision(repository, revision)
            for line in self.body.splitlines():
                self._do(repository, json.loads(line))
        commit = repository.commit()
        url = f"{self.hub.address}/{repository.url}/commit/{commit}"
        self.send({"success": True, "commitOid": commit, "commitUrl": url, "pullRequestUrl": None, "hookOutput": ""})

    def _do(self, repository: Repository, operation: dict) -> None:
        key, value = operation["key"], operation["value"]
        if key == "header":
            return
        file = repository.file(value["path"])
        if key == "file":
            self.hub.write(file, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            stored = self.hub.objects / value["oid"]
            if not stored.is_file():
                raise Refusal(400, "", f"LFS pointer pointed to a file that does not exist: {value['path']}")
            self.hub.write(file, stored.read_bytes())
        elif key == "deletedFile":
            file.unlink(missing_ok=True)
        elif key == "deletedFolder":
            shutil.rmtree(file, ignore_errors=True)
        else:
            raise Refusal(400, "", f"Unknown operation {key}")


# What is asked for by GET is answered to HEAD as well, without its body.
REPOSITORY, SITE = rf"/api/(?P<kind>{KINDS})/{ID}", rf"/(?P<kind>datasets/)?{ID}"
ROUTES = [
    ("GET", "/api/whoami-v2", _Answers.whoami),
    ("POST", "/api/repos/create", _Answers.create),
    ("POST", "/api/validate-yaml", _Answers.validate_yaml),
    ("GET", REPOSITORY, _Answers.about),
    ("GET", REPOSITORY + "/revision/(?P<revision>[^/]+|refs/heads/main)", _Answers.about),
    ("GET", REPOSITORY + "/tree/(?P<revision>[^/]+)(?:/(?P<below>.+))?", _Answers.tree),
    ("POST", REPOSITORY + "/paths-info/(?P<revision>[^/]+)", _Answers.paths_info),
    ("GET", REPOSITORY + "/refs", _Answers.refs),
    ("POST", REPOSITORY + "/preupload/(?P<revision>[^/]+)", _Answers.preupload),
    ("POST", REPOSITORY + "/commit/(?P<revision>[^/]+)", _Answers.take_commit),
    ("GET", SITE + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Answers.resolve),
    ("POST", SITE + r"\.git/info/lfs/objects/batch", _Answers.lfs_batch),
    ("POST", SITE + "/lfs-verify", _Answers.lfs_verify),
    ("PUT", "/storage/put/(?P<oid>[0-9a-f]{64})", _Answers.put),
    ("GET", rf"/storage/(?P<kind>{KINDS})/{ID}/(?P<path>.+)", _Answers.stored),
]


def card_faults(card: str) -> list[str]:
    """What the hub says against a card's metadata: of its many rules those that the course's cards could break."""
    import yaml

    found = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        about = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"]
    if not isinstance(about or {}, dict):
        return ["YAML Metadata Error: it is no mapping"]
    about, faults = about or {}, []
    for field in ("base_model", "datasets"):
        values = about.get(field) or []
        for number, value in enumerate(values if isinstance(values, list) else [values]):
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)):
                kind = "model" if field == "base_model" else "dataset"
                faults.append(
                    f'"{field}[{number}]" with value "{value}" is not valid. Use a {kind} id from https://hf.co.'
                )
    licence = about.get("license")
    if licence is not None and licence not in LICENCES:
        faults.append(f'"license" must be one of {sorted(LICENCES)}, and is {licence!r}')
    return faults


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.places.hub", description="The hub's double, by hand.")
    words.add_argument("--root", type=Path, required=True, help="holds models/OWNER/NAME and datasets/OWNER/NAME")
    words.add_argument("--port", type=int, default=0, help="0 takes a free one")
    words.add_argument("--user", default="learner", help="whose token --token is")
    words.add_argument("--token", default="", help="a token that is accepted")
    given = words.parse_args()
    with Hub(given.root, {given.token: given.user} if given.token else None, given.port) as hub:
        print(hub.address, flush=True)
        seen = 0
        try:
            while True:
                time.sleep(0.2)
                for request in hub.log[seen:]:
                    print(request, flush=True)
                    seen += 1
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
