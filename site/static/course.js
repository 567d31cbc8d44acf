// What every page does: areas that scroll sideways can be reached with the keyboard.
"use strict";

(() => {
  const mark = () => {
    for (const area of document.querySelectorAll("pre, .table-wrapper, .output.text_html, .formula")) {
      const scrolls = area.scrollWidth > area.clientWidth;
      if (scrolls) area.tabIndex = 0;
      else area.removeAttribute("tabindex");
    }
  };
  for (const event of ["DOMContentLoaded", "load", "resize"]) addEventListener(event, mark);
})();
