// What scorers saw, drawn onto the image. Details are told apart by their shape, not by the
// scorer's name, which the config may choose freely (as in reward_server/commands/explain.py).

import { h, svg } from "./dom.js";

// Everything is drawn in a space this wide, whatever the image's size in pixels.
const WIDTH = 1000;
const FONT = "system-ui, sans-serif";
const pen = document.createElement("canvas").getContext("2d");

/** The outlines of one frame: [{corners: [[x, y], ...], label, kind}], in pixels of the image. */
export function marks(details, frame = 0) {
  const objects = frame === 0 ? details.objects ?? [] : [];
  const lines = details.frames
    ? details.frames.find((entry) => entry.frame === frame)?.lines ?? []
    : frame === 0 ? details.lines ?? [] : [];
  return [...objects.map(objectMark), ...lines.map(lineMark)];
}

function objectMark(object) {
  const [x0, y0, x1, y1] = object.box;
  const counted = object.counted !== false;
  return { corners: [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], label: objectLabel(object),
    kind: counted ? "counted" : "uncounted" };
}

export function objectLabel({ class: name, color, score, leaning }) {
  const leans = !color && leaning ? ` (leans to ${leaning[0]})` : "";
  return `${color ? `${color} ` : ""}${name} ${score.toFixed(2)}${leans}`;
}

const lineMark = (line) => ({ corners: line.box, label: `${line.text} ${line.score.toFixed(2)}`,
  kind: "text" });

/** The image with its marks above it; `marks` may be drawn only once its size is known. */
export function picture(url, name, outlines) {
  const image = h("img", { src: url, alt: name, draggable: "false" });
  const figure = h("div", { class: "picture" }, image);
  image.addEventListener("load", () => {
    if (image.naturalWidth < 256) image.classList.add("pixels");
    // No taller than the window, whatever the image's shape.
    figure.style.maxWidth = `calc(85vh * ${image.naturalWidth / image.naturalHeight})`;
    figure.append(overlay(outlines, image.naturalWidth, image.naturalHeight));
  }, { once: true });
  image.addEventListener("error", () => {
    figure.classList.add("broken");
    figure.append(h("p", { class: "hint" }, "The browser cannot show this file."));
  }, { once: true });
  return figure;
}

function overlay(outlines, widthPx, heightPx) {
  const scale = WIDTH / widthPx;
  const height = heightPx * scale;
  const layer = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "marks", "aria-hidden": "true" });
  const placed = outlines.map((mark) =>
    ({ ...mark, corners: mark.corners.map(([x, y]) => [x * scale, y * scale]) }));
  const font = Math.max(30, Math.min(44, height / 12));
  for (const { corners, kind } of placed) {
    const points = corners.map((corner) => corner.join(",")).join(" ");
    layer.append(svg("polygon", { points, class: "rim" }), svg("polygon", { points, class: kind }));
  }
  const taken = [];
  // After all outlines, so that none crosses a tag.
  for (const { corners, kind, label } of placed) {
    const text = label.length > 34 ? `${label.slice(0, 26)}… ${label.split(" ").at(-1)}` : label;
    pen.font = `600 ${font}px ${FONT}`;
    const box = freePlace(corners, pen.measureText(text).width + font * 0.7, font * 1.35, height, taken);
    taken.push(box);
    layer.append(svg("g", { class: `tag ${kind}` },
      svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: font / 6 }),
      svg("text", { x: box.x + font * 0.35, y: box.y + font, "font-size": font, "font-family": FONT }, text)));
  }
  return layer;
}

/** Above the outline, or the next free line below it; always inside the image. */
function freePlace(corners, width, height, limit, taken) {
  const left = Math.min(...corners.map(([x]) => x));
  const top = Math.min(...corners.map(([, y]) => y)) - height;
  const x = Math.max(0, Math.min(left, WIDTH - width));
  const wanted = Math.max(0, Math.min(top, limit - height));
  for (let y = wanted; y + height <= limit; y += height) {
    const free = !taken.some((box) => x < box.x + box.width && box.x < x + width
      && y < box.y + box.height && box.y < y + height);
    if (free) return { x, y, width, height };
  }
  return { x, y: wanted, width, height };
}
