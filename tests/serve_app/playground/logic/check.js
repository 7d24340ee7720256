// A test is a name and a function that throws. Runs in a browser (tests/serve_app/playground/test_logic.py) and in node.

const found = [];

export function test(name, body) {
  found.push({name, body});
}

export function equal(got, wanted, what = "") {
  const [a, b] = [got, wanted].map((value) => JSON.stringify(value, (_, one) => (one === undefined ? "undefined!" : one)));
  if (a !== b) throw new Error(`${what} got ${a}, wanted ${b}`);
}

export function ok(value, what = "not true") {
  if (!value) throw new Error(what);
}

export async function refused(body, words) {
  try {
    await body();
  } catch (error) {
    ok(words.test(error.message), `said: ${error.message}`);
    return error;
  }
  throw new Error("nothing was refused");
}

/** Numbers that look random and are the same in every run. */
export function dice(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state % below;
  };
}

/** [{name, error}] of all tests, error null where it held. */
export async function run() {
  const out = [];
  for (const {name, body} of found) {
    try {
      await body();
      out.push({name, error: null});
    } catch (error) {
      out.push({name, error: error.stack ?? String(error)});
    }
  }
  return out;
}
