import {curl, flow, literal, python, quoted, yaml} from "../../../../serve_app/playground/page/copy.js";
import {initial} from "../../../../serve_app/playground/page/settings.js";
import {equal, ok, test} from "./check.js";

function settings(more = {}) {
  const out = {...initial(), prompt: "it's $HOME", decoding: {max_tokens: 8, seed: 7, stop: ["\n"]}, ...more};
  out.sides[0] = {model: "m", methods: {samplers: [{name: "temperature", value: 0.8}], drafters: [{name: "auto"}]}};
  return out;
}

test("curl: nothing that the shell would read", () => {
  const text = curl(settings(), 0, "http://h/", true);
  ok(text.includes("'http://h/v1/chat/completions'") && text.includes("it'\\''s $HOME"), text);
  ok(text.includes('"Authorization: Bearer $RAYDECODE_API_KEY"'), text);
  ok(!curl(settings(), 0, "http://h/", false).includes("Authorization"));
  ok(!text.includes('"trace"'), "what the page alone needs is left out");
  equal(quoted("a'b"), `'a'\\''b'`);
});

test("python: literals of Python", () => {
  equal(literal({a: [true, null, 1.5, "x\n"]}), '{"a": [True, None, 1.5, "x\\n"]}');
  const text = python(settings(), 0, "http://h/", false);
  ok(text.includes('base_url="http://h/v1", api_key="none"') && text.includes("extra_body={") && text.includes(".delta.content"), text);
  const plain = python(settings({mode: "plain", noise_id: "r"}), 0, "http://h/", true);
  ok(plain.includes("client.completions.create(") && plain.includes('os.environ["RAYDECODE_API_KEY"]') && plain.includes('"noise_id": "r"'), plain);
});

test("yaml: a section of a job file", () => {
  equal([flow("none"), flow("null"), flow("a b"), flow(["\n"]), flow({name: "auto", p: 0.5})], ["none", '"null"', '"a b"', '["\\n"]', "{name: auto, p: 0.5}"]);
  equal(
    yaml(settings(), 0).split("\n").slice(1).join("\n"),
    `prompt: {template: "{{ prompt }}", chat: true}\ndecoding:\n  max_tokens: 8\n  seed: 7\n  stop: ["\\n"]\n  sampler:\n    - {name: temperature, value: 0.8}\n  drafter: {name: auto}\n`,
  );
});
