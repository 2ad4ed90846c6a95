// What a dimension, a sample and a pair look like: functions from data to elements.

const percent = (x) => (x > 0 && x < 0.01 ? `${(100 * x).toPrecision(1)}%` : `${Math.round(100 * x)}%`);
const number = (x) => x.toLocaleString("en");

/** An element; functions among its attributes are listeners. Styles are set by property: the policy allows no other. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

class Views {
  constructor(data, codes) {
    Object.assign(this, { data, codes, meta: data.meta, urls: [] });
    this.sheets = [...document.querySelectorAll("script[data-sheet]")];
    this.onlyTexts = !this.sheets.length && Boolean(this.meta.texts);
  }

  /** Row j of an array with several entries a dimension; -1 marks those that are missing. */
  list(name, j) {
    const width = this.data[name].length / this.meta.width;
    return [...this.data[name].subarray(j * width, (j + 1) * width)].filter((x) => x !== -1 && !Number.isNaN(x));
  }

  label(i) {
    return this.data.label[i] < 0 ? "" : this.meta.class_names[this.data.label[i]];
  }

  // ------------------------------------------------------------------------------------------------ samples
  /** Address of a sheet; bytes become an image when the first of its thumbnails is shown. */
  sheet(s) {
    this.urls[s] ??= URL.createObjectURL(new Blob([bytesOf(this.sheets[s].textContent)], { type: "image/webp" }));
    return this.urls[s];
  }

  picture(i) {
    const slot = this.data.slot ? this.data.slot[i] : -1;
    if (slot < 0) return h("span", { class: "pic blank", "aria-hidden": "true" }, String(i));
    const { columns } = this.meta.sheets;
    const sheet = Math.floor(slot / columns ** 2);
    const place = slot % columns ** 2;
    const rows = this.meta.sheets.rows[sheet];
    const [x, y] = [place % columns, Math.floor(place / columns)];
    const pic = h("span", { class: "pic" });
    pic.style.backgroundImage = `url(${this.sheet(sheet)})`;
    pic.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    pic.style.backgroundPosition = `${(100 * x) / (columns - 1)}% ${rows > 1 ? (100 * y) / (rows - 1) : 0}%`;
    return pic;
  }

  describe(i) {
    const parts = [`sample ${i}`, this.label(i), this.meta.texts ? this.meta.texts[i] : ""];
    return parts.filter(Boolean).join(", ");
  }

  /** A sample as a button; one whose class is not the expected one says so in words. */
  tile(i, { expected = null, caption = null, href = `s=${i}` } = {}) {
    const odd = expected != null && expected >= 0 && this.data.label[i] >= 0 && this.data.label[i] !== expected;
    const text = caption ?? (this.onlyTexts ? this.meta.texts[i] : (odd ? "≠ " : "") + (this.label(i) || `#${i}`));
    const title = this.describe(i) + (odd ? ", not the commonest class" : "");
    return h("button", {
      type: "button", class: odd ? "tile odd" : "tile", title, "aria-label": `${title}${caption ? `, ${caption}` : ""}`,
      "data-s": i, click: () => { location.hash = href; },
    }, this.picture(i), h("span", { class: "cap" }, text));
  }

  tiles(samples, options) {
    if (!samples.length) return h("p", { class: "soft" }, "none");
    return h("div", { class: this.onlyTexts ? "tiles texts" : "tiles" }, samples.map((i) => this.tile(i, options)));
  }

  /** Pictures without buttons, for the table: a reader with a keyboard has one stop a row. */
  strip(samples, count) {
    const shown = samples.slice(0, this.onlyTexts ? 2 : count);
    const items = shown.map((i) => h("span", { class: "tile", title: this.describe(i) },
      this.picture(i), this.onlyTexts && h("span", { class: "cap" }, this.meta.texts[i])));
    const alt = `strongest: ${shown.map((i) => this.label(i) || this.describe(i)).join(", ")}`;
    return h("div", { class: this.onlyTexts ? "strip texts" : "strip", role: "img", "aria-label": alt }, items);
  }

  // ------------------------------------------------------------------------------------------------ numbers
  /** A bar from 0 to 1; a dotted line at chance, a full line at the most that is possible. */
  meter(share, chance = null, ceiling = null) {
    const fill = h("i", { class: share < 0 ? "negative" : "" });
    fill.style.width = `${100 * Math.min(Math.abs(share), 1)}%`;
    const lines = [["chance", chance], ["ceiling", ceiling]].filter(([, x]) => x != null && !Number.isNaN(x));
    const marks = lines.map(([kind, x]) => {
      const line = h("b", { class: kind });
      line.style.left = `calc(${100 * x}% - 1px)`;
      return line;
    });
    return h("span", { class: "meter", "aria-hidden": "true" }, fill, marks);
  }

  bars(rows) {
    return h("ol", { class: "bars" }, rows.map(({ what, share, text, chance, ceiling }) =>
      h("li", {}, h("span", { class: "what" }, what), this.meter(share, chance, ceiling), h("span", {}, text))));
  }

  /** Classes of the samples on which a dimension fires. */
  classes(j) {
    const { data, meta } = this;
    const counts = this.list("counts", j).map((count, c) => [count, c]).filter(([count]) => count > 0);
    const total = counts.reduce((sum, [count]) => sum + count, 0);
    counts.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const rows = counts.slice(0, 10).map(([count, c]) => ({
      what: meta.class_names[c], share: count / total, text: `${number(count)} · ${percent(count / total)}`,
      chance: data.chance[j], ceiling: data.ceiling[j],
    }));
    const rest = counts.slice(10).reduce((sum, [count]) => sum + count, 0);
    if (rest) rows.push({ what: `${counts.length - 10} other classes`, share: rest / total, text: `${number(rest)} · ${percent(rest / total)}` });
    return this.bars(rows);
  }

  flags(j) {
    const { data } = this;
    return [
      data.dead[j] ? "dead: never fires" : "",
      data.always_on[j] ? "always on" : "",
      data.duplicate_of[j] >= 0 ? `repeats #${data.duplicate_of[j]}` : "",
    ].filter(Boolean).map((text) => h("span", { class: "flag" }, text));
  }

  /** One sentence about a dimension. */
  sentence(j) {
    const { data, meta } = this;
    if (data.dead[j]) return "This dimension fires on no sample.";
    const fires = `Fires on ${number(data.support[j])} of ${number(meta.samples)} samples (${percent(data.support[j] / meta.samples)}).`;
    if (data.modal_class[j] < 0) return fires;
    const name = meta.class_names[data.modal_class[j]];
    if (meta.class_names.length === 1) return `${fires} All labels are “${name}”.`;
    return `${fires} ${percent(data.share[j])} of them are “${name}”; as many samples drawn blindly would reach ` +
      `${percent(data.chance[j])} of one class, and at most ${percent(data.ceiling[j])} is possible.`;
  }

  controls() {
    const { rows } = this.meta;
    const labelled = rows[0].share != null && this.meta.class_names.length > 1;
    const head = ["", "dimensions that fire", "active on a sample", ...(labelled ? ["commonest class", "by chance", "possible", "corrected for chance"] : [])];
    const cells = (r) => [r.name, `${number(r.alive)} of ${number(r.width)}`, r.active.toFixed(1),
      ...(labelled ? [r.share, r.chance, r.ceiling, r.corrected].map((x) => (x == null ? "–" : percent(x))) : [])];
    return h("table", {},
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((r) => h("tr", {}, cells(r).map((text, i) => h(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, text))))));
  }
}
