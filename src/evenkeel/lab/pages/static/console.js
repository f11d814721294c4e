// A console in the page: xterm.js on a WebSocket. Bytes are the console's, text frames are the lab's words.
(() => {
  const place = document.getElementById("console");
  if (!place) return;
  const by = (id) => document.getElementById(id);
  const terminal = new Terminal({ scrollback: 5000, fontSize: 14, screenReaderMode: true, fontFamily: "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace" });
  const fit = new FitAddon.FitAddon();
  terminal.loadAddon(fit);
  terminal.open(place);
  // Escape, then Tab, leaves the terminal: a keyboard must find the way out.
  let escaped = false;
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.type === "keydown" && event.key === "Tab" && escaped) return false;
    if (event.type === "keydown") escaped = event.key === "Escape";
    return true;
  });
  let socket = null, writes = false, pause = 500;
  const chip = (kind, text) => {
    const span = document.createElement("span");
    span.className = `chip ${kind}`;
    span.textContent = text;
    by("console-state").replaceChildren(span);
  };
  const say = (order) => { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(order)); };
  const resize = () => { fit.fit(); say({ do: "resize", columns: terminal.cols, rows: terminal.rows }); };
  const state = (told) => {
    writes = told.you_write;
    const who = writes ? "you write" : told.writer ? `${told.writer} writes, you read` : "nobody writes";
    const others = told.readers.length > 1 ? `, ${told.readers.length} read` : "";
    if (told.line === "up") chip(told.why ? "warn" : "good", `${who}${others}${told.why ? `; ${told.why}` : ""}`);
    else chip("warn", `line down: ${told.why}`);
    by("console-ask").hidden = writes;
    by("console-give").hidden = !writes;
    by("console-asked").hidden = true;
    terminal.options.cursorBlink = writes;
    terminal.options.disableStdin = !writes;
    if (writes) resize();
  };
  const hear = (told) => {
    if (told.type === "state") state(told);
    else if (told.type === "asked") { by("console-asked").hidden = false; by("console-asked").querySelector("b").textContent = told.by; }
    else if (told.type === "refused") chip("warn", told.why);
    else if (told.type === "error") { chip("bad", told.detail); socket.onclose = null; }
    else if (told.type === "gone") chip("warn", told.why || "the lab's service ended the session");
  };
  const connect = () => {
    socket = new WebSocket(place.dataset.attach.replace(/^/, `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { pause = 500; terminal.reset(); };
    socket.onmessage = (event) => typeof event.data === "string" ? hear(JSON.parse(event.data)) : terminal.write(new Uint8Array(event.data));
    socket.onclose = () => { chip("warn", "not connected; trying again"); setTimeout(connect, pause); pause = Math.min(pause * 2, 15000); };
  };
  const bytes = new TextEncoder();
  terminal.onData((text) => { if (writes && socket.readyState === WebSocket.OPEN) socket.send(bytes.encode(text)); });
  by("console-ask").onclick = () => { say({ do: "ask" }); terminal.focus(); };
  by("console-give").onclick = () => say({ do: "give" });
  by("console-hand").onclick = () => say({ do: "give" });
  by("console-keep").onclick = () => { say({ do: "keep" }); by("console-asked").hidden = true; terminal.focus(); };
  addEventListener("resize", resize);
  fit.fit();
  connect();
})();
