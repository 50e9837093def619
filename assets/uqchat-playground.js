// The threshold playground in the browser: draws the curves and follows the threshold without asking the server.
// The server sends risks and grades once, sorted by risk (see uqchat/ui/playground_data.py); while the pointer moves,
// everything here is counted from them. Text goes in as text, never as HTML.
(function () {
  "use strict";
  if (window.uqPlayground) return;

  const NS = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "5 5"];
  const SETTLE_MS = 250;
  let board = null; // the element that is drawn into
  let send = null; // tells the server where the threshold came to rest
  let data = null;
  let curve = null; // the one whose threshold is dragged
  let rank = 0; // how many of its answers are answered
  let timer = 0;
  let frame = 0;
  let costs = { wrong: 1, refusal: 0.25, withheld: 0, hand_over: null };

  const q = (selector, root = board) => root.querySelector(selector);
  const percent = (share) => (share === null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function bytes(text) {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }

  function prepare(one, index) {
    const risk = new Float32Array(bytes(one.risk).buffer);
    const error = bytes(one.error);
    const wrong = new Uint32Array(risk.length + 1); // wrong[k]: wrong ones among the k least risky
    for (let i = 0; i < risk.length; i++) wrong[i + 1] = wrong[i] + error[i];
    return { ...one, risk, error, wrong, index, dash: DASHES[index % DASHES.length] };
  }

  // Answers of the same risk pass together: the next rank at or above k that ends a tie.
  function tieEnd(one, k) {
    while (k > 0 && k < one.count && one.risk[k] === one.risk[k - 1]) k++;
    return k;
  }

  function counts(one, k) {
    const wrongAnswered = one.wrong[k];
    const wrongAll = one.wrong[one.count];
    return {
      answered: k,
      declined: one.count - k,
      wrongAnswered,
      wrongStopped: wrongAll - wrongAnswered,
      rightWithheld: one.count - k - (wrongAll - wrongAnswered),
      accuracy: k ? 1 - wrongAnswered / k : null,
      coverage: one.count ? k / one.count : 0,
      threshold: k ? one.risk[k - 1] : 0,
    };
  }

  function costAt(one, k) {
    const c = counts(one, k);
    const declining = costs.hand_over ?? costs.refusal;
    const total = c.wrongAnswered * costs.wrong + c.declined * declining + c.rightWithheld * costs.withheld;
    return one.count ? total / one.count : 0;
  }

  function best(one, value) {
    let found = 0;
    let least = Infinity;
    for (let k = 0; k <= one.count; k = k < one.count ? tieEnd(one, k + 1) : k + 1) {
      const now = value(k);
      if (now < least - 1e-12) [found, least] = [k, now];
    }
    return found;
  }

  // ---- drawing

  function svg(name, attributes, parent) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent?.append(node);
    return node;
  }

  function label(parent, x, y, text, attributes = {}) {
    const node = svg("text", { x, y, ...attributes }, parent);
    node.textContent = text;
    return node;
  }

  // A frame with percent axes; returns the drawing and the functions from values to pixels.
  function frameOf(host, height, titles, yMax = 1) {
    const width = Math.max(220, host.clientWidth || 320);
    const [left, right, top, bottom] = [40, 10, 8, 36];
    host.replaceChildren();
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, host);
    const x = (value) => left + value * (width - left - right);
    const y = (value) => height - bottom - (value / yMax) * (height - top - bottom);
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      svg("line", { x1: x(0), x2: x(1), y1: y(tick * yMax), y2: y(tick * yMax), class: "uq-pg-grid" }, root);
      label(root, x(tick), height - bottom + 14, tick * 100, { class: "uq-pg-tick", "text-anchor": "middle" });
      if (titles.y) label(root, left - 6, y(tick * yMax) + 4, titles.ticks ? titles.ticks(tick * yMax) : tick * 100, { class: "uq-pg-tick", "text-anchor": "end" });
    }
    label(root, x(0.5), height - 4, titles.x, { class: "uq-pg-title", "text-anchor": "middle" });
    if (titles.y) label(root, 11, y(yMax / 2), titles.y, { class: "uq-pg-title", "text-anchor": "middle", transform: `rotate(-90 11 ${y(yMax / 2)})` });
    return { root, x, y, width, left, right };
  }

  function path(one, plot) {
    const step = Math.max(1, Math.floor(one.count / 900));
    const points = [];
    for (let k = Math.max(1, Math.ceil(one.count / 100)); k <= one.count; k += step) {
      const end = tieEnd(one, k);
      points.push(`${plot.x(end / one.count).toFixed(1)},${plot.y(1 - one.wrong[end] / end).toFixed(1)}`);
    }
    return points.length ? `M${points.join("L")}` : "";
  }

  function drawCurves() {
    const host = q(".uq-pg-curve");
    const plot = frameOf(host, 300, { x: "answered, % of questions", y: "right, % of answered" });
    const band = curve.band;
    if (band.coverage.length) {
      const upper = band.coverage.map((c, i) => `${plot.x(c)},${plot.y(band.high[i])}`);
      const lower = band.coverage.map((c, i) => `${plot.x(c)},${plot.y(band.low[i])}`).reverse();
      svg("path", { d: `M${[...upper, ...lower].join("L")}Z`, class: "uq-pg-band" }, plot.root);
    }
    for (const one of data.curves) {
      const isChosen = one === curve;
      svg("path", { d: path(one, plot), class: `uq-pg-line uq-pg-c${one.index % 8}${isChosen ? " uq-pg-chosen" : ""}`, "stroke-dasharray": one.dash }, plot.root);
    }
    if (curve.certifiedRank !== null && curve.certifiedRank > 0) {
      const x = plot.x(curve.certifiedRank / curve.count);
      svg("line", { x1: x, x2: x, y1: plot.y(0), y2: plot.y(1), class: "uq-pg-certified" }, plot.root);
      const isRight = x > plot.width - 110;
      label(plot.root, x + (isRight ? -5 : 5), plot.y(0) - 6, "certified", { class: "uq-pg-title", "text-anchor": isRight ? "end" : "start" });
    }
    const level = plot.y(1 - data.wish.max_error);
    svg("line", { x1: plot.x(0), x2: plot.x(1), y1: level, y2: level, class: "uq-pg-wish" }, plot.root);
    const marker = svg("g", { class: "uq-pg-marker" }, plot.root);
    svg("line", { y1: plot.y(0), y2: plot.y(1) }, marker);
    svg("circle", { r: 7 }, marker);
    host.plot = plot;
    host.marker = marker;
  }

  function drawLegend() {
    const host = q(".uq-pg-key");
    host.replaceChildren();
    for (const one of data.curves) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "uq-pg-keyitem";
      button.setAttribute("aria-pressed", one === curve ? "true" : "false");
      const mark = svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, button);
      svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: `uq-pg-line uq-pg-c${one.index % 8}`, "stroke-dasharray": one.dash }, mark);
      button.append(nameOf(one));
      button.addEventListener("click", () => choose(one.key));
      host.append(button);
    }
  }

  // ---- all curves side by side

  const COLUMNS = [
    ["Curve", (one) => nameOf(one)],
    ["AUROC", (one) => figure(one.quality?.auroc), "probability that a wrong answer has more risk than a right one"],
    ["PRR", (one) => figure(one.quality?.prr), "prediction rejection ratio: 0 random, 1 perfect"],
    ["AURC", (one) => figure(one.quality?.aurc), "mean share of wrong ones over all coverages; lower is better"],
    ["E-AURC", (one) => figure(one.quality?.e_aurc), "the same above a perfect order; 0 is perfect"],
    ["AUARC", (one) => figure(one.quality?.auarc), "mean accuracy over all coverages"],
    ["Certified", (one) => (one.certifiedRank === null ? "none" : `${percent(one.certifiedRank / one.count)} answered`), "share answered at the certified threshold"],
    ["Cheapest", (one) => cheapest(one), "share answered, and cost of a question, at the threshold of least cost"],
  ];

  const figure = (value) => (value === undefined || value === null ? "–" : value.toFixed(3));
  const nameOf = (one) => (data.curves.every((other) => other.run === one.run) ? one.estimator : one.key);

  function cheapest(one) {
    const k = best(one, (rank) => costAt(one, rank));
    return `${percent(one.count ? k / one.count : 0)} answered, ${costAt(one, k).toFixed(3)}`;
  }

  function drawScores() {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const [title, , words] of COLUMNS) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      if (words) cell.title = words;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const one of data.curves) {
      const row = body.insertRow();
      if (one === curve) row.className = "uq-pg-this";
      COLUMNS.forEach(([, value], i) => {
        const cell = i ? row.insertCell() : row.appendChild(document.createElement("th"));
        if (!i) cell.scope = "row";
        cell.textContent = value(one);
      });
    }
    q(".uq-pg-scores .uq-pg-scroll").replaceChildren(table);
  }

  function histogram() {
    const bins = 20;
    const right = new Array(bins).fill(0);
    const wrong = new Array(bins).fill(0);
    for (let i = 0; i < curve.count; i++) (curve.error[i] ? wrong : right)[Math.min(bins - 1, Math.floor(curve.risk[i] * bins))]++;
    const most = Math.max(1, ...right, ...wrong);
    const host = q(".uq-pg-histogram");
    const plot = frameOf(host, 200, { x: "risk, %", y: "answers", ticks: (value) => Math.round(value) }, most);
    const slot = (plot.x(1) - plot.x(0)) / bins;
    for (let b = 0; b < bins; b++) {
      for (const [values, name, offset] of [[right, "right", 0], [wrong, "wrong", 0.46]]) {
        if (values[b]) svg("rect", { x: plot.x(b / bins) + slot * (offset + 0.04), y: plot.y(values[b]), width: slot * 0.44, height: plot.y(0) - plot.y(values[b]), class: `uq-pg-${name}` }, plot.root);
      }
    }
    host.plot = plot;
    host.marker = svg("line", { y1: plot.y(0), y2: plot.y(most), class: "uq-pg-threshold" }, plot.root);
  }

  function reliability() {
    const bins = 10;
    const sums = Array.from({ length: bins }, () => [0, 0, 0]);
    for (let i = 0; i < curve.count; i++) {
      const bin = sums[Math.min(bins - 1, Math.floor(curve.risk[i] * bins))];
      bin[0] += 1;
      bin[1] += curve.risk[i];
      bin[2] += curve.error[i];
    }
    const plot = frameOf(q(".uq-pg-reliability"), 200, { x: "risk said, %", y: "wrong, %" });
    svg("line", { x1: plot.x(0), y1: plot.y(0), x2: plot.x(1), y2: plot.y(1), class: "uq-pg-wish" }, plot.root);
    let gap = 0;
    for (const [count, risk, wrong] of sums) {
      if (!count) continue;
      gap += Math.abs(wrong - risk) / curve.count;
      svg("circle", { cx: plot.x(risk / count), cy: plot.y(wrong / count), r: clamp(Math.sqrt(count / curve.count) * 16, 3, 14), class: "uq-pg-dot" }, plot.root);
    }
    q(".uq-pg-gap").textContent = curve.count ? `Mean gap between said and seen: ${percent(gap)}${curve.isCalibrated ? "" : " (this score is not calibrated)"}` : "";
  }

  // ---- what follows the threshold

  function put(name, text) {
    const node = q(`[data-n="${name}"]`);
    if (node && node.textContent !== text) node.textContent = text;
  }

  function follow() {
    frame = 0;
    if (!curve) return;
    const c = counts(curve, rank);
    put("threshold", c.threshold.toFixed(3));
    put("answered", `${c.answered.toLocaleString("en")} (${percent(c.coverage)})`);
    put("declined", c.declined.toLocaleString("en"));
    put("accuracy", percent(c.accuracy));
    put("stopped", c.wrongStopped.toLocaleString("en"));
    put("withheld", c.rightWithheld.toLocaleString("en"));
    put("cost", costAt(curve, rank).toFixed(3));
    put("guarantee", guarantee());
    const slider = q(".uq-pg-slider");
    if (Number(slider.value) !== rank) slider.value = rank;
    slider.setAttribute("aria-valuetext", `Threshold ${c.threshold.toFixed(3)}: ${percent(c.coverage)} answered, ${percent(c.accuracy)} of them right`);
    const host = q(".uq-pg-curve");
    const { x, y } = host.plot;
    const [line, dot] = host.marker.children;
    const at = x(c.coverage);
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    dot.setAttribute("cx", at);
    dot.setAttribute("cy", y(c.accuracy ?? 1));
    const histogramHost = q(".uq-pg-histogram");
    const edge = histogramHost.plot.x(c.threshold);
    histogramHost.marker.setAttribute("x1", edge);
    histogramHost.marker.setAttribute("x2", edge);
    board.dataset.rank = rank;
  }

  function guarantee() {
    const { max_error: r, delta } = data.wish;
    const words = `at most ${percent(r)} of the answered are wrong, with confidence ${percent(1 - delta)}`;
    if (!curve.calibrationCount) return "Too few graded answers to promise anything.";
    if (curve.certifiedRank === null) return `Not to be had: the ${curve.calibrationCount.toLocaleString("en")} calibration answers certify no threshold at which ${words}.`;
    if (rank === curve.certifiedRank) return `Certified: ${words}.`;
    if (rank > curve.certifiedRank) return `None here. Certified up to ${curve.certified.toFixed(3)}: ${words}.`;
    return `Stricter than the certified ${curve.certified.toFixed(3)}. The promise is made for that threshold: ${words}.`;
  }

  function setRank(k, isResting = false) {
    rank = curve ? tieEnd(curve, clamp(Math.round(k), 0, curve.count)) : 0;
    if (!frame) frame = requestAnimationFrame(follow);
    clearTimeout(timer);
    timer = setTimeout(settle, isResting ? 0 : SETTLE_MS);
  }

  function settle() {
    if (curve && send) send("select", { action: "settle", curve: curve.key, rank, costs });
  }

  function choose(key) {
    const before = curve && counts(curve, rank).coverage;
    curve = data.curves.find((one) => one.key === key) || data.curves[0];
    draw();
    setRank(before === null || before === undefined ? start() : before * curve.count, true);
  }

  function start() {
    return curve.certifiedRank === null ? Math.round(curve.count / 2) : curve.certifiedRank;
  }

  function draw() {
    const slider = q(".uq-pg-slider");
    slider.max = curve.count;
    drawLegend();
    drawScores();
    drawCurves();
    histogram();
    reliability();
    follow();
  }

  // ---- input

  function onPointer(event) {
    const host = event.target.closest?.(".uq-pg-curve");
    if (!host || !curve || !host.plot) return;
    if (event.type === "pointerdown") host.setPointerCapture?.(event.pointerId);
    else if (!host.hasPointerCapture?.(event.pointerId)) return;
    event.preventDefault();
    const box = host.querySelector("svg").getBoundingClientRect();
    const { left, right } = host.plot;
    const share = (event.clientX - box.left - left) / (box.width - left - right);
    setRank(clamp(share, 0, 1) * curve.count, event.type === "pointerup");
  }

  function onClick(event) {
    const what = event.target.closest?.("[data-go]")?.dataset.go;
    if (!what || !curve) return;
    if (what === "certified" && curve.certifiedRank !== null) setRank(curve.certifiedRank, true);
    if (what === "cheapest") setRank(best(curve, (k) => costAt(curve, k)), true);
    if (what === "target") {
      const wanted = Number(q(".uq-pg-target").value) / 100;
      setRank(best(curve, (k) => (k && 1 - curve.wrong[k] / k >= wanted - 1e-9 ? -k : 0)), true);
    }
    if (what === "png") savePicture();
  }

  function onInput(event) {
    if (event.target.matches?.(".uq-pg-slider")) setRank(Number(event.target.value));
    const name = event.target.dataset?.cost;
    if (name) {
      const given = event.target.value.trim();
      costs = { ...costs, [name]: given === "" && name === "hand_over" ? null : Math.max(0, Number(given) || 0) };
      drawScores();
      follow();
    }
  }

  function savePicture() {
    const original = q(".uq-pg-curve svg");
    const copy = original.cloneNode(true);
    const pairs = [original, ...original.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
      const style = getComputedStyle(pairs[i]);
      for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family"]) node.style.setProperty(name, style.getPropertyValue(name));
    });
    const ink = getComputedStyle(board).color;
    const width = original.clientWidth;
    const height = original.clientHeight + 20 * data.curves.length + 8;
    copy.setAttribute("height", height);
    copy.setAttribute("viewBox", `0 0 ${width} ${height}`);
    data.curves.forEach((one, i) => {
      const y = original.clientHeight + 20 * i + 12;
      const colour = getComputedStyle(original.querySelector(`.uq-pg-c${one.index % 8}`)).stroke;
      svg("line", { x1: 40, x2: 70, y1: y - 4, y2: y - 4, stroke: colour, "stroke-width": 2, "stroke-dasharray": one.dash }, copy);
      label(copy, 78, y, one.key, { fill: ink, "font-size": 12, "font-family": "sans-serif" });
    });
    const picture = new Image();
    picture.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [width * 2, height * 2];
      const context = canvas.getContext("2d");
      context.fillStyle = getComputedStyle(board).getPropertyValue("--uq-paper") || "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      const link = document.createElement("a");
      link.download = "uqchat-curves.png";
      link.href = canvas.toDataURL("image/png");
      link.click();
    };
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  }

  // ---- what the page calls

  function bindBoard(element, trigger) {
    board = element;
    send = trigger;
    for (const type of ["pointerdown", "pointermove", "pointerup"]) element.addEventListener(type, onPointer);
    element.addEventListener("click", onClick);
    element.addEventListener("input", onInput);
    let width = 0;
    new ResizeObserver(() => {
      const now = element.clientWidth;
      if (curve && now && Math.abs(now - width) > 2) draw();
      width = now;
    }).observe(element);
    if (data) show();
  }

  function bindData(element, watch) {
    const read = () => {
      const text = element.querySelector(".uq-pg-data")?.textContent;
      if (!text) return;
      const fresh = JSON.parse(text);
      data = { ...fresh, curves: fresh.curves.map(prepare) };
      if (board) show();
    };
    watch("value", read);
    read();
  }

  function show() {
    board.classList.toggle("uq-pg-empty", !data.curves.length);
    if (!data.curves.length) {
      curve = null;
      return;
    }
    curve = data.curves.find((one) => one.key === data.chosen) || data.curves[0];
    rank = start();
    draw();
    settle();
    board.dataset.ready = "true";
  }

  window.uqPlayground = {
    bindBoard,
    bindData,
    bindTable: (element, trigger) =>
      element.addEventListener("click", (event) => {
        const button = event.target.closest?.("button[data-row]");
        if (button) trigger("select", { action: "open", row: Number(button.dataset.row) });
      }),
    showOpened: () => setTimeout(() => document.querySelector("#uq-pg-opened")?.scrollIntoView({ block: "nearest" }), 50),
    position: () => (curve ? JSON.stringify({ curve: curve.key, rank, costs }) : ""),
    download: () => document.querySelector("#uq-pg-download")?.click(),
  };
})();
