"""The audit of the locked packages, and its snapshot, which a local server with OSV's protocol fills."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_server import LocalServer

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".ci" / "audit"

JINJA = {
    "id": "GHSA-h75v-3vvj-5mfj",
    "summary": "Jinja vulnerable to HTML attribute injection when passing user input as keys to xmlattr filter",
    "aliases": ["CVE-2024-34064"],
    "modified": "2024-11-18T16:26:44Z",
    "published": "2024-05-06T14:20:59Z",
    "references": [{"type": "WEB", "url": "https://a.example"}, {"type": "ADVISORY", "url": "https://b.example"}],
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI", "purl": "pkg:pypi/jinja2"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.1.4"}]}],
            "versions": ["2.0", "3.1.3"],
        },
        {"package": {"name": "jinja2", "ecosystem": "Debian"}, "versions": ["1"]},
    ],
    "schema_version": "1.6.0",
}
PAGED = {
    "id": "PYSEC-2099-1",
    "details": "Two\nranges,\tof which the last has no end.",
    "modified": "2099-01-02T00:00:00Z",
    "affected": [
        {
            "package": {"name": "Jinja2", "ecosystem": "PyPI"},
            "ranges": [
                {"type": "GIT", "repo": "r", "events": [{"introduced": "0"}]},
                {
                    "type": "ECOSYSTEM",
                    "events": [{"introduced": "4.0rc1"}, {"last_affected": "4.2"}, {"introduced": "5.0"}],
                },
            ],
        }
    ],
}
VERSIONS = {
    "id": "PYSEC-2099-2",
    "summary": "by versions",
    "modified": "2099-01-01T00:00:00Z",
    "affected": [{"package": {"name": "torch", "ecosystem": "PyPI"}, "versions": ["2.13.0"]}],
}
WITHDRAWN = {**JINJA, "id": "GHSA-gone", "withdrawn": "2025-01-01T00:00:00Z"}


class Osv(LocalServer):
    """OSV's query, in pages of one record."""

    records = (JINJA, PAGED, VERSIONS, WITHDRAWN)

    def post(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], number: int) -> None:
        assert handler.path == "/v1/query" and request["package"]["ecosystem"] == "PyPI"
        name = request["package"]["name"]
        found = [r for r in self.records if any(a["package"]["name"].lower() == name for a in r["affected"])]
        page = int(request.get("page_token", 0))
        reply: dict[str, Any] = {"vulns": found[page : page + 1]} if found else {}
        if page + 1 < len(found):
            reply["next_page_token"] = str(page + 1)
        self.send(handler, reply)


def audit(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), "--requirements", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def lock(folder: Path, **versions: str) -> None:
    lines = [f"{name}=={version} ; python_version >= '3' \\\n    --hash=sha256:0" for name, version in versions.items()]
    (folder / "dev.txt").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lock(tmp_path, Jinja2="3.1.6", torch="2.12.0", numpy="2.0")
    with Osv() as server:
        done = audit(tmp_path, "--refresh", "--url", server.url.removesuffix("/v1"))
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_a_refresh_writes_what_osv_knows(folder: Path) -> None:
    snapshot = json.loads((folder / "advisories.json").read_text())
    assert snapshot["packages"] == ["jinja2", "numpy", "torch"] and snapshot["source"].startswith("http://127.0.0.1")
    first, second, third = snapshot["advisories"]
    assert first == {
        "id": "GHSA-h75v-3vvj-5mfj",
        "aliases": ["CVE-2024-34064"],
        "package": "jinja2",
        "affected": ["<3.1.4"],
        "summary": JINJA["summary"],
        "source": "https://b.example",
        "date": "2024-11-18",
    }
    assert second["affected"] == [">=4.0rc1,<=4.2", ">=5.0"] and second["summary"].startswith("Two ranges, of which")
    assert third["affected"] == ["==2.13.0"] and "Not complete" in snapshot["about"]


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"Jinja2": "3.1.6"}, None),
        ({"jinja2": "3.1.4"}, None),
        ({"jinja2": "3.1.4rc1"}, "GHSA-h75v-3vvj-5mfj"),
        ({"jinja2": "3.1.3"}, "jinja2 3.1.3: GHSA-h75v-3vvj-5mfj, CVE-2024-34064: Jinja vulnerable"),
        ({"jinja2": "4.0"}, "PYSEC-2099-1"),
        ({"jinja2": "4.3"}, None),
        ({"jinja2": "6.0"}, "PYSEC-2099-1"),
        ({"torch": "2.13.0"}, "PYSEC-2099-2"),
        ({"torch": "2.13.0+cpu"}, "PYSEC-2099-2"),
        ({"torch": "2.13.1"}, None),
    ],
)
def test_affected_versions_are_an_error(versions: dict[str, str], found: str | None, folder: Path) -> None:
    lock(folder, **versions)
    done = audit(folder)
    assert done.returncode == (1 if found else 0) and not done.stderr
    assert (found or "1 locked versions, 3 advisories of 20") in done.stdout and "0 days old" in done.stdout


