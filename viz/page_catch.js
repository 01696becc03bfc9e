// The game of Catch: shows what viz/page_catch.py's `new_game` returned, frame by frame. The person's paddle is moved here.
const stage = find(".stage"), at = find(".at"), speed = find(".speed"), pause = find(".pause");
const FIRST = 900; // milliseconds for which the first frame stays, at least
const RECENT = 4; // glimpses whose path is drawn
const KEYS = { ArrowLeft: -1, a: -1, A: -1, ArrowRight: 1, d: 1, D: 1 };
let game = null, calls = 0, timer = 0;
let mine = null; // the column of the person's paddle in each frame so far; null: the model plays alone
let held = [], tapped = 0; // directions that are pressed now, the latest last, and what was pressed since the last frame
let score; // games of the person against the model, and the balls that each of them caught

const isPlaying = () => Boolean(mine) && mine.length < game.balls.length;
function say(sentence) {
  if (find(".result").textContent !== sentence) find(".result").textContent = sentence; // or it is read aloud again
}

function drawScreen(name, paddle, frame) {
  const scene = find(`.${name} .scene`), { size, width } = game, [column, row] = game.balls[frame];
  prepare(scene, size, size, game.beyond);
  scene.setAttribute("aria-label", `ball in column ${column + 1}, row ${row + 1}; paddle from column ${paddle + 1}`);
  add(scene, "rect", { x: 0, y: 0, width: size, height: size, fill: "black" });
  add(scene, "rect", { x: paddle, y: size - 1, width, height: 1, fill: "white" });
  add(scene, "rect", { x: column, y: row, width: 1, height: 1, fill: "white", stroke: "black", "stroke-width": 0.1 });
  drawBorder(scene, size, size);
  return scene;
}

function showEnd(name, caught) {
  find(`.${name} .end`).textContent = caught === undefined ? "" : caught ? "caught ✓" : "missed ✗";
  find(`.${name} .end`).classList.toggle("lost", caught === false);
}

const iCaught = () => game.balls.at(-1)[0] - mine.at(-1) >= 0 && game.balls.at(-1)[0] - mine.at(-1) < game.width;

function draw() {
  const frame = at.value - 1, ended = frame === game.steps.length, step = game.steps[Math.min(frame, game.steps.length - 1)];
  find(".count").textContent = `${frame + 1} / ${game.balls.length}`;
  if (mine) drawScreen("mine", mine[frame], frame);
  const scene = drawScreen("model", game.paddles[frame], frame);
  if (!ended) drawGaze(scene, game.size, game.steps.slice(Math.max(frame + 1 - RECENT, 0), frame + 1));
  drawPatches(find(".patches"), step.patches);
  drawBars(find(".bars"), game.actions, step.probabilities, step.action);
  find(".expects").textContent = `It expects a reward of ${step.value.toFixed(2)}.`;
  showEnd("mine", ended && mine ? iCaught() : undefined);
  showEnd("model", ended ? game.caught : undefined);
  const verb = (caught) => (caught ? "caught" : "missed");
  if (!ended) say(mine ? "Catch the ball." : "The model plays.");
  else if (!mine) say(`The model ${verb(game.caught)} it.`);
  else if (iCaught() === game.caught) say(`You both ${verb(game.caught)} it.`);
  else say(`You ${verb(iCaught())} it, the model ${verb(game.caught)} it.`);
  pause.textContent = timer ? "Pause" : ended ? "Again" : "Continue";
  pause.disabled = at.disabled = isPlaying();
}

function count(games, mine, model) {
  score = { games, mine, model };
  find(".score").textContent = `Caught of ${games} ${games === 1 ? "game" : "games"}: you ${mine}, the model ${model}`;
}

function run() {
  const wait = 1000 / speed.value;
  timer = setTimeout(next, at.value === "1" ? Math.max(wait, FIRST) : wait);
}
function stop() { clearTimeout(timer); timer = 0; }
function next() {
  const playing = isPlaying();
  if (playing) mine.push(Math.min(Math.max(mine.at(-1) + (tapped || held.at(-1) || 0), 0), game.size - game.width));
  tapped = 0;
  at.value = +at.value + 1;
  stop();
  if (at.value !== at.max) run();
  else if (playing) count(score.games + 1, score.mine + iCaught(), score.model + game.caught);
  draw();
}

async function begin(plays) {
  stop();
  const call = ++calls, received = await server.new_game(find(".rules").value);
  if (call !== calls) return;
  if (!received) return say("The server sent no game: does it still run?");
  game = received;
  mine = plays ? [game.paddles[0]] : null;
  held = [];
  tapped = 0;
  at.max = game.balls.length;
  at.value = 1;
  element.classList.add("filled");
  element.classList.toggle("alone", !plays);
  run();
  draw();
  (plays ? stage : at).focus({ preventScroll: true }); // a key that plays, or goes back and forth, must not press a button
  if (innerWidth < 700) element.scrollIntoView({ behavior: "smooth" }); // on a phone both screens have room
}

function press(direction) {
  if (!held.includes(direction)) { held.push(direction); tapped = direction; }
}
function release(direction) { held = held.filter((other) => other !== direction); }

document.addEventListener("keydown", (event) => {
  if (!element.offsetParent || event.ctrlKey || event.altKey || event.metaKey) return; // another tab, or the browser's own
  const playing = game && isPlaying();
  const typing = event.target.closest("button:not([role=tab]), select, textarea, a, input:not([type=range])");
  if (playing && event.key in KEYS) press(KEYS[event.key]);
  else if (event.key === " " && !typing && !event.repeat && !timer) begin(true);
  if (playing ? /^(Arrow| )/.test(event.key) : event.key === " " && !typing) event.preventDefault(); // it would scroll
});
document.addEventListener("keyup", ({ key }) => { if (key in KEYS) release(KEYS[key]); });
addEventListener("blur", () => { held = []; });
for (const [name, direction] of [[".left", -1], [".right", 1]]) {
  const button = find(name);
  button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); press(direction); });
  for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => release(direction));
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
}

find(".play").addEventListener("click", () => begin(true));
find(".watch").addEventListener("click", () => begin(false));
at.addEventListener("input", () => { stop(); draw(); });
pause.addEventListener("click", () => {
  if (timer) stop();
  else {
    if (at.value === at.max) at.value = 1;
    run();
  }
  draw();
});
speed.addEventListener("input", () => { find(".pace").textContent = `${speed.value} frames a second`; });
find(".reset").addEventListener("click", () => count(0, 0, 0));
count(0, 0, 0);
