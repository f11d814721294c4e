// The slider below a heat map says in words what each slice of time holds, and marks it in the picture.
"use strict";
for (const heat of document.querySelectorAll("[data-slices]")) {
  const numbers = heat.dataset.slices.split(" ").map(Number), length = Number(heat.dataset.sliceNs) / 1e9;
  const tools = heat.querySelector("div"), slider = tools.querySelector("input"), told = tools.querySelector("output");
  const cursor = heat.querySelector(".cursor"), axis = heat.querySelector(".axis");
  const left = Number(axis.getAttribute("x1")), right = Number(axis.getAttribute("x2"));
  const duration = (ns) => {
    for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
      if (ns >= size * 0.9995) return `${Number((ns / size).toPrecision(3))} ${unit}`;
    }
    return `${ns} ns`;
  };
  const seconds = (number) => Number((number * length).toFixed(3)).toLocaleString("en");
  slider.addEventListener("input", () => {
    const number = Number(slider.value), samples = numbers[2 * number], largest = numbers[2 * number + 1];
    const words = samples ? `${samples.toLocaleString("en")} samples, the largest ${duration(largest)}` : "no samples";
    told.textContent = `${seconds(number)} s to ${seconds(number + 1)} s: ${words}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    const x = left + (number + 0.5) * (right - left) / (numbers.length / 2);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
  });
  tools.hidden = false;
}
