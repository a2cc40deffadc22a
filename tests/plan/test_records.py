"""Objects to records: which files make one record, its key, and the `Record` that the function gets."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardkit as sk
from shardkit.plan.records import build_records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunCommand, WriteFiles


def nothing(record: sk.Record) -> None:
    """A function for runs that are only planned."""


def planned(folder: Path, **fields: Any) -> dict[str, list[str]]:
    """The records of a plan: for each key its objects, the main one first."""
    plan = sk.Pipeline(
        function=nothing,
        input={"uri": folder} | {name: fields.pop(name) for name in ("pattern", "exclude") if name in fields},
        output=folder.parent / "out",
        **fields,
    ).plan()
    found = {}
    for row in plan.records.to_pylist():
        main = row["objects"].pop(row["main"])
        found[row["key"]] = [main, *row["objects"]]
    return found


# ---- rules -----------------------------------------------------------------------------------------------------

WFDB = ["p1/a_1.hea", "p1/a_1.dat", "p1/a_1.d0", "p1/a_2.hea", "p1/a_2.dat", "p2/b.hea", "top.hea", "top.dat", "README"]


def test_a_file_is_a_record_by_default(files: WriteFiles) -> None:
    assert planned(files(WFDB)) == {name: [name] for name in sorted(WFDB)}


def test_stem(files: WriteFiles) -> None:
    assert planned(files(WFDB), records="stem", pattern="*.hea") == {
        "p1/a_1": ["p1/a_1.hea", "p1/a_1.d0", "p1/a_1.dat"],
        "p1/a_2": ["p1/a_2.hea", "p1/a_2.dat"],
        "p2/b": ["p2/b.hea"],
        "top": ["top.hea", "top.dat"],
    }


def test_stem_takes_off_the_last_suffix_only(files: WriteFiles) -> None:
    folder = files(["a.tar.gz", "a.tar.md5", "b.d/c", "b.d/c.x", "d..e", "f.", "no_suffix"])
    assert planned(folder, records="stem") == {
        "a.tar": ["a.tar.gz", "a.tar.md5"],
        "b.d/c": ["b.d/c", "b.d/c.x"],
        "d.": ["d..e"],
        "f": ["f."],
        "no_suffix": ["no_suffix"],
    }


def test_directory(files: WriteFiles) -> None:
    folder = files(["p1/m.hea", "p1/m_1.hea", "p1/m_1.dat", "p1/notes.txt", "p1/deep/x.hea", "p2/only.dat", "top.hea"])
    assert planned(folder, records="directory", pattern="*.hea") == {
        "p1/deep": ["p1/deep/x.hea"],
        "p1": ["p1/m.hea", "p1/m_1.dat", "p1/m_1.hea", "p1/notes.txt"],
        ".": ["top.hea"],
    }


def test_a_callable_names_the_record(files: WriteFiles) -> None:
    def by_day(key: str) -> str | None:
        return key[:10] if key[0].isdigit() else None

    folder = files(["2020-01-01a.csv", "2020-01-01b.csv", "2020-01-02a.csv", "index.csv"])
    assert planned(folder, records=by_day) == {
        "2020-01-01": ["2020-01-01a.csv", "2020-01-01b.csv"],
        "2020-01-02": ["2020-01-02a.csv"],
    }


def test_a_named_callable_is_found_in_source_dir(files: WriteFiles, tmp_path: Path) -> None:
    source = files({"rules_for_names.py": "def first_letter(key):\n    return key[0]\n"}, "code")
    folder = files(["a1", "a2", "b1"])
    found = planned(folder, records="rules_for_names:first_letter", source_dir=source)
    assert found == {"a": ["a1", "a2"], "b": ["b1"]}


def test_a_records_function_that_returns_something_else(files: WriteFiles) -> None:
    with pytest.raises(sk.PipelineError, match=r"records function returned int for 'a'.*must return the record's key"):
        planned(files(["a"]), records=lambda key: 7)


def test_a_records_function_that_raises(files: WriteFiles) -> None:
    def broken(key: str) -> str:
        return {"b": "x"}[key]

    with pytest.raises(sk.PipelineError, match=r"records.*broken.*KeyError.*'a'") as raised:
        planned(files(["a"]), records=broken)
    assert "in broken" in str(raised.value)  # where, in the user's own code


def test_an_unknown_rule_has_a_suggestion(files: WriteFiles) -> None:
    with pytest.raises(sk.PipelineError, match="Did you mean 'stem'"):
        planned(files(["a"]), records="stems")


def test_records_come_in_the_order_of_their_main_objects(files: WriteFiles) -> None:
    folder = files(["z/1.hea", "a/9.dat", "a/10.hea", "a/9.hea", "B.hea", "b.hea", "a.hea", "a-b.hea"])
    keys = list(planned(folder, records="stem", pattern="*.hea"))
    assert keys == ["B", "a-b", "a", "a/10", "a/9", "b", "z/1"]


# ---- pattern, companions, exclude ------------------------------------------------------------------------------


def test_companions_come_along_whatever_their_names(files: WriteFiles) -> None:
    folder = files(["a.hea", "a.dat", "a.xyz", "a.HEA", "b.dat"])
    assert planned(folder, records="stem", pattern="*.hea") == {"a": ["a.hea", "a.HEA", "a.dat", "a.xyz"]}


def test_the_main_object_is_the_first_match_in_key_order(files: WriteFiles) -> None:
    folder = files(["a.x2", "a.x10", "a.a"])
    assert planned(folder, records="stem", pattern="*.x*") == {"a": ["a.x10", "a.a", "a.x2"]}


def test_many_patterns(files: WriteFiles) -> None:
    assert set(planned(files(["a.json", "b.jsonl", "c.txt"]), pattern=["*.json", "*.jsonl"])) == {"a.json", "b.jsonl"}


def test_excluded_files_are_nobodys_companions(files: WriteFiles) -> None:
    folder = files(["a.hea", "a.dat", "a.tmp", "b.hea", "skip/c.hea"])
    found = planned(folder, records="stem", pattern="*.hea", exclude=["*.tmp", "skip/**"])
    assert found == {"a": ["a.hea", "a.dat"], "b": ["b.hea"]}


@pytest.mark.whole
def test_what_is_in_no_record_is_counted_and_shown(files: WriteFiles, shardkit: RunCommand) -> None:
    folder = files(["a.hea", "a.dat", "lost.dat", "notes/readme.txt", "old.tmp"])
    done = shardkit(
        "plan", "--function", "os.path:basename", "--input", folder, "--output", "out",
        "--records", "stem", "--pattern", "*.hea", "--exclude", "*.tmp",
    )  # fmt: skip
    assert "5 listed, 3 in no record, such as lost.dat" in done.stdout
    assert "1 of 2 B" in done.stdout


# ---- globs -----------------------------------------------------------------------------------------------------

TREE = ["a.dat", "b.dat", "ab.dat", "x/a.dat", "x/y/a.dat", "x/y/z.txt", "w.d/a", "[q].dat", "a^.dat", "a]b"]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", set(TREE)),
        ("**", set(TREE)),
        ("*.dat", {k for k in TREE if k.endswith(".dat")}),
        ("a.dat", {"a.dat", "x/a.dat", "x/y/a.dat"}),  # without a slash: the file's name, wherever it lies
        ("*/a.dat", {"x/a.dat"}),  # with one: the whole key, and a star stops at a slash
        ("x/*", {"x/a.dat"}),
        ("x/**", {"x/a.dat", "x/y/a.dat", "x/y/z.txt"}),
        ("**/a.dat", {"a.dat", "x/a.dat", "x/y/a.dat"}),
        ("x/**/a.dat", {"x/a.dat", "x/y/a.dat"}),
        ("?.dat", {"a.dat", "b.dat", "x/a.dat", "x/y/a.dat"}),
        ("[ab].dat", {"a.dat", "b.dat", "x/a.dat", "x/y/a.dat"}),
        ("[!b].dat", {"a.dat", "x/a.dat", "x/y/a.dat"}),
        ("[!]x].dat", {"a.dat", "b.dat", "x/a.dat", "x/y/a.dat"}),
        ("x[/]a.dat", set()),
        ("[^b].dat", {"a.dat", "x/a.dat", "x/y/a.dat"}),
        ("[a-c].dat", {"a.dat", "b.dat", "x/a.dat", "x/y/a.dat"}),
        ("[[]q].dat", {"[q].dat"}),
        ("a[]^]b", {"a]b"}),
        ("a[b^].dat", {"ab.dat", "a^.dat"}),
        ("[q].dat", set()),
        ("x[!a]a.dat", set()),  # a class does not take a slash
        ("w.d/[!x]", {"w.d/a"}),
        ("*.DAT", set()),
        ("x/y", set()),
    ],
)
def test_globs(files: WriteFiles, pattern: str, expected: set[str]) -> None:
    folder = files(TREE)
    if expected:
        assert set(planned(folder, pattern=pattern)) == expected
    else:
        with pytest.raises(sk.InputError):
            planned(folder, pattern=pattern)


@pytest.mark.parametrize("pattern", ["[z-a]*", "a[!]*", "a[b"])
def test_odd_globs_are_an_error_of_the_pipeline_or_literal(files: WriteFiles, pattern: str) -> None:
    with pytest.raises(sk.PipelineError):
        planned(files(TREE), pattern=pattern)


def test_an_unclosed_bracket_is_itself(files: WriteFiles) -> None:
    assert set(planned(files(["a[b", "ab"]), pattern="a[b")) == {"a[b"}


# ---- names -----------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "a b.txt", "per%20cent.txt", "pl+us.txt", "ümlaut-日本語.txt", "emoji-\U0001f600.txt", "line\nbreak.txt", "tab\t.txt",
    "quote'\".txt", "back\\slash.txt", "-dash.txt", "--set.txt", "a&b;c|d$e.txt", "#hash.txt", "a=b.txt", "x" * 240 + ".txt",
    "dir with space/ü/%2F.txt", "*.txt", "[z].txt", "é.txt", "e\u0301.txt", "trailing ", "s3:/x.txt",
]  # fmt: skip


def test_odd_names_reach_the_function_and_the_dataset(files: WriteFiles, tmp_path: Path) -> None:
    folder = files({name: name for name in ODD_NAMES})
    run = sk.run(
        lambda record: {"key": record.key, "text": record.path.read_bytes().decode(), "opened": open(record).read()},  # noqa: SIM115
        folder,
        tmp_path / "out",
        quiet=True,
        workers=1,
    )
    rows = run.dataset().to_table().to_pylist()
    assert [row["key"] for row in rows] == sorted(ODD_NAMES, key=lambda name: name.encode())
    assert all(row["text"] == row["opened"].replace("\r", "") == row["key"] for row in rows)


def test_very_long_keys(files: WriteFiles) -> None:
    folder = files([])
    key = "/".join(["d" * 200] * 12) + "/end.txt"
    os.makedirs(folder / os.path.dirname(key))
    (folder / key).write_text("x")
    assert planned(folder, shards={"depth": 9}) == {key: [key]}


def test_a_name_that_is_not_utf8_is_refused(files: WriteFiles) -> None:
    folder = files(["good.txt"])
    try:
        with open(os.fsencode(folder) + b"/bad\xff.txt", "w"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(sk.InputError, match=r"bad\\xff\.txt.*not valid UTF-8.*Rename"):
        planned(folder)


def test_hidden_and_underscored_names_are_not_input(files: WriteFiles) -> None:
    folder = files(["a.txt", ".hidden", "_temporary", ".git/config", "_logs/x.txt", "d/_x", "d/.y", "d/z_.txt", "e_/f"])
    assert set(planned(folder)) == {"a.txt", "d/z_.txt", "e_/f"}


# ---- links and other things that are no files ------------------------------------------------------------------


def test_links_to_files_and_folders_are_followed(files: WriteFiles, tmp_path: Path) -> None:
    elsewhere = files(["far.txt", "deep/farther.txt"], "elsewhere")
    folder = files(["near.txt"])
    (folder / "file-link.txt").symlink_to(elsewhere / "far.txt")
    (folder / "folder-link").symlink_to(elsewhere)
    assert set(planned(folder)) == {"near.txt", "file-link.txt", "folder-link/far.txt", "folder-link/deep/farther.txt"}


def test_a_linked_input_folder(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a.txt"])
    (tmp_path / "link").symlink_to(folder)
    assert set(planned(tmp_path / "link")) == {"a.txt"}


@pytest.mark.parametrize("target", [".", "..", "../..", "../../../data/a"])
def test_links_that_lead_back_are_not_followed(files: WriteFiles, target: str) -> None:
    folder = files(["a/b/x.txt", "y.txt"])
    (folder / "a" / "b" / "back").symlink_to(target)
    assert set(planned(folder)) == {"a/b/x.txt", "y.txt"}


def test_links_that_lead_to_each_other(files: WriteFiles) -> None:
    folder = files(["a/x.txt", "b/y.txt"])
    (folder / "a" / "to-b").symlink_to("../b")
    (folder / "b" / "to-a").symlink_to("../a")
    assert set(planned(folder)) == {"a/x.txt", "b/y.txt", "a/to-b/y.txt", "b/to-a/x.txt"}


def test_a_dangling_link_is_named(files: WriteFiles) -> None:
    folder = files(["a.txt"])
    (folder / "gone.txt").symlink_to("nowhere")
    with pytest.raises(sk.InputError, match=r"gone\.txt is a link to nothing"):
        planned(folder)


def test_a_link_to_itself_is_named(files: WriteFiles) -> None:
    folder = files(["a.txt"])
    (folder / "self.txt").symlink_to("self.txt")
    with pytest.raises(sk.InputError, match=r"self\.txt"):
        planned(folder)


def test_pipes_are_not_input(files: WriteFiles) -> None:
    folder = files(["a.txt"])
    os.mkfifo(folder / "pipe")
    assert set(planned(folder)) == {"a.txt"}


@pytest.mark.parametrize("through_link", [False, True])
def test_an_output_inside_the_input_is_not_input(files: WriteFiles, tmp_path: Path, *, through_link: bool) -> None:
    folder = files(["a.txt", "b.txt"])
    if through_link:
        (tmp_path / "link").symlink_to(folder)
    source = tmp_path / "link" if through_link else folder
    for _ in range(2):
        run = sk.run(lambda record: {"key": record.key}, source, folder / "out", name="n", quiet=True, workers=1)
        assert run.dataset().to_table()["key"].to_pylist() == ["a.txt", "b.txt"]


def test_an_output_around_the_input_is_refused(files: WriteFiles, tmp_path: Path) -> None:
    folder = files(["a.txt"])
    for output in (folder, tmp_path):
        with pytest.raises(sk.PipelineError, match="holds the input"):
            sk.Pipeline(function=nothing, input=folder, output=output).plan()


# ---- empty input -----------------------------------------------------------------------------------------------


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(sk.InputError, match=r"/absent does not exist.*Give the folder"):
        planned(tmp_path / "absent")


def test_a_file_for_a_folder(files: WriteFiles) -> None:
    with pytest.raises(sk.InputError, match=r"a\.txt is a file, not a folder"):
        planned(files(["a.txt"]) / "a.txt")


def test_an_empty_folder(files: WriteFiles) -> None:
    with pytest.raises(sk.InputError, match=r"no files \(looked for '\*\.dat'; names starting with '_' or '\.'"):
        planned(files(["_x.dat", ".y.dat"]), pattern="*.dat")


def test_nothing_matches(files: WriteFiles) -> None:
    with pytest.raises(sk.InputError, match=r"None of the input's 2 files matches '\*\.dat' or '\*\.hea'.*a\.txt"):
        planned(files(["a.txt", "b.txt"]), pattern=["*.dat", "*.hea"])


def test_everything_is_excluded(files: WriteFiles) -> None:
    with pytest.raises(sk.InputError, match=r"All 1 files of the input are excluded by '\*\.txt'"):
        planned(files(["a.txt"]), exclude="*.txt")


def test_a_records_function_that_takes_nothing(files: WriteFiles) -> None:
    with pytest.raises(sk.InputError, match=r"records function names no record for any of the 1 files"):
        planned(files(["a.txt"]), records=lambda key: None)


def test_no_pattern_at_all(files: WriteFiles) -> None:
    with pytest.raises(sk.PipelineError, match=r"pattern"):
        planned(files(["a.txt"]), pattern=[])


# ---- what the function is given --------------------------------------------------------------------------------


@pytest.mark.whole
def test_what_a_record_tells(files: WriteFiles, tmp_path: Path) -> None:
    folder = files({"p/a.b.hea": "head", "p/a.b.dat": "0123456789", "p/a.b.d0": ""})

    def tell(record: sk.Record) -> dict[str, Any]:
        with open(record) as file:
            text = file.read()
        return {
            "key": record.key, "bytes": record.bytes, "objects": record.objects, "text": text, "stem": record.stem,
            "path": str(record.path), "paths": [str(p) for p in record.paths], "fspath": os.fspath(record),
            "types": [type(record.path).__name__, type(record.stem).__name__], "repr": repr(record),
        }  # fmt: skip

    def rows(rule: str, pattern: str) -> list[dict[str, Any]]:
        output = tmp_path / f"out-{rule}"
        run = sk.run(tell, folder, output, records=rule, pattern=pattern, quiet=True, workers=1)
        return run.dataset().to_table().to_pylist()  # type: ignore[no-any-return]

    objects = ["p/a.b.d0", "p/a.b.dat", "p/a.b.hea"]
    common = {
        "bytes": 14, "objects": objects, "text": "head", "path": f"{folder}/p/a.b.hea", "fspath": f"{folder}/p/a.b.hea",
        "paths": [f"{folder}/{name}" for name in objects], "stem": f"{folder}/p/a.b", "types": ["PosixPath", "str"],
    }  # fmt: skip
    for rule, key in (("stem", "p/a.b"), ("directory", "p")):
        assert rows(rule, "*.hea") == [common | {"key": key, "repr": f"Record({key!r}, 3 objects, 14 bytes)"}]
    by_file = {row["key"]: row for row in rows("file", "*")}
    assert set(by_file) == set(objects)
    assert by_file["p/a.b.dat"]["stem"] == f"{folder}/p/a.b"
    assert by_file["p/a.b.d0"]["bytes"] == 0


# ---- against a plain implementation ----------------------------------------------------------------------------


def glob_match(pattern: str, text: str) -> bool:
    """The globs' meaning, one character at a time."""
    if not pattern:
        return not text
    if pattern.startswith("**/"):
        return glob_match(pattern[3:], text) or any(
            glob_match(pattern[3:], text[i + 1 :]) for i, char in enumerate(text) if char == "/"
        )
    if pattern.startswith("**"):
        return any(glob_match(pattern[2:], text[i:]) for i in range(len(text) + 1))
    if pattern[0] == "*":
        until = text.find("/") if "/" in text else len(text)
        return any(glob_match(pattern[1:], text[i:]) for i in range(until + 1))
    if pattern[0] == "?":
        return bool(text) and text[0] != "/" and glob_match(pattern[1:], text[1:])
    if pattern[0] == "[":
        negated = pattern[1:2] in {"!", "^"}
        end = pattern.find("]", 2 + negated)
        inside = pattern[1 + negated : end]
        if end > 0 and "/" not in inside:
            hit = bool(text) and text[0] != "/" and (text[0] in inside) != negated
            return hit and glob_match(pattern[end + 1 :], text[1:])
    return text[:1] == pattern[0] and glob_match(pattern[1:], text[1:])


