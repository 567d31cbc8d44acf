// The ledger of claims: shows those of one status, in the table and below it. Without this script all of them stand there.
"use strict";

(() => {
  const section = document.getElementById("all-claims");
  const table = section.querySelector("table");
  // A claim is a row of the table, and below it a paragraph with the list of its evidence.
  const claims = [...table.tBodies[0].rows].map((row) => {
    const said = document.getElementById(row.querySelector("a").hash.slice(1)).closest("p");
    const list = said.nextElementSibling;
    return { row, status: row.cells[1].textContent.trim(), parts: [row, said, ...(list && list.tagName === "UL" ? [list] : [])] };
  });
  const topics = [...new Set(claims.map(({ parts }) => parts[1].closest("section")))];
  const ALL = "all";
  const order = [...document.querySelector("article table").tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const counted = new Map([[ALL, claims.length], ...order.map((status) => [status, claims.filter((claim) => claim.status === status).length])]);

  const form = document.createElement("form");
  form.className = "ask";
  const group = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = "Show the claims whose status is";
  group.append(legend);
  for (const [status, count] of counted) {
    const label = document.createElement("label");
    const choice = document.createElement("input");
    Object.assign(choice, { type: "radio", name: "status", value: status, checked: status === ALL, autocomplete: "off" });
    label.append(choice, ` ${status} (${count})`);
    group.append(label);
  }
  const told = document.createElement("p");
  told.setAttribute("role", "status");
  form.append(group);
  section.querySelector(".table-wrapper").before(form, told);

  function show() {
    const wanted = form.elements.status.value;
    const fits = ({ status }) => wanted === ALL || status === wanted;
    for (const claim of claims) for (const part of claim.parts) part.hidden = !fits(claim);
    for (const topic of topics) topic.hidden = !claims.some((claim) => fits(claim) && claim.parts[1].closest("section") === topic);
    told.textContent = wanted === ALL ? "" : `${claims.filter(fits).length} of ${claims.length} claims, here and below: ${wanted}.`;
  }

  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => {  // a link to a claim that the choice has hidden
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("[hidden]")) { form.elements.status.value = ALL; show(); target.scrollIntoView(); }
  });
})();
