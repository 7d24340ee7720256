// Rows of this server's finished batches: OpenAI's lines, read through /v1/batches and /v1/files.

import {html, useEffect, useState} from "./html.js";
import {joined, skipped} from "./requests.js";
import {openRows} from "./row.js";
import {getJson, getText} from "./stream.js";

/** The batches that have an output. Shows nothing where the server has none, or no batches at all. */
export function Batches({page, state, onRows, onError}) {
  const [list, setList] = useState([]);
  useEffect(() => {
    getJson(`${page.base}v1/batches`, state.key)
      .then((answer) => setList((answer.data ?? []).filter((one) => one.output_file_id)))
      .catch(() => setList([]));
  }, []);
  if (!list.length) return null;
  const open = async (batch) => {
    try {
      const {rows, said} = await rowsOf(page.base, state, batch);
      onRows(rows);
      if (said) onError(said);
    } catch (error) {
      onError(error.message);
    }
  };
  return html`<h3>Finished batches of this server</h3>
    <ul class="rows">
      ${list.map(
        (one) => html`<li key=${one.id}>
          <b>${one.id}</b>
          <span class="soft">${one.status}, ${one.request_counts?.completed ?? "?"} rows</span>
          <span class="tools"><button type="button" class="small" onClick=${() => open(one)}>open</button></span>
        </li>`,
      )}
    </ul>`;
}

async function rowsOf(base, {key, models}, batch) {
  const file = (id) => getText(`${base}v1/files/${encodeURIComponent(id)}/content`, key);
  const [output, input] = await Promise.all([file(batch.output_file_id), file(batch.input_file_id).catch(() => "")]);
  return {rows: joined(openRows(output, batch.id), input, models.list), said: skipped(input)};
}
