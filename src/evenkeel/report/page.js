// Niceties only: the page says everything without this script.  Search, filter and open the settings.
"use strict";
for (const tools of document.querySelectorAll("[data-filter]")) {
  const rows = [...document.getElementById(tools.dataset.filter).querySelectorAll("details.row")];
  const groups = [...document.getElementById(tools.dataset.filter).querySelectorAll("[data-group]")];
  const search = tools.querySelector("input");
  const buttons = [...tools.querySelectorAll("button[data-status]")];
  const open = tools.querySelector("button[data-open]");
  const said = tools.querySelector("output");
  let status = "";
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const shared = row.closest(".rule")?.querySelector("h4").textContent ?? "";
      const text = `${shared} ${row.textContent}`.toLowerCase();
      row.hidden = (status && row.dataset.status !== status) || !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector("details.row:not([hidden])");
    said.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  };
  search.addEventListener("input", apply);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      status = button.dataset.status;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  open.addEventListener("click", () => {
    const all = open.getAttribute("aria-pressed") !== "true";
    for (const row of rows) row.open = all;
    open.setAttribute("aria-pressed", String(all));
  });
  tools.hidden = false;
}
