"use strict";
(() => {
  const source = document.getElementById("gallery-data");
  if (!source) return;
  const known = JSON.parse(source.textContent);
  const one = (selector, node = document) => node.querySelector(selector);
  const all = (selector, node = document) => [...node.querySelectorAll(selector)];
  const make = (name, text = "", attributes = {}) => {
    const node = document.createElement(name);
    node.textContent = text;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const section = document.getElementById("examples");
  const dialog = document.getElementById("sample");
  const cells = all("td[data-kind]", section);
  const state = { eps: known.start, line: 0, attack: 0 };

  // The pictures of the budget shown first stand in the page already: the data has the others.
  for (const cell of cells) {
    const { line, attack, kind } = cell.dataset;
    const entry = known.lines[line];
    const shot = attack === undefined ? entry.original : entry.shots[attack][known.start];
    (shot.pictures ??= {})[kind] = one("img", cell).getAttribute("src");
  }
  const shotOf = (line, attack, eps) => known.lines[line].shots[attack][eps];
  const titles = { original: "original", perturbation: "perturbation", perturbed: "perturbed", output: "its output" };
  const described = (line, attack, kind, text) =>
    `Sample ${known.lines[line].id}, ${kind}${attack === undefined ? "" : ` by ${known.attacks[attack]}`}${text ? `: ${text}` : ""}`;

  const show = (eps) => {
    state.eps = eps;
    for (const cell of cells) {
      const { line, attack, kind } = cell.dataset;
      if (attack === undefined) continue;
      const shot = shotOf(line, attack, eps);
      const picture = one("img", cell);
      picture.src = shot.pictures[kind];
      picture.alt = described(line, attack, kind, shot.texts[kind]);
      one("span", cell).textContent = shot.texts[kind] ?? "";
      cell.classList.toggle("fooled", kind === "perturbed" && shot.fooled);
    }
    for (const node of all("[data-factor]")) node.textContent = known.factors[eps];
    for (const slide of all(".slide")) {
      one("input", slide).value = eps;
      one("input", slide).setAttribute("aria-valuetext", `eps ${known.eps[eps]}`);
      one("output", slide).textContent = `eps ${known.eps[eps]}`;
    }
    if (dialog.open) fill();
  };

  const figure = (shot, kind, line, attack, name) => {
    const node = make("figure");
    const text = shot.texts[kind] ?? "";
    const picture = make("img", "", { src: shot.pictures[kind], alt: described(line, attack, kind, text) });
    const caption = make("figcaption");
    caption.append(make("b", name), make("span", text, kind === "perturbed" && shot.fooled ? { class: "fooled" } : {}));
    node.append(picture, caption);
    return node;
  };

  const table = (caption, heads, rows, marked) => {
    const node = make("table");
    const head = make("tr");
    heads.forEach((text, place) => head.append(make("th", text, { scope: "col", ...(place ? {} : { class: "left" }) })));
    const top = make("thead");
    top.append(head);
    const body = make("tbody");
    for (const row of rows) {
      const line = make("tr");
      row.forEach((text, place) => line.append(make(place ? "td" : "th", text, place ? {} : { scope: "row" })));
      if (row[0] === marked) all("td", line).forEach((cell) => cell.classList.add("best"));
      body.append(line);
    }
    node.append(make("caption", caption), top, body);
    const box = make("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
    box.append(node);
    return box;
  };

  const fill = () => {
    const { line, attack, eps } = state;
    const entry = known.lines[line];
    const shot = shotOf(line, attack, eps);
    one("h2", dialog).textContent = `Sample ${entry.id} under ${known.attacks[attack]} at eps ${known.eps[eps]}`;
    const shots = Object.keys(entry.original.pictures).map((kind) => figure(entry.original, kind, line, undefined, titles[kind]));
    for (const kind of known.kinds) {
      const name = kind === "output" ? "output of the perturbed" : titles[kind] + (kind === "perturbation" ? known.factors[eps] : "");
      shots.push(figure(shot, kind, line, attack, name));
    }
    one(".shots", dialog).replaceChildren(...shots);
    const numbers = [];
    if (entry.original.scores.length && shot.scores.length) {
      const rows = shot.scores.map(([name, value], k) => [`${k + 1}.`, ...entry.original.scores[k], name, value]);
      numbers.push(table("The highest outputs", ["rank", "original", "output", "perturbed", "output"], rows));
    }
    const rows = known.attempts[line][attack];
    if (rows.length) numbers.push(table(`${known.attacks[attack]} on this sample at every budget`, known.heads, rows, known.eps[eps]));
    one(".numbers", dialog).replaceChildren(...numbers);
    one("select", dialog).value = attack;
  };

  const open = (line, attack) => {
    Object.assign(state, { line, attack });
    fill();
    dialog.showModal();
  };

  for (const cell of cells) {
    const line = Number(cell.dataset.line);
    const attack = Number(cell.dataset.attack ?? 0);
    if (!["original", "perturbed"].includes(cell.dataset.kind)) continue;
    const button = make("button", "", { type: "button", "aria-haspopup": "dialog", title: "Show this sample larger" });
    const picture = one("img", cell);
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => open(line, attack));
  }
  known.attacks.forEach((name, place) => one("select", dialog).append(make("option", name, { value: place })));
  one("select", dialog).addEventListener("change", (event) => { state.attack = Number(event.target.value); fill(); });
  const move = (by) => { state.line = (state.line + by + known.lines.length) % known.lines.length; fill(); };
  one("[data-step='-1']", dialog).addEventListener("click", () => move(-1));
  one("[data-step='1']", dialog).addEventListener("click", () => move(1));
  one(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  for (const slide of all(".slide")) {
    slide.hidden = known.eps.length < 2;
    one("input", slide).addEventListener("input", (event) => show(Number(event.target.value)));
  }
  one(".hint", section).hidden = false;
  show(known.start);
})();
