"""SQL over datasets: what a query sees, what it costs, and what it says when it cannot be answered."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest
import warm
from crashing import TESTS, environment
from in_process import InProcess

import shardkit as sk
from shardkit.cli.answers import named_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result
    from conftest import RunCommand

DAYS = ("2020-01-01", "2020-01-02", "2020-01-03")
CODE = """
import json

def ads(record):
    day = int(record.key.split("/")[2])
    for i in range(3):
        row = {"ad": f"{day}-{i}", "pay": i + (0.5 if day == 2 else 0.0)}
        yield row | ({"late": True} if day == 3 else {})

def clicks(record):
    day = int(record.key.split("/")[2])
    return [{"ad": f"{day}-{i}", "clicks": 10 * i} for i in range(2)]

def typed(record):
    import datetime, decimal
    return {"n": None if record.key == "a" else 2**53 + 1, "text": "line\\nbreak, \\"quoted\\"", "empty": None, "year": 2020,
            "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), "list": [1, 2], "flag": True,
            "exact": decimal.Decimal("1.10")}
"""


class World:
    """Two datasets by days: ads, of which the third day has one more column, and clicks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "functions_for_sql.py").write_text(CODE)
        for day in DAYS:
            self.write(day)
        self.ads, self.clicks = root / "ads", root / "clicks"

    def write(self, day: str, text: str = "x") -> None:
        folder = self.root / "data" / day.replace("-", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text(text)

    def pipeline(self, name: str, **fields: Any) -> sk.Pipeline:
        return sk.Pipeline(
            **{
                "name": name,
                "function": f"functions_for_sql:{name}",
                "source_dir": self.root,
                "input": self.root / "data",
                "output": self.root / name,
                "shards": {"by": "date", "path": "{Y}/{m}/{d}"},
                "workers": 1,
            }
            | fields
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("sql"))
    made.pipeline("ads").run(days=DAYS[:2], quiet=True)
    made.pipeline("ads").run(days=DAYS[2:], quiet=True)
    made.pipeline("clicks", output={"uri": made.clicks, "format": "csv"}).run(quiet=True)
    return made


# ---- what a query sees -------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_dataset_has_the_name_of_its_pipeline(world: World) -> None:
    run = sk.open_run(world.ads)
    for name in ("ads", "dataset", "ADS", '"ads"'):
        frame = run.sql(f"SELECT count(*) AS n, sum(pay) AS pay FROM {name}")
        assert isinstance(frame, pd.DataFrame)
        assert frame.to_dict("records") == [{"n": 9, "pay": 10.5}]
    assert run.sql("SELECT 1 AS one").equals(sk.read_sql("SELECT 1 AS one", world.ads))


def test_a_run_is_asked_of_all_days_not_only_of_its_own(world: World) -> None:
    frame = sk.open_run(world.ads).sql("SELECT day_partition AS day, count(*) AS n FROM ads GROUP BY 1 ORDER BY 1")
    assert frame.to_dict("list") == {"day": list(DAYS), "n": [3, 3, 3]}


def test_days_are_texts_and_columns_that_came_later_are_null_before(world: World) -> None:
    rows = sk.read_sql(
        "SELECT typeof(day_partition) AS kind, day_partition AS day, late FROM ads WHERE ad LIKE '%-0' ORDER BY 2",
        world.ads,
    )
    assert list(rows.kind) == ["VARCHAR"] * 3
    assert list(rows.day) == list(DAYS)
    assert list(rows.late.isna()) == [True, True, False]


@pytest.mark.whole
def test_datasets_are_joined_by_the_names_that_are_given(world: World) -> None:
    query = """
        SELECT shown.day_partition AS day, count(*) AS ads, count(clicked.ad) AS clicked, sum(clicks) AS clicks
        FROM shown LEFT JOIN clicked USING (ad) WHERE shown.day_partition < '2020-01-03' GROUP BY 1 ORDER BY 1
    """
    frame = sk.read_sql(query, {"shown": world.ads, "clicked": world.clicks})
    assert frame.to_dict("list") == {"day": list(DAYS[:2]), "ads": [3, 3], "clicked": [2, 2], "clicks": [10, 10]}


def test_sums_of_integers_are_integers(world: World) -> None:
    frame = sk.read_sql("SELECT sum(clicks) AS n, sum(clicks) * 1e30::DECIMAL(38, 0) AS big FROM dataset", world.clicks)
    assert str(frame.n.dtype) == "int64"
    assert frame.big[0] == pytest.approx(3e31)


@pytest.mark.whole
@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "arrow"])
def test_every_format_and_partition_is_read(tmp_path: Path, world: World, format: str) -> None:
    output = {"uri": tmp_path / "out", "format": format, "partition_by": ["clicks", "day"]}
    (tmp_path / "f.py").write_text(
        "import datetime\ndef rows(record):\n"
        "    for i in range(3): yield {'clicks': i, 'day': datetime.date(2020, 1, 1), 'ad': f'é{i}'}\n"
    )
    sk.Pipeline(
        function="f:rows", source_dir=tmp_path, input=world.root / "data", output=output, workers=1, name="a-b c"
    ).run(quiet=True)
    frame = sk.read_sql(
        """SELECT ad, clicks + 1 AS n FROM "a-b c" WHERE clicks > 1 AND day = '2020-01-01'""", tmp_path / "out"
    )
    assert frame.to_dict("list") == {"ad": ["é2"] * 3, "n": [3] * 3}


