// What every page does: times in the reader's own zone, notices that go away, a question before what cannot be undone.
(() => {
  const two = (n) => String(n).padStart(2, "0");
  const local = (root) => {
    for (const shown of root.querySelectorAll("time[datetime]:not([data-local])")) {
      const at = new Date(shown.dateTime);
      if (isNaN(at)) continue;
      shown.dataset.local = "";
      shown.textContent = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
    }
  };
  local(document);
  // A moment that is chosen here is the reader's too, and is sent in UTC.
  for (const zone of document.querySelectorAll(".zone")) zone.textContent = zone.textContent.replace("UTC", "your time");
  document.addEventListener("formdata", (event) => {
    for (const input of event.target.querySelectorAll("input[type=datetime-local][name]"))
      if (input.value) event.formData.set(input.name, new Date(input.value).toISOString());
  });
  // The menu behind "More" closes by Escape, and by a click or a focus elsewhere.
  const more = document.querySelector(".top .more");
  const close = (event) => { if (more?.open && !more.contains(event.target)) more.open = false; };
  document.addEventListener("click", close);
  document.addEventListener("focusin", close);
  more?.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { more.open = false; more.querySelector("summary").focus(); }
  });
  document.addEventListener("htmx:load", (event) => local(event.detail.elt));
  document.addEventListener("htmx:beforeRequest", () => { document.getElementById("notice").replaceChildren(); });
  document.addEventListener("htmx:sendError", () => {
    const note = document.createElement("div");
    note.className = "note bad";
    note.textContent = "The lab does not answer. Is its service running?";
    document.getElementById("notice").replaceChildren(note);
  });
  // <form data-sure="Release host1?">
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.sure;
    if (question && !confirm(question)) event.preventDefault();
  });
})();
