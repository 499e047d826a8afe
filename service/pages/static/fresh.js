// Says at the top of an open page that it is old: the service does not answer, refuses, or wants a token again.
//
// htmx leaves a part as it is when no answer comes for it. What is asked for every few seconds comes back by itself;
// what is asked for once is asked for here, one part until it is answered, and then the others.
"use strict";
(() => {
  const EVERY = 3000;
  const PATIENCE = 10000;
  // Sent again as it is asked for; a form that changes something never is.
  const ONLY_CHECKS = "/new/check";

  const note = document.getElementById("fresh");
  const missed = new Map(); // element -> what it has asked for
  const refused = new Map(); // element -> status
  const waiting = new Map(); // request -> since when
  let answeredAt = Date.now();
  let from = clock();
  let isAway = false;
  let isLoggedOut = false;
  let said = "";

  function clock() {
    return new Date().toTimeString().slice(0, 8);
  }

  const isPolled = (element) => (element.getAttribute("hx-trigger") || "").includes("every ");

  function miss(detail) {
    const { verb, path } = detail.requestConfig;
    if (!isPolled(detail.elt) && (verb === "get" || path === ONLY_CHECKS)) missed.set(detail.elt, { verb, path });
  }

  function askAgain(most) {
    for (const element of [...missed.keys(), ...refused.keys()])
      if (!document.contains(element)) {
        missed.delete(element);
        refused.delete(element);
      }
    for (const [element, { verb, path }] of [...missed].slice(0, most)) {
      missed.delete(element);
      // Last again: should it fail, the next one is tried.
      htmx.ajax(verb, path, { source: element }).catch(() => {});
    }
  }

  function say() {
    const oldest = Math.min(...waiting.values(), Infinity);
    const isSlow = Date.now() - Math.max(oldest, answeredAt) > PATIENCE && oldest < Infinity;
    const old = `what you see is from ${from}.`;
    let text = "";
    if (isLoggedOut) text = `You are logged out; ${old} `;
    else if (isAway || isSlow) text = `The service does not answer; ${old} It is asked again every few seconds.`;
    else if (refused.size)
      text = `A part of this page may be old: the service answers ${[...refused.values()][0]} to it. Load the page again.`;
    // A screen reader says it again whenever it is set.
    if (text === said) return;
    said = text;
    const shown = document.createElement("p");
    shown.className = "note bad";
    shown.textContent = text;
    if (isLoggedOut) {
      // In another tab: something may be written here.
      const link = Object.assign(document.createElement("a"), { href: "/login", target: "_blank", rel: "noopener" });
      link.textContent = "Log in in another tab";
      shown.append(link, ", and this page goes on.");
    }
    note.replaceChildren(...(text ? [shown] : []));
  }

  document.addEventListener("htmx:beforeSend", ({ detail }) => {
    if (isPolled(detail.elt)) waiting.set(detail.xhr, Date.now());
  });

  document.addEventListener("htmx:afterRequest", ({ detail }) => {
    waiting.delete(detail.xhr);
    const { status } = detail.xhr;
    if (status === 0) return;
    answeredAt = Date.now();
    isAway = false;
    refused.delete(detail.elt);
    missed.delete(detail.elt);
    isLoggedOut = status === 401;
    if (isLoggedOut || status >= 500) miss(detail);
    if (detail.successful) {
      from = clock();
      askAgain(Infinity);
    } else if (!isLoggedOut) refused.set(detail.elt, status);
    say();
  });

  document.addEventListener("htmx:sendError", ({ detail }) => {
    isAway = true;
    miss(detail);
    say();
  });

  setInterval(() => {
    askAgain(1);
    say();
  }, EVERY);
})();
