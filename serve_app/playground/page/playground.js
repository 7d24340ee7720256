// What the page can do: load what the server has, run, stop, wait, open a row. No drawing here.

import {fromFragment, initial, requestOf, settle, toFragment} from "./settings.js";
import {chunks, getJson, Refusal} from "./stream.js";
import {close, freshRun, take} from "./run.js";
import {Store} from "./store.js";

const KEY = "raydecode.api_key";
const TRIES = 5;
export const NAMES = ["A", "B"];

export class Playground {
  /** base: the server's address, with a slash at its end. */
  constructor(base) {
    this.base = base;
    this.aborts = [null, null];
    this.store = new Store({
      settings: fromFragment(location.hash) ?? initial(),
      models: {status: "loading", list: [], error: null},
      methods: {status: "loading", list: [], error: null},
      key: sessionStorage.getItem(KEY) ?? "",
      locked: false,
      runs: [freshRun(), freshRun()],
      steps: [null, null],
      dialog: null,
      note: "",
    });
    addEventListener("hashchange", () => {
      const settings = fromFragment(location.hash);
      if (settings && toFragment(settings) !== toFragment(this.settings)) this.store.set({settings: this.fitting(settings)});
    });
  }

  get settings() {
    return this.store.state.settings;
  }

  /** Models and methods, side by side. */
  async load() {
    const {key} = this.store.state;
    const get = async (name, path) => {
      this.store.set({[name]: {status: "loading", list: [], error: null}});
      try {
        const answer = await getJson(this.base + path, key);
        this.store.set({[name]: {status: "ready", list: Array.isArray(answer) ? answer : (answer.data ?? []), error: null}});
        this.store.set({settings: this.fitting(this.settings)});
        return null;
      } catch (error) {
        this.store.set({[name]: {status: "failed", list: [], error: error.message}});
        return error;
      }
    };
    const errors = await Promise.all([get("models", "v1/models"), get("methods", "v1/methods")]);
    this.store.set({locked: errors.some((error) => error?.status === 401)});
  }

  /** Settings with a model that is served, where none is named. */
  fitting(settings) {
    const [first] = this.store.state.models.list;
    if (!first) return settings;
    return {...settings, sides: settings.sides.map((side) => (side.model ? side : {...side, model: first.id}))};
  }

  /** Change settings; the address bar follows, so a reload and a copied address hold them all. */
  change(patch) {
    const settings = {...this.settings, ...patch};
    this.store.set({settings});
    clearTimeout(this.writing);
    this.writing = setTimeout(() => history.replaceState(null, "", "#" + toFragment(this.settings)), 250);
  }

  changeSide(side, patch) {
    this.change({sides: this.settings.sides.map((one, i) => (i === side ? {...one, ...patch} : one))});
  }

  /** Settings from elsewhere: an example, a row. */
  adopt(settings) {
    this.change(this.fitting(settle(settings)));
  }

  link() {
    const url = new URL(location.href);
    url.hash = toFragment(this.settings);
    return url.href;
  }

  setKey(key) {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    this.store.set({key});
  }

  get running() {
    return this.aborts.some(Boolean);
  }

  /** Run the sides that are shown; what ran before is stopped. */
  async run() {
    this.stop();
    const {compare, order} = this.settings;
    const sides = compare ? [0, 1] : [0];
    const tickets = sides.map((side) => this.open(side));
    if (order === "in turn" && compare) {
      for (const ticket of tickets) await this.runSide(ticket);
    } else await Promise.all(tickets.map((ticket) => this.runSide(ticket)));
  }

  /** A fresh run in a side, and what stops it. */
  open(side) {
    const {path, body} = requestOf(this.settings, side, {trace: true});
    const abort = new AbortController();
    this.aborts[side] = abort;
    const run = freshRun({model: body.model, request: body});
    run.status = "waiting";
    this.show(side, run);
    return {side, path, body, run, abort};
  }

  /** Run one side alone; the other keeps what it shows. */
  runAgainst(side) {
    this.aborts[side]?.abort();
    return this.runSide(this.open(side));
  }

  async runSide({side, path, body, run, abort}) {
    for (let tried = 1; !abort.signal.aborted; tried++) {
      run.startedAt = performance.now();
      try {
        for await (const chunk of chunks(this.base + path, body, this.store.state.key, abort.signal)) {
          take(run, chunk, performance.now());
          this.store.touch();
        }
        close(run, "done");
        break;
      } catch (error) {
        if (error.name === "AbortError" || abort.signal.aborted) break;
        const again = error instanceof Refusal && [429, 503].includes(error.status) && error.retryAfter !== null && tried < TRIES;
        if (!again) {
          if (error.status === 401) this.store.set({locked: true});
          close(run, "failed", error instanceof Refusal ? error : new Refusal(`The page failed: ${error.message}`));
          break;
        }
        Object.assign(run, {status: "busy", error, retryAt: performance.now() + error.retryAfter * 1000});
        await this.waitFor(run, abort.signal);
        Object.assign(run, {status: "waiting", error: null});
      }
      this.store.touch();
    }
    if (abort.signal.aborted && ["waiting", "busy", "streaming"].includes(run.status)) close(run, "stopped");
    if (this.aborts[side] === abort) this.aborts[side] = null;
    this.store.touch();
  }

  /** Until the time the server asked for, or a stop; the page counts down. */
  async waitFor(run, signal) {
    while (performance.now() < run.retryAt && !signal.aborted) {
      run.version++;
      this.store.touch();
      await new Promise((resolve) => setTimeout(resolve, Math.min(250, Math.max(run.retryAt - performance.now(), 1))));
    }
  }

  stop() {
    for (const abort of this.aborts) abort?.abort();
  }

  /** Put a run into a side. */
  show(side, run) {
    const {runs, steps} = this.store.state;
    this.store.set({runs: runs.map((one, i) => (i === side ? run : one)), steps: steps.map((one, i) => (i === side ? null : one))});
  }

  /** Which step's tree a side shows; null follows the newest. */
  pickStep(side, step) {
    this.store.set({steps: this.store.state.steps.map((one, i) => (i === side ? step : one))});
  }

  /** A stored row in a side; with what made it, if that is known. */
  openRow(side, row) {
    this.aborts[side]?.abort();
    this.aborts[side] = null;
    this.show(side, row.run);
    this.store.set({dialog: null, note: `Row ${row.name} is shown in ${NAMES[side]}.`});
  }

  /** Settings that make a row again on this server: one seed, one text. */
  adoptRow(side, {mode, prompt, system, decoding, noise_id, model}) {
    const {sampler, drafter, search, monitors, interventions, ...rest} = decoding;
    const cards = {samplers: sampler, drafters: [drafter], searches: [search], monitors, interventions};
    const methods = {};
    for (const [room, some] of Object.entries(cards)) {
      const named = [some ?? []].flat().filter((card) => card && card !== "none");
      if (named.length) methods[room] = named.map((card) => (typeof card === "string" ? {name: card} : card));
    }
    const given = Object.fromEntries(Object.entries(rest).filter(([name, value]) => value !== null && !["n", "logprobs"].includes(name)));
    const sides = this.settings.sides.map((one, i) => (i === side ? {model: model ?? one.model, methods} : one));
    this.adopt({...this.settings, mode, prompt, system, noise_id: noise_id ?? "", decoding: given, sides});
  }

  say(note) {
    this.store.set({note});
  }
}

/** To the clipboard; where the browser forbids that (no secure origin), by a selection. True if it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
