// What the scripts of the tabs draw with: it stands before each of them.
const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7"]; // of the boxes, from the finest patch to the coarsest
const find = (name) => element.querySelector(name);
const percent = (number) => `${(100 * number).toFixed(0)} %`;

function add(parent, name, attributes, text) {
  const space = parent.namespaceURI;
  const child = parent.appendChild(space.endsWith("svg") ? document.createElementNS(space, name) : document.createElement(name));
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== undefined) child.textContent = text;
  return child;
}

// Empties a scene of so many pixels and gives it a margin, in which the retina reads `beyond`, 1 or 3 levels.
function prepare(scene, width, height, beyond) {
  const around = width / 8, grey = beyond.length === 3 ? beyond : Array(3).fill(beyond[0]);
  scene.replaceChildren();
  scene.setAttribute("viewBox", [-around, -around, width + 2 * around, height + 2 * around].join(" "));
  add(scene, "rect", { x: -around, y: -around, width: "200%", height: "200%", fill: `rgb(${grey})` });
}

function drawBorder(scene, width, height) {
  add(scene, "rect", { x: 0, y: 0, width, height, fill: "none", stroke: "#777", "stroke-width": width / 320 });
}

// The path of these glimpses over a scene of this width, and the boxes of the last.
function drawGaze(scene, width, glimpses) {
  const line = width / 160, path = glimpses.map(({ centre }) => centre.join(",")).join(" ");
  for (const [stroke, thick] of [["black", 2.6 * line], ["white", line]]) {
    add(scene, "polyline", { points: path, fill: "none", stroke, "stroke-width": thick, "stroke-linejoin": "round" });
    for (const { centre } of glimpses)
      add(scene, "circle", { cx: centre[0], cy: centre[1], r: line + thick / 2, fill: stroke });
  }
  glimpses.at(-1).boxes.forEach(([x, y, size], k) => add(scene, "rect", {
    x, y, width: size, height: size, fill: "none", stroke: COLOURS[k % COLOURS.length], "stroke-width": 1.6 * line,
  }));
}

function drawPatches(parent, patches) {
  parent.replaceChildren();
  patches.forEach((source, k) => add(parent, "img", {
    src: source, alt: `patch ${k + 1}`, style: `border-color: ${COLOURS[k % COLOURS.length]}`,
  }));
}

function drawBars(parent, names, probabilities, best) {
  parent.replaceChildren();
  probabilities.forEach((probability, k) => {
    const row = add(parent, "div", { class: k === best ? "bar best" : "bar" });
    add(row, "span", {}, names[k]);
    add(add(row, "span", { class: "track" }), "span", { style: `width: ${100 * probability}%` });
    add(row, "span", { class: "number" }, percent(probability));
  });
}
