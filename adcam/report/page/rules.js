// From maps to masks to scores, in the page. The mirror of adcam/masks/background.py, steepest.py
// and adcam/metrics/miou.py, on 8-bit maps; tests compare both in a browser.
adcam.rules = (() => {
  const IGNORED = 255;
  const LEVELS = Array.from({ length: 71 }, (_, i) => (i + 20) / 100);
  const PULL = 0.2, PER_CLASS = 0.06, SIDE = 128, MIN_LENGTH = 4, WIDTH = 2;
  // Scores are compared in single precision, as in Python.
  const SCORES = Float32Array.from({ length: 256 }, (_, i) => i / 255);

  // The highest of K maps and the position of the first map that reaches it.
  const findPeak = (maps, size) => {
    const peak = new Uint8Array(size), winner = new Uint8Array(size);
    maps.forEach((map, k) => {
      for (let i = 0; i < size; i++) {
        if (k === 0 || map[i] > peak[i]) {
          peak[i] = map[i];
          winner[i] = k;
        }
      }
    });
    return { peak, winner };
  };

  const roundHalfToEven = (value) => {
    const low = Math.floor(value), rest = value - low;
    if (rest !== 0.5) return Math.round(value);
    return low % 2 === 0 ? low : low + 1;
  };

  // The first level that is not below a score.
  const search = (score) => {
    let low = 0, high = LEVELS.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (LEVELS[middle] < score) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const FIRST = Int32Array.from(SCORES, search);

  // The mean jump of a map along its outline at every level.
  const meanJumps = (peak, [height, width]) => {
    const step = Math.max(1, roundHalfToEven(Math.max(height, width) / SIDE));
    const rows = [], columns = [];
    for (let y = Math.floor(step / 2); y < height; y += step) rows.push(y * width);
    for (let x = Math.floor(step / 2); x < width; x += step) columns.push(x);
    const count = LEVELS.length;
    const jumps = new Float64Array(count + 1), length = new Float64Array(count + 1);
    const add = (pairs) => {
      const begin = new Float64Array(count + 1), end = new Float64Array(count + 1);
      for (const [a, b] of pairs) {
        const low = Math.min(a, b), high = Math.max(a, b);
        const jump = Math.fround(SCORES[high] - SCORES[low]);
        begin[FIRST[low]] += jump;
        end[FIRST[high]] += jump;
        length[FIRST[low]] += 1;
        length[FIRST[high]] -= 1;
      }
      for (let t = 0; t <= count; t++) jumps[t] += begin[t] - end[t];
    };
    const beside = [], below = [];
    for (const row of rows) {
      for (let i = 1; i < columns.length; i++) {
        beside.push([peak[row + columns[i]], peak[row + columns[i - 1]]]);
      }
    }
    for (let j = 1; j < rows.length; j++) {
      for (const column of columns) below.push([peak[rows[j] + column], peak[rows[j - 1] + column]]);
    }
    add(beside);
    add(below);
    let jump = 0, long = 0;
    return LEVELS.map((_, t) => {
      jump += jumps[t];
      long += length[t];
      return long >= MIN_LENGTH ? jump / Math.max(long, 1) : 0;
    });
  };

  const smooth = (curve) => {
    const reach = 3 * WIDTH, last = curve.length - 1;
    const at = (t) => curve[Math.min(Math.max(t, 0), last)];
    return curve.map((_, t) => {
      let sum = 0;
      for (let k = -reach; k <= reach; k++) sum += at(t - k) * Math.exp(-0.5 * (k / WIDTH) ** 2);
      return sum;
    });
  };

  // The level near the expected one at which a map is steepest.
  const steepestLevel = (peak, hw, expected, numClasses) => {
    const steepness = smooth(meanJumps(peak, hw));
    const most = Math.max(Math.max(...steepness), 1e-12);
    const center = expected + PER_CLASS * Math.max(numClasses - 1, 0);
    let best = 0, highest = -Infinity;
    LEVELS.forEach((level, t) => {
      const away = (level - center) / 0.1;
      const value = steepness[t] / most - PULL * (away * away);
      if (value > highest) [best, highest] = [t, value];
    });
    return LEVELS[best];
  };

  const findThreshold = (rule, value, peak, hw, numClasses) =>
    rule === "steepest" ? steepestLevel(peak, hw, value, numClasses) : value;

  // Background wins where the highest score is not above the threshold.
  const makeMask = (peak, winner, values, threshold) => {
    const limit = Math.fround(threshold);
    const mask = new Uint8Array(peak.length);
    for (let i = 0; i < mask.length; i++) {
      if (SCORES[peak[i]] > limit) mask[i] = values[winner[i]];
    }
    return mask;
  };

  // Mean IoU in percent over the classes that truth or mask hold; pixels of no truth do not count.
  const meanIou = (mask, truth) => {
    const both = new Uint32Array(256), inMask = new Uint32Array(256), inTruth = new Uint32Array(256);
    for (let i = 0; i < mask.length; i++) {
      if (truth[i] === IGNORED) continue;
      inMask[mask[i]]++;
      inTruth[truth[i]]++;
      if (mask[i] === truth[i]) both[mask[i]]++;
    }
    let sum = 0, num = 0;
    for (let value = 0; value < IGNORED; value++) {
      const union = inMask[value] + inTruth[value] - both[value];
      if (union) {
        sum += both[value] / union;
        num++;
      }
    }
    return num ? (100 * sum) / num : NaN;
  };

  return { IGNORED, SCORES, findPeak, findThreshold, makeMask, meanIou };
})();
