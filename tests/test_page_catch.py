"""The page's tab of Catch: what the server sends of a game; and in a real browser, one who plays and one who watches.

`make test-page` runs them with Gradio and Playwright in an environment of their own; chromium is Debian's.
"""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from helpers import ROOT, serve_page
from PIL import Image

from config import get_config
from games.catch import ACTIONS, Rules
from main import main
from viz import page as page_module
from viz.page import model_files, open_once
from viz.page_catch import play_game, rules_to_choose

FAST, SLOW = Rules(), Rules(ball_speed=0.333, paddle_start="middle")
FRAME = 1000 / 6  # milliseconds, at the speed that the page begins with


@pytest.fixture(scope="module")
def player(tmp_path_factory) -> str:
    """The file of a model that has hardly learned the game."""
    folder = tmp_path_factory.mktemp("player")
    folders = [f"--{name}={folder / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    small = ["--task=catch", "--hidden_size=32", "--games_per_epoch=512", "--valid_size=0.5", "--epochs=1"]
    config = get_config([*small, "--use_gpu=False", *folders])
    main(config)
    return str(config.run_dir / "best.pt")


# What the server does, without a browser.


def test_a_game_is_sent_as_it_was_played(player):
    trained = open_once(player)
    game = play_game(trained, FAST, seed=1)
    columns, rows = np.array(game["balls"]).T
    assert rows.tolist() == list(range(24)) and np.abs(np.diff(columns)).max() <= 1
    paddle = game["paddles"][0]
    for step, after in zip(game["steps"], game["paddles"][1:], strict=True):
        assert step["action"] == np.argmax(step["probabilities"]) and sum(step["probabilities"]) == pytest.approx(
            1, abs=1e-3
        )
        paddle = min(max(paddle + ACTIONS.index(game["actions"][step["action"]]) - 1, 0), 22)
        assert after == paddle
    assert game["caught"] == (0 <= columns[-1] - paddle < 2)
    assert play_game(trained, FAST, seed=1) == game
    assert play_game(trained, FAST, seed=2)["balls"] != game["balls"]


def test_the_patches_show_what_is_within_their_boxes_in_that_frame(player):
    seen = 0
    for seed in range(5):
        game = play_game(open_once(player), FAST, seed)
        for step, (column, row), paddle in zip(game["steps"], game["balls"], game["paddles"], strict=False):
            screen = np.zeros((24, 24), bool)
            screen[row, column] = screen[23, paddle : paddle + 2] = True
            assert [width for _, _, width in step["boxes"]] == [6, 12, 24] and len(step["patches"]) == 3
            left, top, width = map(int, step["boxes"][0])
            assert left <= step["centre"][0] <= left + width and top <= step["centre"][1] <= top + width
            content = base64.b64decode(step["patches"][0].partition(",")[2])
            patch = np.array(Image.open(io.BytesIO(content))) > 127
            around = np.pad(screen, 24)[top + 24 : top + 24 + width, left + 24 : left + 24 + width]
            assert np.array_equal(patch, around)
            seen += around.sum()
    assert seen > 0


def test_a_gaze_that_is_not_learned_is_shown_as_well(player):
    trained = open_once(player)
    still = trained._replace(config=trained.config.replace(policy="still"))
    assert [step["centre"] for step in play_game(still, FAST, seed=1)["steps"]] == [[12, 12]] * 23


def test_the_models_own_rules_come_first_and_others_follow():
    assert list(rules_to_choose(FAST).values()) == [FAST, SLOW]
    assert list(rules_to_choose(SLOW).values()) == [SLOW, FAST]
    own = Rules(12, 2.0, 3)
    first, *others = rules_to_choose(own).values()
    assert first == own and others == [
        FAST._replace(grid_size=12, paddle_size=3),
        SLOW._replace(grid_size=12, paddle_size=3),
    ]


def test_there_are_tabs_only_if_there_is_a_model_of_the_game(player, monkeypatch, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: make test-page")

    def tabs(reader: str, plays: str) -> list[str | None]:
        blocks = page_module.make_page(reader, plays).blocks.values()
        return [block.selected for block in blocks if block.get_block_name() == "tabs"]

    mnist = str(ROOT / "models" / "mnist.pt")
    assert "catch" not in model_files(mnist)  # it reads no pictures
    monkeypatch.setattr(page_module, "PLAYER", tmp_path / "catch.pt")
    assert tabs(mnist, "") == []
    assert tabs("", player) == ["catch"]
    monkeypatch.setattr(page_module, "PLAYER", page_module.Path(player))
    assert tabs(mnist, "") == ["pictures"]


# The page itself.

READY = "#catch .play"  # what `visit` waits for


@pytest.fixture(scope="module")
def address(player):
    with serve_page(f"--checkpoint={player}") as (_, address):
        yield address


@pytest.fixture
def court(visit):
    """The page, on which time passes as `pass_frames` says."""
    page, _ = visit()
    stop_time(page)
    return page


def stop_time(page):
    page.clock.install(time=0)
    page.clock.pause_at(1000)


def text(page, part: str) -> str:
    return page.locator(f"#catch {part}").text_content()


def begin(page, button=".play") -> dict:
    """Presses a button, and returns the game that the page received."""
    with page.expect_response("**/component_server/") as received:
        page.click(f"#catch {button}")
    page.wait_for_function("document.querySelector('#catch .count').textContent.startsWith('1 ')")
    return received.value.json()


def pass_frames(page, count=1):
    for _ in range(count):
        first = text(page, ".count").startswith("1 ")
        page.clock.run_for(901 if first else FRAME + 0.5)


def paddle(page) -> int:
    return int(page.locator("#catch .mine .scene").get_attribute("aria-label").rsplit(" ", 1)[1]) - 1


def play_to(page, game: dict, column: int):
    """Plays a game so that the paddle's left end comes to a column, by one key a frame."""
    for _ in game["steps"]:
        here = paddle(page)
        if here != column:
            page.keyboard.press("ArrowRight" if column > here else "ArrowLeft")
        pass_frames(page)
        assert abs(paddle(page) - here) == (here != column)


@pytest.mark.slow
def test_one_who_goes_where_the_ball_lands_catches_it_and_one_who_stays_misses_it(court):
    mine = models = 0
    for games, (shift, catches) in enumerate([(0, True), (-1, True), (None, False), (-2, False)], start=1):
        while True:
            game = begin(court)
            landing, start = game["balls"][-1][0], game["paddles"][0]
            goal = start if shift is None else landing + shift
            if 0 <= goal <= 22 and (0 <= landing - goal < 2) == catches:
                break
        assert text(court, ".result") == "Catch the ball." and court.locator("#catch .at").is_disabled()
        play_to(court, game, goal)
        assert text(court, ".count") == "24 / 24"
        assert text(court, ".mine .end") == ("caught ✓" if catches else "missed ✗")
        assert text(court, ".model .end") == ("caught ✓" if game["caught"] else "missed ✗")
        verbs = ["caught" if each else "missed" for each in (catches, game["caught"])]
        both = f"You both {verbs[0]} it." if verbs[0] == verbs[1] else f"You {verbs[0]} it, the model {verbs[1]} it."
        assert text(court, ".result") == both
        mine, models = mine + catches, models + game["caught"]
        assert text(court, ".score") == f"Caught of {games} game{'s' * (games > 1)}: you {mine}, the model {models}"
    court.click("#catch .pause")  # again: what was played is shown, and not counted twice
    pass_frames(court, 23)
    assert text(court, ".count") == "24 / 24" and text(court, ".score").startswith("Caught of 4 games")
    court.click("#catch .reset")
    assert text(court, ".score") == "Caught of 0 games: you 0, the model 0"


@pytest.mark.slow
def test_a_key_that_is_held_moves_the_paddle_until_the_wall(court):
    start = begin(court)["paddles"][0]
    court.keyboard.down("d")
    pass_frames(court, 3)
    court.keyboard.up("d")
    held = paddle(court)
    assert held == min(start + 3, 22)
    pass_frames(court, 2)
    assert paddle(court) == held
    begin(court)
    court.keyboard.down("ArrowLeft")
    pass_frames(court, 23)
    assert paddle(court) == 0


@pytest.mark.slow
def test_keys_do_not_scroll_the_page_while_one_plays(visit):
    page, _ = visit(viewport={"width": 1280, "height": 400})
    stop_time(page)
    with page.expect_response("**/component_server/"):
        page.keyboard.press(" ")  # the space bar begins a game, too
    page.wait_for_function("document.querySelector('#catch .count').textContent.startsWith('1 ')")
    place = page.evaluate("scrollY")
    for key in ("ArrowDown", "ArrowRight", " ", "ArrowDown"):
        page.keyboard.press(key)
    pass_frames(page, 23)
    assert (page.evaluate("scrollY"), text(page, ".count")) == (place, "24 / 24")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("scrollY > 0", polling=50)


@pytest.mark.slow
def test_two_buttons_move_the_paddle_on_a_touch_screen(visit):
    page, _ = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    stop_time(page)
    here = begin(page)["paddles"][0]
    button, step = ("right", 1) if here < 10 else ("left", -1)
    for _ in range(3):
        page.tap(f"#catch .{button}")
        pass_frames(page)
    assert paddle(page) == here + 3 * step
    page.locator(f"#catch .{button}").hover()
    page.mouse.down()
    pass_frames(page, 4)
    page.mouse.up()
    pass_frames(page)
    assert paddle(page) == here + 7 * step


@pytest.mark.slow
def test_the_model_plays_alone_to_the_end_and_one_goes_back_and_forth(visit, address):
    page, asked = visit()
    page.fill("#catch .speed", "15")
    assert text(page, ".pace") == "15 frames a second"
    game = begin(page, ".watch")
    page.wait_for_function("document.querySelector('#catch .count').textContent === '24 / 24'")
    assert text(page, ".result") == f"The model {'caught' if game['caught'] else 'missed'} it."
    assert not page.locator("#catch .mine").is_visible() and text(page, ".score").startswith("Caught of 0 games")
    slider = page.locator("#catch .at")
    slider.press("Home")
    for frame, step in itertools.islice(enumerate(game["steps"]), 6):
        assert text(page, ".count") == f"{frame + 1} / 24" and text(page, ".result") == "The model plays."
        assert page.locator("#catch .model circle").count() == 2 * min(frame + 1, 4)
        assert text(page, ".best").startswith(game["actions"][step["action"]])
        assert text(page, ".expects") == f"It expects a reward of {step['value']:.2f}."
        ball = f"ball in column {game['balls'][frame][0] + 1}, row {frame + 1};"
        assert page.locator("#catch .model .scene").get_attribute("aria-label").startswith(ball)
        slider.press("ArrowRight")
    page.click("#catch .pause")  # goes on
    page.wait_for_function("document.querySelector('#catch .count').textContent.startsWith('9 ')")
    page.click("#catch .pause")
    shown = text(page, ".count")
    page.wait_for_timeout(300)
    assert text(page, ".count") == shown and text(page, ".pause") == "Continue"
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.slow
def test_other_rules_are_played_and_the_pictures_have_their_tab(court):
    court.select_option("#catch .rules", index=1)
    game = begin(court)
    assert game["paddles"][0] == 11 and max(abs(np.diff(np.array(game["balls"])[:, 0]))) <= 1
    court.get_by_role("tab", name="Pictures").click()
    court.wait_for_selector("#look")
    assert court.locator("#model input").input_value() == "mnist"


@pytest.mark.slow
def test_two_visitors_play_games_of_their_own(visit):
    pages = [visit()[0] for _ in range(2)]
    for page in pages:
        stop_time(page)
    first, second = (begin(page) for page in pages)
    assert first["balls"] != second["balls"]
    pass_frames(pages[0], 23)
    assert text(pages[0], ".score").startswith("Caught of 1 game:")
    assert text(pages[1], ".score").startswith("Caught of 0 games") and text(pages[1], ".count") == "1 / 24"


def luminance(page, element: str, property: str) -> float:
    """Of a colour of an element of the page, as WCAG 2 defines it, from 0 to 1."""
    colour = page.evaluate(f"getComputedStyle({element}).{property}")
    levels = np.array([int(level) for level in re.findall(r"\d+", colour)[:3]]) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_both_screens_have_room_and_their_outcome_is_readable_in_the_light_and_the_dark(visit, scheme, width):
    page, _ = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    stop_time(page)
    begin(page)
    pass_frames(page, 23)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [page.locator(f"#catch {part}").bounding_box() for part in (".mine", ".model", ".side", ".rules", ".at")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    mine, model = boxes[:2]
    assert (mine["y"] == model["y"]) == (width > 700)
    top = page.locator("#catch .play").bounding_box()["y"]
    assert max(box["y"] + box["height"] for box in (mine, model)) - top < 844
    paper = luminance(page, "document.body", "backgroundColor")
    for part in (".mine .end", ".model .end"):
        ink = luminance(page, f"document.querySelector('#catch {part}')", "color")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5  # WCAG's contrast of text
