"use strict";

const EXAMPLES = {
  "Four turns, lengths only":
    "user: 35\nassistant: 180\nuser: 20\nassistant: 260\n" +
    "user: 25\nassistant: 140\nuser: 30\nassistant: 210",
  "A long question, one turn": "user: 1200\nassistant: 300",
  "Two turns": "user: 300\nassistant: 500\nuser: 60\nassistant: 240",
  "Many short turns": Array.from(
    { length: 12 }, (_, i) => `user: ${12 + 3 * i}\nassistant: ${40 + 5 * i}`).join("\n"),
  "In words":
    "user: Please remember this: the door code of the observatory is 4821.\n" +
    "assistant: Noted. I will keep the code for you.\n" +
    "user: How far away is the moon?\n" +
    "assistant: About 384,000 kilometres on average; light needs 1.3 seconds.\n" +
    "user: What is the door code of the observatory?\n" +
    "assistant: The door code of the observatory is 4821.",
};
const [LEFT, RIGHT, BINS, DRAWS] = [46, 14, 100, 400];
let WIDTH = 1000; // of the pictures, in units of a pixel or so
const MOST_TOKENS = 8192;
const at = (id) => document.getElementById(id);
const told = (n) => Math.round(n).toLocaleString("en-US");
const exact = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 3 });

