"""The report page: its charts by their numbers, and the page itself in a real headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_bench_report import measurement
from test_bench_roofline import MADE_UP
from toolchain.bench import markdown, page, report
from toolchain.bench.charts import charts_of
from toolchain.bench.costs import LayerCost, ModelCosts
from toolchain.bench.report import Context
from toolchain.bench.run_charts import read_run, run_charts
from toolchain.bench.svg import Scale, scale_for

from toolchain.cli import cli
from toolchain.errors import BenchError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

METRICS = """epoch,update,phase,learning_rate,train_perplexity,valid_perplexity,multiply_adds_share,tokens_per_s,seconds
1,10,dense,0.003,181.4,78.4,0.99,15148.4,29.6
2,20,gated,0.003,77.3,65.8,0.33,14780.3,30.4
3,30,narrow,0.002,60.5,56.5,0.22,22187.2,20.2
"""
GATES = """epoch,gate,size,open,fully_open,mean_open_probability
1,rnn.0.input_gate,256,256,256,0.99
1,rnn.0.hidden_gates.0,384,384,384,0.99
2,rnn.0.input_gate,256,204,188,0.79
2,rnn.0.hidden_gates.0,384,119,100,0.41
"""


def costs(hidden):
    lstm = LayerCost(name="/rnn/LSTM", op_type="LSTM", input_size=64, hidden_size=hidden, dtype="float32", steps=35,
                     rows=35, parameters=4 * hidden * (64 + hidden), multiply_adds=35 * 4 * hidden * (64 + hidden),
                     once_bytes=16 * hidden * 64, step_bytes=16 * hidden * hidden)  # fmt: skip
    head = LayerCost(name="/head/MatMul", op_type="MatMul", input_size=hidden, output_size=100, dtype="float32",
                     rows=35, parameters=hidden * 100, multiply_adds=3500 * hidden,
                     once_bytes=400 * hidden)  # fmt: skip
    return ModelCosts(layers=(lstm, head), not_counted=())


def result(steps=(1, 35), names=("model", "model.shrunk")):
    measured = measurement(dict(zip(names, (2.3e-3, 0.6e-3), strict=True)), steps=steps,
                           factors=np.linspace(1, 1.2, 8))  # fmt: skip
    by_model = [costs(128), costs(40)]
    context = Context(
        costs={(case, member): by_model[member] for case in range(len(steps)) for member in (0, 1)},
        rooflines={1: MADE_UP},
    )
    rows = report.build_rows(measured, context)
    layers = {model.name: by_model[number] for number, model in enumerate(measured.plan.models)}
    machine = {"cpu_model": "X1 & sons", "cpus": 2}
    return json.loads(json.dumps(report.document(machine, rows, layers=layers, rooflines=[MADE_UP])))


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "runs" / "book"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "gates.csv").write_text(GATES)
    return folder


def marks(svg):
    return len(re.findall(r'class="mark ', svg))


def test_every_chart_has_a_mark_for_every_number_and_a_table_of_them():
    charts = {chart.id: chart for chart in charts_of(result(), "b")}
    assert {chart: marks(drawn.svg) for chart, drawn in charts.items()} == {
        "b-speedup": 2, "b-latency-0": 2, "b-latency-1": 2, "b-layers": 4, "b-roof-1": 4
    }  # fmt: skip
    assert charts["b-speedup"].rows[1][2:] == ("3.8x", "3.8 to 3.8", "faster")
    assert charts["b-layers"].rows[:2] == (
        ("/rnn/LSTM", "model.onnx", "LSTM", "64 → 128", "98,304"),
        ("/rnn/LSTM", "model.shrunk.onnx", "LSTM", "64 → 40", "16,640"),
    )
    assert all(chart.rows and all(len(row) == len(chart.columns) for row in chart.rows) for chart in charts.values())


def test_every_drawing_is_named_and_described_for_who_does_not_see_it():
    for chart in charts_of(result(), "b"):
        assert f'role="img" aria-labelledby="{chart.id}-t {chart.id}-d"' in chart.svg
        assert f'<title id="{chart.id}-t">' in chart.svg
        assert f'<desc id="{chart.id}-d">' in chart.svg


def test_a_speedup_stands_where_the_scale_says():
    svg = next(chart.svg for chart in charts_of(result(), "b") if chart.id == "b-speedup")
    scale = scale_for([1.0, 2.3 / 0.6], 16.0, 460.0 - 60, log=True)
    (x, _) = re.findall(r'cx="([\d.]+)"', svg)
    assert float(x) == pytest.approx(scale(2.3 / 0.6), abs=0.01)


def test_scales_map_ends_to_ends_and_ticks_are_round():
    scale = Scale(low=1.0, high=100.0, start=0.0, end=200.0, log=True)
    assert [scale(value) for value in (1, 10, 100, 1000)] == [0.0, 100.0, 200.0, 200.0]
    assert [round(tick, 9) for tick in scale.ticks()] == [1.0, 3.0, 10.0, 30.0, 100.0]
    assert Scale(low=0, high=250, start=0, end=1).ticks() == [0, 50, 100, 150, 200, 250]


def test_names_cannot_break_out_of_the_page():
    text = page.render(results=[result(names=('<script>alert("x")</script>', "b & c"))])
    assert "<script" not in text
    assert "X1 &amp; sons" in text


def test_the_page_refers_to_nothing_outside_of_itself(run_folder):
    text = page.render(results=[result()], runs=[read_run(run_folder)])
    assert re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', text) == []
    assert "url(" not in text
    assert "@import" not in text


def test_tags_are_balanced_and_ids_unique(run_folder):
    class Checker(HTMLParser):
        open: list[str]
        ids: list[str]

        def handle_starttag(self, tag, attributes):
            self.ids += [value for name, value in attributes if name == "id"]
            if tag not in ("meta", "link"):
                self.open.append(tag)

        def handle_startendtag(self, tag, attributes):
            self.ids += [value for name, value in attributes if name == "id"]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.open, checker.ids = [], []
    checker.feed(page.render(results=[result(), result()], runs=[read_run(run_folder)]))
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))


def test_a_reader_shows_its_scores(run_folder):
    rows = "epoch,phase,train_loss,valid_exact_match,valid_f1,multiply_adds_share\n1,dense,8.5,5.6,11.2,1.0\n"
    (run_folder / "metrics.csv").write_text(rows + "2,dense,7.4,8.0,14.5,1.0\n")
    (run_folder / "result.json").write_text('{"f1": 15.05, "exact_match": 8.3}')
    scores, _ = run_charts(read_run(run_folder), "r")
    assert scores.summary == "After 2 epochs: validation F1 14.50, exact match 8.000. Test: F1 15.05, exact match 8.30."
    assert marks(scores.svg) == 2 * 2
    assert scores.rows[-1] == ("2", "dense", "7.400", "8.000", "14.50", "100.0%", "")


def test_a_run_shows_perplexity_and_neurons_kept(run_folder):
    perplexity, neurons = run_charts(read_run(run_folder), "r")
    assert marks(perplexity.svg) == 2 * 3
    assert marks(neurons.svg) == 2 * 2
    assert perplexity.rows[-1] == ("3", "narrow", "60.50", "56.50", "22.0%", "22,187")
    assert neurons.rows[-1] == ("2", "rnn.0.hidden_gates.0", "384", "119")
    assert "Last: rnn.0.input_gate 204, rnn.0.hidden_gates.0 119." in neurons.summary


def test_a_run_without_gates_has_one_chart(run_folder):
    (run_folder / "gates.csv").unlink()
    assert len(run_charts(read_run(run_folder), "r")) == 1


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (None, "book: holds no training run (No such file or directory: metrics.csv)"),
        ("epoch\n1\n", "book: its tables cannot be read ('train_perplexity')"),
        (METRICS.splitlines()[0] + "\n", "book: has no finished epoch; expected at least one"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(run_folder, metrics, text):
    (run_folder / "metrics.csv").unlink()
    if metrics is not None:
        (run_folder / "metrics.csv").write_text(metrics)
    with pytest.raises(BenchError) as caught:
        read_run(run_folder)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_writes_runs_and_results_on_one_page(run_folder, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(result()))
    output = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", str(run_folder), str(tmp_path / "r.json"), "-o", str(output)])
    assert done.exit_code == 0, done.output
    text = output.read_text()
    assert '<h2 id="bench0-h">Latency before and after</h2>' in text
    assert "Training run book" in text


def test_the_markdown_reads_as_written_here():
    measured = measurement({"model": 2.3e-3, "model.shrunk": 0.575e-3})
    text = markdown.render({"cpu_model": "X1", "cpus": 2, "os": "Linux", "onnxruntime": "1.32.0"},
                           report.build_rows(measured))  # fmt: skip
    assert (
        text
        == """\
