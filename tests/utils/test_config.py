"""Configuration: YAML sets values, flags win, and what cannot be meant is refused by name."""

import argparse
import dataclasses
import math
import re
from pathlib import Path

import pytest

from shfcas.utils.config import (
    Options,
    build,
    check_multiple,
    differences,
    fingerprint,
    option,
    read_yaml,
    require,
    shared,
    to_dict,
    volatile_names,
    with_default,
)
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.flags import add_flags, from_flags


@dataclasses.dataclass
class Inner(Options):
    learning_rate: float = option(1e-3, "step size")
    steps: int | None = option(None, "how many; 100 % of them by default")


@dataclasses.dataclass
class Outer(Options):
    name: str = option("a", "a name")
    mode: str = option("fast", "how", choices=("fast", "careful"))
    flag: bool = option(False, "on or off")
    count: int = option(1, "how many")
    top: int | float = option(1, "a share or a number")
    targets: list[str] | str = option("all", "names of layers, or all")
    inner: Inner = option(Inner, "inner")
    spare: Inner | None = option(None, "a section that may be missing")


@dataclasses.dataclass
class Served(Options):
    port: int = option(80, "where it listens", volatile=True)
    inner: Inner = option(Inner, "inner")


@dataclasses.dataclass
class Server(Options):
    seed: int = option(0, "seed")
    page: Served = option(Served, "page")


@dataclasses.dataclass
class Needy:
    path: str
    other: int


def parse(*flags: str, yaml: Path | None = None) -> Outer:
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer)
    return from_flags(Outer, parser.parse_args(flags), yaml and str(yaml))


def test_defaults_stand_where_nothing_is_given() -> None:
    assert parse() == Outer()
    assert Outer().inner is not Outer().inner


def test_yaml_sets_values_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: b\ncount: 3\ninner: {learning_rate: 2e-5, steps: 4}\n")
    config = parse("--count", "5", "--inner.learning-rate", "0.5", yaml=file)
    assert (config.name, config.count) == ("b", 5)
    assert config.inner == Inner(learning_rate=0.5, steps=4)


def test_a_flag_opens_a_section_that_yaml_leaves_empty(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("inner:\nspare: null\n")
    config = parse("--inner.steps", "7", "--spare.steps", "8", yaml=file)
    assert config.inner.steps == 7
    assert config.spare == Inner(steps=8)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "12", 12),
        ("count", "1e3", None),
        ("count", "1.5", None),
        ("count", "true", None),
        ("count", "none", None),
        ("count", "inf", None),
        ("flag", "True", True),
        ("flag", "false", False),
        ("flag", "1", None),
        ("top", "0.5", 0.5),
        ("top", "2", 2),
        ("name", "7", "7"),
        ("name", "none", None),
    ],
)
def test_flags_become_their_fields_types_or_are_refused(key: str, text: str, value: object) -> None:
    if value is None:
        with pytest.raises(UsageError, match=f"^{key}: expected .*{text}"):
            parse(f"--{key}", text)
    else:
        got = getattr(parse(f"--{key}", text), key)
        assert got == value
        assert type(got) is type(value)


def test_yaml_spells_small_numbers_as_text_and_they_are_numbers_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("inner: {learning_rate: 1e-5}")
    assert isinstance(read_yaml(file)["inner"]["learning_rate"], str)
    assert parse(yaml=file).inner.learning_rate == 1e-5


def test_none_fits_only_where_it_is_allowed() -> None:
    assert parse("--inner.steps", "none").inner.steps is None
    assert build(Outer, {"inner": {"steps": None}}).inner.steps is None
    with pytest.raises(UsageError, match="count: expected int, got None"):
        build(Outer, {"count": None})


def test_an_empty_section_keeps_its_defaults_and_an_optional_one_is_none() -> None:
    assert build(Outer, {"inner": None}).inner == Inner()
    assert build(Outer, {"spare": None}).spare is None


