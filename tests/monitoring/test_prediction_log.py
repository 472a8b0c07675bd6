"""`prediction_log`: what is written survives, what is lost is said, and nothing else's file is touched."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from logged import Filler

from helpers.monitoring.log_file import LogError
from helpers.monitoring.log_reader import LogReader, export
from helpers.monitoring.prediction_log import PredictionLog, main
from helpers.workspace import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "predictions.db"


@contextmanager
def refusing(path, what):
    """The database of the log takes everything but `what`, as a full disk may."""
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TRIGGER full BEFORE {what} BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
        database.commit()
        yield
        database.execute("DROP TRIGGER full")
    database.close()


@contextmanager
def opened(path, **options):
    log = PredictionLog(path, **options)
    try:
        yield log
    finally:
        log.close()


def rows(path):
    with LogReader(path) as log:
        return [{name: row[name] for name in row.keys() if name != "sequence"} for row in log.rows()]  # noqa: SIM118


def test_what_was_appended_is_read_back_in_order_also_after_a_restart(path):
    with opened(path) as log:
        filler = Filler(log)
        filler.fill(3)
    with opened(path) as log:
        filler.log = log
        filler.fill(2)
        assert rows(path) == filler.rows
        with LogReader(path) as reader:
            assert [row["sequence"] for row in reader.rows(after=1, limit=3)] == [2, 3, 4]
            assert reader.last == 5
            assert [row["class_index"] for row in reader.find("request-4")] == [28]
            assert reader.find("request-6") == []


def test_after_an_orderly_end_nothing_is_said_and_after_a_kill_what_is_missing(path, caplog):
    code = (
        "import sys; sys.path.insert(0, 'tests'); from logged import Filler; "
        "from helpers.monitoring.prediction_log import PredictionLog; log = PredictionLog(sys.argv[1]); "
        "Filler(log).fill(40); log.accept(3); print('ready', flush=True); sys.stdin.read()"
    )
    with opened(path):
        pass
    with opened(path) as log:
        assert log.gap == ""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    with opened(path) as log:
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        said = (
            rf"the server before did not end in order; {path} goes up to {when}, and 3 later predictions are not in it"
        )
        assert re.fullmatch(said, log.gap)
        assert caplog.messages == [log.gap]
    assert len(rows(path)) == 40
    with opened(path) as log:
        assert log.gap == ""


def test_where_the_machine_stopped_too_the_number_is_not_known(path):
    with opened(path) as log:
        Filler(log).fill(1)
        with log._transaction() as database:
            database.execute("UPDATE sessions SET boot = 'another'")
        log._connection.close()  # no orderly end
    with opened(path) as log:
        assert log.gap.endswith("and the machine stopped too: how many predictions came after that is not known")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"just text, and more than a hundred bytes of it " * 9, "cannot be read as a prediction log (file is not a d"),
        ("foreign", "is another database, not a prediction log of schema 1; move it away or name another"),
        ("newer", "is a log of schema 2, not a prediction log of schema 1; move it away or name another"),
        ("torn", "cannot be read as a prediction log (database disk image is malformed); move it away"),
    ],
)
def test_another_file_is_one_sentence_and_stays_as_it_was(path, content, sentence):
    path.parent.mkdir()
    if content == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE accounts (name TEXT)")
        database.close()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with opened(path) as log:
            Filler(log).fill(50)
            log._connection.execute("PRAGMA user_version = 2" if content == "newer" else "SELECT 1")
        if content == "torn":
            data = bytearray(path.read_bytes())
            data[100:4096] = bytes(3996)
            path.write_bytes(data)
    before = path.read_bytes()
    for attempt in (PredictionLog, LogReader):
        with pytest.raises(LogError) as caught:
            attempt(path)
        assert str(caught.value).startswith(f"{path} ")
        assert sentence in str(caught.value)
    assert path.read_bytes() == before


def test_a_second_server_on_the_same_log_is_refused(path):
    with opened(path) as log:
        with pytest.raises(LogError, match="another server writes it; give this one a log of its own"):
            PredictionLog(path)
        Filler(log).fill(1)
    assert len(rows(path)) == 1


def test_a_log_that_is_refused_leaves_nothing_open(path):
    with opened(path):
        with pytest.raises(LogError):
            PredictionLog(path)
        files = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        assert files.count(f"{path}-accepted") == 2  # of the log that is open: its own, and that of its counter


def test_a_session_that_cannot_begin_is_one_sentence_and_the_next_can(path):
    with opened(path):
        pass
    with refusing(path, "INSERT ON sessions"), pytest.raises(LogError) as caught:
        PredictionLog(path)
    assert str(caught.value) == f"cannot write {path}: the disk is full"
    with opened(path) as log:
        assert log.gap == ""


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=r"cannot write .*/file/predictions.db \(File exists\); choose another place"):
        PredictionLog(tmp_path / "file" / "predictions.db")


def test_past_the_limit_the_oldest_rows_go_and_the_file_grows_no_more(path):
    with opened(path, max_rows=1000) as log:
        filler, sizes = Filler(log), []
        for _ in range(40):
            filler.fill(200)
            sizes.append(log._connection.execute("PRAGMA page_count").fetchone()[0])
        log.label("request-7999", 0, 3)
        with LogReader(path) as reader:
            kept = [row["sequence"] for row in reader.rows()]
    assert kept == list(range(kept[0], 8001))
    assert 1000 <= len(kept) <= 1100 + 200
    assert sizes[-1] <= 1.1 * sizes[20]


def test_rows_that_a_reader_has_not_passed_are_kept_up_to_twice_the_limit(path, caplog):
    with opened(path, max_rows=1000) as log:
        filler = Filler(log)
        log._connection.execute("INSERT INTO cursors VALUES ('wandb', 10, '{}')")
        filler.fill(1800)
        assert len(rows(path)) == 1790
        assert (log.overrun, caplog.messages) == (0, [])
        filler.fill(1000)
        assert len(rows(path)) == 2000
        assert log.overrun == 790
    assert caplog.messages == [
        f"{path} holds twice its 1000 rows: the oldest are deleted up to 800, and a reader is only at 10"
    ]


def test_rows_are_written_once_also_where_the_oldest_cannot_be_deleted_now(path, caplog):
    with opened(path, max_rows=100) as log:
        filler = Filler(log)
        with refusing(path, "DELETE ON predictions"):
            filler.fill(300)
            filler.fill(1)
            assert rows(path) == filler.rows
            assert log.written == 301
        assert caplog.messages == [f"the oldest rows of {path} cannot be deleted now; the next rows try again"]
        filler.fill(1)
        assert rows(path) == filler.rows[-100:]


def test_what_a_reader_lost_is_counted_and_said_once_it_is_deleted(path, caplog):
    with opened(path, max_rows=100) as log:
        filler = Filler(log)
        log._connection.execute("INSERT INTO cursors VALUES ('wandb', 10, '{}')")
        with refusing(path, "DELETE ON predictions"):
            filler.fill(300)
            filler.fill(1)
        assert log.overrun == 0
        filler.fill(1)
        assert len(rows(path)) == 200
        assert log.overrun == 92
    assert len([message for message in caplog.messages if "a reader is only at 10" in message]) == 1


def test_feedback_goes_with_its_row_and_the_first_word_stands(path):
    with opened(path, max_rows=100) as log:
        filler = Filler(log)
        filler.fill(10)
        assert log.label("request-3", 0, 7) == (7, False)
        assert log.label("request-3", 0, 7) == (7, True)
        assert log.label("request-3", 0, 8) == (7, True)
        log.label("request-10", 0, 70)
        with LogReader(path) as reader:
            assert reader.labels() == {("request-3", 0): 7, ("request-10", 0): 70}
        filler.fill(295)
        with LogReader(path) as reader:
            assert reader.labels() == {}


def test_a_full_disk_takes_nothing_of_a_batch_and_the_next_once_there_is_room(path):
    with opened(path) as log:
        filler = Filler(log)
        filler.fill(10)
        pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
        log._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            filler.fill(1000)
        assert (len(rows(path)), log.written) == (10, 10)
        log._connection.execute("PRAGMA max_page_count = 100000")
        filler.fill(1000)
        assert rows(path) == filler.rows


def test_reports_are_kept_for_readers_the_latest_of_each_kind(path):
    with opened(path) as log:
        log.report("drift", {"verdict": "stable"})
        log.report("drift", {"verdict": "drift"})
        with LogReader(path) as reader:
            assert reader.report("drift") == {"verdict": "drift"}
            assert reader.report("accuracy") is None


def test_a_reader_cannot_write(path):
    with opened(path), LogReader(path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM predictions")


def test_at_least_one_row_must_be_kept(path):
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        PredictionLog(path, max_rows=0)


def test_the_export_holds_every_prediction_with_its_label(path, tmp_path, capsys):
    import pyarrow.parquet

    with opened(path) as log:
        filler = Filler(log)
        filler.fill(30, image=bytes(3072))
        log.label("request-2", 0, 99)
    out = tmp_path / "out.parquet"
    assert main(["export", str(path), str(out)]) == 0
    assert capsys.readouterr().out == f"30 predictions written to {out}\n"
    table = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["label"] for row in table] == [None, 99, *[None] * 28]
    for number, (row, expected) in enumerate(zip(table, filler.rows, strict=True), 1):
        assert row["sequence"] == number
        assert dict(row["scores"]) == {"brightness": 0.25}
        assert dict(row["top"]) == {expected["class_name"]: 0.5}
        for name in ("time", "request_id", "version", "class_index", "seconds", "average_index", "image"):
            assert row[name] == expected[name]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["logs", "out.parquet"]


def test_an_export_that_cannot_be_written_is_one_sentence(path, tmp_path, capsys):
    with opened(path) as log:
        Filler(log).fill(1)
    assert main(["export", str(path), str(tmp_path / "none" / "out.parquet")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_of_two_exports_to_one_file_both_write_it_whole(path, tmp_path, monkeypatch):
    import pyarrow.parquet

    with opened(path) as log:
        Filler(log).fill(5)
    out = tmp_path / "out.parquet"
    with LogReader(path) as own, LogReader(path) as other:
        counts, read = [], own.rows

        def rows(after, limit):
            if not counts:
                counts.append(export(other, out))
            return read(after, limit)

        monkeypatch.setattr(own, "rows", rows)
        assert [export(own, out), *counts] == [5, 5]
    assert len(pyarrow.parquet.read_table(out)) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["logs", "out.parquet"]


def test_an_export_that_fails_leaves_no_file(path, tmp_path, monkeypatch, capsys):
    with opened(path) as log:
        Filler(log).fill(1)

    def fail(*_):
        raise LogError("the disk is gone; restore it")

    monkeypatch.setattr(LogReader, "rows", fail)
    assert main(["export", str(path), str(tmp_path / "out.parquet")]) == 2
    assert capsys.readouterr().err == "error: the disk is gone; restore it\n"
    assert [file.name for file in tmp_path.iterdir()] == ["logs"]


def test_an_export_onto_the_log_itself_is_refused(path, tmp_path, capsys):
    with opened(path) as log:
        Filler(log).fill(3)
    link = tmp_path / "link"
    link.symlink_to(path)
    for out in (path, link):
        assert main(["export", str(path), str(out)]) == 2
        assert capsys.readouterr().err == f"error: {out} is the log itself; name another file\n"
    assert len(rows(path)) == 3


def test_a_replay_from_a_bucket_that_is_none_is_one_sentence(path, capsys):
    with opened(path) as log:
        Filler(log).fill(1, image=bytes(3072))
    assert main(["replay", str(path), "request-1", "--bucket", "s3://x"]) == 2
    assert capsys.readouterr().err == (
        "error: bucket must be gs://bucket[/prefix], file:///absolute/path or a path, got 's3://x'\n"
    )


def test_a_folder_in_the_place_of_a_log_is_said_to_be_one(tmp_path, capsys):
    sentence = f"{tmp_path} is a folder, not a prediction log; name a file in it"
    for attempt in (PredictionLog, LogReader):
        with pytest.raises(LogError) as caught:
            attempt(tmp_path)
        assert str(caught.value) == sentence
    assert main(["export", str(tmp_path), str(tmp_path / "out.parquet")]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not list(tmp_path.iterdir())