// One block per line; a line that names nobody continues the block before it.
function parse(text) {
  const blocks = [];
  for (const line of text.split("\n")) {
    const [, who, rest] = /^\s*(?:(u|user|a|assistant)\s*:)?(.*)$/i.exec(line);
    const number = /^\s*(\d{1,6})\s*$/.exec(rest);
    const words = rest.match(/[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) || [];
    const tokens = number ? Number(number[1]) : words.length;
    if (who) blocks.push({ tokens, response: /^a/i.test(who) });
    else if (tokens && blocks.length) blocks[blocks.length - 1].tokens += tokens;
    else if (tokens) blocks.push({ tokens, response: false });
  }
  // Neighbours of one role are one block, as in training's chats they take turns.
  const merged = [];
  for (const block of blocks.filter((one) => one.tokens > 0)) {
    const last = merged[merged.length - 1];
    if (last && last.response === block.response) last.tokens += block.tokens;
    else merged.push(block);
  }
  return merged;
}

const TOLD = {
  contiguous: "No block moves: ordinary fine-tuning.",
  skip_all: "Every block after the first may jump.",
  skip_inner: "Responses may jump.",
  skip_outer: "Instructions after the first may jump: the paper's default.",
  pose: "PoSE: two chunks, cut anywhere; the second jumps.",
  endprompt: "EndPrompt: the last turn moves to the end of L.",
  logo: "LOGO: the last turn at the end of L; what is before it in two chunks, anywhere.",
  randpos: "RandPos: any of the L positions, in order; every token stands alone.",
  cream: "CREAM: a head at 0, a tail at the end of L, a middle anywhere between.",
};

// 1K … 200K on a logarithmic slider, in round numbers; 87 is 100,000.
const sliderOf = (L) => Math.round((100 * Math.log(L / 1000)) / Math.log(200));
function lengthOf(slider) {
  const exact = 1000 * 200 ** (slider / 100);
  const unit = 10 ** Math.floor(Math.log10(exact)) / 10;
  return Math.round(exact / unit) * unit;
}

function settings() {
  return {
    strategy: at("strategy").value,
    gaps: at("gaps").value,
    probPer: at("probPer").value,
    p: Number(at("p").value),
    chunks: 2,
    ...numbers,
  };
}

// The whole numbers as they were when they last were allowed: field → number.
const numbers = { L: 100000, seed: 0, sampleId: 22 };
const NAMES = { L: "L", seed: "Seed", sampleId: "Sample id" };

// Takes the whole numbers that are allowed; says which are not, and what is drawn.
function check() {
  const wrong = [];
  for (const [id, name] of Object.entries(NAMES)) {
    const { value, min, max } = at(id);
    const number = Number(value);
    const good = value.trim() !== "" && Number.isInteger(number) && number >= min && number <= max;
    if (good) numbers[id] = number;
    else wrong.push(`${name} must be a whole number from ${told(min)} to ${told(max)}; ` +
      `the pictures show ${told(numbers[id])}.`);
    at(id).setAttribute("aria-invalid", String(!good));
  }
  at("wrong").textContent = wrong.join(" ");
}

function svg(id, height, parts) {
  at(id).setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  at(id).innerHTML = parts.join("");
}

const placed = (x, L) => LEFT + (x / L) * (WIDTH - LEFT - RIGHT);

function axis(y, L, label) {
  const parts = [`<line class="axis" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y}" y2="${y}"/>`];
  const ticks = WIDTH < 600 ? 2 : 5;
  for (let i = 0; i <= ticks; i++) {
    const [x, text] = [placed((i * L) / ticks, L), told((i * L) / ticks)];
    const anchor = i === ticks ? "end" : "middle";
    parts.push(`<line class="axis" x1="${x}" x2="${x}" y1="${y}" y2="${y + 5}"/>`);
    parts.push(`<text x="${x}" y="${y + 18}" text-anchor="${anchor}">${text}</text>`);
  }
  parts.push(`<text x="${WIDTH / 2}" y="${y + 34}" text-anchor="middle">${label}</text>`);
  return parts;
}

// Blocks are drawn at least so wide that they show, in order, none hidden.
function drawBlocks(runs, L) {
  const least = Math.min(9, (WIDTH - LEFT - RIGHT) / runs.length);
  const widths = runs.map((run) => Math.max(least, placed(run.size, L) - LEFT));
  const lefts = [];
  let free = LEFT;
  runs.forEach((run, i) => {
    lefts.push(Math.max(placed(run.first, L), free));
    free = lefts[i] + widths[i];
  });
  let end = WIDTH - RIGHT;
  for (let i = runs.length - 1; i >= 0; i--) end = lefts[i] = Math.min(lefts[i], end - widths[i]);
  const role = (run) => (run.response ? "response" : "instruction");
  const shown = [WIDTH, ...runs.map((run) => `${run.block}:${run.size}`)].join();
  if (at("blocks").dataset.shown !== shown) {
    // New elements only for new blocks: those that are there glide to their places.
    at("blocks").dataset.shown = shown;
    svg("blocks", 84, [
      '<g id="ground"></g>',
      ...runs.map((run) => `<rect class="block ${role(run)}" y="10" height="26"/>`),
    ]);
  }
  at("ground").innerHTML = axis(44, L, "position id").join("");
  [...at("blocks").querySelectorAll("rect")].forEach((rect, i) => {
    rect.setAttribute("width", widths[i]);
    rect.style.transform = `translateX(${lefts[i]}px)`;
  });
}

// The blocks, whatever runs they were cut into: {block, response, first, last}.
function whole(runs) {
  const found = [];
  for (const { block, response, first, size } of runs) {
    const last = first + size - 1;
    if (found[block]) found[block].last = last;
    else found[block] = { block, response, first, last };
  }
  return found;
}

function drawSpans(runs, L) {
  const parts = [];
  const blocks = whole(runs);
  const asked = blocks.filter((block) => block.response).slice(0, 24);
  asked.forEach((query, row) => {
    const y = 6 + 20 * row;
    parts.push(`<text x="${LEFT - 8}" y="${y + 11}" text-anchor="end">${query.block}</text>`);
    for (const key of blocks.slice(0, query.block + 1)) {
      const own = key === query;
      const low = own ? 0 : query.first - key.last;
      const high = query.last - key.first;
      const width = Math.max(4, placed(high + 1, L) - placed(low, L));
      const x = Math.min(placed(low, L), WIDTH - RIGHT - width);
      const role = own ? "own" : key.response ? "response" : "instruction";
      const [top, height] = own ? [0, 15] : key.response ? [8, 7] : [0, 7];
      parts.push(`<rect class="${role}" x="${x}" y="${y + top}" width="${width}"
        height="${height}"><title>response ${query.block} to block ${key.block}: ` +
        `${told(low)} to ${told(high)}</title></rect>`);
    }
  });
  const y = 10 + 20 * asked.length;
  svg("spans", y + 42, [...parts, ...axis(y, L, "relative distance (rows: number of the block)")]);
}

function binned(found, limit) {
  const width = Math.ceil(limit / BINS);
  const means = [];
  for (let begin = 0; begin < limit; begin += width) {
    const part = found.subarray(begin, Math.min(begin + width, limit));
    means.push(part.reduce((a, b) => a + b, 0) / part.length);
  }
  return { width, means };
}

const cache = { at: "", bins: null };
function meanBins(blocks, config, limit) {
  const { sampleId, ...rest } = config;
  const name = JSON.stringify([blocks, rest, limit]);
  if (cache.at !== name) {
    const draws = config.strategy === "randpos" ? 5 : DRAWS; // a draw sorts L numbers
    const drawn = Array.from({ length: draws }, (_, i) =>
      skipalign.synthesize(blocks, { ...config, sampleId: i }));
    const bins = binned(skipalign.pairs(drawn, limit), limit);
    bins.means = bins.means.map((n) => n / draws);
    Object.assign(cache, { at: name, bins });
  }
  return cache.bins;
}

function drawHistogram(blocks, config, runs) {
  const m = blocks.reduce((sum, block) => sum + block.tokens, 0);
  const limit = Math.max(config.L, m);
  const found = skipalign.pairs([runs], limit);
  const now = binned(found, limit);
  const mean = meanBins(blocks, config, limit);
  const still = skipalign.synthesize(blocks, { ...config, strategy: "contiguous" });
  const before = binned(skipalign.pairs([still], limit), limit);
  const [top, bottom, floor] = [24, 204, -3]; // decades: 0.001 pairs at the bottom
  const highest = Math.max(0.5, ...[now, mean, before].map((b) => Math.log10(Math.max(...b.means, 1))));
  const y = (n) => {
    const height = (Math.max(Math.log10(Math.max(n, 1e-9)), floor) - floor) / (highest - floor);
    return bottom - height * (bottom - top);
  };
  const edge = (i) => placed(Math.min(i * now.width, limit), limit);
  const parts = [`<text x="6" y="12">pairs at a distance</text>`];
  for (let decade = floor; decade <= highest; decade++) {
    const level = y(10 ** decade);
    parts.push(`<line class="axis" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${level}" y2="${level}"/>`);
    const text = decade < 0 ? (10 ** decade).toFixed(-decade) : told(10 ** decade);
    parts.push(`<text x="${LEFT - 6}" y="${level + 4}" text-anchor="end">${text}</text>`);
  }
  now.means.forEach((n, i) => {
    if (n > 0) parts.push(`<rect class="now" x="${edge(i)}" y="${y(n)}"
      width="${edge(i + 1) - edge(i)}" height="${bottom - y(n)}"/>`);
  });
  const line = (bins, name) => {
    const steps = bins.means.map((n, i) => `H${edge(i)}V${y(n)}H${edge(i + 1)}`).join("");
    return `<path class="${name}" d="M${LEFT} ${y(bins.means[0])}${steps}"/>`;
  };
  parts.push(line(before, "before"), line(mean, "mean"));
  now.means.forEach((n, i) => {
    const last = Math.min((i + 1) * now.width, limit) - 1;
    parts.push(`<rect class="bin" x="${edge(i)}" y="${top}" width="${edge(i + 1) - edge(i)}"
      height="${bottom - top}"><title>${told(i * now.width)} to ${told(last)}: this draw ${exact(n)}` +
      `, mean ${exact(mean.means[i])}, contiguous ${exact(before.means[i])}</title></rect>`);
  });
  parts.push(...axis(bottom, limit, "relative distance"));
  svg("histogram", bottom + 42, parts);
  summarise(found, m, limit);
}

function summarise(found, m, limit) {
  const all = found.reduce((a, b) => a + b, 0);
  const beyond = found.subarray(m).reduce((a, b) => a + b, 0);
  const met = found.reduce((n, x) => n + (x > 0), 0);
  const longest = found.findLastIndex((x) => x > 0);
  at("summary").textContent = all
    ? `${told(all)} pairs, ${((100 * beyond) / all).toFixed(1)} % of them at distances of ` +
      `${told(m)} and more, which the dialogue does not have without skips. ` +
      `${told(met)} of ${told(limit)} distances occur, the longest is ${told(longest)}.`
    : "No response, so nothing is learned from this dialogue.";
}

function drawTable(runs) {
  const row = (cells, tag = "td") => `<tr>${cells.map((c) => `<${tag}>${c}</${tag}>`).join("")}</tr>`;
  let end = 0;
  let tokens = 0;
  const rows = runs.slice(0, 60).map((run) => {
    const gap = run.first - end;
    const cells = [run.block, run.response ? "response" : "instruction", told(run.size),
      `${told(run.first)}–${told(run.first + run.size - 1)}`, told(run.first - tokens), told(gap)];
    end = run.first + run.size;
    tokens += run.size;
    return row(cells);
  });
  const head = row(["block", "role", "tokens", "positions", "moved by (u)", "gap before"], "th");
  at("table").innerHTML = head + rows.join("");
}

// Name in the address → control. The dialogue is there as `example` or as `text`.
const SHARED = {
  strategy: "strategy", L: "L", p: "p", gaps: "gaps", prob_per: "probPer",
  seed: "seed", sample: "sampleId",
};
const OWN = "Your own";
let shown = ""; // the part of the address after #, as this page wrote it

const exampleOf = (text) => Object.keys(EXAMPLES).find((name) => EXAMPLES[name] === text);

function writeAddress() {
  const chosen = new URLSearchParams();
  for (const [name, id] of Object.entries(SHARED)) chosen.set(name, numbers[id] ?? at(id).value);
  const example = exampleOf(at("text").value);
  chosen.set(...(example ? ["example", example] : ["text", at("text").value]));
  shown = `#${chosen}`;
  location.replace(shown);
}

// What the address does not say, or says wrongly, stays as it is.
function readAddress() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const [name, id] of Object.entries(SHARED)) {
    const before = at(id).value;
    if (chosen.has(name)) at(id).value = chosen.get(name);
    if (at(id).value === "") at(id).value = before;
  }
  const example = chosen.get("example");
  if (Object.hasOwn(EXAMPLES, example)) at("text").value = EXAMPLES[example];
  else if (chosen.has("text")) at("text").value = chosen.get("text");
}

