// The page of failures: shows those that a pasted message matches, by the course's own patterns, or by words.
"use strict";

(() => {
  const form = document.getElementById("find");
  const box = document.getElementById("said");
  const found = document.getElementById("found");
  const entries = window.FAILURES.map(({ name, patterns }) => {
    const section = document.getElementById(name);
    return { name, section, patterns: patterns.map((text) => new RegExp(text, "m")), text: section.textContent.toLowerCase() };
  });
  const parts = [...document.querySelectorAll("section > section")].filter((part) => part.querySelector("section"));
  const extra = [...document.querySelectorAll("section > section > section")].filter(
    (section) => !entries.some((entry) => entry.section === section),
  );
  const index = parts[0].parentElement.querySelector(":scope > ol, :scope > ul");
  const COLOURS = new RegExp("\\u001b\\[[0-9;?]*[A-Za-z]", "g");  // of a terminal
  const MOST = 12;  // by words

  function matching(said) {
    const known = entries.filter((entry) => entry.patterns.some((pattern) => pattern.test(said)));
    if (known.length) return [known, "By your message"];
    const words = [...new Set(said.toLowerCase().match(/[\p{L}\d_.-]{3,}/gu) || [])];
    if (!words.length) return [[], ""];
    const share = (entry) => words.filter((word) => entry.text.includes(word)).length / words.length;
    const all = entries.filter((entry) => share(entry) === 1);
    if (all.length) return [all, "By your words"];
    const some = entries.filter((entry) => share(entry) >= 0.6).sort((a, b) => share(b) - share(a));
    return [some.slice(0, MOST), "By most of your words"];
  }

  function showAll(on) {
    for (const section of [...entries.map((entry) => entry.section), ...parts, ...extra]) section.hidden = !on;
    if (index) index.hidden = !on;
  }

  function find() {
    const said = box.value.replace(COLOURS, "").slice(-300000).trim();
    const [hits, how] = said ? matching(said) : [[], ""];
    showAll(!hits.length);
    for (const hit of hits) {
      hit.section.hidden = false;
      hit.section.parentElement.hidden = false;
    }
    const words = document.createElement("span");
    if (hits.length) {
      words.append(`${how}, ${hits.length} of ${entries.length}: `);
      hits.forEach((hit, i) => {
        const link = document.createElement("a");
        link.href = `#${hit.name}`;
        link.textContent = hit.name;
        words.append(i ? ", " : "", link);
      });
    } else if (said) {
      words.append(`None of the ${entries.length} failures matches. All of them stand below. Try a few words of the last line alone.`);
    }
    found.replaceChildren(words);
  }

  let waiting;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { find(); box.focus(); }));
  addEventListener("hashchange", () => {  // a link to an entry that the search has hidden
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("[hidden]")) { box.value = ""; find(); target.scrollIntoView(); }
  });
  form.hidden = false;
  document.getElementById("without-script").hidden = true;
  const asked = new URLSearchParams(location.search).get("q");
  if (asked) box.value = asked;
  find();
})();
