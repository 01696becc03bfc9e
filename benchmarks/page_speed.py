"""How long the page takes to answer, from the press of the button to the first glimpse, or frame, in the browser.

make test-page    # once: it makes the environment
.venv-page/bin/python -m benchmarks.page_speed
"""

import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass

from training.cli import InputError, PathText, Positive, Settings, run_command

# A 7, drawn as the mouse would; then the time until the answer is in the page.
DRAW = """(pad) => {
  const box = pad.getBoundingClientRect(), send = (name, x, y) => pad.dispatchEvent(new PointerEvent(name,
    { pointerId: 1, bubbles: true, clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
  pad.setPointerCapture = () => 0;
  send("pointerdown", .3, .25);
  send("pointermove", .7, .25);
  send("pointermove", .45, .8);
  send("pointerup", .45, .8);
}"""
PRESS = """([button, shown]) => new Promise((resolve) => {
  const result = document.querySelector(shown), began = performance.now();
  new MutationObserver((_, observer) => { observer.disconnect(); resolve(performance.now() - began); })
    .observe(result, { childList: true, characterData: true, subtree: true });
  document.querySelector(button).click();
})"""


@dataclass(frozen=True)
class PageSpeed(Settings):
    """Times the page's answers in a browser without a window."""

    checkpoint: PathText = "./models/cluttered60.pt"
    """The model; of the game, too, if it plays."""
    rounds: Positive = 20
    """Answers, after the first."""


def main(args: PageSpeed):
    """Prints the milliseconds of the first answer and the later ones, of a picture and, if it has a tab, of a game."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: make test-page installs it in .venv-page") from error
    chromium = shutil.which("chromium")
    if not chromium:
        raise InputError("there is no chromium: apt-get install chromium")
    server = subprocess.Popen(
        [sys.executable, "-m", "viz.page", "--port=0", f"--checkpoint={args.checkpoint}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        with sync_playwright() as driver:
            page = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
            page.goto(address)
            page.wait_for_selector("#look, #catch .watch")
            tab = page.get_by_role("tab")
            if tab.count():
                tab.filter(has_text="Pictures").click()
            page.wait_for_selector("#look")
            page.wait_for_timeout(1000)
            page.eval_on_selector("#pad canvas", DRAW)
            report("picture", [page.evaluate(PRESS, ["#look", "#glimpses .result"]) for _ in range(1 + args.rounds)])
            if tab.count():
                tab.filter(has_text="Catch").click()
                page.wait_for_selector("#catch .watch")
                watch = ["#catch .watch", "#catch .model .scene"]
                report("game", [page.evaluate(PRESS, watch) for _ in range(1 + args.rounds)])
    finally:
        server.terminate()


def report(name: str, times: list[float]):
    first, *later = times
    then = f"{statistics.median(later):.0f} ms (median), {max(later):.0f} ms at most"
    print(f"{name}: first answer {first:.0f} ms; then {then}")


if __name__ == "__main__":
    run_command(main, PageSpeed, prog="benchmarks.page_speed")
