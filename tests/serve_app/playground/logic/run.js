import {close, comparison, figures, firstDifference, freshRun, source, surprise, take} from "../../../../serve_app/playground/page/run.js";
import {equal, ok, test} from "./check.js";

const bytes = (text) => [...new TextEncoder().encode(text)];
const token = (t, text, more = {}) => ({t, id: text.length * 100 + (text.charCodeAt(0) || 0), text, bytes: bytes(text), logp: -1, source: "sampled", top: [], ...more});
const step = (t0, path, emitted, more = {}) => ({t0, tokens: [9, ...emitted], parents: [-1, ...emitted.map((_, i) => i)], path, emitted, drafter: "ngram", ...more});
const chunk = (content, tokens, steps, more = {}) => ({choices: [{delta: {content}}], raydecode: {tokens, steps}, ...more});

export function made(texts, status = "done") {
  const run = freshRun();
  take(run, chunk(texts.join(""), texts.map((text, t) => token(t, text)), []), 5);
  return close(run, status);
}

test("tokens, steps and times from chunks", () => {
  const run = freshRun();
  run.startedAt = 100;
  take(run, {choices: [{delta: {role: "assistant"}}]}, 110);
  equal([run.firstAt, run.status], [0, "idle"]);
  take(run, chunk("a", [token(0, "a")], [step(0, [0], [1], {tokens: [9], parents: [-1], drafter: null})]), 150);
  take(run, chunk("bcd", [token(1, "b"), token(2, "c"), token(3, "d")], [step(1, [0, 1, 2], [1, 2, 3])]), 200);
  take(run, {choices: [{delta: {}, finish_reason: "length"}], usage: {completion_tokens: 4}, raydecode: {noise_id: "n"}}, 210);
  equal([run.text, run.finish, run.usage.completion_tokens, run.facts], ["abcd", "length", 4, {noise_id: "n"}]);
  equal(run.tokens.map(source), ["model", "draft", "draft", "model"]);
  equal(run.tokens.map((one) => one.step), [0, 1, 1, 1]);
  const one = figures(run);
  equal([one.firstMs, one.rate, one.steps, one.perStep, one.drafted, one.surprise], [50, 60, 2, 2, 3, 1]);
  ok(Math.abs(one.acceptance - 2 / 3) < 1e-9);
});

test("a character of several tokens appears when it is whole", () => {
  const owl = bytes("\u{1F989}");
  const run = freshRun();
  const parts = [owl.slice(0, 2), owl.slice(2)].map((some, t) => ({...token(t, "?"), bytes: some, text: "bytes:"}));
  take(run, chunk("\u{1F989}", parts, []), 1);
  equal(run.tokens.map((one) => one.piece), ["", "\u{1F989}"]);
});

test("forced wins over drafted, a known chain has a name", () => {
  const run = freshRun();
  take(run, chunk("ab", [token(0, "a", {source: "forced"}), token(1, "b")], [step(0, [0, 1], [1, 2], {drafter: null})]), 1);
  equal(run.tokens.map(source), ["forced", "model"]);
  equal(run.tokens[0].drafter, "known");
});

test("what a stop string took back is marked", () => {
  const run = freshRun();
  take(run, {choices: [{text: "ab", finish_reason: "stop"}], raydecode: {tokens: ["a", "b", "#", "#"].map((text, t) => token(t, text))}}, 1);
  equal(close(run, "done").tokens.map((one) => one.cut), [false, false, true, true]);
  equal(close(made(["a", "b"]), "done").tokens.map((one) => one.cut), [false, false]);
});

test("an end of text is special, and surprise may be unknown", () => {
  const run = freshRun();
  take(run, chunk("", [{...token(0, ""), text: "token:4", bytes: [], logp: null}], []), 1);
  equal([run.tokens[0].special, surprise(run.tokens[0]), figures(run).surprise], [true, null, null]);
});

test("the first difference, while it runs and at the end", () => {
  const [a, b] = [made(["x", "y", "z"], "streaming"), made(["x", "y"], "streaming")];
  equal(firstDifference(a, b), null);
  equal(comparison(a, b), {state: "so far", at: null, tokens: 2});
  equal(firstDifference(a, close(b, "done")), {a: 2, b: 2}, "b ended, a went on");
  equal(comparison(made(["x", "q"]), made(["x", "y"])), {state: "differ", at: {a: 1, b: 1}, tokens: 1});
  equal(comparison(made(["x"]), made(["x"])).state, "identical");
  equal(comparison(made([]), made(["x"])).state, "none");
});

test("the token that ended a text is no difference", () => {
  const end = (run) => (run.tokens.push({...token(9, ""), bytes: [], special: true, piece: ""}), run);
  equal(comparison(end(made(["x", "y"])), made(["x", "y"])).state, "identical");
  equal(firstDifference(end(made(["x"])), made(["x", "y"])), {a: 1, b: 1});
});

test("texts of two vocabularies are compared by their signs", () => {
  equal(firstDifference(made(["ab", "c"]), made(["a", "bc"]), false), null);
  equal(firstDifference(made(["ab", "cd"]), made(["a", "b", "cx"]), false), {a: 1, b: 2});
  equal(comparison(made(["ab", "c"]), made(["a", "bc"]), false).state, "identical");
});
