"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("theme").onclick = () => {
    const dark = root.classList.contains("dark") ||
      (!root.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.classList.toggle("dark", !dark);
    root.classList.toggle("light", dark);
  };

  const rows = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("rows"), pages = document.getElementById("pages");
  const search = document.getElementById("search"), onlyErrors = document.getElementById("only-errors");
  const PAGE = 20, texts = rows.map((row) => JSON.stringify(row).toLowerCase());
  let page = 0;

  const add = (parent, tag, text, name) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

  const show = () => {
    const wanted = search.value.toLowerCase();
    const found = rows.filter((row, i) => (!onlyErrors.checked || row.error) && texts[i].includes(wanted));
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(page, last);
    list.replaceChildren();
    for (const row of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const items = add(add(list, "div", undefined, row.error ? "row failed" : "row"), "dl");
      for (const [name, value] of Object.entries(row)) {
        add(items, "dt", name);
        add(items, "dd", plain(value));
      }
    }
    pages.replaceChildren();
    const turn = (text, to) => {
      const button = add(pages, "button", text);
      button.type = "button";
      button.disabled = to < 0 || to > last;
      button.onclick = () => { page = to; show(); };
    };
    turn("back", page - 1);
    add(pages, "span", ` ${found.length} rows, page ${page + 1} of ${last + 1} `);
    turn("next", page + 1);
  };
  search.oninput = onlyErrors.onchange = () => { page = 0; show(); };
  show();
})();
