// The page of failures: shows those that a pasted message matches, by the course's own patterns, or by words.
"use strict";

(() => {
  // Words between spaces, so that " oom" is found where a word begins so, and not in "room".
  const plain = (text) => ` ${text.toLowerCase().replace(/[^\p{L}\d_.=+-]+/gu, " ").trim()} `;
  const form = document.getElementById("find");
  const box = document.getElementById("said");
  const found = document.getElementById("found");
  const entries = window.FAILURES.map(({ name, patterns }) => {
    const section = document.getElementById(name);
    return { name, section, patterns: patterns.map((text) => new RegExp(text, "m")), text: plain(section.textContent) };
  });
  const parts = [...document.querySelectorAll("section > section")].filter((part) => part.querySelector("section"));
  const extra = [...document.querySelectorAll("section > section > section")].filter(
    (section) => !entries.some((entry) => entry.section === section),
  );
  const index = parts[0].parentElement.querySelector(":scope > ol, :scope > ul");
  const COLOURS = new RegExp("\\u001b\\[[0-9;?]*[A-Za-z]", "g");  // of a terminal
  const MOST = 12;  // by words
  const NEAREST = 5;  // where nothing has the words
  const byName = new Map(entries.map((entry) => [entry.name, entry]));

  function matching(said) {
    const known = entries.filter((entry) => entry.patterns.some((pattern) => pattern.test(said)));
    if (known.length) return [known, "By your message"];
    const short = said.length <= 80;  // a search, and not a pasted text
    const words = [...new Set(said.toLowerCase().match(/[\p{L}\d_.-]{3,}/gu) || [])];
    const share = (entry) => words.filter((word) => entry.text.includes(` ${word}`)).length / words.length;
    const meant = short ? window.SEARCH_WORDS.filter((line) => line.said.some((one) => plain(said).includes(plain(one)))) : [];
    const named = [...new Set(meant.flatMap((line) => line.names))].map((name) => byName.get(name));
    const all = entries.filter((entry) => share(entry) === 1 && !named.includes(entry));
    if (named.length) return [[...named, ...all].slice(0, MOST), "By what your words mean"];
    if (all.length) return [all, "By your words"];
    const some = entries.filter((entry) => share(entry) > 0).sort((a, b) => share(b) - share(a));
    const most = some.filter((entry) => share(entry) >= 0.6);
    if (most.length) return [most.slice(0, MOST), "By most of your words"];
    return [some.slice(0, NEAREST), "None has these words. The nearest"];
  }

  const LONGEST = 500;  // characters of a search that the address takes
  let waiting, first;

  function showAll(on) {
    for (const section of [...entries.map((entry) => entry.section), ...parts, ...extra]) section.hidden = !on;
    if (index) index.hidden = !on;
  }

  function find() {
    const said = box.value.replace(COLOURS, "").slice(-300000).trim();
    const [hits, how] = said ? matching(said) : [[], ""];
    first = hits[0];
    // What was typed stands in the address, so that a search can be sent as a link; a whole log is too long for one.
    const query = said && said.length <= LONGEST ? `?q=${encodeURIComponent(said)}` : "";
    history.replaceState(null, "", location.pathname + query + location.hash);
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
    found.dataset.of = said;
  }

  function toTheFirst() {
    clearTimeout(waiting);
    find();
    if (!first) return;
    location.hash = first.name;
    first.section.tabIndex = -1;  // so that it can be read from there
    first.section.focus();
  }

  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 150);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    toTheFirst();
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); toTheFirst(); });
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
