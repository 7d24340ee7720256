import {joined, skipped} from "../../../../serve_app/playground/page/requests.js";
import {openRows} from "../../../../serve_app/playground/page/row.js";
import {equal, ok, refused, test} from "./check.js";

const EXPLAINED = {
  id: "r1", sample: 0, noise_id: "r1", seed: 7, prompt: "hi", equal: true, text: "ab", finish_reason: "eos", first_difference: null,
  steps: [
    {t: 0, token: 0, text: "a", logp: -0.5, source: "sampled", kept_nats: 0, alternatives: [{token: 0, text: "a", logp: -0.5}]},
    {t: 1, token: 1, text: "b", logp: -1, source: "sampled", kept_nats: 0, alternatives: []},
  ],
};

test("explain's output, older and newer", () => {
  const [old] = openRows(JSON.stringify(EXPLAINED));
  equal([old.name, old.run.status, old.run.text, old.run.tokens.length, old.request], ["r1", "done", "ab", 2, null]);
  ok(old.run.notes[1].includes("draft trees"));
  const trace = {
    tokens: EXPLAINED.steps.map((one) => ({t: one.t, id: one.token, text: one.text, bytes: [97 + one.t], logp: one.logp, source: "sampled", top: []})),
    steps: [{t0: 0, tokens: [3, 0], parents: [-1, 0], texts: ["x", "a"], path: [0, 1], emitted: [0, 1], drafter: "ngram"}],
  };
  const [row] = openRows(JSON.stringify({...EXPLAINED, trace, decoding: {seed: 7, sampler: [], drafter: null}}));
  equal(row.run.tokens.map((one) => one.drafter), ["ngram", null]);
  equal([row.request.prompt, row.request.noise_id, row.request.mode], ["hi", "r1", "plain"]);
});

test("stored answers, one or a line each", () => {
  const chat = {object: "chat.completion", id: "c", choices: [{index: 0, finish_reason: "stop", message: {content: "ab"}, logprobs: {content: [{token: "ab", bytes: [97, 98], logprob: -1, top_logprobs: [{token: "x", logprob: -2}]}]}}]};
  const plain = {id: "p", choices: [{index: 1, finish_reason: "length", text: "a", logprobs: {tokens: ["a"], token_logprobs: [-1], top_logprobs: [{a: -1}]}}]};
  equal(openRows(JSON.stringify(chat))[0].run.tokens[0].top[0].text, "x");
  const lines = [chat, plain].map((body, i) => JSON.stringify({custom_id: `row-${i}`, response: {body}})).join("\n");
  const rows = openRows(lines + "\n");
  equal(rows.map((row) => row.name), ["row-0", "row-1, sample 1"]);
  const bare = openRows(JSON.stringify({id: "x", choices: [{index: 0, message: {content: "t"}}]}))[0];
  ok(bare.run.notes[0].includes("log-probabilities"));
});

test("files that hold no row say what would fit", async () => {
  await refused(() => openRows("{}", "a.json"), /a\.json holds no row.*raydecode explain/s);
  await refused(() => openRows('{"a": 1}\n{oops', "b"), /line 2/);
});

test("a batch's rows know what made them", () => {
  const body = {id: "c", choices: [{index: 0, message: {content: "ab"}}], raydecode: {noise_id: "n1"}};
  const rows = openRows(JSON.stringify({custom_id: "k", response: {body}}));
  const ask = (more) => JSON.stringify({custom_id: "k", body: {model: "m", messages: [{role: "user", content: "hi"}], seed: 3, temperature: 0.5, ...more}});
  const [row] = joined(rows, ask({}));
  equal(row.request, {mode: "chat", prompt: "hi", system: "", decoding: {sampler: [{name: "temperature", value: 0.5}], seed: 3}, noise_id: "n1", model: "m"});
  const broken = `{oops\n\nnull\n${ask({})}\n7\n[1]\n`;
  equal(joined(rows, broken)[0].request, row.request, "lines that are none keep nobody from theirs");
  ok(/4 lines .* line 1, 3, 5, 6\.$/.test(skipped(broken)), skipped(broken));
  ok(/a line .* line 1\.$/.test(skipped("{oops\n" + ask({}))));
  equal(skipped(ask({})), "");
  equal(joined(rows, ask({tools: []}))[0].request, null, "what the page cannot say is not run again");
  equal(joined(rows, "")[0].request, null);
  const models = [{id: "m", raydecode: {decoding: {max_tokens: 9, sampler: [{name: "greedy"}], drafter: null}}}];
  equal(joined(rows, ask({}), models)[0].request, null, "a chain over the server's own");
  const plain = joined(rows, ask({temperature: undefined}), models)[0].request.decoding;
  equal(plain, {sampler: [{name: "greedy"}], max_tokens: 9, drafter: null, seed: 3}, "the server's own where the request said nothing");
});
