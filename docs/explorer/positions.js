// The draws of skipalign_jax/method/positions.py, number for number, in uint32 arithmetic.
//
// jax.random is threefry2x32 (Salmon et al., 2011) with its partitionable counters.
// A key is a pair of uint32; everything else follows positions.py, one sample at a time.
"use strict";

const skipalign = (() => {
  // The hash: 20 rounds, the key put in after every four.
  const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24];
  function threefry([k0, k1], x0, x1) {
    const ks = [k0, k1, k0 ^ k1 ^ 0x1bd11bda];
    x0 = (x0 + k0) | 0;
    x1 = (x1 + k1) | 0;
    for (let round = 0; round < 20; round++) {
      const r = ROTATIONS[round % 8];
      x0 = (x0 + x1) | 0;
      x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
      if (round % 4 === 3) {
        const i = (round + 1) / 4;
        x0 = (x0 + ks[i % 3]) | 0;
        x1 = (x1 + ks[(i + 1) % 3] + i) | 0;
      }
    }
    return [x0 >>> 0, x1 >>> 0];
  }

  // jax.random.key, fold_in, split, bits, uniform and randint, for scalars.
  const key = (seed) => [0, seed >>> 0];
  const foldIn = (k, data) => threefry(k, 0, data >>> 0);
  const split = (k) => [threefry(k, 0, 0), threefry(k, 0, 1)];
  function bits(k, i = 0) {
    const [a, b] = threefry(k, 0, i);
    return (a ^ b) >>> 0;
  }
  const round = Math.fround;
  const uniform = (k) => (bits(k) >>> 9) / 0x800000; // 23 bits: exact in float32
  function randint(k, low, high) {
    // low … high − 1; low where that is empty.
    const span = high > low ? high - low : 1;
    const [k1, k2] = split(k);
    const half = 65536 % span;
    const factor = (Math.imul(half, half) >>> 0) % span; // 2^32 wraps to 0, as in JAX
    const above = Math.imul(bits(k1) % span, factor) >>> 0;
    return low + (((above + (bits(k2) % span)) >>> 0) % span);
  }

  const DO_SKIP = {
    contiguous: () => false,
    skip_all: () => true,
    skip_inner: (block) => block.response,
    skip_outer: (block) => !block.response,
  };
  const STRATEGIES = [...Object.keys(DO_SKIP), "pose", "randpos", "cream", "endprompt", "logo"];

  // Runs of contiguous positions of a sample: {block, response, first, size}.
  //   blocks: [{tokens, response}] in order
  //   config: strategy, L, p, probPer ("block" | "sample"),
  //           gaps ("sequential" | "uniform"), chunks, terminal ("turn" | "response"),
  //           terminalAt ("end" | "random"), seed, sampleId
  function synthesize(blocks, config) {
    const m = blocks.reduce((sum, block) => sum + block.tokens, 0);
    const base = foldIn(key(config.seed), config.sampleId);
    const moves = m < config.L;
    if (config.strategy === "pose" && moves) return cut(blocks, pose(base, m, config));
    if (config.strategy === "randpos" && moves) {
      return cut(blocks, randpos(base, m, config.L));
    }
    if (config.strategy === "cream" && moves) return cut(blocks, cream(base, m, config.L));
    if (config.strategy === "logo" && moves) return cut(blocks, logo(blocks, base, m, config));
    const skips = DO_SKIP[config.strategy] || DO_SKIP.contiguous;
    const p = round(config.p);
    const chosen = blocks.map((block, i) => {
      const index = config.probPer === "block" ? i : 0;
      return skips(block) && i > 0 && uniform(foldIn(base, 2 * index)) < p;
    });
    const room = moves ? config.L - m : 0;
    const draw = config.gaps === "uniform" ? uniformBiases : sequentialBiases;
    const u = config.strategy === "endprompt"
      ? endpromptBiases(blocks, base, room, config) : draw(base, room, chosen);
    let at = 0;
    return blocks.map((block, i) => {
      const first = at + u[i];
      at += block.tokens;
      return { block: i, response: block.response, first, size: block.tokens };
    });
  }

  // Equations 3 and 4: each skip takes a uniform part of the room that is left.
  function sequentialBiases(base, room, chosen) {
    let u = 0;
    return chosen.map((skips, i) => {
      const R = room - u;
      if (skips && R >= 1) u += randint(foldIn(base, 2 * i + 1), 1, R + 1);
      return u;
    });
  }

  // All blocks from the terminal one on take the whole room, or a random part of it.
  function endpromptBiases(blocks, base, room, { terminal = "turn", terminalAt = "end" }) {
    const start = terminalStart(blocks, terminal);
    const u = terminalAt === "random" ? randint(foldIn(base, 1), 0, room + 1) : room;
    return blocks.map((_, i) => (start > 0 && i >= start ? u : 0));
  }

  // The last response, or its instruction before it too; at most 0 if there is none.
  function terminalStart(blocks, terminal) {
    const last = blocks.findLastIndex((block) => block.response);
    if (terminal === "response" || last < 1) return last;
    return blocks[last - 1].response ? -1 : last - 1;
  }

  // Floyd's algorithm draws k of R + k slots; the r-th smallest minus r is a bias.
  function uniformBiases(base, room, chosen) {
    const slots = [];
    chosen.forEach((skips, i) => {
      if (!skips) return;
      const last = room + slots.length;
      const slot = randint(foldIn(base, 2 * i + 1), 0, last + 1);
      slots.push(slots.includes(slot) ? last : slot);
    });
    slots.sort((a, b) => a - b);
    let rank = -1;
    return chosen.map((skips) => {
      if (skips) rank += 1;
      return rank < 0 ? 0 : slots[rank] - rank;
    });
  }

  const among = (base, stream, low, high) =>
    randint(foldIn(base, stream), low, Math.max(low, high) + 1);

  // The methods without blocks give [first token, bias] wherever the bias changes.
  function pose(base, m, { L, chunks }) {
    const steps = [[0, 0]];
    let start = 0;
    let u = 0;
    for (let j = 1; j < chunks; j++) {
      const share = Math.floor((m - start + chunks - j) / (chunks - j + 1));
      start += among(base, 3 * j, 1, share);
      u = among(base, 3 * j + 2, u, L - m);
      steps.push([start, u]);
    }
    return steps;
  }

  // The context in chunks, each in a slot of its own of the room before the end.
  function logo(blocks, base, m, { L, chunks, terminal = "turn" }) {
    const start = terminalStart(blocks, terminal);
    if (start < 1) return [[0, 0]];
    const before = blocks.slice(0, start).reduce((sum, block) => sum + block.tokens, 0);
    const c = Math.ceil(before / chunks);
    const slot = Math.floor((L - m + before) / chunks);
    const starts = Math.ceil(slot / c);
    const steps = [];
    for (let j = 0; j * c < before; j++) {
      const i = randint(foldIn(base, j), 0, Math.max(starts, 1));
      const share = round(i / Math.max(starts - 1, 1));
      const offset = j ? Math.min(Math.trunc(round(share * (slot - c))), slot - c) : 0;
      steps.push([j * c, slot >= c ? j * slot + offset - j * c : 0]);
    }
    return [...steps, [before, L - m]];
  }

  function randpos(base, m, L) {
    const some = Array.from(permutation(base, L).subarray(0, m)).sort((a, b) => a - b);
    return some.map((position, token) => [token, position - token]);
  }

  // A head, a tail that ends at L, and between them a middle that ends anywhere. Compilers
  // round training's float32 in their own ways, which may move alpha, a whole number, by
  // one: where L is thousands of times m one draw in a few hundred, elsewhere next to none.
  function cream(base, m, L) {
    if (m < 3) return [[0, 0]];
    const f = round(L / m);
    const third = Math.floor(m / 3);
    const few = Math.min(Math.max(Math.floor(4 * f), 1), third);
    const h = among(base, 0, 0, 1) === 0 ? third : few;
    const mid = m - 2 * h;
    const alpha = gaussianUpTo(2 * f, round(1 + f), uniform(foldIn(base, 1)));
    const low = h + Math.floor(((mid - 1) * alpha) / 2);
    const e = among(base, 2, low, Math.floor((m * alpha) / 2) - h - 1);
    return [[0, 0], [h, e - mid + 1 - h], [m - h, L - m]];
  }

  // The whole number below the inverse of a Gaussian's distribution function, σ = 3, which
  // is read off a table of 1000 points of 2 … high. It is not scaled to reach 0 and 1.
  function gaussianUpTo(high, mean, below) {
    const points = Array.from({ length: 1000 }, (_, i) => round(2 + (i * (high - 2)) / 999));
    const cdf = points.map((x) => round(normalCdf((x - mean) / 3)));
    if (below < cdf[0]) return Math.floor(points[0]);
    if (below > cdf[999]) return Math.floor(points[999]);
    const behind = cdf.findIndex((value) => value > below);
    const i = behind < 0 ? 999 : behind;
    const [x0, x1, y0, y1] = [cdf[i - 1], cdf[i], points[i - 1], points[i]];
    return Math.floor(round(x1 > x0 ? y0 + ((below - x0) / (x1 - x0)) * (y1 - y0) : y0));
  }

  // Marsaglia (2004): 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …); all that counts is near 0.
  function normalCdf(x) {
    if (Math.abs(x) > 8) return x > 0 ? 1 : 0;
    let sum = x;
    for (let term = x, i = 3; Math.abs(term) > 1e-17; i += 2) sum += term *= (x * x) / i;
    return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
  }

  // jax.random.permutation(key, L): stable sorts by random keys, enough of them.
  function permutation(k, L) {
    const rounds = Math.ceil((3 * Math.log(Math.max(1, L))) / Math.log(2 ** 32 - 1));
    let order = Uint32Array.from({ length: L }, (_, i) => i);
    for (let round = 0; round < rounds; round++) {
      const [next, sub] = split(k);
      k = next;
      const by = Uint32Array.from({ length: L }, (_, i) => bits(sub, i));
      const places = Array.from({ length: L }, (_, i) => i);
      places.sort((a, b) => by[a] - by[b] || a - b);
      order = Uint32Array.from(places, (place) => order[place]);
    }
    return order;
  }

  function cut(blocks, steps) {
    const runs = [];
    let begin = 0;
    let at = 0;
    blocks.forEach((block, i) => {
      const end = begin + block.tokens;
      while (begin < end) {
        while (at + 1 < steps.length && steps[at + 1][0] <= begin) at++;
        const next = at + 1 < steps.length ? steps[at + 1][0] : end;
        const size = Math.min(end, next) - begin;
        const first = begin + steps[at][1];
        runs.push({ block: i, response: block.response, first, size });
        begin += size;
      }
    });
    return runs;
  }

  // Pairs (token of a response, token of the sample up to itself) at each distance
  // below `limit`, summed over draws: by second differences, as in
  // skipalign_jax/analysis/distances.py.
  const counted = (runs, limit) => Array.from(pairs([runs], limit));
  function pairs(draws, limit) {
    const second = new Float64Array(limit + 3);
    for (const runs of draws) addPairs(second, runs);
    const found = new Float64Array(limit);
    let slope = 0;
    let value = 0;
    for (let d = 0; d < limit; d++) {
      slope += second[d];
      value += slope;
      found[d] = value;
    }
    return found;
  }
  function addPairs(second, runs) {
    runs.forEach((query, q) => {
      if (!query.response) return;
      second[0] += query.size;
      second[1] -= query.size + 1;
      second[query.size + 1] += 1;
      for (let k = 0; k < q; k++) {
        const [n, m] = [query.size, runs[k].size];
        const low = query.first - runs[k].first - m + 1;
        second[low] += 1;
        second[low + m] -= 1;
        second[low + n] -= 1;
        second[low + m + n] += 1;
      }
    });
  }

  return {
    STRATEGIES, key, foldIn, uniform, randint, synthesize, pairs, counted,
  };
})();
