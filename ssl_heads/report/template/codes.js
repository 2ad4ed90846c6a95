// Sparse rows of normalised embeddings, and what follows from them alone: similarities, reasons, neighbours.
// Values are integers, so that sums are exact: the page and NumPy agree to the last digit.

const SCALE = 32767;

const bytesOf = (text) =>
  Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function inflate(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

/** Every block of the page by its name, as a typed array or as an object. */
async function readData() {
  const data = {};
  const scripts = [...document.querySelectorAll("script[data-name]")];
  await Promise.all(scripts.map(async (script) => {
    const { name, type } = script.dataset;
    const buffer = await inflate(script.textContent);
    data[name] = type === "json" ? JSON.parse(new TextDecoder().decode(buffer)) : new globalThis[type](buffer);
    script.remove();
  }));
  return data;
}

class Codes {
  constructor(counts, dims, values, width) {
    Object.assign(this, { dims, values, width, rows: counts.length });
    this.start = new Uint32Array(this.rows + 1);
    counts.forEach((count, i) => { this.start[i + 1] = this.start[i] + count; });
    this.squares = new Float64Array(this.rows);
    this.#index();
  }

  /** The entries by dimension: whoever looks for neighbours reads only those of the active dimensions. */
  #index() {
    this.first = new Uint32Array(this.width + 1);
    for (const j of this.dims) this.first[j + 1]++;
    for (let j = 0; j < this.width; j++) this.first[j + 1] += this.first[j];
    const next = this.first.slice();
    this.row = new Uint32Array(this.dims.length);
    this.value = new Int16Array(this.dims.length);
    for (let i = 0; i < this.rows; i++) {
      for (let e = this.start[i]; e < this.start[i + 1]; e++) {
        const place = next[this.dims[e]]++;
        this.row[place] = i;
        this.value[place] = this.values[e];
        this.squares[i] += this.values[e] ** 2;
      }
    }
  }

  /** [dimension, integer] of each entry of a row, without the dimensions that are off. */
  entries(i, off = new Set()) {
    const found = [];
    for (let e = this.start[i]; e < this.start[i + 1]; e++) {
      if (!off.has(this.dims[e])) found.push([this.dims[e], this.values[e]]);
    }
    return found;
  }

  /** Squared length of every row without the dimensions that are off. */
  squaresWithout(off = new Set()) {
    if (off.size === 0) return this.squares;
    const squares = this.squares.slice();
    for (const j of off) {
      for (let p = this.first[j]; p < this.first[j + 1]; p++) squares[this.row[p]] -= this.value[p] ** 2;
    }
    return squares;
  }

  /** Parts of a row, the largest first: its entry, and its share of the squared length. */
  parts(i, off) {
    const entries = this.entries(i, off);
    const square = entries.reduce((sum, [, v]) => sum + v * v, 0);
    return entries
      .map(([dimension, v]) => ({ dimension, value: v / SCALE, share: (v * v) / square }))
      .sort((a, b) => b.share - a.share || a.dimension - b.dimension);
  }

  /** z_j z'_j of each dimension that both have, the largest first; they sum to the cosine. */
  why(i, k, off) {
    const squares = this.squaresWithout(off);
    const length = Math.sqrt(squares[i] * squares[k]);
    const other = new Map(this.entries(k, off));
    const terms = this.entries(i, off)
      .filter(([j]) => other.has(j))
      .map(([dimension, v]) => ({ dimension, product: (v * other.get(dimension)) / length }))
      .sort((a, b) => Math.abs(b.product) - Math.abs(a.product) || a.dimension - b.dimension);
    return { terms, cosine: terms.reduce((sum, term) => sum + term.product, 0) };
  }

  /** The rows of largest cosine with row i, itself left out; of equal ones the first. */
  neighbours(i, count, off = new Set()) {
    const sums = new Float64Array(this.rows);
    for (const [j, v] of this.entries(i, off)) {
      for (let p = this.first[j]; p < this.first[j + 1]; p++) sums[this.row[p]] += v * this.value[p];
    }
    const squares = this.squaresWithout(off);
    const best = [];
    for (let k = 0; k < this.rows; k++) {
      if (k === i || sums[k] <= 0) continue;
      const cosine = sums[k] / Math.sqrt(squares[i] * squares[k]);
      if (best.length === count && cosine <= best[count - 1].cosine) continue;
      let place = best.length;
      while (place > 0 && best[place - 1].cosine < cosine) place--;
      best.splice(place, 0, { sample: k, cosine });
      if (best.length > count) best.pop();
    }
    return best;
  }
}