def test_lists_come_from_commas_and_from_yaml() -> None:
    assert build(Outer, {"targets": ["q", "v"]}).targets == ["q", "v"]
    assert build(Outer, {"targets": "all"}).targets == "all"
    with pytest.raises(UsageError, match="targets: expected"):
        build(Outer, {"targets": {"q": 1}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nane": "b"}, r"unknown key nane; did you mean name\?"),
        ({"inner": {"learning_rat": 1}}, r"unknown key inner\.learning_rat; did you mean inner\.learning_rate\?"),
        ({"zzzzz": 1}, "unknown key zzzzz; known keys: name, mode"),
        ({3: 1}, "unknown key 3"),
        ({"mode": "carefull"}, "mode: expected one of fast, careful, got 'carefull'; did you mean careful"),
        ({"count": math.inf}, "count: expected int, got inf"),
        ({"count": 1.5}, "count: expected int, got 1.5"),
        ({"inner": 3}, "inner: expected a section with keys of its own, got 3"),
        ({"inner": {"learning_rate": "quick"}}, r"inner\.learning_rate: expected float, got 'quick'"),
        ({"name": ["a"]}, "name: expected str"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(Outer, values)


def test_a_choice_may_be_called_none() -> None:
    @dataclasses.dataclass
    class Settings(Options):
        feedback: str = option("gold", "who answers", choices=("gold", "none"))

    assert build(Settings, {"feedback": "none"}).feedback == "none"
    with pytest.raises(UsageError, match="feedback: expected str, got None"):
        build(Settings, {"feedback": None})


def test_a_default_may_be_called_none() -> None:
    @dataclasses.dataclass
    class Settings(Options):
        report_to: str = option("none", "a tracker")
        steps: int = option(1, "how many")

    @dataclasses.dataclass
    class Owner(Options):
        inner: Settings = option(Settings, "settings")

    assert build(Settings, {"report_to": "none"}).report_to == "none"
    assert build(Owner, {"inner": {"steps": 2}}).inner == Settings(steps=2)


def test_required_fields_are_named() -> None:
    with pytest.raises(UsageError, match="missing: other"):
        build(Needy, {"path": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2", "expected a mapping"), ("a: !!python/object:os.system x", "not valid")],
)
def test_yaml_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_and_an_empty_one_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert parse(yaml=tmp_path / "empty.yaml") == Outer()


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    import yaml

    config = Outer(inner=Inner(learning_rate=1e-7, steps=3), targets=["q"], spare=Inner())
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert parse(yaml=file) == config


@dataclasses.dataclass
class Bounded(Options):
    share: float = option(0.5, "a share", ge=0, lt=1)
    count: int | None = option(None, "how many", ge=1, remedy="leave it out for all")
    sizes: list[int] = option(lambda: [4, 8], "sizes", gt=0, le=8)
    modes: list[str] = option(list, "modes", ("fast", "careful"))
    whole: int = option(4, "a whole", ge=1)
    part: int = option(2, "its parts", ge=1)

    def check(self) -> None:
        check_multiple(self, "whole", "part")


@dataclasses.dataclass
class Section(Options):
    inner: Bounded = option(Bounded, "a section")
    spare: Bounded | None = option(None, "a section that may be missing")


REFUSED = [
    ({"share": 1.0}, "share: expected at least 0 and below 1, got 1.0"),
    ({"count": 0}, "count: expected at least 1, got 0; leave it out for all"),
    ({"sizes": [4, 9]}, "sizes: expected above 0 and at most 8, got 9"),
    ({"modes": ["fast", "slow"]}, "modes: expected one of fast, careful, got 'slow'"),
    ({"part": 3}, "whole: expected a multiple of part (3), got 4; change one of them"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_values_out_of_bounds_are_refused_by_name(values: dict, message: str) -> None:
    for make in (lambda: build(Bounded, values), lambda: Bounded(**values)):
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            make()
    for section in ("inner", "spare"):
        with pytest.raises(UsageError, match=rf"^{section}\.{re.escape(message)}$"):
            build(Section, {section: values})


def test_a_section_that_was_changed_is_checked_with_its_owner() -> None:
    section = Section()
    section.inner.share = -1
    with pytest.raises(UsageError, match=r"^inner\.share: expected at least 0 and below 1, got -1$"):
        dataclasses.replace(section)


@pytest.mark.parametrize("value", [None, True, "4", math.nan])
def test_a_value_in_python_is_a_number(value: object) -> None:
    with pytest.raises(UsageError, match=f"^whole: expected at least 1, got {value!r}$"):
        Bounded(whole=value)


def test_a_field_with_another_default_keeps_its_help_and_bounds() -> None:
    @dataclasses.dataclass
    class Changed(Bounded):
        share: float = with_default(Bounded, "share", 0.25)
        sizes: list[int] = with_default(Bounded, "sizes", lambda: [1])

    assert (Changed().share, Changed().sizes) == (0.25, [1])
    assert [f.metadata for f in dataclasses.fields(Changed)] == [f.metadata for f in dataclasses.fields(Bounded)]
    with pytest.raises(UsageError, match="share: expected at least 0"):
        Changed(share=-1)


def test_common_fields_pass_from_one_class_to_another() -> None:
    assert shared(Outer(count=3, name="b"), Bounded) == {"count": 3}
    assert shared(Bounded(count=3), Outer) == {"count": 3}


def test_required_values_are_named_together() -> None:
    @dataclasses.dataclass
    class Required(Options):
        policy: str = option("", "a policy")
        prompts: str = option("", "prompts")
        output: str = option("out", "a folder")

    require(Required("p", "q"))
    with pytest.raises(UsageError, match=r"^missing: section\.policy, section\.prompts$"):
        require(Required(), "section.")


def test_help_shows_text_choices_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer, skip=("name",))
    text = " ".join(parser.format_help().split())
    assert "how (fast, careful) [fast]" in text
    assert "100 % of them" in text
    assert "--inner.learning_rate" in text
    assert "--name" not in text
    assert "inner: inner --inner" in text and "spare: a section that may be missing --spare" in text  # a group each
    assert "100 % of them by default [none]" in text


def test_differences_are_named_by_their_path() -> None:
    old = to_dict(Outer())
    new = to_dict(Outer(count=2, inner=Inner(learning_rate=0.5)))
    assert differences(old, new) == ["count: 1 -> 2", "inner.learning_rate: 0.001 -> 0.5"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 -> None", "b: None -> 1"]


def test_what_may_change_is_known_by_its_path() -> None:
    assert volatile_names(Server) == {"page.port"}
    old, new = to_dict(Server()), to_dict(Server(seed=1, page=Served(port=81)))
    assert differences(old, new) == ["page.port: 80 -> 81", "seed: 0 -> 1"]
    assert differences(old, new, skip=volatile_names(Server)) == ["seed: 0 -> 1"]


def test_fingerprint_depends_on_values_alone() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint(to_dict(Outer(top=math.inf))) != fingerprint(to_dict(Outer()))


def test_a_section_keeps_its_owners_defaults_for_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass
    class Owner(Options):
        inner: Inner = option(lambda: Inner(learning_rate=0.5, steps=7), "inner settings")

    assert build(Owner, {"inner": {"steps": 8}}).inner == Inner(learning_rate=0.5, steps=8)
    parser = argparse.ArgumentParser()
    add_flags(parser, Owner)
    parser.print_help()
    text = " ".join(capsys.readouterr().out.split())
    assert "step size [0.5]" in text and "[7]" in text


def test_evaluation_at_another_size_is_still_at_temperature_one() -> None:
    from shfcas.evaluation.config import EvaluationConfig

    settings = build(EvaluationConfig, {"sampling": {"num_completions": 2}})
    assert (settings.sampling.num_completions, settings.sampling.temperature) == (2, 1.0)
