// The ledger of claims: a choice of one status, above the table that counts them. Without it all claims stand on the page.
"use strict";

(() => {
  const table = document.querySelector("article table");
  const statuses = [...table.querySelectorAll("tbody tr")].map((row) => row.cells[0].textContent.trim());
  // A claim is a paragraph that begins with a bold sentence and its status in italics, and the list of evidence behind it.
  const claims = [...document.querySelectorAll("article section > p")].flatMap((paragraph) => {
    const said = paragraph.querySelector(":scope > strong + em");
    const status = said && said.textContent.replace(/\.$/, "").toLowerCase();
    if (!statuses.includes(status)) return [];
    const evidence = paragraph.nextElementSibling;
    return [{ status, parts: evidence && evidence.tagName === "UL" ? [paragraph, evidence] : [paragraph] }];
  });
  const topics = [...new Set(claims.map(({ parts }) => parts[0].parentElement))];

  const form = document.createElement("form");
  form.className = "ask";
  form.id = "statuses";
  form.innerHTML = '<label for="status">Show the claims that</label><select id="status"></select>';
  const choice = form.querySelector("select");
  const words = { "": "were made: all of them", holds: "hold", "holds with a limit": "hold with a limit",
    "false today": "are false today", "not checkable here": "cannot be checked here" };
  for (const status of ["", ...statuses]) choice.add(new Option(words[status] || status, status));
  const shown = document.createElement("p");
  shown.setAttribute("role", "status");
  (table.closest(".table-wrapper") || table).before(form, shown);

  function show() {
    const chosen = choice.value;
    for (const { status, parts } of claims) for (const part of parts) part.hidden = Boolean(chosen) && status !== chosen;
    for (const topic of topics) topic.hidden = claims.every(({ parts: [first] }) => first.parentElement !== topic || first.hidden);
    shown.textContent = `${claims.filter(({ parts: [first] }) => !first.hidden).length} of ${claims.length} claims are shown.`;
  }

  choice.addEventListener("change", () => {
    history.replaceState(null, "", choice.value ? `?status=${encodeURIComponent(choice.value)}` : location.pathname);
    show();
  });
  addEventListener("hashchange", () => {  // a link to a claim that is not shown
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("[hidden]")) { choice.value = ""; show(); target.scrollIntoView(); }
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  const asked = new URLSearchParams(location.search).get("status");
  if (statuses.includes(asked)) choice.value = asked;
  show();
})();
