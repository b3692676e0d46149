"""Files are complete or absent, whatever fails while they are written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.utils.errors import UserError
from shfcas.utils.files import (
    atomic_file,
    content_hash,
    disk_errors,
    existing,
    publish,
    read_json,
    read_jsonl,
    read_text,
    remove,
    work_folder,
    write_json,
    write_jsonl,
    write_text,
)
from shfcas.utils.parquet import read_parquet


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "a.txt"
    with atomic_file(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        written = partial.stat().st_ino
    assert target.stat().st_ino == written  # renamed, not copied: a reader never sees a part of it
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_a_url_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="got a URL"):
        write_json("s3://bucket/a.json", {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(error), atomic_file(target) as partial:
        partial.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_gives_one_clear_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.jsonl"
    write_jsonl(target, [{"a": 1}])
    partial = tmp_path / ".a.jsonl.partial"
    partial.symlink_to("/dev/full")
    monkeypatch.setattr("shfcas.utils.files.temporary", lambda path: partial)
    with pytest.raises(UserError, match=r"no space left on the disk while writing .*a\.jsonl.*the same command again"):
        write_jsonl(target, [{"a": 2}])
    assert read_jsonl(target) == [{"a": 1}]
    assert names(tmp_path) == ["a.jsonl"]
    write_jsonl(target, [{"a": 2}])
    assert read_jsonl(target) == [{"a": 2}]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk while writing a.txt"),
        (errno.EDQUOT, "no space left on the disk while writing a.txt"),
        (errno.EACCES, "cannot write a.txt: .*; choose a folder you may write to"),
        (errno.EROFS, "cannot write a.txt: .*; choose a folder you may write to"),
    ],
)
def test_disk_errors_say_what_to_do(number: int, message: str) -> None:
    with pytest.raises(UserError, match=message), disk_errors("a.txt"):
        raise OSError(number, os.strerror(number))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_under_a_checkpoint_is_a_full_disk_too() -> None:
    with pytest.raises(RuntimeError, match="inline_container"):  # torch says nothing of the disk
        torch.save(torch.zeros(1000), "/dev/full")
    with (
        pytest.raises(UserError, match="no space left on the disk while writing checkpoint"),
        disk_errors("checkpoint"),
    ):
        torch.save(torch.zeros(1000), "/dev/full")


def test_a_disk_that_fills_under_a_model_is_a_full_disk_too() -> None:
    from safetensors import SafetensorError

    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match="no space left on the disk while writing model"), disk_errors("model"):
        raise full


def test_a_clear_error_passes_through_as_it_is() -> None:
    inner = UserError("prompt 'p' is too long: No space left on device, says the answer")
    with pytest.raises(UserError) as caught, disk_errors("x"):
        raise inner
    assert caught.value is inner


def test_errors_that_are_not_the_disks_stay_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), disk_errors("x"):
        raise FileNotFoundError
    with pytest.raises(PermissionError) as caught, disk_errors("x"):
        raise PermissionError  # without a number
    assert not isinstance(caught.value, UserError)


def test_publish_moves_a_whole_folder(tmp_path: Path) -> None:
    partial, final = tmp_path / ".model.partial", tmp_path / "model"
    (partial / "sub").mkdir(parents=True)
    (partial / "sub" / "weights").write_bytes(b"1")
    publish(partial, final)
    assert (final / "sub" / "weights").read_bytes() == b"1"
    assert names(tmp_path) == ["model"]


def test_json_round_trips(tmp_path: Path) -> None:
    rows = [{"text": "é\u2028 \u0085 end\n", "n": 1.5}, {"text": "", "n": None}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    write_json(tmp_path / "a.json", rows)
    assert read_json(tmp_path / "a.json") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1}\n{"a": ', "line 2 is not valid JSON"), ('\n{"a": 1}\n\n[1]\n', "line 4 is not a JSON object")],
)
def test_json_lines_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_jsonl(file)
    assert str(caught.value).startswith(str(file))


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": "\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: not UTF-8 text \(byte 7\)"):
        read_jsonl(file)
    for read in (read_json, read_jsonl, read_text):
        with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
            read(tmp_path)


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1,\n}')
    with pytest.raises(UserError, match=r"a\.json: not valid JSON \(line 2"):
        read_json(file)
    with pytest.raises(UserError, match="none does not exist"):
        existing(tmp_path / "none")


def test_content_hash_follows_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        return content_hash(tmp_path / name)

    same = folder("one", a="1", b="2")
    assert folder("two", a="1", b="2") == same
    assert folder("three", a="1", c="2") != same
    assert folder("four", a="1", b="3") != same
    assert content_hash(tmp_path / "one" / "a") == content_hash(tmp_path / "two" / "a")
    assert content_hash(tmp_path / "one" / "a") != content_hash(tmp_path / "one" / "b")


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)
    assert names(tmp_path) == []


def spawn(script: str, *arguments: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


@pytest.mark.system
def test_the_last_of_several_writers_wins_with_a_whole_file(tmp_path: Path) -> None:
    script = (
        "import sys; from shfcas.utils.files import read_json, write_json\n"
        "for _ in range(40):\n"
        "    write_json(sys.argv[1], [sys.argv[2]] * 5000)\n"
        "    assert len(set(read_json(sys.argv[1]))) == 1\n"
    )
    writers = [spawn(script, tmp_path / "a.json", name) for name in "abc"]
    assert [(w.communicate(timeout=300)[0], w.returncode) for w in writers] == [("", 0)] * 3
    assert names(tmp_path) == ["a.json"]


@pytest.mark.system
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import sys, time; from shfcas.utils.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); print('half', flush=True); time.sleep(60)"
    )
    killed, alive = spawn(script, tmp_path / "a.txt"), spawn(script, tmp_path / "a.txt")
    try:
        assert [w.stdout.readline() for w in (killed, alive)] == ["half\n"] * 2
        killed.kill()
        killed.wait()
        write_text(tmp_path / "b.txt", "whole")
        left = [name for name in names(tmp_path) if name != "b.txt"]
        assert len(left) == 1 and f"-{alive.pid}-" in left[0]
    finally:
        alive.kill()
        alive.communicate()


def test_a_work_folder_is_for_one_process(tmp_path: Path) -> None:
    output = tmp_path / "a"
    with work_folder(output) as folder:
        assert folder == tmp_path / ".a.work"
        with pytest.raises(UserError, match=r"another process is working in .*\.a\.work; wait"), work_folder(output):
            pass
        (folder / "shard").touch()
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), work_folder(output) as folder:
        (folder / "shard").touch()
        raise RuntimeError
    with work_folder(output) as folder:
        assert (folder / "shard").exists()  # and the same command resumes
    with pytest.raises(RuntimeError), work_folder(output):
        raise RuntimeError
    assert names(tmp_path) == []  # nothing to resume


@pytest.mark.system
def test_processes_that_want_one_work_folder_take_turns_or_are_refused(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from shfcas.utils.errors import UserError\n"
        "from shfcas.utils.files import work_folder\n"
        "turns = 0\n"
        "while turns < 30:\n"
        "    try:\n"
        "        with work_folder(Path(sys.argv[1])) as folder:\n"
        "            (folder / 'mine').touch(exist_ok=False)\n"
        "            turns += 1\n"
        "    except UserError as error:\n"
        "        assert 'another process is working in' in str(error)\n"
    )
    workers = [spawn(script, tmp_path / "a") for _ in range(3)]
    assert [(w.communicate(timeout=300)[0], w.returncode) for w in workers] == [("", 0)] * 3
    assert names(tmp_path) == []


@pytest.mark.system
def test_commands_that_score_to_one_path_leave_a_whole_table(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": f"p{i}", "prompt": "how?", "completions": ["a", "b"], "logprobs": [-1.0, -2.0], "rewards": [1, 2]}
        for i in range(2000)
    ]
    write_candidates(tmp_path / "in.parquet", CandidateTable.from_rows(rows))
    script = "import sys; from shfcas.cli import main; sys.exit(main(sys.argv[1:]))"
    for output, codes in ((tmp_path / "out.parquet", {0}), (tmp_path / "parts", {0, 1})):
        command = ["score", tmp_path / "in.parquet", "--output", output]
        racing = [spawn(script, *command) for _ in range(3)]
        done = [(w.communicate(timeout=300)[0], w.returncode) for w in racing]
        assert {code for _, code in done} <= codes and 0 in {code for _, code in done}, done
        assert all(code == 0 or "another process is working in" in printed for printed, code in done), done
        assert len(read_parquet(output)) == 2000
    assert not [name for name in names(tmp_path) if "partial" in name or "work" in name]