def plain_records(
    listing: dict[str, int], rule: Callable[[str], str | None], pattern: str, exclude: str | None, depth: int
) -> list[dict[str, Any]]:
    """What build_records must return, computed in plain Python."""

    def hit(glob: str, key: str) -> bool:
        return glob_match(glob, key if "/" in glob else key.rpartition("/")[2])

    keys = sorted((key for key in listing if exclude is None or not hit(exclude, key)), key=lambda key: key.encode())
    members: dict[str, list[str]] = {}
    for key in keys:
        if (name := rule(key)) is not None:
            members.setdefault(name, []).append(key)
    found = []
    for name, objects in members.items():
        main = next((i for i, key in enumerate(objects) if hit(pattern, key)), None)
        if main is not None:
            group = "/".join(objects[main].split("/")[:-1][:depth]) or "."
            size = sum(listing[key] for key in objects)
            found.append({"key": name, "main": main, "group": group, "bytes": size, "objects": objects})
    return sorted(found, key=lambda record: record["objects"][record["main"]].encode())


def stem_of(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def folder_of(key: str) -> str:
    return key.rpartition("/")[0] or "."


RULES: dict[str, Callable[[str], str | None]] = {"file": str, "stem": stem_of, "directory": folder_of}


def no_vowels(key: str) -> str | None:
    return None if "a" in key else key[:2]


def compare(
    listing: dict[str, int], rule: str | Callable[[str], str | None], pattern: str, exclude: str | None, depth: int
) -> None:
    keys = sorted(listing, key=lambda key: key.encode())
    table = pa.table(
        {
            "key": pa.array(keys, pa.large_string()),
            "bytes": pa.array([listing[key] for key in keys], pa.int64()),
            "etag": pa.array([f"e-{key}" for key in keys], pa.large_string()),
        }
    )
    expected = plain_records(listing, RULES[rule] if isinstance(rule, str) else rule, pattern, exclude, depth)
    excludes = () if exclude is None else (exclude,)
    shards = {"by": "directory", "depth": depth}
    try:
        built = build_records(table, records=rule, pattern=(pattern,), exclude=excludes, shards=shards)
    except sk.InputError:
        assert expected == []
        return
    rows = built.table.to_pylist()
    assert [row.pop("etags") for row in rows] == [[f"e-{key}" for key in record["objects"]] for record in expected]
    assert rows == expected
    assert built.objects_listed == len(listing)
    assert built.objects_left_out == len(listing) - sum(len(record["objects"]) for record in expected)


names = st.text("ab.é\n ", min_size=1, max_size=4).filter(lambda name: name[0] != ".")  # hidden: no input
keys_strategy = st.lists(names, min_size=1, max_size=4).map("/".join)
globs = st.lists(
    st.sampled_from(["a", "b", ".", "*", "?", "**", "**/", "/", "[ab]", "[!a]", "[", "]", "!", "é"]),
    min_size=1,
    max_size=6,
)


@pytest.mark.whole
@settings(max_examples=100, deadline=None)
@given(
    listing=st.dictionaries(keys_strategy, st.integers(0, 10**9), min_size=1, max_size=12),
    rule=st.sampled_from(["file", "stem", "directory", no_vowels]),
    pattern=globs.map("".join),
    exclude=st.none() | globs.map("".join),
    depth=st.integers(1, 3),
)
def test_like_the_plain_implementation(
    listing: dict[str, int], rule: str | Callable[[str], str | None], pattern: str, exclude: str | None, depth: int
) -> None:
    compare(listing, rule, pattern, exclude, depth)


@pytest.mark.parametrize("rule", ["file", "stem", "directory", no_vowels])
def test_like_the_plain_implementation_on_large_listings(rule: str | Callable[[str], str | None]) -> None:
    random.seed(7)
    listing = {
        "/".join(["".join(random.choices("abcx_é", k=2)) for _ in range(random.randint(0, 3))] + [name]): i
        for i in range(5000)
        for name in [f"{''.join(random.choices('abc', k=3))}.{random.choice(['hea', 'dat', 'd0', 'tmp'])}"]
    }
    compare(listing, rule, "*.hea", "*.tmp", 2)
