"""The part of the Hugging Face Hub's API that its client calls for an upload, in memory.

As huggingface_hub 2.4 calls it: create a repository, validate a card's metadata, ask how each file is uploaded, the
LFS batch, PUT of large files, and the commit as JSON lines.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".bin")


class HubServer:
    """At `url` while it is entered; `repositories` has for each type and name its visibility and files."""

    def __init__(self, refuse: str = "") -> None:
        """`refuse` is a part of the paths that are answered with an error."""
        self.repositories: dict[tuple[str, str], dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                path = self.path.partition("?")[0]
                owner.calls.append(f"POST {path}")
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self.answer({"error": "Invalid credentials"}, 401)
                elif refuse and refuse in path:
                    self.answer({"error": "Storage quota exceeded"}, 403)
                else:
                    self.answer(*owner.post(path, body))

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.calls.append(f"PUT {self.path}")
                name = self.path.rpartition("/")[2]
                good = hashlib.sha256(body).hexdigest() == name
                owner.objects[name] = body
                self.answer({}, 200 if good else 400)

            def answer(self, value: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sends the client here, as HF_ENDPOINT does, without its extension, whose storage has no server here."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def post(self, path: str, body: bytes) -> tuple[dict[str, Any], int]:
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            metadata = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
            good = metadata is not None and isinstance(yaml.safe_load(metadata[1]), dict)
            return ({"errors": [], "warnings": []}, 200) if good else ({"errors": [{"message": "no metadata"}]}, 400)
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(LARGE) else "regular" for file in files]
            rows = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file, mode in zip(files, modes, strict=True)
            ]
            return ({"files": rows}, 200) if found.groups() in self.repositories else ({"error": "Not found"}, 404)
        if path.endswith(".git/info/lfs/objects/batch"):
            actions = [
                {**item, "actions": {"upload": {"href": f"{self.url}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": actions}, 200
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/commit/main", path):
            files = self.repositories[found[1], found[2]]["files"]
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    files[item["value"]["path"]] = self.objects[item["value"]["oid"]]
            return {"commitUrl": f"{self.url}/{found[2]}/commit/1", "commitOid": "1" * 40, "success": True}, 200
        return {"error": f"Not found: {path}"}, 404

    def create(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
        kind, name = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        address = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repositories:
            return {"error": "You already created this repo", "url": address}, 409
        self.repositories[kind, name] = {"visibility": wanted.get("visibility"), "files": {}}
        return {"url": address, "name": name}, 200

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.shutdown()
        self.http.server_close()
