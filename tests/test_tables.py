"""README.md and docs show what bench/results says; a figure that is changed on either side is noticed."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from toolchain.bench import paper_table, tables, vowels
from toolchain.bench.front_chart import apart, front_picture
from toolchain.bench.oneshot_table import LANGUAGE
from toolchain.bench.result_pages import PLACES, markdown_table

from toolchain.errors import BenchError


def test_every_page_shows_what_is_on_record(request: pytest.FixtureRequest) -> None:
    root: Path = request.config.rootpath
    assert not [str(page) for page in tables.outdated(root)], "run `python -m toolchain.bench.tables`"


def test_every_table_has_a_place_in_a_page(request: pytest.FixtureRequest) -> None:
    text = "".join(page.read_text("utf-8") for page in tables.pages(request.config.rootpath))
    assert not [name for name in PLACES if f"<!-- results: {name} -->" not in text]


def project(root: Path) -> Path:
    """A repository with one page and one result file."""
    (root / "docs").mkdir(parents=True)
    (root / "bench" / "results").mkdir(parents=True)
    (root / "README.md").write_text("Before.\n<!-- results: vowels -->\nold\n<!-- end of results -->\nAfter: 12 ms.\n")
    rows = [{"cell": "gru", "method": "dense", "seed": seed, "test_accuracy": accuracy, "streaming_accuracy": accuracy,
             "hidden_sizes": "8+8", "multiply_adds": 1234, "cpu": "a CPU", "versions": "v 1", "commit": "abc"}
            for seed, accuracy in ((0, 0.91), (1, 0.95))]  # fmt: skip
    with (root / "bench" / "results" / "vowels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, vowels.FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_a_place_is_filled_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    root = project(tmp_path)
    assert tables.outdated(root) == [root / "README.md"]
    done = CliRunner().invoke(tables.main, ["--root", str(root)])
    assert (done.exit_code, done.output) == (0, f"written: {root / 'README.md'}\n")
    assert (
        (root / "README.md").read_text()
        == """Before.
<!-- results: vowels -->
| network | seeds | accuracy | units | multiply-adds a frame |
| --- | ---: | ---: | ---: | ---: |
| GRU dense | 2 | 93.0% (91.0% to 95.0%) | 8+8 | 1.23k |