function redraw() {
  draw();
  writeAddress();
}

function draw() {
  check();
  WIDTH = Math.max(320, Math.min(1000, document.querySelector("main").clientWidth));
  const config = settings();
  at("pShown").textContent = config.p.toFixed(2);
  at("slider").value = sliderOf(config.L);
  at("example").value = exampleOf(at("text").value) ?? OWN;
  at("told").textContent = TOLD[config.strategy];
  const skips = config.strategy.startsWith("skip_");
  for (const id of ["gaps", "probPer", "p"]) at(id).disabled = !skips;
  const blocks = parse(at("text").value);
  const m = blocks.reduce((sum, block) => sum + block.tokens, 0);
  const note = m > MOST_TOKENS ? `Too long for this page: at most ${told(MOST_TOKENS)} tokens.`
    : m === 0 ? "Nothing to draw yet." : "";
  at("counted").textContent = note || `${blocks.length} blocks, ${told(m)} tokens; in text a ` +
    "word or a sign counts as one, in place of a tokenizer.";
  if (note) return;
  const runs = skipalign.synthesize(blocks, config);
  const limit = Math.max(config.L, m);
  drawBlocks(runs, limit);
  drawSpans(runs, limit);
  drawHistogram(blocks, config, runs);
  drawTable(runs);
  const flags = { "positions.strategy": config.strategy, "positions.max_position": config.L };
  if (skips) {
    flags["positions.skip_prob"] = config.p;
    flags["positions.prob_per"] = config.probPer;
    flags["positions.gaps"] = config.gaps;
  }
  flags.seed = config.seed;
  at("config").innerHTML = Object.entries(flags)
    .map(([name, value]) => `<span>--config.${name}=${value}</span>`).join(" ");
}

