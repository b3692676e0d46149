"""What a release needs: workflows that call what exists, pinned and with few rights; one version everywhere."""

import importlib.machinery
import importlib.util
import re
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from docs._make.llms import described, pages
from shfcas import __version__

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKE = re.compile(r"(?:^|\s)make((?: +--?[\w-]+)*(?: +[a-z][a-z-]*)+)", re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def workflow(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["on"] = values.pop(True)  # YAML 1.1 reads the key so
    return values


def steps(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, job in workflow(path)["jobs"].items() for step in job.get("steps", [])]


def targets(text: str) -> set[str]:
    """The targets of all `make` commands in a script."""
    return {word for found in MAKE.findall(text) for word in found.split() if not word.startswith("-")}


def called(path: Path) -> set[str]:
    return {target for _, step in steps(path) for target in targets(step.get("run", ""))}


each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_there_are_four_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests", "wheels"]


@each
def test_every_make_target_exists(path: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert called(path) <= known
    assert called(path)


def test_the_workflows_run_what_ci_runs() -> None:
    local = targets((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"lint-check", "docs", "sanitize", "test", "test-system"} <= local
    assert local <= called(GITHUB / "workflows" / "tests.yml")


@each
def test_actions_are_pinned_to_commits_and_name_their_version(path: Path) -> None:
    uses = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    for action, comment in uses:
        if action.startswith("./"):
            assert (ROOT / action).is_file()
        else:
            assert re.fullmatch(r"[\w-]+/[\w.-]+@[0-9a-f]{40}", action) and re.fullmatch(r" # v\d+\.\d+\.\d+", comment)


def test_an_action_has_one_version() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    pins = set(re.findall(r"uses: (\S+)@(\S+) # (\S+)", text))
    assert len({name for name, _, _ in pins}) == len(pins) >= 5


@each
def test_rights_are_few(path: Path) -> None:
    values = workflow(path)
    assert values["permissions"] in ({}, {"contents": "read"})
    rights = {(name, right) for name, job in values["jobs"].items() for right in job.get("permissions", {}).items()}
    allowed = {
        "docs": {("deploy", ("contents", "write"))},
        "release": {
            ("publish", ("id-token", "write")),
            ("attach", ("contents", "write")),
            ("docs", ("contents", "write")),
        },
    }
    assert rights == allowed.get(path.stem, set())
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert "pull_request_target" not in values["on"]


@each
def test_no_script_has_foreign_text_put_into_it(path: Path) -> None:
    """Branch names and inputs reach scripts as environment variables."""
    assert not [step["run"] for _, step in steps(path) if "${{" in step.get("run", "")]


@each
def test_every_job_ends(path: Path) -> None:
    assert all("timeout-minutes" in job or "uses" in job for job in workflow(path)["jobs"].values())


@each
def test_checkouts_leave_no_credentials(path: Path) -> None:
    for job, step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is ((path.stem, job) == ("docs", "deploy"))


def test_pythons_of_tests_wheels_and_metadata_are_the_same() -> None:
    tested = workflow(GITHUB / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    classifiers = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert tested == classifiers
    assert built == " ".join(f"cp{python.replace('.', '')}-*" for python in tested)
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_publishing_waits_for_tests_and_wheels_and_takes_no_cuda_wheel() -> None:
    jobs = workflow(GITHUB / "workflows" / "release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"tests", "wheels"} and jobs["publish"]["environment"]["name"] == "pypi"
    assert jobs["tests"]["needs"] == jobs["wheels"]["needs"] == "check"
    pattern = jobs["publish"]["steps"][0]["with"]["pattern"]
    named = [(step.get("with", {}).get("name"), job) for job, step in steps(GITHUB / "workflows" / "wheels.yml")]
    uploads = {name: job for name, job in named if name}
    taken = {job for name, job in uploads.items() if name.startswith(pattern.removesuffix("*"))}
    assert taken == {"sdist", "wheels"} and set(uploads.values()) == {"sdist", "wheels", "cuda"}


def script(name: str) -> ModuleType:
    """A script of .ci as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / ".ci" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_wheels_are_repaired_and_tested_in_the_same_way_here_and_by_cibuildwheel() -> None:
    wheel = script("wheel")
    cpu = PROJECT["tool"]["cibuildwheel"]
    cuda = tomllib.loads((ROOT / ".ci" / "wheels-cuda.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    for settings in (cpu, cuda):
        assert re.findall(r"--exclude (\S+)", settings["linux"]["repair-wheel-command"]) == wheel.EXCLUDED
        assert {*settings["test-requires"], "torch"} == {*wheel.TESTED_WITH}
        assert "tests/ops" in settings["test-command"] and set(settings["test-sources"]) == {"tests", "pyproject.toml"}
    assert [name.removeprefix("python") for name in wheel.PYTHONS] == re.findall(
        r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"])
    )
    image = cpu["linux"]["manylinux-x86_64-image"]
    assert image == cuda["linux"]["manylinux-x86_64-image"] == "manylinux_2_28"
    tag = cuda["config-settings"]["wheel.build-tag"]
    assert f"-{tag}-" in (ROOT / "docs" / "release.md").read_text(encoding="utf-8")


def test_files_of_a_wheel_are_compared_without_folders(tmp_path: Path) -> None:
    wheel = script("wheel")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.mkdir("shfcas")
        archive.writestr("shfcas/__init__.py", "")
    assert wheel.files(tmp_path / "a.whl") == ["shfcas/__init__.py"]


def test_the_page_has_what_auditwheel_said() -> None:
    (found,) = script("wheel").DOCUMENTED.findall((ROOT / "docs" / "release.md").read_text(encoding="utf-8"))
    assert "$ auditwheel show shfcas-" in found and "libc.so.6" in found and "libtorch" not in found


def test_the_first_python_of_the_readme_is_that_of_the_ops() -> None:
    assert "shfcas.conflict_scores(rewards, logprobs)" in script("wheel").readme_ops()


# Citation, version, changelog.


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return script("release")


def test_the_version_is_written_once() -> None:
    assert PROJECT["project"]["version"] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == PROJECT["project"]["license"]
    assert citation["preferred-citation"]["url"] == PROJECT["project"]["urls"]["Paper"]
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Source"]
    assert "arXiv:2512.09212" in str(citation["preferred-citation"]["identifiers"])


def test_the_addresses_are_the_same_everywhere() -> None:
    urls = PROJECT["project"]["urls"]
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["site_url"]
    contacts = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8"))["contact_links"]
    assert f"{site}latest/" == urls["Documentation"] == contacts[1]["url"]
    for path in [ROOT / "docs" / "release.md", GITHUB / "ISSUE_TEMPLATE" / "config.yml"]:
        found = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", path.read_text(encoding="utf-8")))
        assert found - {"https://github.com/jimporter/mike"} == {urls["Source"]}


def test_unreleased_stands_above_a_dated_section_of_this_version(release: ModuleType) -> None:
    titles = list(release.sections(ROOT))
    assert titles[0] == "Unreleased" and re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", titles[1])


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A folder that may be tagged v0.1.0."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text('version: 0.1.0\ndate-released: "2026-12-01"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0 - 2026-12-01\n\n- All of it.\n")
    return tmp_path


def test_a_ready_tag_has_no_problems(release: ModuleType, ready: Path) -> None:
    assert release.problems(ready, "v0.1.0") == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("pyproject.toml", "0.1.0", "0.2.0", "tag: expected v0.2.0"),
        ("CITATION.cff", "version: 0.1.0", "version: 0.0.9", "expected version: 0.1.0"),
        ("CITATION.cff", "2026-12-01", "2026-11-01", 'expected date-released: "2026-12-01"'),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- More.\n", "expected nothing under Unreleased"),
        ("CHANGELOG.md", " - 2026-12-01", "", "expected one section '## 0.1.0 - YYYY-MM-DD'"),
    ],
)
def test_each_problem_of_a_tag_is_named(
    release: ModuleType, ready: Path, file: str, old: str, new: str, message: str
) -> None:
    path = ready / file
    path.write_text(path.read_text().replace(old, new, 1))
    assert any(message in problem for problem in release.problems(ready, "v0.1.0"))


# llms.txt and the files that people and agents read first.


def test_llms_txt_has_every_page() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(pages(nav)) == written
    assert text.count("\n- [") == len(written) and text.startswith("# shfcas\n\n> ")
    assert all(f"/{name.removesuffix('.md')}/)" in text for name in written - {"index.md"})


def test_a_page_is_described_by_its_first_sentence() -> None:
    page = "# Title\n\n```bash\nmake\n```\n\n| a |\n|---|\n\nSee [the\nother](x.md). Then `more`.\n"
    assert described(page) == ("Title", "See the other.")


@pytest.mark.parametrize("name", ["AGENTS.md", "CODE_OF_CONDUCT.md", "SECURITY.md"])
def test_links_of_the_files_at_the_root_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)", text) if "://" not in link]
    assert paths and all((ROOT / path).exists() for path in paths if path)


def test_commands_in_agents_md_exist() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for command in re.findall(r"`make ([a-z -]+)`", text) for word in command.split()}
    assert named and named <= known
    for path in re.findall(r"`((?:tests|docs)/[\w./-]+\w/?)`", text):
        assert (ROOT / path).exists(), path


def test_the_tools_of_the_checks_are_not_needed_to_run_them() -> None:
    """`make release-check` runs on a bare Python."""
    imported = re.findall(r"^(?:import|from) (\w+)", (ROOT / ".ci" / "release").read_text(), re.MULTILINE)
    assert set(imported) <= {"re", "sys", "tomllib", "pathlib"}
