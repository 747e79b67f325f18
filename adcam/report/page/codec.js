// Arrays of the explorer: unpacking and enlarging. tests/report/test_explorer.py has the same in NumPy.
const adcam = {};
window.adcam = adcam;

adcam.codec = (() => {
  const toBytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

  // Base64 of zlib data -> its bytes.
  const unpack = async (text) => {
    const packed = new Blob([toBytes(text)]).stream();
    const stream = packed.pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // The two samples that each new one lies between, and the weight of the second in 256ths.
  const neighbours = (size, newSize) => {
    const first = new Int32Array(newSize), second = new Int32Array(newSize);
    const weight = new Int32Array(newSize);
    for (let i = 0; i < newSize; i++) {
      const place = Math.max((2 * i + 1) * size - newSize, 0);
      first[i] = Math.min(Math.floor(place / (2 * newSize)), size - 1);
      second[i] = Math.min(first[i] + 1, size - 1);
      weight[i] = Math.floor(((place - first[i] * 2 * newSize) * 256 + newSize) / (2 * newSize));
    }
    return { first, second, weight };
  };

  // Linear, in whole numbers only, so that the page and its tests agree to the bit.
  const upscale = (map, [mapHeight, mapWidth], [height, width]) => {
    const down = neighbours(mapHeight, height), across = neighbours(mapWidth, width);
    const out = new Uint8Array(height * width);
    for (let y = 0; y < height; y++) {
      const top = down.first[y] * mapWidth, below = down.second[y] * mapWidth;
      const v = down.weight[y];
      for (let x = 0; x < width; x++) {
        const left = across.first[x], right = across.second[x], u = across.weight[x];
        const upper = map[top + left] * (256 - u) + map[top + right] * u;
        const lower = map[below + left] * (256 - u) + map[below + right] * u;
        out[y * width + x] = (upper * (256 - v) + lower * v + 32768) >> 16;
      }
    }
    return out;
  };

  return { toBytes, unpack, upscale };
})();
