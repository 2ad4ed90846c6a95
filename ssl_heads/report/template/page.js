// The page: the table of dimensions, the details of what the address names, and the reader's names and verdicts.

const $ = (selector) => document.querySelector(selector);
const data = await readData();
const { meta } = data;
const codes = new Codes(data.code_counts, data.code_dims, data.code_values, meta.width);
const views = new Views(data, codes);
const NEIGHBOURS = 12;
const labelled = meta.class_names.length > 1;

// -------------------------------------------------------------------------------------------- names and verdicts
const STORE = `ssl-heads ${meta.digest}`;
let choices = new Map();
try { // storage of a local file may be refused
  choices = new Map(JSON.parse(localStorage.getItem(STORE) ?? "[]"));
} catch { /* the page works without */ }

const choice = (j) => choices.get(j) ?? {};
const nameOf = (j) => choice(j).name || "";
const title = (j) => (nameOf(j) ? `#${j} ${nameOf(j)}` : `#${j}`);

function choose(j, change) {
  const next = Object.fromEntries(Object.entries({ ...choice(j), ...change }).filter(([, value]) => value));
  if (Object.keys(next).length) choices.set(j, next);
  else choices.delete(j);
  try { localStorage.setItem(STORE, JSON.stringify([...choices])); } catch { /* as above */ }
  fillRow(j);
}

function exported() {
  const dimensions = [...choices].sort(([a], [b]) => a - b).map(([dimension, c]) => ({ dimension, ...c }));
  return { format: "ssl-heads dimensions 1", title: meta.title, width: meta.width, dimensions };
}

function imported(content) {
  if (content?.width !== meta.width || !Array.isArray(content.dimensions)) {
    throw new Error(`This file is of ${content?.width ?? "no"} dimensions, the page of ${meta.width}.`);
  }
  choices = new Map();
  rows.forEach((_, j) => fillRow(j));
  for (const { dimension, name, note, verdict } of content.dimensions) choose(dimension, { name, note, verdict });
  show();
}

// ------------------------------------------------------------------------------------------------------ the table
const above = (j) => data.share[j] - data.chance[j];
const given = (array) => array && !array.every(Number.isNaN);
const COLUMNS = [
  { key: "dimension", label: "Dimension", value: (j) => -j },
  { key: "strongest", label: "Strongest samples" },
  { key: "support", label: "Fires on", value: (j) => data.support[j], text: (j) => number(data.support[j]), hint: "number of samples" },
  labelled && { key: "share", label: "Commonest class", value: above, hint: "sorted by how far its share exceeds chance" },
  { key: "expected_activation", label: "Use", value: (j) => data.expected_activation[j], text: (j) => data.expected_activation[j].toFixed(3), hint: "mean activation over all samples" },
  labelled && { key: "selectivity", label: "Selec­tivity", value: (j) => data.selectivity[j], text: (j) => fixed(data.selectivity[j]), hint: "0: all classes alike, 1: one class only" },
  given(data.importance) && { key: "importance", label: "Impor­tance", value: (j) => data.importance[j], text: (j) => fixed(data.importance[j]) },
  meta.twin && { key: "twin", label: "Other seed", value: (j) => Math.abs(data.twin_correlation[j]), text: (j) => fixed(data.twin_correlation[j]), hint: "correlation with the same dimension of another seed" },
].filter(Boolean);
const fixed = (x) => (Number.isNaN(x) ? "–" : x.toFixed(2));
const sort = { key: "expected_activation", descending: true };
const rows = Array.from({ length: meta.width }, (_, j) => h("tr", { "data-d": j }));
const filled = new Set();

function fillRow(j) {
  if (!filled.has(j)) return;
  const verdict = choice(j).verdict;
  const words = meta.words[j].slice(0, 3).join(", ");
  const cells = COLUMNS.map(({ key, text }) => {
    if (key === "dimension") {
      return h("td", {}, h("a", { class: "id", href: link(`d=${j}`) }, title(j), words && h("small", {}, ` ${words}`)),
      verdict && h("span", { class: "flag" }, verdict === "keep" ? "✓ keep" : "✕ drop"), views.flags(j));
    }
    if (key === "strongest") return h("td", {}, views.strip(views.list("strongest", j), 8));
    if (key === "share") return h("td", {}, data.modal_class[j] < 0 ? "–" : [
      views.meter(data.share[j], data.chance[j], data.ceiling[j]),
      h("div", {}, `${percent(data.share[j])} `, h("span", { class: "soft" }, `“${meta.class_names[data.modal_class[j]]}”`))]);
    return h("td", { class: "number" }, text(j));
  });
  rows[j].replaceChildren(...cells);
}

