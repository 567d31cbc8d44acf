// What every page does: areas that scroll sideways can be reached with the keyboard.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const mark = () => {
    for (const area of document.querySelectorAll("pre, .table-wrapper, .output.text_html, .formula")) {
      const scrolls = area.scrollWidth > area.clientWidth + 1;
      if (scrolls) area.tabIndex = 0;
      else area.removeAttribute("tabindex");
    }
  };
  mark();
  addEventListener("resize", mark);
});
