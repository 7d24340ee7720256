import {axes, bars, heat, indexAt, line, smoothed, ticks, WIDTH} from "../../../../serve_app/playground/page/plot.js";
import {equal, ok, test} from "./check.js";

test("ticks are round and inside", () => {
  equal([ticks(0, 10, 2), ticks(0, 1, 2), ticks(0, 0, 2)], [[0, 5, 10], [0, 0.5, 1], [0]]);
  for (let most = 0.01; most < 1e5; most *= 1.7) ok(ticks(0, most, 6).every((one) => one >= 0 && one <= most * 1.001) && ticks(0, most, 6).length < 14);
});

test("pointing finds the place that was drawn", () => {
  const scale = axes(50, 3);
  for (let i = 0; i < 50; i++) equal(indexAt(scale.x(i) + scale.step / 2, 50), i);
  equal([indexAt(0, 50), indexAt(WIDTH + 1, 50)], [null, null]);
});

test("lines break where nothing is known", () => {
  equal((line([1, 2, null, 3], axes(4, 3)).match(/M/g) ?? []).length, 2);
  equal((bars([0, 1, 2], axes(3, 2)).match(/Z/g) ?? []).length, 2);
  equal(smoothed([2, null, 4], 2), [2, 2, 4]);
});

test("colour grows with surprise and stays in its scale", () => {
  equal([heat(0), heat(6), heat(99), heat(null)], [0, 1, 1, 0]);
  ok(heat(1) < heat(2));
});
