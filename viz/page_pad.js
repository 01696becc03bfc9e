// Where one draws: what is drawn, or a picture that was opened or dropped, is the component's value, a data URL.
const canvas = element.querySelector("canvas"), pen = element.querySelector(".pen");
const file = element.querySelector("input[type=file]"), trouble = element.querySelector(".trouble");
const ink = canvas.getContext("2d", { willReadFrequently: true });
const SIDE = 480; // pixels: of an empty sheet, and of the longer side of a picture

function clear() {
  canvas.width = canvas.height = SIDE;
  ink.fillStyle = "white";
  ink.fillRect(0, 0, SIDE, SIDE);
  trouble.textContent = "";
  props.value = "";
}

// Where the pointer is, in the canvas's own pixels.
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
}

let last = null;
function draw(event) {
  const [x, y] = place(event);
  ink.strokeStyle = "black";
  ink.lineCap = ink.lineJoin = "round";
  ink.lineWidth = pen.value * Math.max(canvas.width, canvas.height) / 640;
  ink.beginPath();
  ink.moveTo(...(last || [x, y]));
  ink.lineTo(x + 0.01, y);
  ink.stroke();
  last = [x, y];
}

canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); draw(event); });
canvas.addEventListener("pointermove", (event) => { if (last) draw(event); });
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, () => { if (last) props.value = canvas.toDataURL(); last = null; });

async function open(picture) {
  if (!picture) return;
  try {
    const image = await createImageBitmap(picture);
    const ratio = Math.min(1, SIDE / Math.max(image.width, image.height));
    canvas.width = Math.max(1, Math.round(image.width * ratio));
    canvas.height = Math.max(1, Math.round(image.height * ratio));
    ink.imageSmoothingQuality = "high";
    ink.drawImage(image, 0, 0, canvas.width, canvas.height);
    trouble.textContent = "";
    props.value = canvas.toDataURL();
  } catch (error) {
    clear();
    trouble.textContent = `${picture.name} cannot be shown as a picture: choose a PNG or a JPEG.`;
  }
}

file.addEventListener("change", () => { open(file.files[0]); file.value = ""; });
element.querySelector(".clear").addEventListener("click", clear);
canvas.addEventListener("dragover", (event) => event.preventDefault());
canvas.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files[0]); });
clear();
