// The log of a running step, as it comes; at its end the page is loaded once more, with what came of it.
(() => {
  const shown = document.getElementById("log");
  if (!shown || !shown.dataset.follow) return;
  const source = new EventSource(shown.dataset.follow);
  source.addEventListener("log", (event) => {
    const atEnd = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
    shown.append(event.data);
    if (atEnd) shown.scrollTop = shown.scrollHeight;
  });
  source.addEventListener("end", () => { source.close(); location.reload(); });
  shown.scrollTop = shown.scrollHeight;
})();
