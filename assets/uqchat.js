// The page's own behaviour: what the keyboard, the mouse and a text selection mean inside the chat.
// Every gr.HTML component calls uqchat.bind(element, trigger, 'select') once; what the person did goes to the server as
// one 'select' event {action, message, ...}. It knows nothing of models or scores and never builds HTML from text.
(function () {
  "use strict";
  if (window.uqchat) return;

  let bound = []; // {element, trigger}; elements that left the page are dropped
  const opened = new Map(); // data-key of a folded reasoning -> whether the person opened it
  let chosen = null; // {message, index} of the token shown in the inspector
  let inspected = ""; // the token whose inspector was scrolled to its top
  let announced = null; // the newest answer in the history
  let awaited = null; // the answer that was drawn live last

  const q = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const textOf = (node) => q(".uq-text", node);
  const isTyping = (node) => !!node.closest?.("input, textarea, select, [contenteditable='true']");

  function send(data, origin) {
    bound = bound.filter((one) => one.element.isConnected);
    const inConversation = (one) => one.element.closest("#uq-history");
    const home = bound.find((one) => origin && one.element.contains(origin)) || bound.find(inConversation) || bound[0];
    home?.trigger("select", data);
  }

  function choose(token, origin) {
    const text = token.closest(".uq-text");
    chosen = { message: text.dataset.m, index: Number(token.dataset.i) };
    document.body.dataset.uqSheet = "open";
    showChosen();
    requestAnimationFrame(() => token.scrollIntoView({ block: "nearest" })); // the panel may have taken its place
    send({ action: "token", message: chosen.message, index: chosen.index }, origin || token);
  }

  // The same from outside the answer: a bar of the chart.
  function openToken(message, index) {
    chosen = { message, index };
    showChosen();
    send({ action: "token", message, index });
  }

  function showChosen() {
    const token = chosenToken();
    for (const other of all(".uq-t.uq-chosen-token")) if (other !== token) other.classList.remove("uq-chosen-token");
    if (token && !token.classList.contains("uq-chosen-token")) token.classList.add("uq-chosen-token");
  }

  function chosenToken() {
    const text = chosen && all(".uq-text[data-m]").find((one) => one.dataset.m === chosen.message);
    return text && q(`.uq-t[data-i="${chosen.index}"]`, text);
  }

  function closeInspector() {
    const token = chosenToken();
    chosen = null;
    delete document.body.dataset.uqSheet;
    showChosen();
    if (token) focusToken(token);
    send({ action: "close" });
  }

  function focusToken(token) {
    for (const other of all('.uq-t[tabindex="0"]', token.closest(".uq-text"))) other.tabIndex = -1;
    token.tabIndex = 0;
    token.focus({ preventScroll: false });
  }

  const LEVELS = ["lowest", "low", "middle", "high", "highest"];

  // A role on every token would make a screen reader stutter through the answer; only the focused one is a button.
  function onFocusIn(event) {
    const token = event.target.closest?.(".uq-t");
    if (!token) return;
    const level = /uq-b(\d)/.exec(token.className) || /uq-b(\d)/.exec(token.closest(".uq-c")?.className || "");
    token.setAttribute("role", "button");
    token.setAttribute("aria-description", level ? `risk: ${LEVELS[level[1]]}` : "no risk shown");
  }

  function onFocusOut(event) {
    const token = event.target.closest?.(".uq-t");
    if (!token) return;
    token.removeAttribute("role");
    token.removeAttribute("aria-description");
  }

  function onTokenKey(event, token) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(token);
      return;
    }
    const tokens = all(".uq-t", token.closest(".uq-text")).filter((one) => one.getClientRects().length);
    const here = tokens.indexOf(token);
    const next = {
      ArrowRight: () => tokens[here + 1],
      ArrowLeft: () => tokens[here - 1],
      ArrowDown: () => lineNeighbour(tokens, here, 1),
      ArrowUp: () => lineNeighbour(tokens, here, -1),
      Home: () => tokens[0],
      End: () => tokens[tokens.length - 1],
    }[event.key];
    if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const target = next();
    if (target) focusToken(target);
  }

  function lineNeighbour(tokens, here, step) {
    const at = tokens[here].getBoundingClientRect();
    let best = null;
    let bestDistance = Infinity;
    let line = null;
    for (let i = here + step; i >= 0 && i < tokens.length; i += step) {
      const box = tokens[i].getBoundingClientRect();
      if (Math.abs(box.top - at.top) < at.height / 2) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > at.height / 2) break;
      const distance = Math.abs(box.left - at.left);
      if (distance < bestDistance) [best, bestDistance] = [tokens[i], distance];
    }
    return best;
  }

  function onClick(event) {
    const button = event.target.closest?.("[data-action]");
    if (button) {
      if (!button.disabled) act(button);
      return;
    }
    const token = event.target.closest?.(".uq-t");
    if (token && String(window.getSelection()).length === 0) {
      focusToken(token);
      choose(token);
    }
  }

  function act(button) {
    const { action, message } = button.dataset;
    if (action === "copy") return copy(button);
    if (action === "edit") return edit(button.closest("article"), message);
    if (action === "close") return closeInspector();
    if (action === "claim") return claims.choose(button);
    const { text, chat, index, tokenId, start, end } = button.dataset;
    const data = { action };
    for (const [key, value] of Object.entries({ message, text, chat })) if (value !== undefined) data[key] = value;
    for (const [key, value] of Object.entries({ index, token_id: tokenId, start, end })) {
      if (value !== undefined) data[key] = Number(value);
    }
    if (action === "token") {
      chosen = { message, index: data.index };
      showChosen();
    }
    if (action === "chat_open") delete document.body.dataset.uqDrawer;
    send(data, button);
  }

  function answerText(article) {
    const text = textOf(article).cloneNode(true);
    for (const left of all("details, .uq-gap", text)) left.remove();
    return text.dataset.source ?? text.textContent;
  }

  async function copy(button) {
    const text = answerText(button.closest("article"));
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyByHand(text); // no clipboard without https
    }
    button.classList.add("uq-done");
    setTimeout(() => button.classList.remove("uq-done"), 1200);
    voice.textContent = "Copied";
  }

  function copyByHand(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position:fixed;opacity:0";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }

  function edit(article, message) {
    if (!article || q(".uq-edit", article)) return;
    const form = document.createElement("form");
    form.className = "uq-edit";
    const area = document.createElement("textarea");
    area.value = answerText(article);
    area.setAttribute("aria-label", "Edit the question");
    area.rows = Math.min(12, area.value.split("\n").length + 1);
    const save = labelledButton("Ask again", "submit", "uq-button uq-primary");
    const cancel = labelledButton("Cancel", "button", "uq-button");
    const row = document.createElement("div");
    row.append(cancel, save);
    form.append(area, row);
    article.append(form);
    const close = () => {
      form.remove();
      q('[data-action="edit"]', article)?.focus();
    };
    cancel.addEventListener("click", close);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send({ action: "edit", message, text: area.value }, article);
      close();
    });
    area.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") close();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    area.focus();
  }

  function labelledButton(text, type, className) {
    const button = document.createElement("button");
    button.type = type;
    button.className = className;
    button.textContent = text;
    return button;
  }

  const marker = document.createElement("div");
  marker.className = "uq-marker";
  marker.hidden = true;
  marker.setAttribute("role", "toolbar");
  marker.setAttribute("aria-label", "Mark the selection");
  for (const [label, action] of [["Mark right", "mark_span_right"], ["Mark wrong", "mark_span_wrong"]]) {
    const button = labelledButton(label, "button", "uq-button");
    button.addEventListener("mousedown", (event) => event.preventDefault()); // keep the selection
    button.addEventListener("click", () => markSelection(action));
    marker.append(button);
  }

  function selectedSpan() {
    const selection = window.getSelection();
    if (!selection || selection.isCollapsed || !selection.rangeCount) return null;
    const range = selection.getRangeAt(0);
    const owner = (node) => (node.nodeType === 1 ? node : node.parentElement)?.closest(".uq-answer .uq-text");
    const text = owner(range.startContainer);
    if (!text || text !== owner(range.endContainer) || !q(".uq-t", text) || q(".uq-md", text)) return null;
    if (text.closest("[aria-busy='true'], [data-example]")) return null;
    const before = document.createRange();
    before.setStart(text, 0);
    before.setEnd(range.startContainer, range.startOffset);
    // Python counts characters, JavaScript counts UTF-16 units.
    const start = [...before.toString()].length;
    const end = start + [...range.toString()].length;
    return end > start ? { message: text.dataset.m, start, end, range, text } : null;
  }

  function onSelection() {
    const span = selectedSpan();
    marker.hidden = !span;
    if (!span) return;
    const box = span.range.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - 100), window.innerWidth - 216);
    marker.style.left = `${left}px`;
    marker.style.top = `${box.top > 52 ? box.top - 46 : box.bottom + 8}px`;
  }

  function markSelection(action) {
    const span = selectedSpan();
    if (!span) return;
    send({ action, message: span.message, start: span.start, end: span.end }, span.text);
    window.getSelection().removeAllRanges();
    marker.hidden = true;
  }

  // From uqchat-claims.js; without it tokens work all the same.
  const claims = window.uqchatClaims?.({ q, all, announce: (text) => (voice.textContent = text) }) ?? {
    choose() {},
    show() {},
    forget() {},
  };

  const scrollers = new WeakMap(); // element -> {stick, height}

  function watchScroll(scroller) {
    if (scrollers.has(scroller)) return;
    const state = { stick: true, height: scroller.scrollHeight };
    scrollers.set(scroller, state);
    scroller.addEventListener("scroll", () => {
      if (scroller.scrollHeight < state.height) return; // the content shrank: that was the browser, not the reader
      state.stick = scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 48;
    }, { passive: true });
    const sizes = new ResizeObserver(() => follow(scroller));
    for (const one of [scroller, ...scroller.children]) sizes.observe(one); // drawn late, the content still grows
  }

  function follow(scroller) {
    const state = scrollers.get(scroller);
    if (!state) return;
    state.height = scroller.scrollHeight;
    if (state.stick) scroller.scrollTop = scroller.scrollHeight;
  }

  function toBottom(element) {
    const scroller = element.closest(".uq-scroll");
    if (scrollers.has(scroller)) scrollers.get(scroller).stick = true;
    follow(scroller);
  }

  function toTop(element) {
    const scroller = element.closest(".uq-scroll");
    watchScroll(scroller);
    scrollers.get(scroller).stick = false;
    scroller.scrollTop = 0;
  }

  // A redraw sets every attribute to what the server sent; this puts back what belongs to the reader.
  function restore(element) {
    for (const folded of all("details[data-key]", element)) {
      const wanted = opened.get(folded.dataset.key);
      if (wanted !== undefined && folded.open !== wanted) folded.open = wanted;
    }
    showChosen();
    claims.show();
    const scroller = element.closest("#uq-history, #uq-live")?.closest(".uq-scroll");
    if (scroller) {
      watchScroll(scroller);
      follow(scroller);
    }
    showFromTop(element);
    announceEnd(element);
  }

  const voice = document.createElement("div");
  voice.className = "uq-voice";
  voice.setAttribute("aria-live", "polite");
  voice.setAttribute("role", "status");

  function showFromTop(element) {
    const opened = q(".uq-inspect[data-i]", element);
    const key = opened ? `${opened.dataset.m}:${opened.dataset.i}` : "";
    if (key === inspected || !element.closest(".uq-inspector")) return;
    inspected = key;
    for (let one = element; one && one !== document.body; one = one.parentElement) one.scrollTop = 0;
  }

  function announceEnd(element) {
    const live = q(".uq-live[data-m]", element);
    if (live) awaited = live.dataset.m;
    if (!element.closest("#uq-history")) return;
    const last = all(".uq-answer", element).pop();
    const key = last ? last.dataset.m : "";
    if (announced === key) return;
    // Another chat brings another answer too; only one that was just drawn live has been awaited.
    if (key && key === awaited) voice.textContent = `Answer finished. ${q(".uq-line", last)?.textContent || ""}`;
    announced = key;
  }

  function onKey(event) {
    if (event.defaultPrevented || event.isComposing) return;
    const token = event.target.closest?.(".uq-t");
    if (token) onTokenKey(event, token);
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") onEscape();
    else if (isTyping(event.target)) return;
    else if (event.key === "/") {
      event.preventDefault();
      q("#uq-composer textarea, textarea#uq-composer")?.focus();
    } else if (event.key === "?") showHelp();
  }

  function onEscape() {
    const busy = q('[aria-busy="true"].uq-live');
    if (busy) send({ action: "stop", message: busy.dataset.m }, busy);
    else if (document.body.dataset.uqDrawer) delete document.body.dataset.uqDrawer;
    else if (chosen || document.body.dataset.uqSheet) closeInspector();
    else claims.forget();
  }

  function showHelp() {
    const help = () =>
      all('#uq-tabs [role="tab"], #uq-tabs .overflow-dropdown button').find((tab) => tab.textContent.trim() === "Help");
    if (!help()) q("#uq-tabs .overflow-menu > button")?.click(); // where the panel is narrow, the last tabs are in a menu
    setTimeout(() => help()?.click());
    document.body.dataset.uqSheet = "open";
  }

  function onPageClick(event) {
    const inside = (selector) => event.target.closest?.(selector);
    if (inside(".uq-toggle-chats")) {
      if (document.body.dataset.uqDrawer) delete document.body.dataset.uqDrawer;
      else document.body.dataset.uqDrawer = "open";
    } else if (document.body.dataset.uqDrawer && !inside(".uq-chats")) delete document.body.dataset.uqDrawer;
  }

  function startPage() {
    document.body.append(marker, voice);
    document.addEventListener("keydown", onKey);
    document.addEventListener("click", onPageClick);
    document.addEventListener("selectionchange", onSelection);
  }

  function bind(element, trigger) {
    if (!voice.isConnected) startPage();
    if (bound.some((one) => one.element === element)) return;
    bound.push({ element, trigger });
    element.addEventListener("click", onClick);
    element.addEventListener("focusin", onFocusIn);
    element.addEventListener("focusout", onFocusOut);
    element.addEventListener("click", (event) => {
      const folded = event.target.closest?.("summary")?.parentElement;
      if (folded?.dataset.key) opened.set(folded.dataset.key, !folded.open);
    });
    let queued = 0;
    new MutationObserver(() => {
      cancelAnimationFrame(queued);
      queued = requestAnimationFrame(() => restore(element));
    }).observe(element, { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["open", "class"] });
    restore(element);
  }

  window.uqchat = { bind, openToken, toBottom, toTop, closeInspector };
})();
