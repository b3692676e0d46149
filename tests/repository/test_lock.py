"""The locked packages: complete, hashed, the versions that were asked for, and installed."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
NAMES = ("pip", "torch", "torch-cpu", "cuda", "demo", "dev", "bench", "mutants", "mike", "release", "models")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    text = (FOLDER / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    parts = [re.split(r"\s+--hash=", line) for line in lines]
    return [(Requirement(requirement), [h.strip() for h in hashes]) for requirement, *hashes in parts]


def pins(*names: str, python: str = "3.11", platform: str = "linux") -> dict[str, str]:
    """Versions by package, on one Python and platform."""
    machine = {"linux": "x86_64", "darwin": "arm64"}[platform]
    where = {**default_environment(), "python_version": python, "python_full_version": f"{python}.7"}
    where |= {"sys_platform": platform, "platform_machine": machine}
    found: dict[str, str] = {}
    for name in names:
        for requirement, _ in entries(name):
            if requirement.marker is None or requirement.marker.evaluate(where):
                (pin,) = requirement.specifier
                assert pin.operator == "==" and found.setdefault(canonicalize_name(requirement.name), pin.version) == (
                    pin.version
                ), f"two versions of {requirement.name}"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_pins_with_hashes_and_names_no_place(name: str) -> None:
    found = entries(name)
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)) and requirement.url is None
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes)
    text = (FOLDER / f"{name}.txt").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text and "\n/" not in text


def test_no_other_file_is_there() -> None:
    assert {p.name for p in FOLDER.iterdir()} == {
        *(f"{n}.txt" for n in NAMES),
        "build.in",
        "release.in",
        "advisories.json",
    }


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_locked_on_every_python(python: str, platform: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"shfcas": project["dependencies"], **project["optional-dependencies"]}

    def needed(name: str) -> list[Requirement]:
        own = [Requirement(text) for text in extras[name]]
        inner = [r for o in own if o.name == "shfcas" for extra in o.extras for r in needed(extra)]
        return [*(o for o in own if o.name != "shfcas"), *inner]

    installed = {
        "demo": ("torch", "demo"),
        "dev": ("torch", "demo", "dev"),
        "bench": ("torch", "demo", "dev", "bench"),
        "mutants": ("torch", "demo", "dev", "mutants"),
    }
    for extra, files in installed.items():
        locked = pins(*files, python=python, platform=platform)
        for requirement in [*needed("shfcas"), *needed(extra)]:
            got = locked.get(canonicalize_name(requirement.name))
            assert got and requirement.specifier.contains(got), f"{requirement} of {extra}: run make lock"
    build = {"scikit-build-core", "pybind11", "cmake", "ninja"}
    assert build <= pins("demo", python=python, platform=platform).keys()


def test_the_versions_are_those_of_the_constraints() -> None:
    locked = pins(*(name for name in NAMES if name != "torch-cpu"))
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, wanted = line.partition("==")
            assert Version(locked[canonicalize_name(name)]) == Version(wanted), f"{name}: run make lock"


def test_torch_has_the_hashes_of_several_builds() -> None:
    ((ordinary, hashes),) = entries("torch")
    ((cpu, others),) = entries("torch-cpu")
    assert ordinary.marker is None and str(cpu.specifier) == f"{ordinary.specifier}+cpu"
    assert len(hashes) > 10 and len(others) >= 8 and not set(hashes) & set(others)
    assert not any(re.match("nvidia|cuda|triton", name) for name in pins("demo", "dev", "bench", "mutants"))


def test_what_runs_here_is_what_is_locked() -> None:
    """This environment was installed from these files."""
    import platform
    import sys

    where = "darwin" if sys.platform == "darwin" else "linux"
    python = ".".join(platform.python_version_tuple()[:2])
    locked = pins("torch", "demo", "dev", python=python, platform=where)
    different = {}
    for name, wanted in locked.items():
        try:
            got = Version(version(name)).public
        except PackageNotFoundError:
            got = "missing"
        if got != Version(wanted).public:
            different[name] = (wanted, got)
    if not (ROOT / ".venv" / "dev-packages.stamp").exists():
        pytest.skip("an environment that make did not install")
    assert not different
