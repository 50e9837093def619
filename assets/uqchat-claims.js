// The list of claims and their places in the answer. uqchat.js calls it; it knows no event and no server.
window.uqchatClaims = function (page) {
  "use strict";
  const { q, all, announce } = page;
  let chosen = null; // {message, number}

  function place() {
    const text = chosen && all(".uq-text[data-m]").find((one) => one.dataset.m === chosen.message);
    return text && q(`.uq-c[data-c="${chosen.number}"]`, text);
  }

  // The focus stays in the list, so that the next claim is one key away.
  function choose(button) {
    chosen = { message: button.dataset.message, number: button.dataset.claim };
    show();
    const found = place();
    if (!found) return;
    found.scrollIntoView({ block: "center" });
    announce(found.textContent);
  }

  // Again after each redraw, which sets every class to what the server sent.
  function show() {
    const found = place();
    for (const other of all(".uq-c.uq-chosen-claim")) if (other !== found) other.classList.remove("uq-chosen-claim");
    if (found && !found.classList.contains("uq-chosen-claim")) found.classList.add("uq-chosen-claim");
    for (const row of all(".uq-claim")) {
      const isChosen = !!chosen && row.dataset.message === chosen.message && row.dataset.claim === chosen.number;
      if (isChosen === (row.getAttribute("aria-current") === "true")) continue;
      if (isChosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  function forget() {
    chosen = null;
    show();
  }

  return { choose, show, forget };
};
