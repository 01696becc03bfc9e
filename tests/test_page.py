"""The page in a real browser: draw, look, go back and forth; what is no picture; two visitors at once; no call home.

`make test-page` runs them with Gradio and Playwright in an environment of their own; chromium is Debian's.
"""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers import ROOT, assert_one_line, command, serve_page
from PIL import Image, ImageDraw

from training.cli import InputError
from viz import page as page_module
from viz.files import player
from viz.page import LARGEST_DRAWING, PageConfig, answer, clutter_of, listen, model_files, open_once, see

MNIST, CLUTTERED = (str(ROOT / "models" / f"{name}.pt") for name in ("mnist", "cluttered60"))
SEVEN = [(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]
ONE = [(0.5, 0.2), (0.48, 0.8)]


def drawing(points=SEVEN, size=(480, 480), pen=27, ink="black") -> bytes:
    """A PNG of a pen's path on white paper."""
    image = Image.new("RGB", size, "white")
    path = [(x * size[0], y * size[1]) for x, y in points]
    ImageDraw.Draw(image).line(path, fill=ink, width=pen, joint="curve")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def url_of(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


# What the server does, without a browser.


@pytest.mark.parametrize("path", [MNIST, CLUTTERED])
def test_a_drawing_is_read_and_described(path):
    trained = open_once(path)
    result = answer(trained, see(url_of(drawing()), trained, 0), (0.0, 0.0))
    assert result["classes"][max(range(10), key=result["steps"][-1]["probabilities"].__getitem__)] == "7"
    assert len(result["steps"]) == trained.model.num_glimpses and "inverted" in result["notes"]
    for step in result["steps"]:
        assert len(step["patches"]) == len(step["boxes"]) == trained.model.retina.num_patches
        assert sum(step["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert result["steps"][0]["centre"] == [result["width"] / 2, result["height"] / 2]


def test_clutter_is_added_around_a_drawing_where_there_is_a_canvas():
    drawn = url_of(drawing())
    trained = open_once(CLUTTERED)
    plain, cluttered = (see(drawn, trained, pieces) for pieces in (0, 8))
    assert (cluttered.image >= plain.image).all() and cluttered.image.sum() > 1.2 * plain.image.sum()
    assert "8 pieces of clutter added" in cluttered.notes
    assert torch.equal(see(drawn, open_once(MNIST), 8).image, see(drawn, open_once(MNIST), 0).image)
    assert clutter_of(CLUTTERED)["interactive"] and not clutter_of(MNIST)["interactive"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("", "is empty"),
        ("data:image/png;base64,!!!", "did not arrive whole"),
        (url_of(b"hello"), "is no image"),
        (url_of(drawing()[:400]), "cannot be read"),
        (url_of(drawing(SEVEN, ink="white")), "shows no ink"),
        ("x" * (LARGEST_DRAWING + 1), "is too large"),
    ],
)
def test_what_is_no_picture_is_named(sent, reason):
    with pytest.raises(InputError, match=reason):
        see(sent, open_once(MNIST), 0)


def test_the_model_that_was_asked_for_comes_first_and_the_shipped_ones_follow(tmp_path):
    shipped = {path.stem for path in (ROOT / "models").glob("*.pt")} - {"catch"}
    assert next(iter(model_files(CLUTTERED))) == "cluttered60" and set(model_files(CLUTTERED)) == shipped
    assert next(iter(model_files(str(tmp_path / "mine.pt")))) == str(tmp_path / "mine.pt")


def test_a_port_that_is_taken_and_a_setting_that_is_not_allowed_are_named():
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="choose another --port="):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="port=70000"):
        PageConfig(port=70_000)


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"not installed: pip install -r requirements-page.txt"):
        page_module.make_app(MNIST, None)


# The page itself.


@pytest.fixture(scope="module")
def address():
    with serve_page(f"--checkpoint={MNIST}") as (_, address):
        yield address


READY = "#glimpses .result"  # what `visit` waits for


