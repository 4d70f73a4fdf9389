"use strict";
(function () {
  const root = document.documentElement;
  const remembered = (() => { try { return localStorage.getItem("lorasweep-theme"); } catch { return null; } })();
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";

  // Plots: drawn when they come near the view, in the page's colours.
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 640;
  function themed(layout) {
    const ink = colour("--ink"), grid = colour("--grid");
    const copy = JSON.parse(JSON.stringify(layout));
    copy.font = { family: "system-ui, sans-serif", size: narrow() ? 11 : 13, color: ink };
    copy.hoverlabel = { ...copy.hoverlabel, bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: ink } };
    copy.xaxis = copy.xaxis || {};
    copy.yaxis = copy.yaxis || {};
    for (const axis of Object.keys(copy).filter((key) => /^[xy]axis/.test(key))) {
      Object.assign(copy[axis], { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true });
    }
    for (const note of copy.annotations || []) { note.font = { ...note.font, color: colour("--soft") }; }
    if (narrow() && copy.margin) { copy.margin = { ...copy.margin, r: 8 }; }
    return copy;
  }
  const options = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
  const drawn = new Map();
  function draw(holder) {
    if (drawn.has(holder)) { return; }
    const figure = JSON.parse(document.getElementById("data-" + holder.dataset.plot).textContent);
    drawn.set(holder, figure);
    Plotly.newPlot(holder, figure.data, themed(figure.layout), options);
  }
  const holders = [...document.querySelectorAll("[data-plot]")];
  function redraw() {
    for (const [holder, figure] of drawn) {
      Plotly.react(holder, figure.data, themed(figure.layout), options);
    }
  }
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) { if (entry.isIntersecting) { draw(entry.target); } }
    }, { rootMargin: "600px" });
    holders.forEach((holder) => seen.observe(holder));
  } else {
    holders.forEach(draw);
  }
  window.addEventListener("beforeprint", () => { holders.forEach(draw); });

  function show() {
    const theme = dark() ? "dark" : "light";
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(theme === "dark"));
    redraw();
  }
  button.addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    root.dataset.theme = next;
    show();
    try { localStorage.setItem("lorasweep-theme", next); } catch { /* a file without storage forgets the choice */ }
  });
  system.addEventListener("change", show);
  if (remembered) { root.dataset.theme = remembered; }
  show();

  // The leaderboard: sort and filter.
  const board = document.getElementById("board");
  const body = board.tBodies[0];
  const rows = [...body.rows];
  const key = (row, column) => { const cell = row.cells[column]; return cell.dataset.key ?? cell.textContent; };
  function sort(head) {
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of board.tHead.rows[0].cells) { other.setAttribute("aria-sort", "none"); }
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sorted = [...rows].sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === "" || y === "") { return (x === "") - (y === ""); } // what is not known comes last, either way
      const numbers = !isNaN(x) && !isNaN(y);
      const order = numbers ? Number(x) - Number(y) : x.localeCompare(y);
      return descending ? -order : order;
    });
    body.append(...sorted);
  }
  for (const head of board.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }
  const find = document.getElementById("find"), outcome = document.getElementById("outcome");
  const shown = document.getElementById("shown");
  const texts = new Map(rows.map((row) => [row, (row.textContent + " " + row.title).toLowerCase()]));
  function filter() {
    const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = (!outcome.value || row.dataset.status === outcome.value) && wanted.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = count === rows.length ? `${count} rows` : `${count} of ${rows.length} rows`;
  }
  find.addEventListener("input", filter);
  outcome.addEventListener("change", filter);

  // Answers: those that hold all the words.
  const search = document.getElementById("find-answers");
  if (search) {
    const lines = [...document.getElementById("answers").tBodies[0].rows];
    const held = new Map(lines.map((row) => [row, (row.textContent + " " + row.title).toLowerCase()]));
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of lines) {
        row.hidden = !words.every((word) => held.get(row).includes(word));
        count += !row.hidden;
      }
      document.getElementById("shown-answers").textContent = count === lines.length ? `${count} items` : `${count} of ${lines.length} items`;
    });
  }

  // Commands: copied, or selected where copying is not allowed.
  for (const copy of document.querySelectorAll(".copy")) {
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }

  // The section in view is marked in the navigation.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  if ("IntersectionObserver" in window) {
    const current = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          links.forEach((link) => link.removeAttribute("aria-current"));
          links.get(entry.target.id)?.setAttribute("aria-current", "true");
        }
      }
    }, { rootMargin: "-20% 0px -70% 0px" });
    document.querySelectorAll("main section").forEach((section) => current.observe(section));
  }
})();
