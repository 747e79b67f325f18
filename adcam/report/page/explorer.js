// The explorer: a list of all images, and the maps and masks of one of them under live sliders.
(() => {
  const root = document.getElementById("explorer");
  const index = JSON.parse(document.getElementById("explorer-index").textContent);
  const { unpack, toBytes, upscale } = adcam.codec;
  const { findPeak, findThreshold, makeMask, meanIou } = adcam.rules;
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const make = (tag, properties = {}, children = []) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const heat = toBytes(index.heat);
  const names = new Map(index.classes.map((entry) => [entry.value, entry.name]));
  const colors = new Map(index.classes.map((entry) => [entry.value, entry.color]));
  const nameOf = (value) => (value === 255 ? "no answer" : names.get(value) ?? `value ${value}`);
  const format = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
  const main = index.methods.length - 1;

  // ---- Files of the images: each is a script that calls adcam.receive.
  const BASE = "explorer/", MOST_KEPT = 12;
  const waiting = new Map(), kept = new Map();
  adcam.receive = (name, values) => waiting.get(name)?.resolve(values);

  const loadScript = (name) => new Promise((resolve, reject) => {
    const script = make("script", { src: `${BASE}${name}.js` });
    const missing = `${BASE}${name}.js is not there: keep the folder “explorer” beside this page.`;
    script.addEventListener("error", () => reject(new Error(missing)));
    script.addEventListener("load", () => script.remove());
    waiting.set(name, { resolve });
    document.head.append(script);
  });

  const decode = async (values) => {
    if (!("DecompressionStream" in window)) throw new Error("This browser is too old to unpack images: one of 2023 or later can.");
    const size = values.hw[0] * values.hw[1];
    const optional = (text) => (text === null ? null : unpack(text));
    const methods = await Promise.all(values.maps.map(async (packed, m) => {
      const [stored, mask] = await Promise.all([optional(packed && packed.data), optional(values.masks[m])]);
      if (stored === null) return { maps: null, mask };
      const mapSize = packed.hw[0] * packed.hw[1];
      const maps = values.values.map((_, k) =>
        upscale(stored.subarray(k * mapSize, (k + 1) * mapSize), packed.hw, values.hw));
      return { maps, mask, ...findPeak(maps, size) };
    }));
    const photo = `data:image/jpeg;base64,${values.photo}`;
    return { hw: values.hw, classes: values.values, photo, boxes: values.boxes, truth: await optional(values.truth), methods };
  };

  const load = (number) => {
    if (!kept.has(number)) {
      kept.set(number, loadScript(String(number)).then(decode));
      if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    }
    return kept.get(number);
  };

  // ---- The list: filtered, sorted, and walked through with the arrow keys.
  const sheet = part("sheet"), count = part("count");
  const filterClass = part("class"), search = part("search"), sort = part("sort");
  const order = part("order"), attentive = part("attentive");
  let shown = [], current = -1;

  // Of two runs side by side: by how much the second is better.
  const gainOf = (image) => {
    const [newer, older] = index.gain.map((m) => image.iou[m]);
    return newer === null || older === null ? null : newer - older;
  };

  const sortValue = (image) => {
    if (sort.value === "gain") return gainOf(image);
    if (sort.value === "id") return image.id;
    if (sort.value === "size" || sort.value === "confidence") return image[sort.value];
    // Without a class everything is right that is background: such images say little.
    return image.classes.length ? image.iou[Number(sort.value)] : null;
  };

  const describe = (image) => {
    const parts = image.iou[main] === null ? [] : [`IoU ${format(image.iou[main])}`];
    if (sort.value === "size") parts.unshift(`${format(image.size)} % object`);
    if (sort.value === "gain") parts.unshift(`gain ${format(gainOf(image) ?? NaN)}`);
    if (sort.value === "confidence") parts.unshift(`confidence ${format(image.confidence, 2)}`);
    if (/^\d+$/.test(sort.value) && Number(sort.value) !== main) {
      parts.unshift(`${index.methods[sort.value].name} ${format(image.iou[sort.value])}`);
    }
    return parts.join(" · ");
  };

  let wantedConfusion = null;  // [true value, predicted value] after a click on the matrix
  const confusedPixels = (image) => {
    if (wantedConfusion[0] === wantedConfusion[1]) return image.classes.includes(wantedConfusion[0]) ? 1 : 0;
    const found = image.confusions.find(([truth, predicted]) =>
      truth === wantedConfusion[0] && predicted === wantedConfusion[1]);
    return found ? found[2] : 0;
  };

  const isWanted = (image) =>
    (filterClass.value === "" || image.classes.includes(Number(filterClass.value)))
    && (!attentive.checked || image.attention)
    && image.id.toLowerCase().includes(search.value.trim().toLowerCase())
    && (wantedConfusion === null || confusedPixels(image) > 0);

  const compare = (a, b) => {
    const first = sortValue(index.images[a]), second = sortValue(index.images[b]);
    if (first === null || second === null) return (first === null) - (second === null);
    const sign = order.dataset.descending === "true" ? -1 : 1;
    return sign * (first < second ? -1 : first > second ? 1 : 0) || a - b;
  };

  const option = (number) => {
    const image = index.images[number];
    const picture = make("img", { loading: "lazy", alt: "", src: `${BASE}${number}.jpg` });
    const label = make("span", { className: "label" }, [
      make("span", { className: "id", textContent: image.id }),
      make("span", { className: "value", textContent: describe(image) }),
    ]);
    const element = make("div", { className: "option", id: `image-${number}` }, [picture, label]);
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(number === current));
    element.addEventListener("click", () => {
      sheet.focus({ preventScroll: true });
      select(number);
    });
    return element;
  };

  const list = () => {
    shown = index.images.map((_, number) => number).filter((number) => isWanted(index.images[number]));
    shown.sort(compare);
    if (wantedConfusion) {
      shown.sort((a, b) => confusedPixels(index.images[b]) - confusedPixels(index.images[a]) || a - b);
    }
    sheet.replaceChildren(...shown.map(option));
    const total = index.images.length;
    count.textContent = shown.length === total ? `${total} images` : `${shown.length} of ${total} images`;
    if (!shown.includes(current)) select(shown[0] ?? -1);
    else mark();
  };

  const mark = () => {
    for (const element of sheet.querySelectorAll('[aria-selected="true"]')) {
      element.setAttribute("aria-selected", "false");
    }
    const chosen = document.getElementById(`image-${current}`);
    chosen?.setAttribute("aria-selected", "true");
    sheet.setAttribute("aria-activedescendant", chosen ? chosen.id : "");
    if (!chosen) return;
    // Scrolls the list alone, not the page.
    const place = chosen.getBoundingClientRect(), frame = sheet.getBoundingClientRect();
    if (place.top < frame.top) sheet.scrollTop -= frame.top - place.top + 4;
    if (place.bottom > frame.bottom) sheet.scrollTop += place.bottom - frame.bottom + 4;
    if (place.left < frame.left) sheet.scrollLeft -= frame.left - place.left + 4;
    if (place.right > frame.right) sheet.scrollLeft += place.right - frame.right + 4;
  };

  const columns = () => {
    const options = [...sheet.children];
    const next = options.findIndex((element) => element.offsetTop > options[0].offsetTop);
    return next < 0 ? options.length : next;
  };

  const step = (distance) => {
    const position = shown.indexOf(current) + distance;
    if (shown.length) select(shown[Math.min(Math.max(position, 0), shown.length - 1)]);
  };

  sheet.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(),
      PageUp: -4 * columns(), PageDown: 4 * columns(), Home: -Infinity, End: Infinity,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (Number.isFinite(steps[event.key])) step(steps[event.key]);
    else step(steps[event.key] < 0 ? -shown.length : shown.length);
  });

  // ---- One image.
  const detail = part("detail"), grid = part("panels"), readout = part("readout");
  const rule = part("rule"), threshold = part("threshold"), opacity = part("opacity");
  const view = part("view"), mapClass = part("map-class");
  let image = null, panels = [], cross = null;

  const select = async (number) => {
    current = number;
    cross = null;
    mark();
    detail.hidden = number < 0;
    if (number < 0) return;
    const entry = index.images[number];
    part("title").textContent = entry.id;
    part("labels").textContent = entry.classes.map(nameOf).join(", ");
    detail.setAttribute("aria-busy", "true");
    try {
      const loaded = await load(number);
      if (number !== current) return;
      image = loaded;
      part("missing").hidden = true;
      fillMapClasses();
      buildPanels();
      update();
      adcam.attention.show(index.images[number].attention ? `${number}-attention` : null, image);
    } catch (error) {
      kept.delete(number);
      if (number !== current) return;
      image = null;
      grid.replaceChildren();
      adcam.attention.show(null);
      part("missing").hidden = false;
      part("missing").textContent = error.message;
    } finally {
      if (number === current) detail.setAttribute("aria-busy", "false");
    }
  };

  const fillMapClasses = () => {
    const before = mapClass.value;
    mapClass.replaceChildren(
      make("option", { value: "", textContent: "highest of all" }),
      ...image.classes.map((value) => make("option", { value: String(value), textContent: nameOf(value) })),
    );
    mapClass.value = image.classes.map(String).includes(before) ? before : "";
    mapClass.closest("label").hidden = image.classes.length < 2;
  };

  // A photograph under a canvas, and a marker over both.
  const makeFrame = ({ photo, hw }, markerName) => {
    const canvas = make("canvas"), marker = make("span", { className: markerName });
    canvas.setAttribute("aria-hidden", "true");
    const frame = make("div", { className: "frame", tabIndex: 0 }, [make("img", { src: photo, alt: "" }), canvas, marker]);
    frame.setAttribute("role", "img");
    frame.style.setProperty("--ratio", `${hw[1]} / ${hw[0]}`);
    return { frame, canvas, marker };
  };

  // Row and column of a grid over a frame at which the pointer is.
  const placeOf = (event, frame, [height, width]) => {
    const box = frame.getBoundingClientRect();
    return [Math.floor(((event.clientY - box.top) / box.height) * height),
      Math.floor(((event.clientX - box.left) / box.width) * width)];
  };

  const addPanel = (name, method) => {
    const { frame, canvas, marker } = makeFrame(image, "cross");
    const score = make("span", { className: "score" }), note = make("span", { className: "note" });
    const caption = make("figcaption", {}, [
      make("span", { className: "head" }, [make("span", { className: "name", textContent: name }), score]),
      note, make("span", { className: "at" }),
    ]);
    grid.append(make("figure", { className: "panel" }, [frame, caption]));
    listenTo(frame);
    panels.push({ name, method, canvas, frame, marker, score, note, at: caption.querySelector(".at"), mask: null });
  };

  const buildPanels = () => {
    grid.replaceChildren();
    panels = [];
    addPanel("photograph", null);
    if (image.truth) addPanel("truth", null);
    index.methods.forEach((method, m) => {
      if (image.methods[m].maps || image.methods[m].mask) addPanel(method.name, m);
    });
  };

  // What a panel shows under the present rule: its mask, and how that came about.
  const maskOf = (m) => {
    const made = image.methods[m], method = index.methods[m];
    if (rule.value === "stored" || !made.maps) {
      const how = method.crf ? `after CRF, ${method.rule}` : method.rule;
      return { mask: made.mask, note: rule.value === "stored" ? how : `as stored: ${how || "no rule"}` };
    }
    const value = Number(threshold.value);
    const found = findThreshold(rule.value, value, made.peak, image.hw, made.maps.length);
    const level = rule.value === "steepest" ? `steepest at ${found.toFixed(2)}` : `above ${found.toFixed(2)}`;
    const note = method.crf ? `before CRF, ${level}` : level;
    return { mask: makeMask(made.peak, made.winner, image.classes, found), note, live: true, threshold: found };
  };

  const mapOf = (m) => {
    const { maps, peak } = image.methods[m];
    if (!maps) return null;
    return mapClass.value === "" ? peak : maps[image.classes.indexOf(Number(mapClass.value))];
  };

  const update = () => {
    part("threshold-value").textContent = Number(threshold.value).toFixed(2);
    part("opacity-value").textContent = `${opacity.value} %`;
    threshold.setAttribute("aria-valuetext", `${threshold.value}${rule.value === "stored" ? ", not in use" : ""}`);
    threshold.closest("label").classList.toggle("idle", rule.value === "stored");
    part("command").textContent = rule.value === "stored" ? ""
      : `--bg ${rule.value}:${Number(threshold.value)}`;
    if (!image) return;
    const stored = index.images[current].iou;
    for (const panel of panels) {
      let map = null, mask = null;
      if (panel.name === "truth" && panel.method === null) mask = image.truth;
      if (panel.method !== null) {
        const made = maskOf(panel.method);
        panel.mask = made.mask;
        if (view.value !== "map" || !image.methods[panel.method].maps) mask = made.mask;
        if (view.value !== "mask") map = mapOf(panel.method);
        const live = made.live && image.truth ? meanIou(made.mask, image.truth) : NaN;
        const before = stored[panel.method];
        panel.score.textContent = made.live ? (image.truth ? format(live) : "") : before === null ? "" : format(before);
        panel.score.dataset.live = made.live && image.truth ? String(live) : "";
        panel.note.textContent = made.live && before !== null ? `${made.note}; stored ${format(before)}` : made.note;
        panel.frame.dataset.threshold = made.live ? String(made.threshold) : "";
      } else {
        panel.mask = panel.name === "truth" ? image.truth : null;
      }
      adcam.panels.draw(panel.canvas, image.hw, {
        map, mask, heat, colors, opacity: Number(opacity.value) / 100,
      });
      const { true: known, found } = image.boxes;
      adcam.panels.drawBoxes(panel.canvas, known, "#fff");
      if (panel.method !== null && found[panel.method]) adcam.panels.drawBoxes(panel.canvas, [found[panel.method]], "#00e5ff");
      const score = panel.score.textContent ? `, IoU ${panel.score.textContent}` : "";
      panel.frame.setAttribute("aria-label", `${panel.name} of ${index.images[current].id}${score}. Arrow keys read single pixels.`);
    }
    emphasise();
    showCross();
  };

  // The best IoU among the panels is set in bold.
  const emphasise = () => {
    const values = panels.map((panel) => (panel.score.textContent ? Number(panel.score.textContent) : -1));
    const best = Math.max(...values);
    panels.forEach((panel, i) => panel.score.classList.toggle("best", best >= 0 && values[i] === best));
  };

  // ---- Reading single pixels, by pointer or by arrow keys.
  const listenTo = (frame) => {
    frame.addEventListener("pointermove", (event) => {
      const [y, x] = placeOf(event, frame, image.hw);
      moveCross(x, y, false);
    });
    frame.addEventListener("pointerleave", () => {
      cross = null;
      showCross();
    });
    frame.addEventListener("keydown", (event) => {
      const far = event.shiftKey ? 16 : 4;
      const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
      if (event.key === "Escape") {
        cross = null;
        showCross();
      }
      if (!(event.key in moves) || !image) return;
      event.preventDefault();
      const [x, y] = cross ?? [Math.floor(image.hw[1] / 2), Math.floor(image.hw[0] / 2)];
      moveCross(x + moves[event.key][0], y + moves[event.key][1], true);
    });
  };

  const moveCross = (x, y, spoken) => {
    if (!image) return;
    cross = [Math.min(Math.max(x, 0), image.hw[1] - 1), Math.min(Math.max(y, 0), image.hw[0] - 1)];
    showCross();
    if (spoken) {
      readout.textContent = `x ${cross[0]}, y ${cross[1]}: ${panels.filter((panel) => panel.at.textContent)
        .map((panel) => `${panel.name} ${panel.at.textContent}`).join("; ")}`;
    }
  };

  const showCross = () => {
    for (const panel of panels) {
      panel.marker.hidden = cross === null;
      panel.at.textContent = "";
      if (cross === null) continue;
      const [x, y] = cross, i = y * image.hw[1] + x;
      panel.marker.style.left = `${(100 * (x + 0.5)) / image.hw[1]}%`;
      panel.marker.style.top = `${(100 * (y + 0.5)) / image.hw[0]}%`;
      const words = panel.mask ? [nameOf(panel.mask[i])] : [];
      if (panel.method !== null && image.methods[panel.method].maps) {
        const { maps, peak, winner } = image.methods[panel.method];
        if (maps.length) words.push(`(${nameOf(image.classes[winner[i]])} ${(peak[i] / 255).toFixed(2)})`);
      }
      panel.at.textContent = words.join(" ");
    }
  };

  // ---- The list as a table for other programs.
  const toCsv = () => {
    const quote = (text) => (/[",\n;]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const head = ["id", "classes", "object_percent", "confidence", ...index.methods.map((m) => `iou_${m.name}`)];
    const lines = shown.map((number) => {
      const entry = index.images[number];
      const numbers = [entry.size, entry.confidence, ...entry.iou].map((value) => (value === null ? "" : String(value)));
      return [quote(entry.id), quote(entry.classes.map(nameOf).join(";")), ...numbers];
    });
    return [head.map(quote), ...lines].map((cells) => cells.join(",")).join("\n") + "\n";
  };
  part("csv").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
    make("a", { href: url, download: "images.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });

  // ---- Controls.
  for (const control of [filterClass, search, sort, attentive]) control.addEventListener("input", list);
  const showOrder = () => {
    order.textContent = order.dataset.descending === "true" ? "highest first" : "lowest first";
    order.setAttribute("aria-label", `${order.textContent}; turn the order round`);
  };
  order.addEventListener("click", () => {
    order.dataset.descending = String(order.dataset.descending !== "true");
    showOrder();
    list();
  });
  threshold.addEventListener("input", () => {
    if (rule.value === "stored") rule.value = "constant";
    update();
  });
  for (const control of [rule, opacity, view, mapClass]) control.addEventListener("input", update);
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));

  // ---- Start.
  const has = (key) => index.images.some((entry) => entry[key] !== null);
  filterClass.append(...index.classes.filter((entry) => entry.value !== 0
    && index.images.some((other) => other.classes.includes(entry.value)))
    .map((entry) => make("option", { value: String(entry.value), textContent: entry.name })));
  const ranked = index.methods.map((method, m) => [method, m])
    .filter(([, m]) => index.images.some((entry) => entry.iou[m] !== null)).reverse();
  sort.append(
    ...(index.gain && ranked.length ? [make("option", { value: "gain", textContent: `gain of ${index.methods[index.gain[0]].name}` })] : []),
    ...ranked.map(([method, m]) => make("option", { value: String(m), textContent: `IoU of ${method.name}` })),
    ...(has("size") ? [make("option", { value: "size", textContent: "size of objects" })] : []),
    ...(has("confidence") ? [make("option", { value: "confidence", textContent: "confidence" })] : []),
    make("option", { value: "id", textContent: "name" }),
  );
  part("legend").append(...index.classes.filter((entry) => entry.value !== 0).map((entry) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${entry.color.join(" ")})`;
    return make("li", {}, [swatch, entry.name]);
  }));
  if (!index.methods.some((method) => method.maps)) part("sliders").classList.add("masks-only");
  const usual = index.methods.findLast((method) => method.maps && /^(constant|steepest):/.test(method.rule));
  if (usual) threshold.value = usual.rule.split(":")[1];
  if (!index.methods.some((method) => method.masks)) view.value = "map";
  part("with-attention").hidden = !index.images.some((entry) => entry.attention);

  // After a click on the confusion matrix; a cell of its diagonal shows the images of the class.
  const chosenConfusion = part("confusion");
  const showConfusion = (truth, predicted) => {
    const valueOf = (name) => index.classes.find((entry) => entry.name === name)?.value;
    wantedConfusion = [valueOf(truth), valueOf(predicted)];
    chosenConfusion.textContent = truth === predicted ? `${truth} ✕` : `${truth} taken for ${predicted} ✕`;
    chosenConfusion.setAttribute("aria-label", `${chosenConfusion.textContent.slice(0, -2)}; show all images again`);
    chosenConfusion.hidden = false;
    list();
    if (shown.length) select(shown[0]);
    root.scrollIntoView();
    sheet.focus({ preventScroll: true });
  };
  chosenConfusion.addEventListener("click", () => {
    wantedConfusion = null;
    chosenConfusion.hidden = true;
    list();
    sheet.focus({ preventScroll: true });
  });

  adcam.explorer = { part, make, makeFrame, placeOf, heat, loadScript, showConfusion, state: () => ({ current, image, panels, shown }),
    start: () => {
      showOrder();
      part("body").hidden = false;
      list();
    },
  };
})();
