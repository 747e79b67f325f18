// Diagrams of curves read out their values: where the pointer is, or by arrow keys.
(() => {
  const round = (value) => String(Number(value.toPrecision(4)));

  const equip = (figure) => {
    const { x: xName, y: yName, series } = JSON.parse(figure.dataset.sense);
    const drawing = figure.querySelector("svg"), area = figure.querySelector(".sense");
    const reading = figure.querySelector(".reading");
    const number = (name) => Number(area.getAttribute(name));
    const ends = (name) => area.getAttribute(name).split(" ").map(Number);
    const [left, top, width, height] = ["x", "y", "width", "height"].map(number);
    const [low, high] = ends("data-x");
    const places = [...new Set(series.flatMap((line) => line.x))]
      .filter((x) => x !== null && x >= low && x <= high).sort((a, b) => a - b);
    if (!places.length) return;
    const mark = document.createElementNS(drawing.namespaceURI, "line");
    mark.setAttribute("class", "axis");
    mark.setAttribute("y1", top);
    mark.setAttribute("y2", top + height);
    mark.style.display = "none";
    area.before(mark);
    let place = -1;

    // The value of a line at x: that of its point there, or the one nearest to it on either side.
    const valueAt = (line, x) => {
      let best = -1;
      line.x.forEach((other, i) => {
        if (other === null || line.y[i] === null) return;
        if (best < 0 || Math.abs(other - x) < Math.abs(line.x[best] - x)) best = i;
      });
      const step = (high - low) / 40;
      return best >= 0 && Math.abs(line.x[best] - x) <= step ? line.y[best] : null;
    };

    const show = (index) => {
      place = Math.min(Math.max(index, 0), places.length - 1);
      const x = places[place];
      const at = left + ((x - low) / (high - low)) * width;
      mark.setAttribute("x1", at);
      mark.setAttribute("x2", at);
      mark.style.display = "";
      const found = series.map((line) => [line.name, valueAt(line, x)]).filter(([, y]) => y !== null);
      found.sort((a, b) => b[1] - a[1]);
      const head = document.createElement("b");
      head.textContent = `${xName} ${round(x)}: `;
      reading.replaceChildren(head, found.map(([name, y]) => `${name} ${round(y)}`).join(", "));
    };

    const hide = () => {
      place = -1;
      mark.style.display = "none";
      reading.replaceChildren();
    };

    const nearest = (x) => places.reduce((best, other, i) =>
      (Math.abs(other - x) < Math.abs(places[best] - x) ? i : best), 0);

    drawing.setAttribute("tabindex", "0");
    const name = drawing.getAttribute("aria-label") ?? yName;
    drawing.setAttribute("aria-label", `${name}. Arrow keys read out values.`);
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      show(nearest(low + ((event.clientX - box.left) / box.width) * (high - low)));
    });
    area.addEventListener("pointerleave", hide);
    drawing.addEventListener("blur", hide);
    drawing.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") hide();
      if (!(event.key in steps)) return;
      event.preventDefault();
      const step = steps[event.key], last = places.length - 1;
      if (!Number.isFinite(step)) show(step < 0 ? 0 : last);
      else if (place < 0) show(step > 0 ? 0 : last);
      else show(place + step);
    });
  };

  document.querySelectorAll("figure[data-sense]").forEach(equip);
})();
