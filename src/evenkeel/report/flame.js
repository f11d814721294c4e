// Draws the tree of the page as boxes: search, zoom, keyboard.  Only boxes that are at least a pixel wide exist.
"use strict";
(async () => {
  const ROW = 18, LETTER = 7.3;
  const byId = (id) => document.getElementById(id);
  const flame = byId("flame"), told = byId("told"), search = byId("search"), found = byId("found");
  const bytes = Uint8Array.from(atob(byId("data").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const [names, flat] = JSON.parse(await new Response(stream).text());
  const nodes = [], path = [];
  for (let i = 0; i < flat.length; i += 3) {
    const level = flat[i], parent = level ? path[level - 1] : null;
    const node = {id: nodes.length, level, name: names[flat[i + 1]], count: flat[i + 2], parent, children: [], start: 0, used: 0};
    if (parent) {
      node.start = parent.start + parent.used;
      parent.used += node.count;
      parent.children.push(node);
    }
    path[level] = node;
    nodes.push(node);
  }
  const root = nodes[0];
  let top = root, at = root, words = "";
  const share = (node) => `${(100 * node.count / root.count).toFixed(2)} %`;
  const plain = (name) => name.replace(/_\[k\]$/, "");
  // What a name ends with tells functions apart, what it begins with is shared by many.
  const fitting = (name, room) => {
    const last = name.replace(/\(.*$|<.*$/, "").split("::").pop();
    return name.length <= room || !last || last === name ? name : last;
  };
  const matches = (node) => words !== "" && node.name.toLowerCase().includes(words);
  const colour = (node) => {
    let sum = 0;
    for (const sign of node.name) sum = (sum * 31 + sign.charCodeAt(0)) % 997;
    return (node.name.endsWith("_[k]") ? "k" : "c") + sum % 3;
  };
  const box = (node, left, width, classes) => {
    const made = document.createElement("div");
    made.className = `${colour(node)}${matches(node) ? " m" : ""}${node === at ? " at" : ""}${classes}`;
    made.style.cssText = `left:${100 * left}%;width:${100 * width}%;top:${node.level * ROW}px`;
    made.id = `n${node.id}`;
    made.setAttribute("role", "treeitem");
    made.setAttribute("aria-level", node.level + 1);
    made.setAttribute("aria-label", `${plain(node.name)}, ${share(node)}`);
    const room = Math.floor((width * flame.clientWidth - 8) / LETTER);
    if (room > 1) {
      made.textContent = fitting(plain(node.name), room);
      made.classList.add("t");
    }
    return made;
  };
  const draw = () => {
    const parts = document.createDocumentFragment(), least = 1 / Math.max(300, flame.clientWidth);
    let deepest = 0;
    for (let node = top.parent; node; node = node.parent) parts.append(box(node, 0, 1, " up"));
    const waiting = [top];
    while (waiting.length) {
      const node = waiting.pop(), width = node.count / top.count;
      if (width < least) continue;
      parts.append(box(node, (node.start - top.start) / top.count, width, ""));
      deepest = Math.max(deepest, node.level);
      for (const child of node.children) waiting.push(child);
    }
    flame.replaceChildren(parts);
    flame.style.height = `${(deepest + 1) * ROW}px`;
    say();
  };
  const say = () => {
    flame.querySelector(".at")?.classList.remove("at");
    const here = byId(`n${at.id}`);
    here?.classList.add("at");
    if (here) flame.setAttribute("aria-activedescendant", here.id);
    const kernel = at.name.endsWith("_[k]") ? " (kernel)" : "";
    told.textContent = `${plain(at.name)}${kernel}: ${at.count.toLocaleString("en")} samples, ${share(at)}`;
  };
  const zoom = (node) => { top = at = node; draw(); };
  const drawn = (node) => node && byId(`n${node.id}`) ? node : null;
  const widest = (node) => node.children.filter(drawn).sort((a, b) => b.count - a.count)[0];
  const beside = (node, step) => {
    const all = node.parent ? node.parent.children.filter(drawn) : [];
    return all[all.indexOf(node) + step];
  };
  const move = (node) => { if (node) { at = node; say(); byId(`n${at.id}`)?.scrollIntoView({block: "nearest"}); } };
  const nodeOf = (event) => event.target.id?.startsWith("n") ? nodes[event.target.id.slice(1)] : null;
  flame.addEventListener("click", (event) => { const node = nodeOf(event); if (node) zoom(node); });
  flame.addEventListener("mouseover", (event) => { const node = nodeOf(event); if (node) { at = node; say(); } });
  flame.addEventListener("keydown", (event) => {
    const key = event.key;
    if (key === "ArrowDown") move(widest(at));
    else if (key === "ArrowUp") move(at.parent);
    else if (key === "ArrowLeft") move(beside(at, -1));
    else if (key === "ArrowRight") move(beside(at, 1));
    else if (key === "Enter" || key === " ") zoom(at);
    else if (key === "Escape" || key === "Backspace") zoom(top.parent ?? root);
    else if (key === "Home") zoom(root);
    else return;
    event.preventDefault();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== search) { search.focus(); event.preventDefault(); }
  });
  search.addEventListener("keydown", (event) => { if (event.key === "Escape") { search.value = ""; look(); flame.focus(); } });
  const look = () => {
    words = search.value.trim().toLowerCase();
    let sum = 0, functions = new Set();
    const waiting = [[root, false]];
    while (waiting.length) {  // samples below two matches count once
      const [node, inside] = waiting.pop(), hit = matches(node);
      if (hit) functions.add(node.name);
      if (hit && !inside) sum += node.count;
      for (const child of node.children) waiting.push([child, inside || hit]);
    }
    found.textContent = words ? `${functions.size} function${functions.size === 1 ? "" : "s"}, ${(100 * sum / root.count).toFixed(1)} % of the samples` : "";
    draw();
  };
  search.addEventListener("input", look);
  byId("out").addEventListener("click", () => { zoom(root); flame.focus(); });
  addEventListener("resize", draw);
  byId("tools").hidden = false;
  draw();
  flame.dataset.ready = "yes";
})();
