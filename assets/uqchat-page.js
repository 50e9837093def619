// What belongs to the page around the chat: renaming in the list, the panel on narrow screens, downloads, a shortcut.
// It presses the buttons that uqchat.js listens to and never builds HTML from text.
(function () {
  "use strict";
  if (window.uqchatPage) return;
  const q = (selector, root = document) => root.querySelector(selector);

  function rename(button) {
    const row = button.closest("li");
    if (q("form", row)) return;
    const form = document.createElement("form");
    const field = document.createElement("input");
    const save = document.createElement("button");
    form.className = "uq-rename";
    field.value = button.dataset.title;
    field.setAttribute("aria-label", "Title of the chat");
    save.type = "button";
    save.hidden = true;
    save.dataset.action = "chat_rename";
    save.dataset.chat = button.dataset.rename;
    form.append(field, save);
    row.append(form);
    let isDone = false;
    const end = (isSaved) => {
      if (isDone) return;
      isDone = true;
      save.dataset.text = field.value;
      if (isSaved && field.value.trim() && field.value !== button.dataset.title) save.click();
      form.remove();
      button.focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") end(false);
    });
    field.addEventListener("blur", () => end(true));
    field.select();
    field.focus();
  }

  function onClick(event) {
    const button = event.target.closest?.("[data-rename]");
    if (button) rename(button);
    if (event.target.closest?.(".uq-toggle-panel")) {
      if (document.body.dataset.uqSheet) delete document.body.dataset.uqSheet;
      else document.body.dataset.uqSheet = "open";
    } else if (event.target.closest?.("#uq-new, .uq-chat-name")) delete document.body.dataset.uqDrawer;
  }

  function onKey(event) {
    if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyN") {
      event.preventDefault();
      q("#uq-new")?.click();
      q("#uq-prompt textarea")?.focus();
    }
  }

  // The link appears when the page has taken in the server's answer.
  function download(tries = 40) {
    const link = q("#uq-download a[href], a#uq-download[href]");
    const target = link || q("#uq-download button, button#uq-download");
    if (target && (link || tries < 38)) target.click();
    else if (tries) setTimeout(() => download(tries - 1), 50);
  }

  function toBottom() {
    const history = q("#uq-history");
    if (history) window.uqchat?.toBottom(history);
  }

  // On a narrow screen the panel covers the conversation.
  function showAnswer() {
    delete document.body.dataset.uqSheet;
    toBottom();
  }

  // On a phone the focus would bring up the keyboard and hide the example.
  function begin() {
    // The framework draws what the server sent a moment after it calls this.
    setTimeout(() => {
      if (q("#uq-questions .uq-ask")) window.uqchat.toTop(q("#uq-history"));
      else toBottom();
      letGo();
    }, 100);
    if (matchMedia("(pointer: fine)").matches && document.activeElement === document.body) q("#uq-prompt textarea")?.focus();
  }

  // Until the server knows this page, what would be sent waits here; the last press counts.
  let isKnown = false;
  let waiting = null;
  const SENDS = "#uq-send, #uq-score, #uq-new, #uq-reset, .uq-export";

  function hold(event) {
    if (isKnown) return;
    const isEnter = event.type === "keydown" && event.key === "Enter" && !event.shiftKey && !event.isComposing;
    const field = isEnter && event.target.closest?.("#uq-prompt");
    const button = event.type === "click" && event.target.closest?.(SENDS);
    if (!field && !button) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    waiting = field ? "#uq-send" : `#${button.id}`;
  }

  function letGo() {
    isKnown = true;
    if (waiting) q(waiting)?.click();
    waiting = null;
  }

  // Each drawing of the chart may be a new one, so it is listened to when it is about to be clicked.
  function onPointer(event) {
    const plot = event.target.closest?.("#uq-chart .js-plotly-plot");
    if (!plot?.on) return;
    plot.removeListener("plotly_click", onBar);
    plot.on("plotly_click", onBar);
  }

  function onBar(data) {
    const bar = data.points[0];
    if (bar) window.uqchat.openToken(bar.data.meta, bar.customdata[0]);
  }

  document.addEventListener("click", hold, true);
  document.addEventListener("keydown", hold, true);
  document.addEventListener("pointerdown", onPointer, true);
  document.addEventListener("click", onClick);
  document.addEventListener("keydown", onKey);
  window.uqchatPage = { begin, download, showAnswer, toBottom };
})();
