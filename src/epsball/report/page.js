"use strict";
(() => {
  const all = (selector, node = document) => [...node.querySelectorAll(selector)];
  const make = (name, text = "", attributes = {}) => {
    const node = document.createElement(name);
    node.textContent = text;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const drawn = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  // Light and dark: the system's choice, until the reader makes another.
  const theme = (button) => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const root = document.documentElement;
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const name = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
    button.hidden = false;
    button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
    system.addEventListener("change", name);
    name();
  };

  // A chart is a slider over its budgets for the keyboard and for readers, and shows its numbers under the pointer.
  const chart = (figure) => {
    const hidden = new Set();
    const swatches = new Map();
    for (const item of all(".legend li", figure)) {
      const place = Number(item.dataset.series);
      const button = make("button", "", { type: "button", "aria-pressed": "true", title: "Show or hide this curve" });
      swatches.set(place, item.querySelector("svg"));
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => {
        if (!hidden.delete(place)) hidden.add(place);
        button.setAttribute("aria-pressed", String(!hidden.has(place)));
        for (const part of all(`[data-series="${place}"]`, figure)) {
          if (part.closest("svg[data-points]")) part.classList.toggle("off", hidden.has(place));
        }
      });
    }
    for (const plot of all(".plot", figure)) point(plot, figure, hidden, swatches);
  };

  const point = (plot, figure, hidden, swatches) => {
    const svg = plot.querySelector("svg[data-points]");
    const known = JSON.parse(svg.dataset.points);
    const tip = make("div", "", { class: "tip", hidden: "", "aria-hidden": "true" });
    const over = drawn("g", {});
    svg.append(over);
    plot.append(tip);
    let now = -1;
    const shown = (k) => known.points
      .map((points, place) => ({ place, found: points[k] }))
      .filter(({ place, found }) => found && !hidden.has(place))
      .sort((a, b) => a.found[1] - b.found[1]);
    const read = (k) => `${known.at[k]}: ${shown(k).map(({ place, found }) => `${known.names[place]} ${found[2]}`).join("; ")}`;
    const clear = () => { over.replaceChildren(); tip.hidden = true; };
    const show = (k) => {
      now = k;
      const found = shown(k);
      plot.setAttribute("aria-valuenow", k);
      plot.setAttribute("aria-valuetext", read(k));
      over.replaceChildren();
      if (!found.length) return clear();
      if (known.rule) over.append(drawn("path", { class: "cross", d: `M${found[0].found[0]} ${known.box[0]}V${known.box[1]}` }));
      const body = make("tbody");
      for (const { place, found: [x, y, text] } of found) {
        const curve = svg.querySelector(`g[data-series="${place}"]`);
        over.append(drawn("circle", { class: "ring", cx: x, cy: y, r: 4.5, style: curve.getAttribute("style") }));
        const line = make("tr");
        const swatch = make("td");
        swatch.append(swatches.get(place).cloneNode(true));
        line.append(swatch, make("td", known.names[place]), make("td", text));
        body.append(line);
      }
      const table = make("table");
      table.append(body);
      tip.replaceChildren(make("b", known.at[k]), table);
      tip.hidden = false;
      const scale = svg.clientWidth / svg.viewBox.baseVal.width;
      const across = found[0].found[0] * scale;
      const right = across + 14 + tip.offsetWidth <= plot.clientWidth;
      tip.style.left = `${Math.max(0, right ? across + 14 : across - 14 - tip.offsetWidth)}px`;
      const narrow = plot.clientWidth < 500;
      tip.style.top = `${narrow ? svg.clientHeight + 4 : known.box[0] * scale + 4}px`; // beside the curves, or below them
      return undefined;
    };
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      let best = [Infinity, 0];
      known.points.forEach((points, place) => {
        if (hidden.has(place)) return;
        for (const [k, [px, py]] of Object.entries(points)) {
          const far = known.rule ? Math.abs(px - x) : Math.hypot(px - x, py - y);
          if (far < best[0]) best = [far, Number(k)];
        }
      });
      show(best[1]);
    };
    const last = known.at.length - 1;
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 3, PageDown: -3, Home: -last, End: last };
    const name = { role: "slider", tabindex: "0", "aria-valuemin": 0, "aria-valuemax": last, "aria-valuenow": 0 };
    for (const [key, value] of Object.entries(name)) plot.setAttribute(key, value);
    plot.setAttribute("aria-label", `${figure.getAttribute("aria-label")} Arrow keys read the values.`);
    plot.setAttribute("aria-valuetext", read(0));
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") clear();
      if (!(event.key in steps)) return;
      event.preventDefault();
      show(Math.min(last, Math.max(0, now + steps[event.key])));
    });
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(Math.max(0, now)); });
    plot.addEventListener("blur", clear);
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", () => { if (document.activeElement !== plot) clear(); });
  };

  // Columns sort by the number or text in data-value, what is missing last.
  const sortable = (table) => {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    const value = (row, place) => {
      const text = row.cells[place].dataset.value ?? row.cells[place].textContent;
      return text === "" ? null : Number.isNaN(Number(text)) ? (text === "inf" ? Infinity : text) : Number(text);
    };
    heads.forEach((head, place) => {
      const button = make("button", "", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [value(row, place), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  };

  addEventListener("beforeprint", () => all("details:not([open])").forEach((node) => { node.open = true; node.dataset.printed = ""; }));
  addEventListener("afterprint", () => all("[data-printed]").forEach((node) => { node.open = false; delete node.dataset.printed; }));
  all("[data-theme-switch]").forEach(theme);
  all("figure.chart").forEach(chart);
  all("table[data-sortable]").forEach(sortable);
})();
