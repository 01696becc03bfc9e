// Shows what viz/page.py's `described` returned, one glimpse after the other; the slider goes back and forth.
const WAIT = 700; // milliseconds for which a glimpse stays
const at = find(".at"), play = find(".play");
let timer = 0;

function draw() {
  const { value } = props, step = at.value - 1, { patches, probabilities, centre } = value.steps[step];
  const best = probabilities.indexOf(Math.max(...probabilities)), isLast = step === value.steps.length - 1;
  find(".result").textContent = `${isLast ? "It says" : "So far"} ${value.classes[best]}, ${percent(probabilities[best])}`;
  find("output").textContent = `${step + 1} / ${value.steps.length}`;

  const scene = find(".scene"), { width, height } = value;
  prepare(scene, width, height, value.beyond);
  scene.setAttribute("aria-label", `glimpse ${step + 1}, in pixels at ${centre.join(", ")}`);
  add(scene, "image", { href: value.image, width, height });
  drawBorder(scene, width, height);
  drawGaze(scene, width, value.steps.slice(0, step + 1));
  drawPatches(find(".patches"), patches);
  drawBars(find(".bars"), value.classes, probabilities, best);
}

function stop() { clearTimeout(timer); timer = 0; play.textContent = "Play"; }
function next() {
  if (+at.value === +at.max) return stop();
  at.value = +at.value + 1;
  draw();
  timer = setTimeout(next, WAIT);
}
function start() {
  if (+at.value === +at.max) { at.value = 1; draw(); }
  play.textContent = "Stop";
  timer = setTimeout(next, WAIT);
}

function show() {
  const { value } = props;
  stop();
  element.classList.toggle("filled", Boolean(value && value.steps));
  if (!value) return;
  find(".notes").textContent = value.notes || "";
  if (value.error) { find(".result").textContent = value.error; return; }
  at.max = value.steps.length;
  at.value = 1;
  draw();
  start();
  if (innerWidth < 700) element.scrollIntoView({ behavior: "smooth" }); // on a phone it is below what was pressed
}

at.addEventListener("input", () => { stop(); draw(); });
play.addEventListener("click", () => (timer ? stop() : props.value && props.value.steps && start()));
watch("value", show);
