// A click on a cell of the confusion matrix shows the images in which that confusion occurs. One
// cell of a matrix is in the order of the tab key; arrow keys go to the next in its row or column.
(() => {
  const equip = (matrix) => {
    const cells = [...matrix.querySelectorAll(".cell[data-truth]")];
    if (!cells.length) return;
    // Readers look into pictures only as groups.
    matrix.setAttribute("role", "group");
    const centre = (cell) => {
      const number = (name) => Number(cell.getAttribute(name));
      return [number("x"), number("y")];
    };
    const focus = (cell) => {
      cells.forEach((other) => other.setAttribute("tabindex", other === cell ? "0" : "-1"));
      cell.focus();
    };
    const move = (cell, dx, dy) => {
      const [x, y] = centre(cell);
      const ahead = cells.map((other) => [other, ...centre(other)])
        .filter(([, ox, oy]) => (dx ? oy === y && (ox - x) * dx > 0 : ox === x && (oy - y) * dy > 0));
      ahead.sort((a, b) => Math.abs(a[1] - x) + Math.abs(a[2] - y) - Math.abs(b[1] - x) - Math.abs(b[2] - y));
      if (ahead.length) focus(ahead[0][0]);
    };
    const open = (cell) => adcam.explorer.showConfusion(cell.dataset.truth, cell.dataset.predicted);
    cells.forEach((cell, i) => {
      cell.setAttribute("tabindex", i ? "-1" : "0");
      cell.setAttribute("role", "button");
      cell.setAttribute("aria-label", `${cell.textContent}: show the images`);
      cell.addEventListener("click", () => open(cell));
      cell.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
        if (event.key === "Enter" || event.key === " ") open(cell);
        else if (event.key in moves) move(cell, ...moves[event.key]);
        else return;
        event.preventDefault();
      });
    });
  };
  document.querySelectorAll("svg.figure").forEach(equip);
})();