def draw(page, points=SEVEN):
    box = page.locator("#pad canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def press(page, button="#look") -> str:
    """Presses a button and waits for the answer."""
    page.evaluate("document.querySelector('#glimpses .result').textContent = ''")
    page.click(button)
    page.wait_for_function("document.querySelector('#glimpses .result').textContent !== ''")
    return page.locator("#glimpses .result").text_content()


def go_to(page, glimpse: int) -> str:
    """Moves the slider and returns what the page says there."""
    slider = page.locator("#glimpses .at")
    slider.focus()
    slider.press("Home")
    for _ in range(glimpse - 1):
        slider.press("ArrowRight")
    return page.locator("#glimpses .result").text_content()


def first_place(page) -> str:
    go_to(page, 1)
    return page.locator("#glimpses .scene").get_attribute("aria-label")


def choose(page, model: str):
    page.locator("#model input").click()
    page.get_by_role("option", name=model, exact=True).click()


@pytest.mark.slow
def test_one_draws_looks_and_goes_back_and_forth(visit):
    page, _ = visit()
    draw(page)
    press(page)
    assert page.locator("#glimpses output").text_content() == "1 / 6"
    page.wait_for_function("document.querySelector('#glimpses output').textContent === '2 / 6'")  # by itself
    assert go_to(page, 6).startswith("It says 7, ")
    assert page.locator("#glimpses .scene circle").count() == 2 * 6
    assert page.locator("#glimpses .patches img").count() == 1 and page.locator("#glimpses .bar").count() == 10
    assert page.locator("#glimpses .best").text_content().startswith("7")
    assert press(page).startswith("So far")  # the same again
    assert go_to(page, 3).startswith("So far")
    assert page.locator("#glimpses output").text_content() == "3 / 6"
    assert page.locator("#glimpses .scene circle").count() == 2 * 3
    assert "inverted" in page.locator("#glimpses .notes").text_content()


@pytest.mark.slow
def test_another_button_begins_elsewhere_in_the_same_picture(visit):
    page, _ = visit()
    choose(page, "cluttered60")
    page.wait_for_function("document.querySelector('#clutter input[type=range]').disabled === false")
    draw(page)
    page.locator("#clutter input[type=number]").fill("6")
    page.locator("#clutter input[type=number]").press("Tab")
    press(page)
    assert "6 pieces of clutter" in page.locator("#glimpses .notes").text_content()
    picture = page.locator("#glimpses image").get_attribute("href")
    places = {first_place(page)}
    for _ in range(2):
        press(page, "#elsewhere")
        assert page.locator("#glimpses image").get_attribute("href") == picture
        places.add(first_place(page))
    assert len(places) == 3
    assert page.locator("#glimpses .patches img").count() == 3
    press(page)
    assert page.locator("#glimpses image").get_attribute("href") != picture  # new clutter


@pytest.mark.slow
def test_nothing_is_asked_of_any_other_server(visit, address):
    page, asked = visit()
    draw(page)
    press(page)
    page.wait_for_timeout(1500)
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    with listen("127.0.0.1", 0) as elsewhere:  # even a script that wanted to could not
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        page.evaluate("(url) => { fetch(url, { mode: 'no-cors' }).catch(() => 0); }", url)
        elsewhere.settimeout(2)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.slow
def test_it_listens_on_this_machine_alone_and_to_its_own_name(address):
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        with pytest.raises(OSError), socket.create_connection((other, port), timeout=2):
            pass
    with urllib.request.urlopen(address) as reply:
        assert "default-src 'self'" in reply.headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
    assert_one_line(command("-m", "viz.page", f"--port={port}"), "choose another --port=")


@pytest.mark.slow
def test_control_c_ends_it_quietly():
    with serve_page(f"--checkpoint={MNIST}", stderr=subprocess.PIPE) as (process, address):
        urllib.request.urlopen(address).close()
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
    assert (process.returncode, printed) == (0, "")


@pytest.mark.slow
def test_an_empty_drawing_is_said_to_be_empty_and_one_goes_on(visit):
    page, _ = visit()
    assert press(page) == "The picture is empty: draw a digit first."
    assert press(page, "#elsewhere") == "The picture is empty: draw a digit first."
    draw(page)
    press(page)
    assert go_to(page, 6).startswith("It says 7, ")
    page.click("#pad .clear")
    assert press(page) == "The picture is empty: draw a digit first."
    assert not page.locator("#glimpses .scene").is_visible()


@pytest.mark.slow
def test_a_file_is_read_upright_and_one_that_is_no_picture_is_named(visit):
    page, _ = visit()
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = Image.open(io.BytesIO(drawing())).rotate(180)
    buffer = io.BytesIO()
    upside_down.save(buffer, "JPEG", exif=exif)
    page.set_input_files(
        "#pad input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}
    )
    page.wait_for_timeout(500)
    press(page)
    assert go_to(page, 6).startswith("It says 7, ")
    broken = {"name": "b.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#pad input[type=file]", broken)
    page.wait_for_function("document.querySelector('#pad .trouble').textContent !== ''")
    assert page.locator("#pad .trouble").text_content() == "b.png cannot be shown as a picture: choose a PNG or a JPEG."
    assert press(page) == "The picture is empty: draw a digit first."


@pytest.mark.slow
def test_a_picture_may_be_dropped_and_a_huge_one_is_reduced_before_it_is_sent(visit):
    page, _ = visit()
    page.evaluate(
        """(encoded) => {
          const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "huge.png", { type: "image/png" }));
          document.querySelector("#pad canvas").dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
        }""",
        base64.b64encode(drawing(size=(8000, 6000), pen=400)).decode(),
    )
    page.wait_for_function("document.querySelector('#pad canvas').height === 360", timeout=60_000)
    press(page)
    assert go_to(page, 6).startswith("It says 7, ")


@pytest.mark.slow
def test_two_visitors_do_not_see_each_others_pictures(visit):
    (first, _), (second, _) = visit(), visit()
    draw(first, SEVEN)
    draw(second, ONE)
    press(first)
    press(second)
    for _ in range(2):
        press(first, "#elsewhere")
        press(second, "#elsewhere")
    assert go_to(first, 6).startswith("It says 7, ") and go_to(second, 6).startswith("It says 1, ")
    pictures = {page.locator("#glimpses image").get_attribute("href") for page in (first, second)}
    assert len(pictures) == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_has_room_on_a_phone_and_follows_the_dark(visit, scheme, width):
    page, _ = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    draw(page)
    press(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", colour)[:3]]
    assert (max(levels) < 80) == (scheme == "dark")
    for part in (".scene", ".side", ".at"):
        box = page.locator(f"#glimpses {part}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.slow
def test_the_mailed_animation_plays_without_a_network(browser, tmp_path):
    path: Path = tmp_path / "glimpses.html"
    path.write_bytes(player([Image.new("RGB", (300, 200), colour) for colour in ("red", "green", "blue")], fps=5))
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("document.getElementById('of').value === '3 / 3'")
    page.click("#play")
    page.locator("#at").press("Home")
    assert page.locator("#of").text_content() == "1 / 3"
    assert page.evaluate("document.getElementById('frame').naturalWidth") == 300
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    context.close()
