"""Figures and frames as files: PNG, GIF, MP4, a page of HTML; images for a page.

save_picture(Path("glimpses.gif"), animation(glimpse_frames(glimpses), ".gif", fps=1.5))
"""

import base64
import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from training.checkpoint import write_whole
from training.cli import InputError, say

LAST_FRAMES = 3  # frames for which the last one stays
# A decorator of what draws: by matplotlib's own defaults, whatever the settings of the user are.
by_defaults = matplotlib.rc_context(
    {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
)


def save_picture(path: Path, content: bytes, quiet: bool = False) -> Path:
    """Writes a picture, whole or not at all, and prints its path unless it is to be quiet.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except InputError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise InputError(f"cannot write {path} ({reason}): choose another folder") from error
    if not quiet:
        say(f"[*] Picture in {path}")
    return path


@by_defaults
def to_image(figure: Figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())


@by_defaults
def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def data_url(image: np.ndarray) -> str:
    """An image (C, H, W), from 0 to 1, as a PNG in a URL."""
    pixels = (255 * image.clip(0, 1)).round().astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def animation(frames: Iterator[Image.Image], suffix: str, fps: float) -> bytes:
    """All frames as one file: .gif, .mp4, .html, or .png, a sheet."""
    drawn = list(frames)
    if suffix != ".png":
        return {".gif": gif, ".mp4": mp4, ".html": player}[suffix](drawn, fps)
    buffer = io.BytesIO()
    sheet(drawn).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sheet(frames: list[Image.Image]) -> Image.Image:
    """All frames, one below the other."""
    width, height = frames[0].size
    whole = Image.new("RGB", (width, height * len(frames)))
    for i, frame in enumerate(frames):
        whole.paste(frame, (0, i * height))
    return whole


def gif(frames: list[Image.Image], fps: float) -> bytes:
    """An endless animation; its frames share one palette, so that nothing flickers."""
    palette = sheet(frames).quantize(128, Image.Quantize.MAXCOVERAGE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 / fps)] * len(rest) + [round(LAST_FRAMES * 1000 / fps)]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def mp4(frames: list[Image.Image], fps: float) -> bytes:
    """The animation as a film.

    Raises:
        InputError: ffmpeg is not installed, or fails.
    """
    if not shutil.which("ffmpeg"):
        raise InputError("an MP4 needs ffmpeg, which is not installed: install it, or write a .gif")
    pictures = io.BytesIO()
    for frame in [*frames, *[frames[-1]] * (LAST_FRAMES - 1)]:
        frame.save(pictures, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        reading = ["-f", "image2pipe", "-c:v", "png", "-framerate", str(fps), "-i", "-"]
        even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]  # what every player plays
        command = ["ffmpeg", "-loglevel", "error", *reading, *even, str(film)]
        done = subprocess.run(command, input=pictures.getvalue(), capture_output=True)
        if done.returncode:
            raise InputError(f"ffmpeg failed ({done.stderr.decode(errors='replace').strip()}): write a .gif instead")
        return film.read_bytes()


# Matplotlib's own player loads its icons from a server; this one needs nothing but itself.
PLAYER = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Where the model looks</title>
<style>
  :root { color-scheme: light dark; font-family: system-ui, sans-serif }
  body { margin: 1rem auto; max-width: max(WIDTHpx, 20rem); padding: 0 .5rem }
  img { display: block; max-width: 100%; margin: auto; background: white }
  .row { display: flex; gap: .5rem; align-items: center }
  input { flex: 1; min-width: 0 } output { white-space: nowrap }
  button { min-width: 4.5rem; min-height: 2.2rem; font: inherit }
</style>
<img id="frame" alt="">
<div class="row"><button id="play"></button>
<input id="at" type="range" min="1" max="COUNT" value="1" aria-label="glimpse"><output id="of"></output></div>
<script>
  const frames = FRAMES, count = frames.length, show = id => document.getElementById(id);
  let timer = 0;
  function draw() {
    const at = +show("at").value;
    show("frame").src = "data:image/png;base64," + frames[at - 1];
    show("frame").alt = "glimpse " + at + " of " + count;
    show("of").value = at + " / " + count;
  }
  function stop() { clearTimeout(timer); timer = 0; show("play").textContent = "Play"; }
  function step() {
    const at = +show("at").value;
    show("at").value = at % count + 1;
    draw();
    timer = setTimeout(step, MILLISECONDS * (+show("at").value === count ? LAST : 1));
  }
  function play() { show("play").textContent = "Stop"; timer = setTimeout(step, MILLISECONDS); }
  show("play").onclick = () => timer ? stop() : play();
  show("at").oninput = () => { stop(); draw(); };
  draw();
  play();
</script></html>
"""


def player(frames: list[Image.Image], fps: float) -> bytes:
    """A page that plays the frames, in one file that loads nothing: a slider goes back and forth."""
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.quantize(255, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)  # a third of the bytes
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    values = {"FRAMES": str(encoded), "COUNT": str(len(frames)), "WIDTH": str(frames[0].width),
              "MILLISECONDS": str(round(1000 / fps)), "LAST": str(LAST_FRAMES)}  # fmt: skip
    page = PLAYER
    for name, value in values.items():
        page = page.replace(name, value)
    return page.encode()
