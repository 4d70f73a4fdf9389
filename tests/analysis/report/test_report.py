"""``report.html``: one file that says what the folder says, opened in a browser without errors or network."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import FolderError
from analysis.folder import State, Status, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.report import write
from tests.analysis.answers import make as made_of_answers
from tests.benchmarks.synthetic import make

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Thirty made-up trials of every outcome, with item tables, and their report."""
    folder = make(tmp_path_factory.mktemp("runs") / "thirty", 30, items=120, seed=3)
    folder.trial("t0001").write_status(Status(State.FAILED, "the <b>worker</b> died & left </script> behind", 4))
    write(folder)
    return folder


def text_of(folder: SweepFolder) -> str:
    return (folder.root / "report.html").read_text()


def test_the_report_holds_every_part_and_every_row(finished: SweepFolder) -> None:
    page = text_of(finished)
    for section in (
        "answer",
        "leaderboard",
        "written",
        "tradeoffs",
        "training",
        "mattered",
        "errors",
        "cost",
        "data",
        "reproduce",
    ):
        assert f'<section id="{section}"' in page
    for plot in ("pareto", "parallel", "curves", "importance", "rank_rate", "precision", "bias", "confusion_0"):
        assert f'id="data-{plot}"' in page, plot
    for row in leaderboard.build(finished):
        assert f'data-key="{row.trial_id}">{row.trial_id}<' in page
    assert page.count("<caption") == page.count("<table")  # every table says what it is
    assert all(len(label) > 40 for label in re.findall(r'role="img" aria-label="([^"]*)"', page))  # every plot in words


def test_the_answer_is_the_rankings(finished: SweepFolder) -> None:
    ranking = leaderboard.ranked(finished)
    told = leaderboard.verdict(finished, ranking.rows, ranking.judgement).splitlines()
    lead = re.search(r'<p class="lead">(.*?)</p>', text_of(finished), re.S)
    assert lead is not None
    for line in told[:2]:
        assert line.replace("'", "&#39;") in lead.group(1)


def test_nothing_from_the_folder_becomes_markup(finished: SweepFolder) -> None:
    page = text_of(finished)
    assert "<b>worker</b>" not in page
    assert "the &lt;b&gt;worker&lt;/b&gt; died &amp; left &lt;/script&gt; behind" in page
    embedded = re.findall(r'<script type="application/json" id="data-[^"]*">(.*?)</script>', page, re.S)
    assert len(embedded) >= 8
    assert not any("<" in figure for figure in embedded)


def test_answers_stand_beside_the_baselines_and_nothing_of_them_is_markup(tmp_path: Path) -> None:
    folder = made_of_answers(tmp_path / "written")
    page = write(folder).read_text()
    for head in ("Prompt", "Reference", "t0000", "zero_shot", "few_shot"):
        assert f'<th scope="col">{head}</th>' in page
    assert "in Paris, <del>France</del>" in page
    assert "in Paris, <ins>Spain</ins>" in page
    assert "<ins>&lt;script&gt;alert(1)&lt;/script&gt; tower</ins>" in page
    assert "\x1b" not in page.split("<script>")[0]
    assert "3 items of the validation rows, the worst in exact_match first" in page


def test_the_report_has_the_worst_of_many_answers(tmp_path: Path) -> None:
    folder = made_of_answers(tmp_path / "written")
    n = 250
    columns = {
        "item_id": [f"i{i}" for i in range(n)], "prompt": ["word " * 300] * n, "label": ["x"] * n,
        "generated": ["x" if i < 40 else "y" for i in range(n)], "n_tokens": [1] * n, "finished": [True] * n,
        "exact_match": [float(i < 40) for i in range(n)],
    }  # fmt: skip
    folder.trial("t0000").write_items("generated", "validation", 8, columns)
    page = write(folder).read_text()
    assert page.count('<tr title="i') == 200
    assert '<tr title="i3"' not in page  # right: among the best
    assert "the worst 200 of 250 items" in page
    assert page.count("<details><summary>word ") == 200  # of a long prompt the beginning and the end are shown


def test_without_answers_the_report_says_how_to_get_them(finished: SweepFolder) -> None:
    assert "eval.generate=true` trains the best ones again and lets them write" in text_of(finished)


