"""The container image and the compose file, as far as they can be read without building them, and the health check."""

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shfcas.cli import COMMANDS, main
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.server import serve
from tests.support.local_server import LocalServer

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "docker" / "health.py"
SECRETS = re.compile(r"(?i)password|secret|api_key|token=\S")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: their names and arguments, with continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).replace("\\\n", "")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines()) if name]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name, those of its base stages before its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = list(found.get(base, [("FROM", base)]))
        else:
            found[stage].append((name, rest))
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def ignored(path: str) -> bool:
    """Whether the build leaves out a path of the checkout; the last pattern that fits decides."""
    state = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            parts = Path(path).parts
            parents = (
                parts if pattern.startswith("**/") else ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
            )
            if any(fnmatch.fnmatch(parent, pattern.removeprefix("**/")) for parent in parents):
                state = not line.startswith("!")
    return state


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_is_not_root_and_has_no_compiler_and_a_health_check(target: str) -> None:
    found = stages()[target]
    names = [name for name, _ in found]
    assert [rest for name, rest in found if name == "USER"] == ["10001"]
    assert names.count("HEALTHCHECK") == names.count("ENTRYPOINT") == 1
    assert not [rest for name, rest in found if name == "RUN" and "apt-get" in rest]
    assert f"--from=build-{target} /opt/shfcas /opt/shfcas" in [rest for name, rest in found if name == "COPY"]
    assert (f"docker/install {target} /opt/shfcas") in [rest for _, rest in stages()[f"build-{target}"]]


def test_images_have_versions_and_the_default_target_is_cpu() -> None:
    bases = {rest for found in stages().values() for name, rest in found if name == "FROM"}
    assert bases and all(re.fullmatch(r"[\w./-]+:\d[\w.-]+", base) for base in bases)
    assert list(stages())[-1] == "cpu"
    assert not SECRETS.search((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def test_the_context_has_what_is_read_and_no_more() -> None:
    script = (ROOT / "docker" / "install").read_text(encoding="utf-8")
    read = {*re.findall(r"-r (\S+)", script), "docker/install", "docker/health.py", "pyproject.toml", "README.md"}
    read |= {"LICENSE", "CMakeLists.txt", "_build_backend/backend.py", "csrc/library.cpp", "shfcas/__init__.py"}
    assert all((ROOT / path).is_file() and not ignored(path) for path in read)
    left_out = [
        ".git/config",
        ".venv/bin/python",
        "runs/mine/feedback.sqlite",
        "work/x",
        "tests/conftest.py",
        "build/x",
    ]
    assert all(ignored(path) for path in [*left_out, "shfcas/_C.so", "shfcas/cli/__pycache__/x.pyc"])
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            assert (ROOT / rest.split()[0]).exists()


def test_the_script_compiles_with_the_nvcc_of_the_wheels() -> None:
    assert os.access(ROOT / "docker" / "install", os.X_OK)
    versions = re.compile(r"nvidia-[\w-]+==[\d.]+")
    script = versions.findall((ROOT / "docker" / "install").read_text(encoding="utf-8"))
    wheels = versions.findall((ROOT / ".ci" / "wheels-cuda.toml").read_text(encoding="utf-8"))
    assert script == wheels and len(script) == 5
    assert subprocess.run(["bash", "-n", str(ROOT / "docker" / "install")]).returncode == 0


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """Before torch is installed: `pip` is a stand-in that does nothing."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p "$3/bin" && cp "$0" "$3/bin/python"\n')
    python.chmod(0o755)
    command = [str(ROOT / "docker" / "install"), "tpu", str(tmp_path / "there")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == 2 and "expected cpu or cuda, got tpu" in done.stderr


@pytest.mark.parametrize("name", ["run", "page", "reward"])
def test_a_service_is_local_unprivileged_and_runs_a_command_that_exists(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = compose()["services"][name]
    assert service["build"]["target"] in stages() and service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    command, *flags = service["command"]
    assert command in COMMANDS and main([command, "--help", "all"]) == 0
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    assert {flag for flag in flags if flag.startswith("--")} <= known
    exposed = {port for kind, rest in stages()["cpu"] if kind == "EXPOSE" for port in rest.split()}
    assert all(port.rpartition(":")[2] in exposed for port in service["ports"])


def test_services_that_stay_are_checked_by_name() -> None:
    services = compose()["services"]
    for name in ("page", "reward"):
        assert services[name]["restart"] == "unless-stopped" and services[name]["healthcheck"]["test"][-1] == name
    (check,) = [rest for kind, rest in stages()["cpu"] if kind == "HEALTHCHECK"]
    assert shlex.split(check.partition("CMD")[2].replace(",", " ").strip(" []")) == ["python", "/opt/health.py"]


# The health check, against real servers.


def health(*wanted: str, page: int, reward: int) -> subprocess.CompletedProcess[str]:
    """Runs the check with other ports, which a test can use."""
    text = HEALTH.read_text(encoding="utf-8").replace(":8900/", f":{page}/").replace(":8901/", f":{reward}/")
    return subprocess.run([sys.executable, "-c", text, *wanted], capture_output=True, text=True, timeout=60)


def test_the_page_is_healthy_without_a_session(tmp_path: Path) -> None:
    with serve(tmp_path, HumanConfig(host="0.0.0.0", port=0, allow_public=True, address="http://labels:8900")) as page:
        assert health("page", page=page.port, reward=1).stdout == "healthy\n"
        gone = page.port
    assert (health("page", page=gone, reward=1).returncode, health(page=gone, reward=1).returncode) == (1, 0)


def test_a_server_that_fails_is_not_healthy() -> None:
    with LocalServer() as broken:  # it answers 404
        port = broken.http.server_port
        done = health(page=1, reward=port)
    assert done.returncode == 1 and done.stdout == "reward does not answer\n"
