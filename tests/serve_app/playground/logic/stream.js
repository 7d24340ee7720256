import {chunks, EventLines, refusalOf, retryAfter} from "../../../../serve_app/playground/page/stream.js";
import {dice, equal, ok, refused, test} from "./check.js";

const encode = (text) => new TextEncoder().encode(text);

test("events come whole, however the bytes are cut", () => {
  const text = 'data: {"a": "é\u{1F989}"}\r\n\r\n: a comment\ndata: one\ndata: two\n\nevent: x\ndata:tight\n\ndata: [DONE]\n\n';
  const wanted = ['{"a": "é\u{1F989}"}', "one\ntwo", "tight", "[DONE]"];
  const bytes = encode(text);
  const roll = dice(7);
  for (let round = 0; round < 200; round++) {
    const lines = new EventLines();
    const got = [];
    for (let at = 0; at < bytes.length; ) {
      const size = 1 + roll(round % 2 ? 3 : 40);
      got.push(...lines.feed(bytes.slice(at, at + size)));
      at += size;
    }
    equal(got, wanted, `round ${round}`);
  }
});

test("an event that was cut off is none", () => {
  const lines = new EventLines();
  equal([...lines.feed(encode("data: one\n\ndata: {\"tw"))], ["one"]);
});

test("Retry-After as a number and as a date", () => {
  equal([retryAfter("3"), retryAfter(" 1.5 "), retryAfter(null), retryAfter("soon"), retryAfter("-")], [3, 1.5, null, null, null]);
  equal(retryAfter("Thu, 01 Jan 1970 00:00:10 GMT", 4000), 6);
  equal(retryAfter("Thu, 01 Jan 1970 00:00:01 GMT", 4000), 0);
});

test("an error says field, code and when to come back", async () => {
  const body = {error: {message: "no", type: "t", param: "decoding.seed", code: "c"}};
  const refusal = await refusalOf(new Response(JSON.stringify(body), {status: 429, headers: {"Retry-After": "2"}}));
  equal([refusal.message, refusal.field, refusal.code, refusal.status, refusal.retryAfter], ["no", "decoding.seed", "c", 429, 2]);
  const twice = {error: {message: "decoding.seed: no", param: "decoding.seed"}};
  equal((await refusalOf(new Response(JSON.stringify(twice), {status: 400}))).message, "no");
  const page = await refusalOf(new Response("<html>bad gateway", {status: 502, statusText: "Bad Gateway"}));
  ok(page.message.startsWith("The server answered 502 Bad Gateway"), page.message);
});

async function streamed(pieces, status = 200) {
  const before = globalThis.fetch;
  globalThis.fetch = async () => new Response(new ReadableStream({start: (c) => (pieces.forEach((one) => c.enqueue(encode(one))), c.close())}), {status});
  try {
    const out = [];
    for await (const chunk of chunks("x", {}, "", undefined)) out.push(chunk);
    return out;
  } finally {
    globalThis.fetch = before;
  }
}

test("a stream ends with [DONE], and nothing else is an end", async () => {
  equal(await streamed(['data: {"a":1}\n\ndata: [DO', "NE]\n\ndata: {}\n\n"]), [{a: 1}]);
  await refused(() => streamed(['data: {"a":1}\n\n']), /broke off/);
  const error = await refused(() => streamed(['data: {"error": {"message": "died", "code": "x"}}\n\n']), /died/);
  equal(error.code, "x");
  await refused(() => streamed(["data: <oops>\n\n"]), /no JSON/);
});

test("a server that is gone is said so", async () => {
  const before = globalThis.fetch;
  globalThis.fetch = async () => {
    throw new TypeError("Failed to fetch");
  };
  try {
    await refused(async () => (await chunks("x", {}, "").next(), null), /cannot be reached/);
  } finally {
    globalThis.fetch = before;
  }
});