def test_a_dataset_without_rows_has_its_columns(tmp_path: Path, world: World) -> None:
    (tmp_path / "f.py").write_text("def none(record):\n    return None\n")
    schema = {"n": "int64"}
    sk.Pipeline(
        function="f:none",
        source_dir=tmp_path,
        input=world.root / "data",
        output={"uri": tmp_path / "out", "schema": schema},
        workers=1,
        allow_empty=True,
    ).run(quiet=True)
    assert sk.read_sql("SELECT count(*) AS n FROM dataset", tmp_path / "out").n[0] == 0


@pytest.mark.whole
def test_pass_1_alone_leaves_parts_that_are_read_as_one(tmp_path: Path, world: World, shardkit: RunCommand) -> None:
    (tmp_path / "f.py").write_text(
        "def mixed(record):\n    return {'a': 1} if record.key.endswith('01/a.txt') else {'a': 0.5, 'b': 'x'}\n"
    )
    shardkit(
        "pass1", "--input", world.root / "data", "--output", "parts", "--function", "f:mixed", "-q", "--chunks", "even"
    )
    assert sk.read_sql("SELECT sum(a) AS a FROM dataset", tmp_path / "parts").a[0] == pytest.approx(2.0, abs=0.5)


# ---- what it costs -----------------------------------------------------------------------------------------------


def test_files_of_other_days_stay_closed(tmp_path: Path, world: World) -> None:
    world.pipeline("ads", output=tmp_path / "out").run(quiet=True)
    for path in (tmp_path / "out").glob(f"day_partition={DAYS[0]}/*"):
        path.write_bytes(b"no Parquet")  # the first file decides which columns the others have
    for condition in (f"= '{DAYS[1]}'", f"IN ('{DAYS[1]}', '2021-01-01')", f"BETWEEN '{DAYS[1]}' AND '{DAYS[1]}'"):
        query = f"SELECT count(*) AS n FROM dataset WHERE day_partition {condition}"
        assert sk.read_sql(query, tmp_path / "out").n[0] == 3
    with pytest.raises(sk.QueryError):
        sk.read_sql("SELECT sum(pay) FROM dataset", tmp_path / "out")