Mean, and the range over the seeds. a CPU; v 1; commit abc.
<!-- end of results -->
After: 12 ms.
"""
    )
    assert tables.outdated(root) == []


def test_a_figure_changed_in_a_page_or_in_a_file_is_noticed(tmp_path: Path) -> None:
    root = project(tmp_path)
    CliRunner().invoke(tables.main, ["--root", str(root)])
    page, file = root / "README.md", root / "bench" / "results" / "vowels.csv"
    for path, old, new in ((page, "93.0%", "94.0%"), (file, "0.95", "0.96")):
        before = path.read_text()
        path.write_text(before.replace(old, new))
        with pytest.raises(BenchError, match=r"README.md: shows something else than bench/results says; expected"):
            CliRunner().invoke(tables.main, ["--root", str(root), "--check"], catch_exceptions=False)
        path.write_text(before)
    assert CliRunner().invoke(tables.main, ["--root", str(root), "--check"]).exit_code == 0


def results_page(root: Path, rows: Iterable[dict[str, object]]) -> list[str]:
    """Record rows in `ptb.csv`; return the lines of the page that shows them."""
    page = root / "docs" / "results.md"
    page.write_text("<!-- results: ptb -->\n<!-- end of results -->\n")
    with (root / "bench" / "results" / "ptb.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, paper_table.FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    CliRunner().invoke(tables.main, ["--root", str(root)], catch_exceptions=False)
    return page.read_text().splitlines()


def test_seeds_of_one_method_are_told_as_mean_and_range(tmp_path: Path) -> None:
    rows = [
        {"recipe": "ptb-small", "run": f"r{seed}{changed}", "method": "neuron-selection", "changed": changed,
         "seed": seed, "weights": weights, "test_perplexity": perplexity, "multiply_adds": 1000}
        for seed, weights, changed, perplexity in ((0, "fp32", "", 110), (1, "fp32", "", 113), (1, "int8", "", 999),
                                                   (2, "fp32", "gates.sites=hidden", 120))
    ]  # fmt: skip
    told = [line for line in results_page(project(tmp_path), rows) if line.startswith("- ")]
    assert told == ["- neuron-selection, 2 seeds: test perplexity 111.50 (110.00 to 113.00), multiply-adds 1,000"]


def test_a_row_recorded_later_stands_in_the_table_of_its_recipe(tmp_path: Path) -> None:
    runs = (("ptb-small", "first"), ("ptb-medium", "other"), ("ptb-small", "later"))
    rows = [{"recipe": recipe, "run": run, "method": "dense", "weights": "fp32"} for recipe, run in runs]
    lines = results_page(project(tmp_path), rows)
    shown = [line.split("|")[1].strip() if "|" in line else line for line in lines if line.startswith(("`", "| `"))]
    assert shown == ["`ptb-small`, not timed", "`first`", "`later`", "`ptb-medium`, not timed", "`other`"]


def test_rows_over_another_baseline_have_a_table_of_their_own_below_it(tmp_path: Path) -> None:
    measured = (("dense", "dense", "Here"), ("published", "published", "There"), ("pruned", "dense", "Here"),
                ("seed-1", "published", "There"), ("untimed", "", "Here"), ("other", "", "There"))  # fmt: skip
    rows = [{"recipe": "ptb-small", "run": run, "method": "dense", "weights": "fp32", "baseline": baseline, "cpu": cpu}
            for run, baseline, cpu in measured]  # fmt: skip
    lines = results_page(project(tmp_path), rows)
    shown = [line.split("|")[1].strip() if "|" in line else line for line in lines if line.startswith(("`", "| `"))]
    assert shown == ["`ptb-small`, over `dense` on Here", "`dense`", "`pruned`",
                     "`ptb-small`, over `published` on There", "`published`", "`seed-1`",
                     "`ptb-small`, not timed", "`untimed`", "`other`"]  # fmt: skip


def test_one_shot_rows_stand_in_one_order_whatever_order_they_were_recorded_in(tmp_path: Path) -> None:
    root = project(tmp_path)
    (root / "docs" / "prune.md").write_text("<!-- results: oneshot_language -->\n<!-- end of results -->\n")
    recorded = (("random", "False", ""), ("", "", "int8"), ("reconstruct", "True", "1 epoch"), ("other", "", ""),
                ("reconstruct", "False", ""), ("reconstruct", "True", ""), ("", "", ""))  # fmt: skip
    with (root / "bench" / "results" / "oneshot_language.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, LANGUAGE)
        writer.writeheader()
        for criterion, compensated, then in recorded:
            other = criterion == "other"
            writer.writerow({"model": "other.onnx" if other else "lm.onnx", "criterion": "" if other else criterion,
                             "compensated": compensated, "ratio": "0.5", "then": then,
                             "test_perplexity": "90"})  # fmt: skip
    CliRunner().invoke(tables.main, ["--root", str(root)], catch_exceptions=False)
    lines = (root / "docs" / "prune.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("`")] == [
        f"`{name}.onnx`, test perplexity by the share of hidden units given up:" for name in ("lm", "other")
    ]
    assert [line.split(" | ")[0] for line in lines if line.endswith("90.00 |")] == [
        "| as it was", "| as it was, then int8", "| reconstruct", "| reconstruct, then 1 epoch",
        "| reconstruct, not folded", "| random, not folded", "| as it was",
    ]  # fmt: skip


def front_rows(root: Path, *members: tuple[str, str, str, str, str]) -> None:
    """Write the file of the front: run, weights, measured perplexity, published one, milliseconds."""
    (root / "bench" / "results").mkdir(parents=True, exist_ok=True)
    with (root / "bench" / "results" / "front.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, paper_table.FIELDS)
        writer.writeheader()
        for run, weights, measured, published, ms in members:
            writer.writerow({"run": run, "method": "m", "weights": weights, "test_perplexity": measured,
                             "published_perplexity": published, "t35b1_p50_ms": ms})  # fmt: skip


def test_the_picture_of_the_front_shows_every_row_that_has_a_time_and_a_perplexity(tmp_path: Path) -> None:
    root = project(tmp_path)
    large = (("large", "fp32", "", "78.4", "60"), ("large", "int8", "", "", "9"))
    small = (("small", "fp32", "90.5", "", "2"), ("small", "int8", "91", "", "0.5"))
    front_rows(root, *large, *small, ("late", "fp32", "99", "", ""))
    CliRunner().invoke(tables.main, ["--root", str(root)], catch_exceptions=False)
    picture = root / "docs" / "images" / "front.svg"
    drawn = ElementTree.parse(picture)
    told = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert told == ["large, fp32: perplexity 78.40, 60.0 ms", "small, fp32: perplexity 90.50, 2.00 ms",
                    "small, int8: perplexity 91.00, 0.500 ms"]  # fmt: skip
    assert tables.outdated(root) == []
    picture.write_text(picture.read_text().replace("90.50", "80.50"))
    assert tables.outdated(root) == [picture]


def test_the_headline_is_the_fastest_network_of_each_kind_that_is_not_worse_than_the_first(tmp_path: Path) -> None:
    first = (("large", "fp32", "", "78.4", "60"), ("large", "int8", "", "", "9"))
    good = (("good", "fp32", "78.4", "", "3"), ("good", "int8", "78.39", "", "1"), ("slow", "fp32", "70", "", "4"))
    bad = (("bad", "fp32", "78.41", "", "2"), ("bad", "int8", "79", "", "0.5"), ("untimed", "fp32", "60", "", ""))
    front_rows(tmp_path, *first, *bad, *good)
    lines = PLACES["headline"](tmp_path / "bench" / "results").splitlines()
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| `")] == [
        ["| `large`", "fp32", ""], ["| `good`", "fp32", "78.40"], ["| `good`", "int8", "78.39"]]  # fmt: skip


def test_rows_of_one_method_share_a_colour_however_long_they_learned(tmp_path: Path) -> None:
    point = {"weights": "fp32", "published_perplexity": ""}
    learned = (("a", "published", "78", "60"), ("b", "one-shot, 1 epoch", "95", "9"), ("c", "one-shot", "99", "8"))
    rows = [point | {"run": run, "method": method, "test_perplexity": perplexity, "t35b1_p50_ms": ms}
            for run, method, perplexity, ms in learned]  # fmt: skip
    drawn = ElementTree.fromstring(front_picture(rows))
    svg = "{http://www.w3.org/2000/svg}"
    dots = [(dot.get("class"), dot.find(f"{svg}title") is None) for dot in drawn.iter(f"{svg}circle")]
    assert dots == [("s0", False), ("s1", False), ("s1", False), ("s0", True), ("s1", True)]
    assert [text.text for text in drawn.iter(f"{svg}text")][-2:] == ["published", "one-shot"]


def test_names_in_a_picture_do_not_cover_one_another() -> None:
    placed = apart([(10.0, 50.0, "first"), (12.0, 52.0, "second"), (300.0, 51.0, "far")])
    (_, first, _), (_, far, _), (_, second, _) = placed
    assert second - first >= 11
    assert far == 55


def test_a_place_that_nothing_fills_is_refused(tmp_path: Path) -> None:
    root = project(tmp_path)
    (root / "a.py").write_text("def known(): ...\n")
    for name, message in (("gone", r"results 'gone': nothing fills it; expected one of demo, "),
                          ("source a.py wanted", r"a.py: defines no wanted; expected one of known.")):  # fmt: skip
        with pytest.raises(BenchError, match=message):
            tables.with_results(f"<!-- results: {name} -->\n<!-- end of results -->\n", root)


def test_a_definition_is_shown_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import b\n\n\ndef f():\n    return b.c()  # type: ignore[no-untyped-call]\n")
    shown = tables.with_results("<!-- results: source a.py f -->\n<!-- end of results -->\n", tmp_path)
    assert "```python\ndef f():\n    return b.c()\n```" in shown


def test_what_nobody_measured_is_no_column() -> None:
    columns = [(name, lambda row, name=name: row[name]) for name in ("a", "b", "c")]
    assert markdown_table(columns, [{"a": "x", "b": "", "c": ""}, {"a": "y", "b": "", "c": "1"}]).splitlines() == [
        "| a | c |", "| --- | ---: |", "| x |  |", "| y | 1 |"]  # fmt: skip
