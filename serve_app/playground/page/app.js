// The page: prompt and limits on top, two sides below.

import {html, render, useEffect, useState} from "./html.js";
import {Choice, Copy, Keys, OpenRow} from "./dialogs.js";
import {possible, settingsOf} from "./examples.js";
import {Field} from "./fields.js";
import {copyText, NAMES, Playground} from "./playground.js";
import {openRows} from "./row.js";
import {comparison} from "./run.js";
import {LIMITS} from "./settings.js";
import {goTo, Side} from "./side.js";
import {TreeLegend} from "./steps.js";
import {useStore} from "./store.js";

function App({page}) {
  const state = useStore(page.store);
  const {settings, runs} = state;
  useEffect(() => listen(page), [page]);
  const sameModel = settings.sides[0].model === settings.sides[1].model;
  const found = settings.compare ? comparison(runs[0], runs[1], sameModel) : {state: "none", at: null};
  return html`
    <a class="skip" href="#prompt" onClick=${(e) => (e.preventDefault(), document.getElementById("prompt").focus())}>to the prompt</a>
    <${Top} ...${{page, state}} />
    <main>
      <${Troubles} ...${{page, state}} />
      <${Prompt} ...${{page, state}} />
      <${Verdict} found=${found} compare=${settings.compare} />
      <div class="sides ${settings.compare ? "two" : ""}">
        <${Side} key="A" ...${{page, state}} side=${0} at=${found.at?.a ?? null} />
        ${settings.compare && html`<${Side} key="B" ...${{page, state}} side=${1} at=${found.at?.b ?? null} />`}
      </div>
      ${runs.some((run) => run.tokens.length) && html`<${Legend} colour=${settings.colour} /><${TreeLegend} />`}
    </main>
    ${state.dialog === "copy" && html`<${Copy} ...${{page, state}} />`}
    ${state.dialog === "row" && html`<${OpenRow} ...${{page, state}} />`}
    ${state.dialog === "keys" && html`<${Keys} page=${page} />`}
  `;
}

function Top({page, state}) {
  const open = (dialog) => () => page.store.set({dialog});
  return html`<header class="top">
    <h1>raydecode <span>playground</span></h1>
    <nav aria-label="Tools">
      <button type="button" onClick=${open("row")}>Open a row</button>
      <button type="button" onClick=${async () => page.say((await copyText(page.link())) ? "Link copied: it holds all settings, but no key." : page.link())}>Copy link</button>
      <button type="button" onClick=${open("copy")}>Copy as code</button>
      <button type="button" onClick=${open("keys")}>Keys</button>
      <${Key} ...${{page, state}} />
    </nav>
    <p class="soft note" role="status">${state.note}</p>
  </header>`;
}

/** The API key stays in this tab: sessionStorage, never in links or copied code. */
function Key({page, state}) {
  return html`<details class="key" open=${state.locked}>
    <summary>API key${state.key ? " ✓" : ""}</summary>
    <form
      onSubmit=${(e) => {
        e.preventDefault();
        page.load();
      }}
    >
      <label for="key">Key of this server, kept in this tab only</label>
      <input id="key" type="password" autocomplete="off" value=${state.key} onInput=${(e) => page.setKey(e.target.value)} />
      <button type="submit">Use</button>
    </form>
  </details>`;
}

/** What keeps the page from working at all. */
function Troubles({page, state}) {
  const {models, methods, locked} = state;
  const failed = [models, methods].find((one) => one.status === "failed");
  if (failed)
    return html`<div class="problem" role="alert">
      <p>${locked ? "This server wants an API key: enter it above." : failed.error}</p>
      <p><button type="button" class="small" onClick=${() => page.load()}>try again</button></p>
    </div>`;
  if (models.status === "ready" && !models.list.length) return html`<div class="problem" role="alert"><p>This server serves no model.</p></div>`;
  return null;
}

