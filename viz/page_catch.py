"""The page's tab of Catch: a model plays, and a person against it.

    python -m viz.page --checkpoint=models/catch.pt

The server sends a whole game at once, as the model plays it: its play does not depend on the person's, whose paddle
page_catch.js moves. No visitor's state is kept here.
"""

import html
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from games.batches import rules_of
from games.catch import ACTIONS, Rules, draw_games
from model import draw_first_locations
from training.fixed_policies import fixed_locations
from viz.files import data_url
from viz.games import watch
from viz.record import Trained, patch_boxes

HERE = Path(__file__).parent
# The two of docs/catch.md.
PLAYED = ({"ball_speed": 1.0, "paddle_start": "random"}, {"ball_speed": 0.333, "paddle_start": "middle"})

INTRODUCTION = """# Catch: play against the model
Catch the ball with the paddle: the left and right arrow keys move it, or A and D.
You see the whole screen; the model sees the patches of one glimpse a frame."""

TEMPLATE = """<p class="tools"><button type="button" class="play">Play</button>
<button type="button" class="watch">Watch</button><span class="score"></span></p>
<p class="result" role="status">Press Play, or the space bar.</p>
<div class="stage" tabindex="-1" role="application" aria-label="The game: left and right arrow keys move your paddle">
<figure class="mine"><figcaption>You <span class="end"></span></figcaption><svg class="scene" role="img"></svg>
<p class="touch"><button type="button" class="left" aria-label="move left">&#8592;</button>
<button type="button" class="right" aria-label="move right">&#8594;</button></p></figure>
<figure class="model"><figcaption>The model <span class="end"></span></figcaption>
<svg class="scene" role="img"></svg></figure>
<div class="side"><p>What the model sees, and does:</p><div class="patches"></div><div class="bars"></div>
<p class="expects"></p></div></div>
<p class="steps"><button type="button" class="pause">Pause</button>
<input type="range" class="at" min="1" max="1" value="1" aria-label="frame"><output class="count"></output></p>
<p class="tools"><label>Rules <select class="rules">OPTIONS</select></label>
<label>Speed <input type="range" class="speed" min="2" max="15" value="6">
<output class="pace">6 frames a second</output></label>
<button type="button" class="reset">Reset the score</button></p>"""


def catch_tab(trained: Trained):
    """Press Play, and catch the ball; or Watch, and go back and forth in what the model does.

    Args:
        trained: a model of the game.
    """
    import gradio

    choices = rules_to_choose(rules_of(trained.config.data))

    def new_game(name: str) -> dict[str, Any]:
        return play_game(trained, choices[name], random.getrandbits(32))

    options = "".join(f"<option>{html.escape(name)}</option>" for name in choices)
    script = "".join((HERE / name).read_text() for name in ("page_draw.js", "page_catch.js"))
    gradio.Markdown(INTRODUCTION)
    gradio.HTML(
        None,
        html_template=TEMPLATE.replace("OPTIONS", options),
        js_on_load=script,
        elem_id="catch",
        elem_classes="shown",
        server_functions=[new_game],
    )


def rules_to_choose(own: Rules) -> dict[str, Rules]:
    """By their description, the rules that a model learned, then others for a screen and a paddle of the same size."""
    starts = {"random": "anywhere", "middle": "centred"}
    return {
        f"drift up to {rules.ball_speed:.3g} px, paddle {starts[rules.paddle_start]}": rules
        for rules in (own, *(own._replace(**others) for others in PLAYED))
    }


def play_game(trained: Trained, rules: Rules, seed: int) -> dict[str, Any]:
    """A game as page_catch.js shows it, in pixels: where ball and paddle are in each frame, and what the model sees,
    expects and does.

    Args:
        trained: a model of the game.
        seed: of the game, and of where the model looks if nothing is learned about it.
    """
    model, _, config = trained
    generator = torch.Generator().manual_seed(seed)
    games = draw_games(1, rules, generator)
    first_locations = draw_first_locations(model.first_location, 1, games.ball.device, generator)
    first_locations = fixed_locations(config, first_locations, torch.zeros(1, 2), generator)
    device = model.std.device
    played = watch(model, games.map(lambda tensor: tensor.to(device)), first_locations.to(device))
    frames = [games]
    for action in played.actions[0].tolist():
        frames.append(frames[-1].step(torch.tensor([action])))
    size, (num_patches, _, patch_size, _) = rules.grid_size, played.patches.shape[2:]
    boxes = patch_boxes(played.locations[0], (size, size), patch_size, num_patches, played.glimpse_scale)
    centres = (played.locations[0].astype(float) + 1) / 2 * size
    probabilities = played.probabilities[0].astype(float)
    return {
        "size": size,
        "width": rules.paddle_size,
        "beyond": np.round(255 * played.outside).tolist(),
        "balls": [[frame.column.item(), frame.row.item()] for frame in frames],
        "paddles": [frame.paddle.item() for frame in frames],
        "caught": bool(played.caught[0]),
        "actions": ACTIONS,
        "steps": [
            {
                "centre": centres[t].round(2).tolist(),
                "boxes": boxes[t].tolist(),
                "patches": [data_url(patch) for patch in played.patches[0, t]],
                "probabilities": probabilities[t].round(4).tolist(),
                "action": int(played.actions[0, t]),
                "value": round(float(played.values[0, t]), 2) + 0.0,  # no minus before a zero
            }
            for t in range(rules.num_steps)
        ],
    }