def test_the_file_asks_for_nothing(finished: SweepFolder) -> None:
    page = text_of(finished)
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=(?![\"']?data:)", page.split("<script>")[0])


def test_a_command_that_reproduces_a_row_starts_from_its_values(finished: SweepFolder) -> None:
    row = next(row for row in leaderboard.build(finished) if row.trial_id == "t0004")
    rate = repr(row.config["optim.lr"])
    command = next(line for line in text_of(finished).splitlines() if "thirty-t0004" in line)
    assert "lorasweep trial experiment=quickstart " in command
    assert f"lora.rank: {row.config['lora.rank']}" in command
    assert f"optim.lr: {rate}" in command
    assert "search.trials" not in command


@pytest.mark.parametrize("shape", ["empty", "one", "pending", "nothing finished", "no items"])
def test_a_sweep_with_little_in_it_is_reported_too(sweep: Any, shape: str) -> None:
    if shape == "one":
        sweep.trial("t0000", 0.8, hits=128)
    elif shape == "pending":
        sweep.trial("t0000", None, State.PENDING)
    elif shape == "nothing finished":
        sweep.trial("t0000", 0.8, State.STOPPED_EARLY, step=8)
        sweep.trial("t0001", None, State.DIVERGED, reason="the loss was nan")
    elif shape == "no items":
        sweep.trial("t0000", 0.8)
        sweep.trial("t0001", 0.7)
    page = write(sweep.folder).read_text()
    assert ("Take <span" in page) == (shape in ("one", "no items"))
    assert ("Nothing to take yet" in page) == (shape in ("empty", "pending", "nothing finished"))


@pytest.mark.parametrize(
    ("hits", "told"),
    [
        ({"t0000": 128, "t0001": 60, "zero_shot": 40}, "Take <span"),
        ({"t0000": 128, "t0001": 127, "zero_shot": 40}, "No clear winner; <span"),
        ({"t0000": 128, "t0001": 60, "zero_shot": 130}, "Fine-tuning is not shown to pay; of the trials, <span"),
    ],
    ids=["a winner", "tied", "a baseline as good"],
)
def test_the_headline_claims_no_more_than_the_tests(sweep: Any, hits: dict[str, int], told: str) -> None:
    for name, n in hits.items():
        sweep.trial(name, n / 160, hits=n, kind="baseline" if name == "zero_shot" else "trial")
    page = write(sweep.folder).read_text()
    assert f'<h2 id="answer-head">{told} class="pick">t0000</span>' in page


def test_where_the_file_cannot_be_written_is_said(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"report.html: cannot be written .*--out FILE"):
        write(sweep.folder, tmp_path / "file" / "report.html")


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if IN_CI:
            pytest.fail("CI needs Debian's chromium to open the report: apt-get install chromium")
        pytest.skip("there is no /usr/bin/chromium to open the report in: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def opened(browser: Any, finished: SweepFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report alone in a folder, in a tab; and what the tab said or asked for that it should not."""
    alone = tmp_path_factory.mktemp("alone")
    shutil.copy(finished.root / "report.html", alone / "report.html")
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    tab.goto(f"file://{alone}/report.html")
    yield tab, said
    tab.close()


@pytest.fixture
def page(opened: Any) -> Iterator[Any]:
    """The tab; a console error or warning, a page error or a request to the network fails the test."""
    tab, said = opened
    yield tab
    assert said == []


def test_the_keyboard_reaches_the_answer_first_and_landmarks_are_there(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert page.locator(landmark).count() == 1
    unnamed = "[...document.querySelectorAll('section')].filter(s => !s.getAttribute('aria-labelledby')).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("document.documentElement.lang") == "en"


def column(page: Any, place: int) -> list[str]:
    cells = page.locator(f"#board tbody tr:not([hidden]) > :nth-child({place})").all_inner_texts()
    return [cell.strip() for cell in cells]


def test_a_press_sorts_by_a_column_and_another_turns_it(page: Any) -> None:
    head = page.locator("#board thead th", has_text="Score")
    for _ in range(2):
        head.locator("button").press("Enter")  # as with the keyboard
    assert head.get_attribute("aria-sort") == "descending"
    known = [float(score) for score in column(page, 4) if score != "–"]
    assert known == sorted(known, reverse=True)
    assert column(page, 4)[len(known) :] == ["–"] * (31 - len(known))  # what is not known comes last
    head.locator("button").click()
    assert [float(score) for score in column(page, 4) if score != "–"] == sorted(known)


def test_filters_show_what_they_say_and_count_it(page: Any) -> None:
    page.select_option("#outcome", "diverged")
    assert set(column(page, 3)) == {"diverged"}
    page.select_option("#outcome", "")
    page.fill("#find", "t0004")
    assert column(page, 2) == ["t0004"]
    assert page.inner_text("#shown") == "1 of 31 rows"
    page.fill("#find", "")
    assert page.inner_text("#shown") == "31 rows"


def test_a_search_shows_the_answers_that_hold_all_words(browser: Any, tmp_path: Path) -> None:
    tab = browser.new_page()
    tab.goto(f"file://{write(made_of_answers(tmp_path / 'written'))}")
    tab.fill("#find-answers", "paris SPAIN")
    assert tab.locator("#answers tbody tr:not([hidden])").count() == 1
    assert tab.inner_text("#shown-answers") == "1 of 3 items"
    tab.fill("#find-answers", "")
    assert tab.inner_text("#shown-answers") == "3 items"
    tab.close()


def test_the_theme_follows_the_system_and_the_button(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.click("#theme")
    assert page.evaluate(background) == light
    assert page.get_attribute("html", "data-theme") == "light"


def test_every_plot_is_drawn_when_it_comes_into_view(page: Any) -> None:
    holders = page.locator("[data-plot]")
    assert holders.count() >= 8
    for i in range(holders.count()):
        holders.nth(i).scroll_into_view_if_needed()
        holders.nth(i).locator("svg").first.wait_for(timeout=20_000)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# The picture in the README: `LORASWEEP_PICTURE_OF=runs/NAME pytest tests/analysis/report -k picture` takes it anew.

PICTURE = Path(__file__).parents[3] / "docs" / "report.png"
_PICTURED = ("answer", "leaderboard", "training")  # sections
_COLUMNS = ("#", "Trial", "Outcome", "Score", "95 %", "acc", "F1", "log loss", "alpha rule", "rank", "lr")
_LEFT_OUT = "header, footer, .notes, .controls, #leaderboard-caption, figcaption, #training h2"
_SMALLER = """([sections, columns, others]) => {
  const style = document.createElement("style")
  style.textContent = `section:not(${sections.map(name => "#" + name).join()}), ${others} {display: none !important}`
  document.head.append(style)
  document.querySelectorAll("#board thead th").forEach((head, place) => {
    if (!columns.includes(head.innerText.replace(/[▲▼]/, "").trim()))
      style.textContent += `#board :is(th, td):nth-child(${place + 1}) {display: none}`
  })
}"""


def take_picture(browser: Any, report: Path, to: Path) -> list[str]:
    """The answer, the ranking and the learning curves, as wide as a forge shows a README. Returns the heads shown."""
    tab = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light", device_scale_factor=0.8)
    tab.goto(f"file://{report}")
    tab.evaluate(_SMALLER, [_PICTURED, _COLUMNS, _LEFT_OUT])
    plot = tab.locator("#training [data-plot]").first
    plot.scroll_into_view_if_needed()
    plot.locator("svg .lines path").first.wait_for(timeout=20_000, state="attached")
    heads = [section.inner_text() for section in tab.locator("main h2").all() if section.is_visible()]
    tab.locator("main").screenshot(path=to)
    tab.close()
    return heads


def test_a_picture_shows_the_answer_the_ranking_and_a_plot(browser: Any, finished: SweepFolder, tmp_path: Path) -> None:
    given = os.environ.get("LORASWEEP_PICTURE_OF")
    folder, to = (SweepFolder.open(given), PICTURE) if given else (finished, tmp_path / "report.png")
    answer, board = take_picture(browser, write(folder), to)
    assert (board, to.read_bytes()[:4]) == ("Leaderboard", b"\x89PNG")
    assert re.search(r"t\d{4}|Nothing", answer)
