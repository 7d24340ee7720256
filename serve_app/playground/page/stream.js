// One streamed answer: the request, server-sent events, and everything that can go wrong on the way.

/** The server said no, or is not there. retryAfter: seconds it asks to wait, or null. */
export class Refusal extends Error {
  constructor(message, {status = 0, field = null, code = null, retryAfter = null} = {}) {
    super(field && message.startsWith(`${field}: `) ? message.slice(field.length + 2) : message); // said once
    this.name = "Refusal";
    Object.assign(this, {status, field, code, retryAfter});
  }
}

/** Bytes of text/event-stream in pieces of any size; whole `data` fields out. What has no end is no event. */
export class EventLines {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  feed(bytes) {
    this.#rest += this.#decoder.decode(bytes, {stream: true});
    const out = [];
    for (;;) {
      const end = this.#rest.search(/\r\n|\n|\r(?!$)/);
      if (end < 0) return out;
      const line = this.#rest.slice(0, end);
      this.#rest = this.#rest.slice(end + (this.#rest.startsWith("\r\n", end) ? 2 : 1));
      if (line === "") {
        if (this.#data.length) out.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

/** Seconds from a Retry-After header: a number or a date. */
export function retryAfter(header, now = Date.now()) {
  if (!header) return null;
  const seconds = /^\s*\d+(\.\d+)?\s*$/.test(header) ? Number(header) : (Date.parse(header) - now) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : null;
}

/** The refusal that an answer with an error status carries. */
export async function refusalOf(response) {
  const options = {status: response.status, retryAfter: retryAfter(response.headers.get("Retry-After"))};
  const text = await response.text().catch(() => "");
  try {
    const {error} = JSON.parse(text);
    return new Refusal(error.message ?? String(error), {...options, field: error.param ?? null, code: error.code ?? null});
  } catch {
    return new Refusal(`The server answered ${response.status} ${response.statusText}`.trim() + (text ? `: ${text.slice(0, 200)}` : ""), options);
  }
}

function headersOf(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}

const GONE = "The server cannot be reached. Is it still running?";

/** GET as JSON. Raises Refusal. */
export async function getJson(url, key, signal) {
  const response = await reach(url, {headers: headersOf(key), signal});
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

/** GET as text. Raises Refusal. */
export async function getText(url, key, signal) {
  const response = await reach(url, {headers: headersOf(key), signal});
  if (!response.ok) throw await refusalOf(response);
  return response.text();
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(GONE);
  }
}

/** Chunks of a streamed answer, parsed. Raises Refusal, also for an error in the middle or a stream that breaks off. */
export async function* chunks(url, body, key, signal) {
  const response = await reach(url, {
    method: "POST",
    headers: {"Content-Type": "application/json", Accept: "text/event-stream", ...headersOf(key)},
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusalOf(response);
  const lines = new EventLines();
  const reader = response.body.getReader();
  try {
    for (;;) {
      const {value, done} = await piece(reader);
      if (done) throw new Refusal("The stream broke off before its end.");
      for (const data of lines.feed(value)) {
        if (data === "[DONE]") return;
        yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function piece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The stream broke off: the connection was lost.");
  }
}

function parsed(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new Refusal(`The server sent a chunk that is no JSON: ${data.slice(0, 120)}`);
  }
  if (chunk.error) {
    const {message, param = null, code = null} = chunk.error;
    throw new Refusal(message ?? JSON.stringify(chunk.error), {field: param, code});
  }
  return chunk;
}
