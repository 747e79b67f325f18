// Pictures enlarge when they are clicked; arrow keys go from one to the next.
(() => {
  const viewer = document.getElementById("viewer");
  const image = viewer.querySelector("img");
  const caption = viewer.querySelector("output");
  const pictures = [...document.querySelectorAll("button.picture")];
  let current = 0;
  const show = (index) => {
    current = (index + pictures.length) % pictures.length;
    const source = pictures[current].querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    image.style.setProperty("--aspect", source.naturalWidth / source.naturalHeight);
    image.style.setProperty("--natural", source.naturalWidth);
    caption.textContent = source.alt;
    if (!viewer.open) viewer.showModal();
  };
  pictures.forEach((button, index) => button.addEventListener("click", () => show(index)));
  viewer.addEventListener("close", () => pictures[current].focus());
  viewer.addEventListener("click", (event) => {
    const step = event.target.dataset.step;
    if (step) show(current + Number(step));
    else if (event.target === viewer || event.target === image) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(current + 1);
    if (event.key === "ArrowLeft") show(current - 1);
  });
})();
