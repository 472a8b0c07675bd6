"""pipeline/comparison.py: the members of a sweep beside each other."""

from helpers.pipeline.comparison import format_table, write_page

DONE = {"state": "done", "top1": 0.512345, "calibration_error": 0.01, "gate": "passed", "seconds": 61.4}
FAILED = {"state": "failed", "top1": None, "calibration_error": None, "gate": None, "seconds": None}


def sweep(warning=""):
    members = {
        "1-a": {"values": {"train.a": "1", "all.b": "<x>"}, **DONE, "error": None, "warning": warning},
        "2-a": {"values": {"train.a": "20", "all.b": "<x>"}, **FAILED, "error": "loss is <nan>", "warning": ""},
    }
    return {"sweep_id": "s", "state": "failed", "started": "then", "finished": None, "members": members}


def test_the_table_has_the_swept_values_and_the_figures_in_columns():
    assert format_table(sweep()).splitlines() == [
        "train.a  all.b  status  top-1   calibration error  gate    seconds",
        "1        <x>    done    51.23%  1.00%              passed  61",
        "20       <x>    failed  -       -                  -       -",
    ]


def test_the_page_links_the_members_that_have_one_and_escapes_what_they_say(tmp_path):
    (tmp_path / "1-a").mkdir()
    (tmp_path / "1-a" / "index.html").write_text("a page")
    page = write_page(tmp_path, sweep()).read_text()
    assert '<a href="1-a/index.html">1-a</a>' in page
    assert "<td>2-a</td><td>20</td><td>&lt;x&gt;</td><td>failed</td>" in page
    assert "loss is &lt;nan&gt;" in page
    assert "<x>" not in page
    assert "<p class=loud>" not in page


def test_figures_of_drawn_images_are_called_so(tmp_path):
    assert format_table(sweep("SYNTHETIC DATA in train")).endswith("\nSYNTHETIC DATA in train")
    assert (
        "<p class=loud>SYNTHETIC DATA in train</p>"
        in write_page(tmp_path, sweep("SYNTHETIC DATA in train")).read_text()
    )