function main() {
  const option = (name) => `<option>${name}</option>`;
  at("example").innerHTML = [...Object.keys(EXAMPLES), OWN].map(option).join("");
  at("strategy").innerHTML = skipalign.STRATEGIES.map(option).join("");
  at("strategy").value = "skip_outer";
  at("text").value = Object.values(EXAMPLES)[0];
  at("example").addEventListener("change", () => {
    at("text").value = EXAMPLES[at("example").value] ?? at("text").value;
    redraw();
  });
  for (const id of ["text", ...Object.values(SHARED)]) {
    at(id).addEventListener("input", redraw);
  }
  at("slider").addEventListener("input", () => {
    at("L").value = lengthOf(Number(at("slider").value));
    redraw();
  });
  addEventListener("resize", draw);
  addEventListener("hashchange", () => {
    if (location.hash === shown) return; // we wrote it
    readAddress();
    draw();
  });
  const next = () => {
    at("sampleId").value = (settings().sampleId + 1) % 2 ** 32;
    redraw();
  };
  at("next").addEventListener("click", next);
  let timer = 0;
  at("play").addEventListener("click", () => {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(next, 900);
    at("play").textContent = timer ? "Pause" : "Play";
  });
  at("more").open = innerWidth > 720; // on a phone the pictures come first
  readAddress();
  draw();
}

main();
