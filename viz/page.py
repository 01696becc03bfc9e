"""A page in the browser: draw a digit, or drop a picture, and see where a model looks, glimpse by glimpse; play Catch.

    pip install -r requirements-page.txt
    python -m viz.page --checkpoint=models/cluttered60.pt

The page is served to this machine alone and loads nothing from elsewhere. What moves in it is in page_pad.js, where one
draws, and in page_glimpses.js, which shows the glimpses; the tab of the game is page_catch.py.
"""

import base64
import binascii
import contextlib
import functools
import itertools
import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from training.cli import Bounds, InputError, PathText, Settings, run_command

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

    from images.one_image import Seen
    from viz.record import Glimpses, Trained

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "models"
PLAYER = SHIPPED / "catch.pt"  # it may not be there
MOST_CLUTTER = 16  # pieces
LARGEST_DRAWING = 20_000_000  # characters that the page may send
CALLS = itertools.count()  # each answer differs from the one before, or the browser would not show it again
LOCAL = ("127.0.0.1", "localhost", "::1")
# Whatever Gradio's pages name, a browser fetches from this server alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'"
)


@dataclass(frozen=True)
class PageConfig(Settings):
    """Opens a page where one draws a digit and sees where a model looks, or plays Catch against one."""

    checkpoint: PathText = "./models/mnist.pt"
    """Model to begin with; the page offers the shipped models, too."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 is this machine alone, 0.0.0.0 everybody who can reach it."""
    port: Annotated[int, Bounds("from 0 to 65535", lambda value: 0 <= value < 2**16)] = 7860
    """Port to listen on; 0: any that is free."""


def main(config: PageConfig):
    """Serves the page until it is interrupted.

    Raises:
        InputError: Gradio is not installed, there is no such model, or the port is taken.
    """
    app = make_app(config.checkpoint, LOCAL if config.host in LOCAL else None)
    import torch
    import uvicorn

    torch.set_num_threads(1)  # an image is too small to share between cores

    with listen(config.host, config.port) as listener, contextlib.suppress(KeyboardInterrupt):
        address = listener.getsockname()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        print(f"[*] The page is at http://{address[0]}:{address[1]}/ (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: it cannot.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port=") from error


def make_app(checkpoint: str, hosts: tuple[str, ...] | None) -> "FastAPI":
    """The page as an ASGI application.

    Args:
        checkpoint: file of the model to begin with.
        hosts: names under which it may be asked for; None: any.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -r requirements-page.txt") from error
    # An error is one now, and the first answer does not wait.
    from viz import files, own_images  # noqa: F401

    plays = open_once(checkpoint).config.data.dataset == "catch"
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(WithPolicy)
    if hosts:  # a page elsewhere that names itself as this machine is not answered
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # not Google's
    return gradio.mount_gradio_app(
        app,
        make_page("" if plays else checkpoint, checkpoint if plays else ""),
        path="/",
        theme=gradio.themes.Default(**fonts),
        css_paths=HERE / "page.css",
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size="20mb",
    )


class WithPolicy:
    """Adds to each reply what a browser may fetch because of it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def make_page(reader: str, player: str) -> "gradio.Blocks":
    """The page; if there is a model of the game, with a tab for pictures and one for the game.

    Args:
        reader, player: file of the model that was asked for, if it reads images, or plays; else "".
    """
    import gradio

    files = model_files(reader or str(SHIPPED / "mnist.pt"))
    with gradio.Blocks(title="Where does the model look?", analytics_enabled=False) as page:
        if not player and not PLAYER.exists():
            picture_tab(files)
            return page
        from viz.page_catch import catch_tab

        with gradio.Tabs(selected="catch" if player else "pictures"):
            with gradio.Tab("Pictures", id="pictures"):
                picture_tab(files)
            with gradio.Tab("Catch", id="catch"):
                catch_tab(open_once(player or str(PLAYER)))
    return page


def picture_tab(files: dict[str, str]):
    """Draw or drop a picture, press Look, and see the glimpses."""
    import gradio

    script = "".join((HERE / name).read_text() for name in ("page_draw.js", "page_glimpses.js"))

    seen = gradio.State()  # of this visitor: the picture that was looked at last
    gradio.Markdown("# Where does the model look?\nDraw a digit, or drop a picture. Then press **Look**.")
    with gradio.Row():
        with gradio.Column(min_width=300):
            pad = gradio.HTML(
                "", html_template=PAD, js_on_load=(HERE / "page_pad.js").read_text(), elem_id="pad", padding=False
            )
            first = next(iter(files))
            model = gradio.Dropdown(list(files), value=first, label="Model", elem_id="model")
            clutter = gradio.Slider(0, MOST_CLUTTER, step=1, elem_id="clutter", **clutter_of(files[first]))
            with gradio.Row():
                start = gradio.Button("Look", variant="primary", elem_id="look")
                again = gradio.Button("Begin elsewhere", elem_id="elsewhere")
        with gradio.Column(min_width=300, scale=2):
            shown = gradio.HTML(
                None, html_template=GLIMPSES, js_on_load=script, elem_id="glimpses", elem_classes="shown"
            )

    def look(drawn: str, name: str, pieces: int):
        try:
            picture = see(drawn, open_once(files[name]), int(pieces))
        except InputError as error:
            return {"error": f"The picture {error}.", "call": next(CALLS)}, None
        return answer(open_once(files[name]), picture), (name, picture)

    def look_again(drawn: str, name: str, pieces: int, before: tuple | None):  # of a name, and what was seen
        """The picture that was looked at last, clutter and all, or a new one for another model."""
        result, before = (None, before) if before and before[0] == name else look(drawn, name, pieces)
        if before is None:
            return result, None
        elsewhere = (random.uniform(-1, 1), random.uniform(-1, 1))
        return answer(open_once(files[name]), before[1], elsewhere), before

    # Without a queue an answer takes one request.
    start.click(look, [pad, model, clutter], [shown, seen], queue=False, show_progress="hidden")
    again.click(look_again, [pad, model, clutter, seen], [shown, seen], queue=False, show_progress="hidden")
    model.change(
        lambda name: gradio.Slider(**clutter_of(files[name])), model, clutter, queue=False, show_progress="hidden"
    )


