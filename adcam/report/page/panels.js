// Maps and masks as transparent pictures to lay over a photograph.
adcam.panels = (() => {
  const { IGNORED, SCORES } = adcam.rules;
  const WHITE = [255, 255, 255], BLACK = [0, 0, 0];

  // Colours of scores; low ones leave the photograph visible.
  const drawHeat = (pixels, map, heat, opacity) => {
    for (let i = 0; i < map.length; i++) {
      const score = map[i];
      pixels[4 * i] = heat[3 * score];
      pixels[4 * i + 1] = heat[3 * score + 1];
      pixels[4 * i + 2] = heat[3 * score + 2];
      pixels[4 * i + 3] = 255 * opacity * Math.sqrt(SCORES[score]);
    }
  };

  const set = (pixels, i, [red, green, blue], alpha) => {
    pixels[4 * i] = red;
    pixels[4 * i + 1] = green;
    pixels[4 * i + 2] = blue;
    pixels[4 * i + 3] = alpha;
  };

  // Regions in the colours of their classes, with a white line inside their border and a dark one
  // around it, so that a border is seen on any ground.
  const drawMask = (pixels, mask, [height, width], colors, opacity, filled) => {
    const solid = Math.round(255 * opacity), other = [128, 128, 128];
    const isClass = (value) => value !== 0 && value !== IGNORED;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const own = mask[i];
        const left = x ? mask[i - 1] : own, right = x + 1 < width ? mask[i + 1] : own;
        const above = y ? mask[i - width] : own, below = y + 1 < height ? mask[i + width] : own;
        if (own === IGNORED) {
          if ((x + y) % 6 < 2) set(pixels, i, WHITE, solid);
        } else if (own === 0) {
          if (isClass(left) || isClass(right) || isClass(above) || isClass(below)) set(pixels, i, BLACK, 170);
        } else if (left !== own || right !== own || above !== own || below !== own) {
          set(pixels, i, WHITE, 255);
        } else if (filled) {
          set(pixels, i, colors.get(own) ?? other, solid);
        }
      }
    }
  };

  // Draw on a canvas of the image's size; map and mask may be null.
  const draw = (canvas, hw, { map, mask, heat, colors, opacity }) => {
    const [height, width] = hw;
    canvas.width = width;
    canvas.height = height;
    const picture = new ImageData(width, height);
    if (map) drawHeat(picture.data, map, heat, opacity);
    if (mask) drawMask(picture.data, mask, hw, colors, opacity, !map);
    canvas.getContext("2d").putImageData(picture, 0, 0);
  };

  // Outlines of boxes, given as shares of the picture, framed in black so that they show anywhere.
  const drawBoxes = (canvas, boxes, color) => {
    const pen = canvas.getContext("2d");
    const width = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 130));
    const place = (share, size) => Math.min(Math.round(share * size), size - 1) + 0.5;  // crisp lines
    for (const [x0, y0, x1, y1] of boxes) {
      const left = place(x0, canvas.width), top = place(y0, canvas.height);
      const box = [left, top, place(x1, canvas.width) - left, place(y1, canvas.height) - top];
      for (const [style, line] of [["#000", width + 2], [color, width]]) {
        pen.strokeStyle = style;
        pen.lineWidth = line;
        pen.strokeRect(...box);
      }
    }
  };

  return { draw, drawBoxes };
})();
