// Two drawings to try the scorers with, for people who have no image at hand.

const INK = "rgb(30, 30, 34)";

function canvas(side) {
  const element = document.createElement("canvas");
  element.width = element.height = side;
  const pen = element.getContext("2d");
  pen.fillStyle = "rgb(236, 232, 226)";
  pen.fillRect(0, 0, side, side);
  return [element, pen];
}

function star(pen, x, y, radius) {
  pen.beginPath();
  for (let k = 0; k < 10; k += 1) {
    const length = k % 2 ? 0.45 * radius : radius;
    const angle = -Math.PI / 2 + (Math.PI * k) / 5;
    pen.lineTo(x + length * Math.cos(angle), y + length * Math.sin(angle));
  }
  pen.fill();
}

function shapes() {
  const [element, pen] = canvas(128);
  pen.fillStyle = "rgb(222, 40, 40)";
  star(pen, 34, 44, 15);
  pen.fillStyle = "rgb(40, 95, 225)";
  pen.beginPath();
  pen.arc(92, 82, 14, 0, 2 * Math.PI);
  pen.fill();
  return element;
}

function sign() {
  const [element, pen] = canvas(384);
  pen.fillStyle = "rgb(196, 40, 40)";
  pen.fillRect(44, 124, 296, 136);
  pen.fillStyle = "rgb(250, 250, 248)";
  pen.font = "bold 88px 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText("STOP", 192, 196);
  pen.fillStyle = INK;
  pen.fillRect(186, 260, 12, 124);
  return element;
}

const EXAMPLES = {
  shapes: { draw: shapes, prompt: "a photo of a red star and a green circle",
    scorers: ["geneval", "shapes_quality", "jpeg"],
    row: { tag: "color_attr", include: [{ class: "star", count: 1, color: "red" }, { class: "circle", count: 1, color: "green" }] } },
  sign: { draw: sign, prompt: 'a red sign that says "STOP"', scorers: ["ocr", "jpeg"], row: null },
};

/** An example: {file, prompt, scorers, row}. */
export async function example(name) {
  const { draw, ...rest } = EXAMPLES[name];
  const blob = await new Promise((resolve) => draw().toBlob(resolve, "image/png"));
  return { ...rest, file: new File([blob], `${name}.png`, { type: "image/png" }) };
}