function Prompt({page, state}) {
  const {settings, methods, runs} = state;
  const problem = runs.map((run) => run.error).find((error) => error?.field);
  const wrong = problem && {field: problem.field, message: problem.message};
  const field = ({name, label, description}) => ({name, label, description, kind: "string"});
  const limit = (one) =>
    html`<${Field} key=${one.name} field=${one} path=${`decoding.${one.name}`} problem=${wrong} value=${settings.decoding[one.name]} onChange=${(value) => {
      const {[one.name]: _, ...rest} = settings.decoding;
      page.change({decoding: value === undefined ? rest : {...rest, [one.name]: value}});
    }} />`;
  const examples = methods.status === "ready" && !settings.prompt ? possible(methods.list) : [];
  const onPrompt = wrong && /^(prompt|messages)/.test(wrong.field);
  return html`<section class="ask" aria-label="Prompt and limits">
    <div class="row">
      <label class="title" for="prompt">Prompt</label>
      <${Choice} label="Kind of prompt" name="mode" options=${["chat", "plain"]} value=${settings.mode} onChange=${(mode) => page.change({mode})} />
    ${settings.mode === "chat" &&
    html`<details class="system" ref=${(box) => box && settings.system && (box.open = true)}>
      <summary>System message${settings.system ? "" : ": none"}</summary>
      <textarea rows="2" aria-label="System message" value=${settings.system} onInput=${(e) => page.change({system: e.target.value})}></textarea>
    </details>`}
    </div>
    <textarea
      id="prompt"
      data-path=":prompt"
      rows="2"
      placeholder=${settings.mode === "chat" ? "One message to the model" : "Text that the model continues"}
      aria-invalid=${onPrompt ? "true" : undefined}
      aria-describedby=${onPrompt ? "prompt-wrong" : undefined}
      value=${settings.prompt}
      onInput=${(e) => page.change({prompt: e.target.value})}
    ></textarea>
    ${onPrompt && html`<small id="prompt-wrong" class="wrong">${wrong.message}</small>`}
    ${examples.length > 0 &&
    html`<div class="examples" role="group" aria-label="Examples">
      ${examples.map((one) => html`<button type="button" onClick=${() => page.adopt(settingsOf(one, settings))}><b>${one.title}</b><span>${one.about}</span></button>`)}
    </div>`}
    <div class="limits">
      ${LIMITS.slice(0, 2).map(limit)}
      <${Field} field=${field({name: "noise_id", label: "Noise name", description: "of a batch's row: its id"})} path="noise_id" problem=${wrong} value=${settings.noise_id || undefined} onChange=${(value) => page.change({noise_id: value ?? ""})} />
      ${limit(LIMITS[2])}
    </div>
    <details class="more"><summary>More limits</summary><div class="limits">${LIMITS.slice(3).map(limit)}</div></details>
    <div class="row run">
      <button type="button" class="main" id="run" disabled=${!state.models.list.length} onClick=${() => page.run()}>Run <kbd>Ctrl Enter</kbd></button>
      <button type="button" disabled=${!page.running} onClick=${() => page.stop()}>Stop <kbd>Esc</kbd></button>
      <label class="check"><input type="checkbox" checked=${settings.compare} onChange=${(e) => page.change({compare: e.target.checked})} />two side by side</label>
      ${settings.compare && html`<${Choice} label="Order of the sides" name="order" options=${["together", "in turn"]} value=${settings.order} onChange=${(order) => page.change({order})} />`}
      <${Choice} label="Colour of tokens" name="colour" options=${["surprise", "source"]} value=${settings.colour} onChange=${(colour) => page.change({colour})} />
    </div>
  </section>`;
}

/** Equal or not, and where they part. */
function Verdict({found, compare}) {
  const {tokens} = found;
  const many = `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
  const said = {
    "so far": `identical so far: ${many}`,
    identical: `identical: ${many}. One seed, one text.`,
    differ: `first difference at token ${tokens + 1}`,
  }[found.state];
  if (!compare) return null;
  return html`<p class="verdict ${found.state.replace(" ", "")}" role="status" aria-live=${found.state === "so far" ? "off" : "polite"}>
    ${said}
    ${found.state === "differ" && html` <button type="button" class="small" onClick=${() => showToken(NAMES[0], found.at.a)}>show</button>`}
  </p>`;
}

function showToken(name, at) {
  const token = document.getElementById(`${name}-t${at}`) ?? document.querySelector(`#${name}-title`);
  token?.scrollIntoView({block: "center"});
  token?.closest("[role=listbox]")?.focus();
}

function Legend({colour}) {
  return colour === "surprise"
    ? html`<p class="legend soft"><span>colour of a token: its surprise, −ln p</span><span class="scale" aria-hidden="true"></span><span>0 to 6 nats and more</span><span><i class="swatch parts"></i>first difference</span></p>`
    : html`<p class="legend soft">
        <span><i class="swatch model"></i>chosen by the model</span>
        <span><i class="swatch draft"></i>accepted draft</span>
        <span><i class="swatch forced"></i>forced by a constraint</span>
        <span><i class="swatch parts"></i>first difference</span>
      </p>`;
}

/** Keys that work anywhere, and files that are dropped anywhere. */
function listen(page) {
  const onKey = (e) => {
    if (document.querySelector("dialog[open]")) return;
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      page.run();
    } else if (e.key === "Escape" && page.running) {
      e.preventDefault();
      page.stop();
    }
  };
  const onOver = (e) => e.preventDefault();
  const onDrop = async (e) => {
    e.preventDefault();
    const [file] = e.dataTransfer?.files ?? [];
    if (!file) return;
    try {
      page.openRow(0, openRows(await file.text(), file.name)[0]);
    } catch (error) {
      page.say(error.message);
    }
  };
  addEventListener("keydown", onKey);
  addEventListener("dragover", onOver);
  addEventListener("drop", onDrop);
  return () => {
    removeEventListener("keydown", onKey);
    removeEventListener("dragover", onOver);
    removeEventListener("drop", onDrop);
  };
}

const page = new Playground(new URL(".", document.baseURI).href);
render(html`<${App} page=${page} />`, document.getElementById("app"));
page.load();
