import "./copy.js";
import "./plot.js";
import "./row.js";
import "./run.js";
import "./schema.js";
import "./settings.js";
import "./stream.js";
import "./tree.js";
import {run} from "./check.js";

export {run};

// node tests/serve_app/playground/logic/all.js (for who changes the page; `make test` runs the same in a browser)
if (typeof process !== "undefined" && process.argv?.[1]?.endsWith("all.js")) {
  const failed = (await run()).filter((one) => one.error);
  for (const {name, error} of failed) console.error(`${name}: ${error}`);
  process.exitCode = failed.length ? 1 : 0;
}
