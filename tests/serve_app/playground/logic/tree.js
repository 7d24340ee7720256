import {describe, label, layout, LINE} from "../../../../serve_app/playground/page/tree.js";
import {dice, equal, ok, test} from "./check.js";

const STEP = {t0: 4, tokens: [1, 2, 3, 4, 5], parents: [-1, 0, 0, 2, 2], texts: ["a", "b", " c", "d", "e"], path: [0, 2, 4], emitted: [3, 5, 7], drafter: "token_recycling"};

test("the accepted path is the straight line on top", () => {
  const {nodes, edges, height} = layout(STEP, {id: 7, text: "own"});
  equal(nodes.map((one) => one.state), ["root", "rejected", "accepted", "rejected", "accepted", "own"]);
  equal(new Set([0, 2, 4, 5].map((i) => nodes[i].y)).size, 1);
  equal([nodes.length, edges.length], [6, 5]);
  ok(nodes[1].y > nodes[0].y && nodes[3].y > nodes[4].y);
  ok(height >= 3 * LINE);
});

test("a text that ends on a drafted token has no further node", () => {
  const {nodes} = layout({...STEP, path: [0, 2], emitted: [3, 5]}, {id: 5, text: "e"});
  equal(nodes.map((one) => one.state), ["root", "rejected", "accepted", "rejected", "own"]);
});

test("no two nodes of any tree overlap, and all lie inside", () => {
  const roll = dice(3);
  for (let round = 0; round < 60; round++) {
    const size = 1 + roll(97);
    const parents = [-1];
    for (let i = 1; i < size; i++) parents.push(round % 3 ? roll(i) : i - 1);
    const texts = parents.map((_, i) => "x".repeat(roll(20)) || null);
    const path = [0];
    for (let at = 0; ; ) {
      at = parents.indexOf(at, at + 1);
      if (at < 0 || roll(4) === 0) break;
      path.push(at);
    }
    const {nodes, width, height} = layout({tokens: parents.map((_, i) => i), parents, texts, path, emitted: path}, {id: 999, text: "own"});
    for (const one of nodes) {
      ok(one.x >= 0 && one.x + one.width <= width && one.y > 0 && one.y <= height, `outside in round ${round}`);
      for (const other of nodes)
        if (one !== other && one.y === other.y) ok(one.x + one.width <= other.x || other.x + other.width <= one.x, `overlap in round ${round}`);
    }
  }
});

test("labels", () => {
  equal([label(" a\n", 1), label(null, 7), label("token:4", 4), label("bytes:\\xf0", 2), label("x".repeat(30), 1)], ["␣a↵", "#7", "‹4›", "\\xf0", "x".repeat(13) + "…"]);
});

test("a step in a sentence", () => {
  equal(describe(STEP, {id: 7, text: "own"}), "token_recycling drafted 4 tokens, 2 accepted: “␣c” “e”, then the model's own “own”.");
  equal(describe({tokens: [1], parents: [-1], path: [0], emitted: [2]}, {id: 2, text: "z"}), "No draft: the model chose “z”.");
});