/** Rows are filled when they come near the window. */
const observer = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) if (isIntersecting) reveal(Number(target.dataset.d));
}, { rootMargin: "600px" });

function reveal(j) {
  observer.unobserve(rows[j]);
  if (filled.has(j)) return;
  filled.add(j);
  fillRow(j);
}

const FILTERS = {
  all: () => true,
  alive: (j) => !data.dead[j],
  named: (j) => Boolean(nameOf(j)),
  unnamed: (j) => !nameOf(j) && !data.dead[j],
  kept: (j) => choice(j).verdict === "keep",
  dropped: (j) => choice(j).verdict === "drop",
  flagged: (j) => data.dead[j] || data.always_on[j] || data.duplicate_of[j] >= 0,
};

function matches(j, query) {
  if (!query) return true;
  if (/^#?\d+$/.test(query) && !meta.class_names.includes(query)) return String(j) === query.replace("#", "");
  const modal = data.modal_class[j] < 0 ? "" : meta.class_names[data.modal_class[j]];
  const text = [`#${j}`, nameOf(j), choice(j).note, modal, ...meta.words[j]].join("\n").toLowerCase();
  return text.includes(query.toLowerCase());
}

/** The dimensions of the table in its order. */
function listed() {
  const query = $("#search").value.trim();
  const { value } = COLUMNS.find(({ key }) => key === sort.key);
  const worth = (j) => (Number.isNaN(value(j)) ? -Infinity : value(j));
  const sign = sort.descending ? -1 : 1;
  const found = rows.map((_, j) => j).filter((j) => FILTERS[$("#filter").value](j) && matches(j, query));
  // what has no value stays last in both directions
  const missing = (j) => worth(j) === -Infinity;
  return found.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * (worth(a) - worth(b))) || a - b);
}

function drawTable() {
  const order = listed();
  $("#list tbody").replaceChildren(...order.map((j) => rows[j]));
  order.forEach((j) => { if (!filled.has(j)) observer.observe(rows[j]); });
  order.slice(0, 20).forEach(reveal);
  $("#shown").value = `${number(order.length)} of ${number(meta.width)}`;
  for (const th of document.querySelectorAll("#list th[data-key]")) {
    th.setAttribute("aria-sort", th.dataset.key !== sort.key ? "none" : sort.descending !== (sort.key === "dimension") ? "descending" : "ascending");
  }
}

function drawHead() {
  $("#list thead tr").replaceChildren(...COLUMNS.map(({ key, label, value, hint, text }) => {
    if (!value) return h("th", { scope: "col" }, label);
    const click = () => {
      sort.descending = sort.key === key ? !sort.descending : true;
      sort.key = key;
      drawTable();
    };
    return h("th", { scope: "col", class: text ? "number" : "", "data-key": key }, h("button", { type: "button", title: hint, click }, label));
  }));
}

// ------------------------------------------------------------------------------------- the address and what it names
/** `#d=17` a dimension, `#s=3` a sample, `#s=3&t=9` a pair; `off=1,2` the dimensions that are switched off. */
function address() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const index = (name, count) => (/^\d+$/.test(parts.get(name) ?? "") && Number(parts.get(name)) < count ? Number(parts.get(name)) : null);
  const off = (parts.get("off") ?? "").split(",").filter((x) => /^\d+$/.test(x) && Number(x) < meta.width).map(Number);
  return { d: index("d", meta.width), s: index("s", meta.samples), t: index("t", meta.samples), off: new Set(off) };
}

function go({ d = null, s = null, t = null, off = address().off }) {
  const parts = Object.entries({ d, s, t, off: [...off].join(",") || null }).filter(([, x]) => x != null);
  location.hash = parts.map(([name, x]) => `${name}=${x}`).join("&");
}

