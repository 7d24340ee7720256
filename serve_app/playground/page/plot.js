// Numbers to the geometry of small charts. Pure; colours come from the style sheet, so dark and light are one drawing.

export const WIDTH = 560;
export const HEIGHT = 96;
const LEFT = 30;
const RIGHT = 12;
const TOP = 6;
const BOTTOM = 16;

/** Round numbers, about `count` of them: 1, 2 or 5 times a power of ten. */
export function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((one) => one >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

/** Axes for `count` places from 0 and values up to `most`; whole: values are counts. */
export function axes(count, most, whole = false) {
  const width = WIDTH - LEFT - RIGHT;
  const high = most > 0 ? most : 1;
  return {
    x: (i) => LEFT + (i / Math.max(count, 1)) * width,
    y: (value) => HEIGHT - BOTTOM - (Math.min(value, high) / high) * (HEIGHT - BOTTOM - TOP),
    step: width / Math.max(count, 1),
    high,
    xTicks: ticks(0, Math.max(count, 1), 6).filter((one) => Number.isInteger(one)),
    yTicks: ticks(0, high, 3).filter((one) => !whole || Number.isInteger(one)),
  };
}

/** Place in the values -> their index, or null outside. x: in the drawing's own units. */
export function indexAt(x, count) {
  const i = Math.floor(((x - LEFT) / (WIDTH - LEFT - RIGHT)) * count);
  return i >= 0 && i < count ? i : null;
}

/** A path of one bar per value. */
export function bars(values, scale) {
  const width = Math.max(scale.step - (scale.step > 4 ? 1 : 0), 0.6);
  return values
    .map((value, i) => (value > 0 ? `M${round(scale.x(i))} ${round(scale.y(0))}V${round(scale.y(value))}h${round(width)}V${round(scale.y(0))}Z` : ""))
    .join("");
}

/** A line through the middle of each value's place, broken at nulls. */
export function line(values, scale) {
  let pen = "M";
  let out = "";
  values.forEach((value, i) => {
    if (value === null) return void (pen = "M");
    out += `${pen}${round(scale.x(i) + scale.step / 2)} ${round(scale.y(value))}`;
    pen = "L";
  });
  return out;
}

/** Means over windows of `size` values. */
export function smoothed(values, size) {
  return values.map((_, i) => {
    const some = values.slice(Math.max(0, i - size + 1), i + 1).filter((one) => one !== null);
    return some.length ? some.reduce((a, b) => a + b, 0) / some.length : null;
  });
}

/** Surprise as a share of the colour scale: 0 nats nothing, 6 nats (1 in 400) and more all of it. */
export function heat(nats) {
  return nats === null ? 0 : Math.min(Math.sqrt(nats / 6), 1);
}

function round(number) {
  return Math.round(number * 10) / 10;
}
