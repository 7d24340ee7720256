import {escaped, fieldsOf, freshCard, kindOf, rangeText, read, unescaped, write} from "../../../../serve_app/playground/page/schema.js";
import {equal, test} from "./check.js";

const DOLA = {
  anyOf: [{enum: ["low", "high"], type: "string"}, {items: {type: "integer"}, type: "array"}],
  default: "high",
  description: "bucket",
};

test("kinds of pydantic's schemas", () => {
  equal(kindOf({type: "number", exclusiveMinimum: 0, maximum: 1, description: "d"}).kind, "number");
  equal(kindOf({anyOf: [{type: "integer"}, {type: "null"}], default: null}), {fallback: null, description: "", examples: [], kind: "integer", range: {}, optional: true});
  equal(kindOf({$ref: "#/$defs/Mode"}, {Mode: {enum: ["a", "b"], type: "string"}}).choices, ["a", "b"]);
  equal(kindOf({const: "one"}).choices, ["one"]);
  equal(kindOf({type: "object", additionalProperties: {type: "number"}}).kind, "map");
  equal(kindOf({type: "object", properties: {}}).kind, "json");
  equal(kindOf({type: "array", items: {type: "string"}}).item.kind, "string");
  equal(kindOf(DOLA).variants.map((one) => one.kind), ["enum", "list"]);
});

test("an option that chooses among methods is cards", () => {
  const method = {room: "drafters", name: "auto", among: ["ngram"], options: {properties: {among: {type: "array", items: {}}}}};
  const [field] = fieldsOf(method);
  equal([field.kind, field.room, field.names], ["cards", "drafters", ["ngram"]]);
});

test("ranges in words", () => {
  const seen = (range) => rangeText(range).replaceAll("\u00a0", " ");
  equal(seen({exclusiveMinimum: 0, maximum: 1}), "0 < x ≤ 1");
  equal(seen({minimum: 1}), "≥ 1");
  equal(seen({exclusiveMaximum: 5}), "< 5");
  equal(seen({minimum: 1, maximum: 2 ** 26}), "1 ≤ x ≤ 2^26");
  equal(seen(), "");
});

test("what is typed becomes a value, and what cannot goes as it is", () => {
  const integer = {kind: "integer"};
  equal([read(integer, " 12 "), read(integer, "1.5"), read(integer, ""), read(integer, "9007199254740993")], [12, "1.5", undefined, "9007199254740993"]);
  equal([read({kind: "number"}, "1e-3"), read({kind: "number"}, "0,5"), read({kind: "boolean"}, "true")], [0.001, "0,5", true]);
  const ids = {kind: "list", item: integer};
  equal([read(ids, "1, 2,3"), read(ids, "[4]"), read(ids, "1, x"), read(ids, " ")], [[1, 2, 3], [4], [1, "x"], undefined]);
  equal(read({kind: "list", item: {kind: "string"}}, "\\n, END"), ["\n", "END"]);
  equal(read({kind: "list", item: {kind: "string"}}, '["a, b"]'), ["a, b"]);
  equal([read({kind: "map"}, '{"3": 1.5}'), read({kind: "map"}, "{3")], [{3: 1.5}, "{3"]);
  const layers = kindOf(DOLA);
  equal([read(layers, "low"), read(layers, "0, 3"), read(layers, "middle")], ["low", [0, 3], "middle"]);
});

test("values as they are typed", () => {
  equal(write({kind: "list", item: {kind: "integer"}}, [1, 2]), "1, 2");
  equal(write({kind: "list", item: {kind: "string"}}, ["\n"]), '["\\n"]');
  equal([write({kind: "number"}, undefined), write({kind: "number"}, 0.5), write({kind: "map"}, {a: 1})], ["", "0.5", '{"a":1}']);
  equal(unescaped(escaped("a\\n\n\tb")), "a\\n\n\tb");
});

test("a fresh card has what must be there", () => {
  const card = (name, properties, required) => freshCard({name, options: {properties, required}});
  equal(card("top_p", {p: {type: "number", exclusiveMinimum: 0, maximum: 1}}, ["p"]), {name: "top_p", p: 0.9});
  equal(card("min_p", {p: {type: "number", minimum: 0, maximum: 1}}, ["p"]), {name: "min_p", p: 0.05});
  equal(card("logit_bias", {bias: {type: "object", additionalProperties: {type: "number"}, examples: [{1: 2}]}}, ["bias"]), {name: "logit_bias", bias: {1: 2}});
  equal(card("greedy", {}, []), {name: "greedy"});
});