function toggle(j) {
  const now = address();
  if (!now.off.delete(j)) now.off.add(j);
  go(now);
}

/** Links keep the dimensions that are off. */
const link = (place) => {
  const { off } = address();
  return `#${place}${off.size ? `&off=${[...off].join(",")}` : ""}`;
};
const switchOf = (j, off) => h("button", {
  type: "button", class: "act", "aria-pressed": String(off.has(j)), click: () => toggle(j), title: "similarities are computed without it",
  "aria-label": `dimension ${title(j)} is ${off.has(j) ? "off" : "on"}`,
}, off.has(j) ? "off" : "on");
/** A dimension in a list: its strongest samples say more than its number. */
const dimensionLink = (j) => h("a", { class: "part", href: link(`d=${j}`) }, views.strip(views.list("strongest", j), 3), title(j));

function dimensionView(j, off) {
  const expected = data.modal_class[j];
  const tiles = (name) => views.tiles(views.list(name, j), { expected, off });
  const near = views.list("nearest", j);
  const cosines = views.list("cosine", j);
  const verdict = (value, text) => h("button", {
    type: "button", "aria-pressed": String(choice(j).verdict === value), "data-verdict": value,
    click: () => { choose(j, { verdict: choice(j).verdict === value ? "" : value }); show(false); },
  }, text);
  const scores = views.list("word_scores", j);
  return [
    h("div", { class: "top" }, h("h2", { tabindex: -1 }, `Dimension ${j}`), h("span", {}, views.flags(j))),
    h("div", { class: "edit" },
      h("input", { id: "name", "aria-label": "Name", placeholder: "Your name for it", value: nameOf(j), autocomplete: "off", input: (e) => choose(j, { name: e.target.value }) }),
      verdict("keep", "✓ Keep"), verdict("drop", "✕ Drop"),
      h("button", { type: "button", "aria-pressed": String(off.has(j)), click: () => toggle(j), title: "similarities are computed without it", id: "switch" }, off.has(j) ? "Switched off" : "Switch off"),
      h("textarea", { id: "note", "aria-label": "Note", placeholder: "Note", input: (e) => choose(j, { note: e.target.value }) }, choice(j).note ?? "")),
    h("p", { class: "lead" }, views.sentence(j)),
    meta.words[j].length > 0 && [h("h3", {}, "Words ", h("small", {}, "of the texts that raise it most, with standard scores")),
      h("p", { class: "words" }, meta.words[j].map((word, i) => h("span", {}, word, h("small", {}, ` ${scores[i].toFixed(1)}`))))],
    h("h3", {}, "Strongest ", labelled && h("small", {}, "≠ marks another class")), tiles("strongest"),
    h("h3", {}, "Evenly spread ", h("small", {}, "over all others on which it fires, strong to weak")), tiles("spread"),
    h("h3", {}, "Near misses ", h("small", {}, "it is silent, though all else resembles the samples above")), tiles("near_misses"),
    labelled && !data.dead[j] && [h("h3", {}, "Classes ", h("small", {}, "dotted line: chance; full line: the most that is possible")), views.classes(j)],
    near.length > 0 && [h("h3", {}, "Nearest dimensions ", h("small", {}, "cosine over the samples")),
      views.bars(near.map((k, i) => ({ what: dimensionLink(k), share: cosines[i], text: fixed(cosines[i]) })))],
    meta.twin && twinView(j),
  ];
}

function twinView(j) {
  const k = data.twin[j];
  const r = data.twin_correlation[j];
  if (k < 0 || data.dead[j]) return [h("h3", {}, "In the other seed"), h("p", {}, "No partner.")];
  const verdict = Math.abs(r) > meta.twin.same ? "It comes back" : "It does not come back";
  const flip = r < 0 ? ", with its sign reversed" : "";
  return [
    h("h3", {}, "In the other seed ", h("small", {}, "the partner that a one-to-one search finds")),
    h("p", {}, `${verdict}: dimension ${k} there correlates ${fixed(r)}${flip}. Shuffled samples give ${fixed(meta.twin.by_chance)}.`),
    views.tiles(views.list("twin_strongest", j), { expected: data.modal_class[j] }),
  ];
}

