// The page of failures: shows those that a pasted message matches, by the course's own patterns, or by words.
"use strict";

(() => {
  const form = document.getElementById("find");
  const box = document.getElementById("said");
  const found = document.getElementById("found");
  const COLOURS = new RegExp("\\u001b\\[[0-9;?]*[A-Za-z]", "g");  // of a terminal
  const MOST = 12;  // by words
  const NEAREST = 5;  // where nothing matches
  const FEW = 12;  // words that somebody typed; more were pasted
  const SENT = 300;  // characters that an address takes

  const wordsOf = (text) => [...new Set((text.toLowerCase().match(/[\p{L}\d_.-]+/gu) || [])
    .map((word) => word.replace(/^[.-]+|[.-]+$/g, "")).filter((word) => word.length > 1 || /\d/.test(word)))];
  const trigrams = (text) => new Set(wordsOf(text).flatMap((word) => [...` ${word} `].map((_, i, all) => all.slice(i, i + 3).join(""))
    .filter((three) => three.length === 3)));

  const entries = window.FAILURES.map(({ name, patterns, words }) => {
    const section = document.getElementById(name);
    const text = section.textContent.toLowerCase();
    return { name, section, text, patterns: patterns.map((one) => new RegExp(one, "m")), called: words.map(wordsOf), threes: trigrams(text) };
  });
  const parts = [...document.querySelectorAll("section > section")].filter((part) => part.querySelector("section"));
  const extra = [...document.querySelectorAll("section > section > section")].filter(
    (section) => !entries.some((entry) => entry.section === section),
  );
  const index = parts[0].parentElement.querySelector(":scope > ol, :scope > ul");

  // Where a word begins: "oom" is not found in "room", and "token" is found in "pad_token".
  const beginning = (word) => new RegExp(`(?<![\\p{L}\\d])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}`, "u");
  const sorted = (some, key) => [...some].sort((a, b) => key(b) - key(a));

  // How many of the words somebody typed are what people call this failure, a little less the later that stands among its names; 0 for none.
  const called = (entry, words) => Math.max(0, ...entry.called.map((name, i) => (name.every((word) => words.includes(word)) ? name.length - i / 100 : 0)));

  function nearest(said) {
    const asked = [...trigrams(said)];
    const weight = new Map(asked.map((three) => [three, Math.log((1 + entries.length) / (1 + entries.filter((entry) => entry.threes.has(three)).length))]));
    const near = (entry) => asked.reduce((sum, three) => sum + (entry.threes.has(three) ? weight.get(three) : 0), 0);
    return sorted(entries, near).slice(0, NEAREST).filter((entry) => near(entry) > 0);
  }

  // [the failures to show, the likeliest first; how they were found]
  function matching(said) {
    const known = entries.filter((entry) => entry.patterns.some((pattern) => pattern.test(said)));
    if (known.length) return [known, "By your message"];
    const words = wordsOf(said);
    const begins = words.map(beginning);
    const share = (entry) => begins.filter((one) => one.test(entry.text)).length / words.length;
    const named = words.length > FEW ? [] : sorted(entries.filter((entry) => called(entry, words)), (entry) => called(entry, words));
    const all = entries.filter((entry) => words.length && share(entry) === 1 && !named.includes(entry));
    if (named.length + all.length) return [[...named, ...(named.length ? all.slice(0, Math.max(0, MOST - named.length)) : all)], "By your words"];
    const some = sorted(entries.filter((entry) => share(entry) >= 0.6), share);
    if (some.length) return [some.slice(0, MOST), "By most of your words"];
    return [nearest(said.slice(-SENT)), ""];
  }

  function showAll(on) {
    for (const section of [...entries.map((entry) => entry.section), ...parts, ...extra]) section.hidden = !on;
    if (index) index.hidden = !on;
  }

  function tell(hits, how) {
    const words = document.createElement("span");
    const none = `None of the ${entries.length} failures matches`;
    if (how) words.append(`${how}, ${hits.length} of ${entries.length}: `);
    else if (hits.length) words.append(`${none}. The nearest are: `);
    else words.append(`${none}. All of them stand below. Try a few words of the last line alone.`);
    hits.forEach((hit, i) => {
      const link = document.createElement("a");
      link.href = `#${hit.name}`;
      link.textContent = hit.name;
      words.append(i ? ", " : "", link);
    });
    return words;
  }

  // The address names what was searched for, so that it can be sent to somebody.
  function keep(said, place) {
    const query = said && said.length <= SENT ? `?q=${encodeURIComponent(said)}` : "";
    history.replaceState(null, "", `${location.pathname}${query}${place}`);
  }

  let first = null;

  function find() {
    const said = box.value.replace(COLOURS, "").slice(-300000).trim();
    const [hits, how] = said ? matching(said) : [[], ""];
    first = hits[0] || null;
    showAll(!hits.length);
    for (const hit of hits) {
      hit.section.hidden = false;
      hit.section.parentElement.hidden = false;
    }
    found.replaceChildren(said ? tell(hits, how) : "");
    found.removeAttribute("aria-busy");
    return said;
  }

  let waiting;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    found.ariaBusy = "true";  // what stands there answers what was typed before
    waiting = setTimeout(() => keep(find(), ""), 150);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();  // Shift and Enter begin a line
    clearTimeout(waiting);
    keep(find(), "");
    if (!first) return;
    location.hash = first.name;
    const heading = first.section.querySelector("h3");
    heading.tabIndex = -1;
    heading.focus();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    found.ariaBusy = "true";
    setTimeout(() => { keep(find(), ""); box.focus(); });  // once the box is empty
  });
  addEventListener("hashchange", () => {  // a link to an entry that the search has hidden
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("[hidden]")) { box.value = ""; keep(find(), location.hash); target.scrollIntoView(); }
  });
  form.hidden = false;
  document.getElementById("without-script").hidden = true;
  const asked = new URLSearchParams(location.search).get("q");
  if (asked) box.value = asked;
  find();
})();
