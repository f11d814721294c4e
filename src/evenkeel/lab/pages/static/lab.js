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
  // On a phone the navigation is wider than the page.
  document.querySelector(".top nav [aria-current]")?.scrollIntoView({block: "nearest", inline: "center"});
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
