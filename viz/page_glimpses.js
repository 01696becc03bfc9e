// Shows what viz/page.py's `described` returned, one glimpse after the other; the slider goes back and forth.
const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7"]; // of the boxes, from the finest patch to the coarsest
const WAIT = 700; // milliseconds for which a glimpse stays
const find = (name) => element.querySelector(name);
const at = find(".at"), play = find(".play");
let timer = 0;

function add(parent, name, attributes, text) {
  const space = parent.namespaceURI;
  const child = parent.appendChild(space.endsWith("svg") ? document.createElementNS(space, name) : document.createElement(name));
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== undefined) child.textContent = text;
  return child;
}

function draw() {
  const { value } = props, step = at.value - 1, { boxes, patches, probabilities } = value.steps[step];
  const best = probabilities.indexOf(Math.max(...probabilities)), isLast = step === value.steps.length - 1;
  const percent = (number) => `${(100 * number).toFixed(0)} %`;
  find(".result").textContent = `${isLast ? "It says" : "So far"} ${value.classes[best]}, ${percent(probabilities[best])}`;
  find("output").textContent = `${step + 1} / ${value.steps.length}`;

  const scene = find(".scene"), line = value.width / 160, around = value.width / 8;
  scene.replaceChildren();
  scene.setAttribute("viewBox", [-around, -around, value.width + 2 * around, value.height + 2 * around].join(" "));
  scene.setAttribute("aria-label", `glimpse ${step + 1}, in pixels at ${value.steps[step].centre.join(", ")}`);
  const grey = value.beyond.length === 3 ? value.beyond : Array(3).fill(value.beyond[0]);
  add(scene, "rect", { x: -around, y: -around, width: "200%", height: "200%", fill: `rgb(${grey})` });
  add(scene, "image", { href: value.image, width: value.width, height: value.height });
  const frame = { x: 0, y: 0, width: value.width, height: value.height, fill: "none", stroke: "#777", "stroke-width": line / 2 };
  add(scene, "rect", frame);
  const path = value.steps.slice(0, step + 1).map(({ centre }) => centre.join(",")).join(" ");
  for (const [stroke, width] of [["black", 2.6 * line], ["white", line]]) {
    add(scene, "polyline", { points: path, fill: "none", stroke, "stroke-width": width, "stroke-linejoin": "round" });
    for (const { centre } of value.steps.slice(0, step + 1))
      add(scene, "circle", { cx: centre[0], cy: centre[1], r: line + width / 2, fill: stroke });
  }
  boxes.forEach(([x, y, size], k) => add(scene, "rect", {
    x, y, width: size, height: size, fill: "none", stroke: COLOURS[k % COLOURS.length], "stroke-width": 1.6 * line,
  }));

  find(".patches").replaceChildren();
  patches.forEach((source, k) => add(find(".patches"), "img", {
    src: source, alt: `patch ${k + 1}`, style: `border-color: ${COLOURS[k % COLOURS.length]}`,
  }));
  find(".bars").replaceChildren();
  probabilities.forEach((probability, k) => {
    const row = add(find(".bars"), "div", { class: k === best ? "bar best" : "bar" });
    add(row, "span", {}, value.classes[k]);
    add(add(row, "span", { class: "track" }), "span", { style: `width: ${100 * probability}%` });
    add(row, "span", { class: "number" }, percent(probability));
  });
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