function sampleView(i, off) {
  const parts = codes.parts(i, new Set());
  const shown = parts.slice(0, 12);
  const rest = parts.slice(12).reduce((sum, { share }) => sum + share, 0);
  const bars = shown.map(({ dimension, value, share }) => ({
    what: [switchOf(dimension, off), dimensionLink(dimension)],
    share, text: `${percent(share)}${value < 0 ? " negative" : ""}`,
  }));
  if (rest > 0) bars.push({ what: `${parts.length - 12} more`, share: rest, text: percent(rest) });
  return [
    h("h2", { tabindex: -1 }, `Sample ${i}`),
    sampleCard(i),
    h("h3", {}, "The sum of its dimensions ", h("small", {}, "shares of its squared length")),
    parts.length ? views.bars(bars) : h("p", {}, "No dimension fires: this embedding is zero."),
    neighboursView(i, off),
  ];
}

const sampleCard = (i) => h("div", { class: "pair" }, h("div", { class: "large" }, views.tile(i, { caption: views.label(i) || `#${i}` })),
  h("p", {}, [views.label(i) && `Class ${views.label(i)}. `, meta.texts && meta.texts[i]]));

function neighboursView(i, off) {
  const all = codes.neighbours(i, NEIGHBOURS);
  const tiles = (found, mark = () => "") => h("div", { class: views.onlyTexts ? "tiles texts" : "tiles" }, found.map(({ sample, cosine }) =>
    views.tile(sample, { caption: `${mark(sample)}${fixed(cosine)}${views.onlyTexts ? ` ${meta.texts[sample]}` : ""}`, href: link(`s=${i}&t=${sample}`).slice(1) })));
  const why = h("small", {}, "choose one to see why");
  if (!off.size) return [h("h3", {}, "Nearest samples ", why), tiles(all)];
  const without = codes.neighbours(i, NEIGHBOURS, off);
  const [before, after] = [all, without].map((found) => new Set(found.map(({ sample }) => sample)));
  return [
    h("h3", {}, `Nearest samples without ${[...off].map((j) => title(j)).join(", ")} `, why), h("div", { id: "without" }, tiles(without, (k) => (before.has(k) ? "" : "new "))),
    h("h3", {}, "With all dimensions"), h("div", { id: "with" }, tiles(all, (k) => (after.has(k) ? "" : "gone "))),
  ];
}

function pairView(i, k, off) {
  const { terms, cosine } = codes.why(i, k, off);
  const shown = terms.slice(0, 15);
  const rest = terms.slice(15).reduce((sum, { product }) => sum + product, 0);
  const bars = shown.map(({ dimension, product }) => ({
    what: [switchOf(dimension, off), dimensionLink(dimension)], share: product, text: product.toFixed(3),
  }));
  if (terms.length > 15) bars.push({ what: `${terms.length - 15} more`, share: rest, text: rest.toFixed(3) });
  return [
    h("h2", { tabindex: -1 }, `Why samples ${i} and ${k} are similar`),
    h("div", { class: "pair" }, [i, k].map((s) => h("div", { class: "large" }, views.tile(s, { href: link(`s=${s}`).slice(1) })))),
    h("p", { class: "lead" }, `Their similarity is ${fixed(cosine)}${off.size ? ", without what is switched off" : ""}. It is the sum of what each shared dimension adds, z times z′:`),
    terms.length ? views.bars(bars) : h("p", {}, "They share no dimension."),
    h("p", {}, h("a", { href: link(`s=${i}`) }, `All about sample ${i}`), " · ", h("a", { href: link(`s=${k}`) }, `all about sample ${k}`)),
  ];
}

function emptyView() {
  return [
    h("h2", {}, "How to read this page"),
    h("p", {}, "Each row of the table is one dimension of the embedding, with the samples on which it is strongest. Open one, look at what its samples have in common, and give it a name."),
    h("p", {}, "The strongest samples flatter. The evenly spread ones show all the others on which a dimension fires; on the near misses it is silent, though they resemble these."),
    labelled && h("p", {}, "A bar is the share of the commonest class. The dotted line is what chance gives; the full line is the most that the size of the class allows."),
    h("p", {}, "Choose any sample to see which dimensions it is made of, and a neighbour of it to see why the two are similar. Switch a dimension off and the neighbours are computed again."),
    h("p", {}, "Press ", h("kbd", {}, "?"), " for the keys. Your names stay in this browser until you export them."),
  ];
}