**35 steps, 1 thread, cpu (measured)**

| model | p50 ms | p90 ms | p99 ms | mean ms | steps/s | speedup | 95% interval |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| model.onnx | 2.30 | 2.30 | 2.30 | 2.30 | 15.2k | baseline |  |
| model.shrunk.onnx | 0.575 | 0.575 | 0.575 | 0.575 | 60.9k | 4.0x | 4.0 to 4.0 |

| model | file MB | parameters | peak memory MB | load ms | first inference ms |
| --- | ---: | ---: | ---: | ---: | ---: |
| model.onnx | 4.00 | 1,000,000 | 80 | 12.0 | 3.40 |
| model.shrunk.onnx | 2.00 | 500,000 | 80 | 12.0 | 3.40 |

model.shrunk.onnx ran 4.0x faster than model.onnx at 35 steps (95% interval 4.0 to 4.0).  \n
X1, 2 CPUs, Linux, ONNX Runtime 1.32.0.
"""
    )


# Run in the page: how wide it is on a phone, which marks and texts are drawn, and how well text stands out.
PROBE = """
<script>
window.addEventListener("load", () => {
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const texts = [...document.querySelectorAll("p:not(.warning), td, th, dt, dd, h1, h3, a, footer")];
  const drawn = [...document.querySelectorAll("svg text:not(.on-mark)")];
  const marks = [...document.querySelectorAll(".mark")];
  const outside = drawn.filter((text) => {
    const box = text.getBBox();
    return !text.hasAttribute("transform") && (box.x < -1 || box.x + box.width > 461);
  });
  const found = {
    paper,
    marks: marks.length,
    empty: marks.map((mark) => mark.getBoundingClientRect()).filter((box) => !box.width || !box.height).length,
    outside: outside.map((text) => text.textContent),
    text: Math.min(...texts.map((text) => contrast(getComputedStyle(text).color, paper))),
    drawnText: Math.min(...drawn.map((text) => contrast(getComputedStyle(text).fill, paper))),
    markColours: Math.min(...marks.filter((mark) => !mark.classList.contains("area"))
      .map((mark) => contrast(getComputedStyle(mark).fill, paper))),
    focusable: document.querySelectorAll('.scroll[tabindex="0"][aria-label]').length,
    tables: document.querySelectorAll("table").length,
  };
  document.body.style.width = "390px";
  found.phone = document.body.scrollWidth;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
</body>"""


def chromium(*arguments):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_chromium
@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")])
def test_in_a_browser_everything_is_drawn_readable_and_silent(run_folder, tmp_path, scheme, paper):
    text = page.render(results=[result()], runs=[read_run(run_folder)])
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", PROBE))
    flags = ["--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[scheme]]
    dumped = chromium(
        *flags, "--window-size=1150,2400", f"--user-data-dir={tmp_path / 'p'}", "--dump-dom", path.as_uri()
    )
    assert "CONSOLE" not in dumped.stderr
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dumped.stdout)[1]))
    assert found["paper"] == paper
    assert found["marks"] == text.count('class="mark ') > 20
    assert found["empty"] == 0
    assert found["outside"] == []
    assert found["text"] >= 4.5  # WCAG 2.2, 1.4.3
    assert found["drawnText"] >= 4.5
    assert found["markColours"] >= 3.0  # 1.4.11
    assert found["focusable"] == found["tables"] > 6
    assert found["phone"] <= 390


@needs_chromium
def test_the_browser_takes_a_picture_of_it(run_folder, tmp_path):
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page.render(results=[result()], runs=[read_run(run_folder)]))
    chromium(f"--user-data-dir={tmp_path / 'p'}", "--window-size=1150,2400", f"--screenshot={picture}", path.as_uri())
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 50_000  # an empty page of this size is 8 kB


def test_a_broken_page_is_noticed_by_what_looks_for_it(tmp_path):
    """The browser test would be worthless if Chromium kept errors to itself."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    path = Path(tmp_path) / "page.html"
    path.write_text("<script>throw new Error('broken')</script>")
    assert "CONSOLE" in chromium(f"--user-data-dir={tmp_path / 'p'}", "--dump-dom", path.as_uri()).stderr