def test_nothing_is_left_behind(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(world.root.rglob("*"))
    sk.read_sql("SELECT * FROM ads ORDER BY ad", world.ads)
    assert sorted(world.root.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_the_package_and_a_plan_need_no_sql_engine() -> None:
    code = "import shardkit, sys, shardkit.dataset.query; assert not {'duckdb', 'awswrangler', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- while runs write --------------------------------------------------------------------------------------------


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Callable[[], list[Any]]]:
    """Ask how many rows of which state each day has, again and again in a thread; stopping gives all answers."""
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            frame = sk.read_sql(
                "SELECT day_partition AS day, text, count(*) AS n FROM dataset GROUP BY 1, 2", tmp_path / "out"
            )
            answers.append(sorted(frame.itertuples(index=False, name=None)))

    thread = threading.Thread(target=ask)

    def stopped() -> list[Any]:
        if not thread.is_alive() and not stop.is_set():
            thread.start()
            return []
        stop.set()
        thread.join()
        return answers

    yield stopped
    stop.set()
    if thread.is_alive():
        thread.join()


@pytest.mark.whole
def test_a_query_sees_a_day_neither_twice_nor_half(
    tmp_path: Path, asking: Callable[[], list[Any]], files: Callable[..., Path]
) -> None:
    (tmp_path / "f.py").write_text("def rows(record):\n    return [{'text': open(record).read()}] * 5\n")
    pipeline = sk.Pipeline(
        function="f:rows",
        source_dir=tmp_path,
        input=tmp_path / "data",
        output={"uri": tmp_path / "out", "rows_per_file": 2},
        shards={"by": "date", "path": "{Y}-{m}-{d}"},
        workers=1,
    )
    files({f"{day}/a.txt": "0" for day in DAYS[:2]})
    pipeline.run(quiet=True)
    asking()
    for state in range(1, 4):
        files({f"{DAYS[1]}/a.txt": str(state) * (state + 1)})
        pipeline.run(days=[DAYS[1]], quiet=True)
    answers = asking()
    texts = ["0", *(str(state) * (state + 1) for state in range(1, 4))]
    assert len(answers) > 3
    for answer in answers:
        assert answer[0] == (DAYS[0], "0", 5)
        assert len(answer) == 2
        assert answer[1] in [(DAYS[1], text, 5) for text in texts]
    assert sk.read_sql("SELECT max(text) AS t FROM dataset", tmp_path / "out").t[0] == texts[-1]


@pytest.mark.whole
def test_whoever_dies_in_the_middle_of_a_switch_a_query_sees_the_old_or_the_new(
    tmp_path: Path, files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = "SELECT day_partition AS day, text, count(*) AS n FROM feed GROUP BY 1, 2 ORDER BY 1"

    root = tmp_path / "project"

    def make(state: str, how: str) -> list[str]:
        files({f"{DAYS[1]}/a.txt": state}, "project/data")
        done = warm.run(
            [TESTS / "switch_steps.py", "0", how, "days", root, f"state-{state}"], env=environment(), timeout_s=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def answer(project: Path) -> str:
        """The text of the second day, of which no row lacks, and no row of the first."""
        same, (day, text, count) = sk.read_sql(query, project / "out").itertuples(index=False, name=None)
        assert (same, day, count) == ((DAYS[0], "same", 5), DAYS[1], 5)
        return str(text)

    files({f"{DAYS[0]}/a.txt": "same"}, "project/data")
    (root / "feed_work.py").write_text("def rows(record):\n    return [{'text': open(record).read()}] * 5\n")
    make("old", "none")
    steps = make("new", "copy")
    seen = []
    for step in range(1, len(steps) + 1):
        left = Path(f"{root}-before-{step}")  # by whoever dies before it
        with monkeypatch.context() as patched:
            patched.setattr("shardkit.dataset.query.finish_switches", lambda root: None)  # who may not write there
            seen.append(answer(left))
        found = answer(left)  # finishes a switch that had begun
        assert found == ("new" if step > steps.index("note") + 1 else "old")
        assert answer(left) == found
    assert len(steps) > 5
    assert seen == sorted(seen, reverse=True) and {*seen} == {"old", "new"}
    assert answer(root) == "new"


# ---- when it cannot be answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", 'The query cannot be answered: Parser Error: syntax error at or near "SELEC"'),
        (
            "SELECT pya FROM ads",
            'Binder Error: Referenced column "pya" not found in FROM clause! Candidate bindings: ',
        ),
        ("SELECT * FROM adds", "Table with name adds does not exist! There are ads, dataset."),
        ("SELECT CAST(ad AS INTEGER) FROM ads", "Conversion Error: Could not convert string"),
    ],
)
def test_errors_of_sql_are_one_clean_message(world: World, query: str, message: str) -> None:
    with pytest.raises(sk.QueryError) as caught:
        sk.read_sql(query, world.ads)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(world: World, tmp_path: Path) -> None:
    with pytest.raises(sk.RunNotFound, match="holds no dataset"):
        sk.read_sql("SELECT 1", tmp_path / "nowhere")
    with pytest.raises(sk.PipelineError, match="there is no dataset to ask"):
        sk.read_sql("SELECT 1", {})
    with pytest.raises(sk.PipelineError, match=r"is in no catalogue that Athena reads\. Set catalog"):
        sk.read_sql("SELECT 1", world.ads, using="athena")


def test_without_duckdb_it_says_how_to_get_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(
        sk.PipelineError, match=r"needs duckdb, which is not installed\. .*pip install 'shardkit\[sql\]'"
    ):
        sk.read_sql("SELECT 1", world.ads)


# ---- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    return functools.partial(InProcess(monkeypatch), tmp_path)


@pytest.mark.whole
def test_a_query_on_the_command_line(world: World, command: Callable[..., Result]) -> None:
    query = "SELECT day_partition AS day, count(*) AS n, max(late) AS late FROM dataset GROUP BY 1 ORDER BY 1"
    done = command("query", query, "--output", world.ads)
    assert done.stdout.splitlines() == [
        "day         n  late", "2020-01-01  3", "2020-01-02  3", "2020-01-03  3  True",
    ]  # fmt: skip
    assert done.stderr == ""
    done = command("query", query, world.ads, "--format", "csv")
    assert done.stdout == "day,n,late\n2020-01-01,3,\n2020-01-02,3,\n2020-01-03,3,True\n"
    done = command("query", query, world.ads, "--format", "json")
    assert [json.loads(line) for line in done.stdout.splitlines()][2] == {"day": "2020-01-03", "n": 3, "late": True}


@pytest.mark.whole
def test_a_pipeline_file_names_its_output_and_names_join(world: World, command: Callable[..., Result]) -> None:
    (world.root / "ads.yaml").write_text(f"function: x:y\ninput: data\noutput: {world.ads}\n")
    done = command("query", "SELECT count(*) AS n FROM ads", world.root / "ads.yaml", "--format", "csv")
    assert done.stdout == "n\n9\n"
    query = "SELECT count(*) AS n FROM shown JOIN clicks USING (ad)"
    done = command("query", query, "--output", f"shown={world.ads}", "--output", world.clicks, "--format", "csv")
    assert done.stdout == "n\n6\n"


def test_what_the_command_line_says(world: World, command: Callable[..., Result], tmp_path: Path) -> None:
    done = command("query", "SELECT nope FROM ads", world.ads, code=1)
    assert done.stderr.startswith("Error: The query cannot be answered: Binder Error")
    assert done.stderr.count("\n") == 1
    assert "Give a PIPELINE.yaml" in command("query", "SELECT 1", code=2).stderr
    assert "holds no dataset" in command("query", "SELECT 1", tmp_path / "none", code=2).stderr
    both = command("query", "SELECT 1", world.ads, world.ads, code=2).stderr
    assert "Two of the datasets are called ads" in both


@pytest.mark.whole
def test_every_type_is_shown(tmp_path: Path, command: Callable[..., Result], files: Callable[..., Path]) -> None:
    files(["a", "b"])
    (tmp_path / "functions_for_types.py").write_text(CODE)
    command("run", "--function", "functions_for_types:typed", "--input", "data", "--output", "out", "-q")
    query = "SELECT * FROM dataset ORDER BY n NULLS FIRST"
    first, second = map(json.loads, command("query", query, "out", "--format", "json").stdout.splitlines())
    assert first["n"] is None
    assert second["n"] == 2**53 + 1
    assert second["list"] == [1, 2]
    assert second["when"].startswith("2020-01-02T00:00:00")
    assert second["exact"] == "1.10"
    lines = command("query", query, "out", "--format", "csv").stdout
    assert str(2**53 + 1) in lines
    assert len(command("query", query, "out").stdout.splitlines()) == 3


def test_names_of_outputs() -> None:
    assert named_outputs(["out/"]) == "out/"
    assert named_outputs(["a=out/"]) == {"a": "out/"}
    assert named_outputs(["a=s3://b/x=1", "b=./c=2"]) == {"a": "s3://b/x=1", "b": "./c=2"}
    with pytest.raises(sk.PipelineError, match="Two of the datasets are called a"):
        named_outputs(["a=x", "a=y"])


# ---- files in an object store ------------------------------------------------------------------------------------


def test_schema_of_an_empty_answer(world: World) -> None:
    from shardkit.dataset.query import ask

    assert ask("SELECT ad, pay FROM ads WHERE false", world.ads).schema == pa.schema(
        [("ad", pa.string()), ("pay", pa.float64())]
    )


def test_a_query_reads_and_writes_no_other_file(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    for asked in (
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_text('{secret}')",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.db'",
        "SELECT * FROM world",  # a variable of the program
        "SET enable_external_access = true",
    ):
        with pytest.raises(sk.QueryError):
            sk.read_sql(asked, world.ads, using="duckdb")
    with pytest.raises(sk.QueryError, match="reads the datasets that it is given, and no other file"):
        sk.read_sql(f"SELECT * FROM '{secret}'", world.ads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv"]


def test_a_dataset_that_never_had_a_row_can_be_asked(tmp_path: Path, files: Callable[..., Path]) -> None:
    data = files(["a.txt"])
    sk.run(lambda _: None, data, tmp_path / "out", name="none", allow_empty=True, workers=1, quiet=True)
    assert sk.read_sql("SELECT count(*) AS n FROM dataset", tmp_path / "out")["n"].tolist() == [0]
    assert sk.read_sql("SELECT * FROM none", tmp_path / "out").empty
    with pytest.raises(sk.QueryError, match="A dataset without a row has no columns"):
        sk.read_sql("SELECT pay FROM none", tmp_path / "out")
