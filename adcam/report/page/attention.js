// The attention of one patch to all others, before and after refinement by common neighbours.
adcam.attention = (() => {
  const { part, make, makeFrame, placeOf, heat, loadScript } = adcam.explorer;
  const { unpack } = adcam.codec, { SCORES } = adcam.rules;
  const section = part("attention"), grid = part("attention-panels"), readout = part("readout");
  let shown = null, patches = null, chosen = [0, 0], panels = [], photo = null;

  const addPanel = (name, matrix) => {
    const { frame, canvas, marker } = makeFrame(photo, "patch");
    frame.setAttribute("aria-label", `${name}. Arrow keys choose the patch.`);
    const at = make("span", { className: "at" });
    const caption = make("figcaption", {}, [make("span", { className: "name", textContent: name }), at]);
    grid.append(make("figure", { className: "panel" }, [frame, caption]));
    panels.push({ name, matrix, canvas, frame, marker, at });
    frame.addEventListener("click", (event) => choose(...placeOf(event, frame, patches.grid_hw), false));
    frame.addEventListener("pointermove", (event) => read(...placeOf(event, frame, patches.grid_hw)));
    frame.addEventListener("pointerleave", () => panels.forEach((panel) => panel.at.replaceChildren()));
    frame.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (!(event.key in moves)) return;
      event.preventDefault();
      choose(chosen[0] + moves[event.key][0], chosen[1] + moves[event.key][1], true);
    });
  };

  const rowOf = (matrix) => {
    const num = patches.grid_hw[0] * patches.grid_hw[1];
    const start = (chosen[0] * patches.grid_hw[1] + chosen[1]) * num;
    return matrix.subarray(start, start + num);
  };

  const read = (row, column) => {
    const [height, width] = patches.grid_hw;
    if (row < 0 || column < 0 || row >= height || column >= width) return;
    for (const panel of panels) {
      const value = SCORES[rowOf(panel.matrix)[row * width + column]];
      panel.at.textContent = `row ${row + 1}, column ${column + 1}: ${value.toFixed(2)} of the strongest link`;
    }
  };

  const choose = (row, column, spoken) => {
    const [height, width] = patches.grid_hw;
    chosen = [Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1)];
    for (const panel of panels) {
      const map = rowOf(panel.matrix), picture = new ImageData(width, height);
      for (let i = 0; i < map.length; i++) {
        for (let c = 0; c < 3; c++) picture.data[4 * i + c] = heat[3 * map[i] + c];
        picture.data[4 * i + 3] = 40 + 200 * Math.sqrt(SCORES[map[i]]);
      }
      panel.canvas.width = width;
      panel.canvas.height = height;
      panel.canvas.getContext("2d").putImageData(picture, 0, 0);
      panel.marker.style.left = `${(100 * chosen[1]) / width}%`;
      panel.marker.style.top = `${(100 * chosen[0]) / height}%`;
      panel.marker.style.width = `${100 / width}%`;
      panel.marker.style.height = `${100 / height}%`;
    }
    if (spoken) {
      const words = panels.map((panel) => {
        const map = rowOf(panel.matrix);
        const strong = map.reduce((count, value) => count + (value >= 128 ? 1 : 0), 0);
        return `${panel.name}: ${strong} of ${map.length} patches at half the strongest link or more`;
      });
      readout.textContent = `Patch in row ${chosen[0] + 1}, column ${chosen[1] + 1}. ${words.join("; ")}`;
    }
  };

  // Show the attention that a script holds over an image; nothing for null.
  const show = async (name, image) => {
    shown = name;
    section.hidden = name === null;
    grid.replaceChildren();
    panels = [];
    if (name === null) return;
    const values = await loadScript(name);
    const [attention, affinity] = await Promise.all([unpack(values.attention), unpack(values.affinity)]);
    if (shown !== name) return;
    patches = values;
    photo = image;
    addPanel("attention", attention);
    addPanel("affinity by common neighbours", affinity);
    choose(Math.floor(patches.grid_hw[0] / 2), Math.floor(patches.grid_hw[1] / 2), false);
  };

  return { show, state: () => ({ chosen, panels: panels.map(({ name, matrix }) => ({ name, row: Array.from(rowOf(matrix)) })) }) };
})();
adcam.explorer.start();