def test_an_advisory_is_accepted_with_a_reason_that_a_refresh_keeps(folder: Path) -> None:
    lock(folder, jinja2="3.1.3")
    path = folder / "advisories.json"
    for reason, code in (("", 1), ("the filter is not used", 0)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "accepted": {"CVE-2024-34064": reason}}))
        assert audit(folder).returncode == code
    with Osv() as server:
        done = audit(folder, "--refresh", "--url", server.url.removesuffix("/v1"))
    assert done.returncode == 0 and "1 accepted, with reasons" in done.stdout


def test_what_the_snapshot_does_not_know_is_named(folder: Path) -> None:
    lock(folder, pillow="1.0")
    path = folder / "advisories.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "date": "2020-01-01"}))
    done = audit(folder)
    assert "not looked up: pillow" in done.stderr and "the snapshot is old" in done.stderr


def test_a_failed_refresh_leaves_the_snapshot(folder: Path) -> None:
    before = (folder / "advisories.json").read_bytes()

    class Broken(Osv):
        def post(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], number: int) -> None:
            self.send(handler, "busy", 503 if number % 2 else 200)

    with Broken() as server:
        for _ in range(2):
            done = audit(folder, "--refresh", "--url", server.url.removesuffix("/v1"))
            assert (
                done.returncode == 1 and "the snapshot is unchanged" in done.stderr and "Traceback" not in done.stderr
            )
    done = audit(folder, "--refresh", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and (folder / "advisories.json").read_bytes() == before


def test_records_in_a_folder_give_the_same(folder: Path, tmp_path: Path) -> None:
    wanted = json.loads((folder / "advisories.json").read_text())["advisories"]
    for record in Osv.records:
        package = record["affected"][0]["package"]["name"].lower()  # type: ignore[index]
        (tmp_path / "vulns" / package).mkdir(parents=True, exist_ok=True)
        (tmp_path / "vulns" / package / f"{record['id']}.yaml").write_text(json.dumps(record))  # JSON is YAML
    named = ("--source", "a clone", "--date", "2099-01-01")
    assert audit(folder, "--refresh", "--from", str(tmp_path / "vulns"), *named).returncode == 0
    assert json.loads((folder / "advisories.json").read_text())["advisories"] == wanted
    assert audit(folder, "--refresh", "--from", str(tmp_path / "vulns")).returncode == 2


def test_the_committed_snapshot_is_about_the_locked_packages() -> None:
    done = audit(ROOT / "requirements")
    assert done.returncode == 0, done.stdout
    assert "not looked up" not in done.stderr
    snapshot = json.loads((ROOT / "requirements" / "advisories.json").read_text())
    assert snapshot["source"] and snapshot["date"] and len(snapshot["advisories"]) > 100
    assert all(a["affected"] and a["id"] and a["package"] in snapshot["packages"] for a in snapshot["advisories"])
    loader = importlib.machinery.SourceFileLoader("audit", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("audit", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    for advisory in snapshot["advisories"]:  # every range is read whole, and its first version is in it
        for span in advisory["affected"]:
            (sign, bound), *others = module.BOUND.findall(span)
            assert ",".join(map("".join, [(sign, bound), *others])) == span, advisory["id"]
            assert module.is_affected("0.dev0" if sign.startswith("<") else bound, [span]), advisory["id"]