let linked = "";

/** The links of filled rows, after dimensions were switched. */
function relink(off) {
  if (linked === [...off].join()) return;
  linked = [...off].join();
  for (const j of filled) rows[j].querySelector(".id").setAttribute("href", link(`d=${j}`));
}

function show(focus = true) {
  const { d, s, t, off } = address();
  const view = s != null && t != null ? pairView(s, t, off) : s != null ? sampleView(s, off) : d != null ? dimensionView(d, off) : emptyView();
  $("#detail").replaceChildren(...view.flat(2).filter(Boolean));
  $("#detail").classList.toggle("empty", d == null && s == null);
  $("#detail").scrollTop = 0;
  $("tr[aria-current]")?.removeAttribute("aria-current");
  if (d != null) rows[d].setAttribute("aria-current", "true");
  relink(off);
  $("#off").hidden = !off.size;
  $("#off").replaceChildren("Switched off: ", ...[...off].flatMap((j) => [h("button", { type: "button", click: () => toggle(j), "aria-label": `switch ${title(j)} on` }, `${title(j)} ✕`), " "]));
  if (focus) $("#detail h2[tabindex]")?.focus({ preventScroll: matchMedia("(min-width: 62rem)").matches });
}

// ------------------------------------------------------------------------------------------------------- the keys
const rowLinks = () => [...document.querySelectorAll("#list tbody .id")];

function step(by) {
  const order = [...$("#list tbody").children];
  const here = document.activeElement.closest?.("#list tbody tr") ?? $("tr[aria-current]");
  const row = order[Math.max(0, Math.min(order.length - 1, here ? order.indexOf(here) + by : 0))];
  if (!row) return;
  reveal(Number(row.dataset.d));
  row.querySelector(".id").focus();
  row.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => $("#name")?.focus(),
  o: () => address().d != null && toggle(address().d),
  "+": () => $("[data-verdict=keep]")?.click(),
  "-": () => $("[data-verdict=drop]")?.click(),
  "/": () => $("#search").focus(),
  "?": () => $("#keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    (($("tr[aria-current]") ?? $("#list tbody tr"))?.querySelector(".id") ?? $("#search")).focus();
  } else if (event.key === "Enter" && event.target.id === "name") {
    event.preventDefault();
    step(0);
  } else if (!typing && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

// ------------------------------------------------------------------------------------------------------- the start
$("#tools").addEventListener("submit", (event) => event.preventDefault());
$("#search").addEventListener("input", drawTable);
$("#search").addEventListener("keydown", (event) => event.key === "Enter" && rowLinks()[0]?.focus());
$("#filter").addEventListener("change", drawTable);
$("#sample").max = meta.samples - 1;
$("#sample").addEventListener("change", (event) => event.target.value !== "" && event.target.checkValidity() && go({ s: Number(event.target.value) }));
$("#help").addEventListener("click", KEYS["?"]);
$("#import").addEventListener("click", () => $("#file").click());
$("#file").addEventListener("change", async (event) => {
  try {
    imported(JSON.parse(await event.target.files[0].text()));
  } catch (error) {
    alert(`These names cannot be read. ${error.message}`);
  }
});
$("#export").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([JSON.stringify(exported(), null, 1)], { type: "application/json" }));
  h("a", { href: url, download: "dimensions.json" }).click();
  URL.revokeObjectURL(url);
});
addEventListener("hashchange", () => show());
addEventListener("beforeprint", () => listed().slice(0, 300).forEach(reveal));

$("#sentences").replaceChildren(...meta.sentences.map((text) => h("p", {}, text)));
$("#notices").replaceChildren(...meta.notices.map((text) => h("li", {}, text)));
$("#controls div").replaceChildren(views.controls());
drawHead();
drawTable();
show(address().d != null || address().s != null);
globalThis.report = { data, codes, listed, exported, imported, address };
document.documentElement.dataset.ready = "true";
