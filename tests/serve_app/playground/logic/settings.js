import {decodingOf, fromFragment, initial, requestOf, settle, summary, toFragment} from "../../../../serve_app/playground/page/settings.js";
import {equal, ok, test} from "./check.js";

test("a link brings back all settings", () => {
  const settings = initial();
  settings.prompt = "Grüße, \u{1F989} \"quoted\" & <b>";
  settings.mode = "plain";
  settings.decoding = {max_tokens: 9, seed: 2 ** 52, stop: ["\n", "###"]};
  settings.sides[1] = {model: "a/b", methods: {samplers: [{name: "dry", breakers: [1, 2]}], drafters: [{name: "auto", among: ["ngram"]}]}};
  const fragment = toFragment(settings);
  ok(/^s1=[A-Za-z0-9_-]+$/.test(fragment), fragment);
  equal(fromFragment("#" + fragment), settings);
});

test("foreign links open as far as they are understood", () => {
  for (const wrong of ["", "#", "#row=1", "#s1=", "#s1=%%%", "#s1=AAAA", "#s2=e30"]) equal(fromFragment(wrong), null, wrong);
  equal(settle({mode: "loud", sides: [{model: 7}, "x"], decoding: {evil: 1, seed: 3}, extra: 1}), {...initial(), decoding: {seed: 3}, sides: [{model: "", methods: {}}, initial().sides[1]]});
  equal(settle(null), initial());
  equal(settle({sides: [{methods: {drafters: [{name: "a"}, {name: "b"}], samplers: "greedy", nonsense: [{name: "x"}]}}]}).sides[0].methods, {drafters: [{name: "a"}]});
});

test("a request says every method, also that there is none", () => {
  const settings = {...initial(), prompt: "hi", decoding: {max_tokens: 4, seed: 1}};
  settings.sides[0] = {model: "m", methods: {}};
  equal(decodingOf(settings, 0), {max_tokens: 4, seed: 1, sampler: [], drafter: "none"});
  settings.sides[0].methods = {drafters: [{name: "auto"}], monitors: [{name: "x"}], searches: [{name: "beam"}]};
  equal(decodingOf(settings, 0), {max_tokens: 4, seed: 1, sampler: [], drafter: {name: "auto"}, search: {name: "beam"}, monitors: [{name: "x"}]});
});

test("chat and plain bodies", () => {
  const settings = {...initial(), prompt: "hi", system: "be brief", noise_id: "r1", decoding: {}};
  settings.sides[0] = {model: "m", methods: {}};
  const decoding = {sampler: [], drafter: "none"};
  equal(requestOf(settings, 0), {
    path: "v1/chat/completions",
    body: {model: "m", messages: [{role: "system", content: "be brief"}, {role: "user", content: "hi"}], noise_id: "r1", stream: true, decoding},
  });
  const traced = requestOf({...settings, mode: "plain", noise_id: ""}, 0, {trace: true});
  equal(traced, {path: "v1/completions", body: {model: "m", prompt: "hi", stream: true, stream_options: {include_usage: true}, trace: true, decoding: {...decoding, logprobs: 5}}});
});

test("methods in a line", () => {
  equal(summary({}), "the model's own law, no drafter");
  equal(summary({samplers: [{name: "temperature", value: 0.8}, {name: "xtc", threshold: 0.1, probability: 0.5}], drafters: [{name: "ngram"}]}), "temperature 0.8 → xtc threshold 0.1 probability 0.5, drafted by ngram");
  equal(summary({drafters: [{name: "auto", among: []}]}), "the model's own law, drafted by auto");
  equal(summary({drafters: [{name: "auto", among: ["ngram", {name: "suffix", tokens: 4}]}]}), "the model's own law, drafted by auto among ngram, suffix 4");
});