PAD = """<canvas width="480" height="480" tabindex="0" aria-label="Draw here, or drop a picture"></canvas>
<p class="tools"><button type="button" class="clear">Clear</button>
<label>Pen <input type="range" class="pen" min="8" max="80" value="36"></label>
<label class="file">Open a picture<input type="file" accept="image/*"></label></p>
<p role="alert" class="trouble"></p>"""

GLIMPSES = """<p class="result" role="status">Nothing was looked at yet.</p>
<div class="stage"><svg class="scene" role="img"></svg><div class="side"><div class="patches"></div>
<div class="bars"></div></div></div>
<p class="steps"><button type="button" class="play">Play</button>
<input type="range" class="at" min="1" max="1" value="1" aria-label="glimpse"><output></output></p>
<p class="notes"></p>"""


def model_files(checkpoint: str) -> dict[str, str]:
    """The models to choose among, the one that was asked for first: names and files."""
    shipped = {path.stem: str(path) for path in sorted(SHIPPED.glob("*.pt")) if path.name != PLAYER.name}
    same = [name for name, path in shipped.items() if Path(path).resolve() == Path(checkpoint).resolve()]
    name = same[0] if same else checkpoint
    return {name: checkpoint, **{other: path for other, path in shipped.items() if other != name}}


@functools.lru_cache(maxsize=16)
def open_once(path: str) -> "Trained":
    from viz.record import open_model

    return open_model(path)


def clutter_of(path: str) -> dict[str, Any]:
    """How the slider of the clutter stands for a model: it needs a canvas to put clutter on."""
    has_canvas = bool(open_once(path).config.data.canvas_size)
    label = "Pieces of clutter" if has_canvas else "Pieces of clutter: only models of a canvas have room"
    return {"label": label, "value": 0, "interactive": has_canvas}


def see(drawn: str, trained: "Trained", pieces: int) -> "Seen":
    """A picture as the model receives it, with pieces of clutter if there is a canvas for them.

    Clutter is cut from the digit itself, turned four ways: there may be no other images at hand.

    Args:
        drawn: a data URL, as the page sends it.
    Raises:
        InputError: it is empty, no picture, or too large.
    """
    import torch

    from images.canvas import draw_canvases
    from images.one_image import MNIST, fit_picture, read_picture
    from viz.own_images import kind_of

    if not drawn:
        raise InputError("is empty: draw a digit first")
    if len(drawn) > LARGEST_DRAWING:
        raise InputError("is too large: choose a smaller one")
    try:
        content = base64.b64decode(str(drawn).partition(",")[2], validate=True)
    except binascii.Error as error:
        raise InputError("did not arrive whole: try again") from error
    kind = kind_of(trained.config, trained.spec)
    picture = read_picture(content)
    seen = fit_picture(picture, kind)
    if pieces < 1 or not kind.canvas:
        return seen
    digit = fit_picture(picture, MNIST._replace(channels=kind.channels), "ink").image
    turned = torch.stack([digit.rot90(quarter, (1, 2)) for quarter in range(4)])
    pieces = min(pieces, MOST_CLUTTER)
    empty = torch.zeros_like(turned[:1])
    scattered = draw_canvases(empty, turned, size=kind.size[0], num_clutter=pieces).images[0]
    together = (seen.image.int() + scattered.int()).clamp(max=255).to(torch.uint8)
    return seen._replace(image=together, notes=[*seen.notes, f"{pieces} pieces of clutter added"])


def answer(trained: "Trained", seen: "Seen", first_location: tuple[float, float] | None = None) -> dict[str, Any]:
    """What page_glimpses.js shows."""
    from viz.own_images import look_at

    return {**described(look_at(trained, [seen], first_location), seen.notes), "call": next(CALLS)}


def described(glimpses: "Glimpses", notes: list[str]) -> dict[str, Any]:
    """The glimpses of one image as the browser needs them: pictures as data URLs, places in pixels."""
    from viz.files import data_url

    height, width = glimpses.images.shape[-2:]
    boxes = glimpses.boxes()[0]
    centres = (glimpses.locations[0] + 1) / 2 * (width, height)
    return {
        "image": data_url(glimpses.images[0]),
        "width": width,
        "height": height,
        "beyond": [round(255 * float(level)) for level in glimpses.outside],
        "classes": glimpses.classes.tolist(),
        "notes": ", ".join(notes),
        "steps": [
            {
                "centre": [round(float(value), 2) for value in centres[t]],
                "boxes": boxes[t].tolist(),
                "patches": [data_url(patch) for patch in glimpses.patches[0, t]],
                "probabilities": [round(float(value), 4) for value in glimpses.probabilities[0, t]],
            }
            for t in range(len(boxes))
        ],
    }


if __name__ == "__main__":
    run_command(main, PageConfig, prog="viz.page")
