// The calculator: looks up what helpers.memory predicted for the settings of the controls. It computes no memory itself.
"use strict";

(() => {
  const { margin, gpus, groups, runs } = window.CALCULATOR;
  const form = document.getElementById("calculator");
  const gb = (bytes) => (bytes / 1e9).toFixed(2);
  const controls = Object.fromEntries([...form.elements].map((each) => [each.name, each]));
  const BESIDES = "reserved, and the CUDA context";

  // The words are those of helpers/widgets/calculator.py.
  function verdict(peak, reserved, [total, context]) {
    const held = reserved + context;
    const words = `it takes ${gb(held)} of ${gb(total)} GB, of which tensors take ${gb(peak)}`;
    if (held <= total && peak <= (1 - margin) * total) return ["fits", `Fits: ${words}.`];
    if (held <= total && peak <= total) return ["tight", `Too tight: ${words}, and a prediction may be off.`];
    if (peak > total) {
      const more = `${gb(peak - total)} GB more than the GPU has`;
      return ["no", `Does not fit: its tensors take ${gb(peak)} GB, ${more}.`];
    }
    const besides = `what torch reserves beside them ${gb(reserved - peak)}, and the CUDA context ${gb(context)}`;
    return ["no", `Does not fit: it takes ${gb(held)} of ${gb(total)} GB: tensors ${gb(peak)}, ${besides}.`];
  }

  const LEAST = "#d55e00";  // of tensors that are not told apart, in the colour of "does not fit"
  // Beside the greys of what tensors take, it is told apart by its stripes.
  const STRIPES = "repeating-linear-gradient(135deg, #f6f7f7 0 4px, #8d9499 4px 5px)";

  function row(name, colour, bytes) {
    const line = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour;
    head.append(swatch, name);
    const number = document.createElement("td");
    number.className = "number";
    number.textContent = gb(bytes);
    line.append(head, number);
    return line;
  }

  function draw(parts, total) {
    const whole = 1.08 * Math.max(total, parts.reduce((sum, part) => sum + part[2], 0));
    const boxes = parts.map(([, colour, bytes]) => {
      const box = document.createElement("div");
      box.style.width = `${(100 * bytes) / whole}%`;
      box.style.background = colour;
      return box;
    });
    const line = document.createElement("div");
    line.className = "limit";
    line.style.left = `${(100 * total) / whole}%`;
    document.getElementById("bar").replaceChildren(...boxes, line);
    const table = document.getElementById("parts");
    table.tBodies[0].replaceChildren(...parts.map((part) => row(...part)));
  }

  function show() {
    const set = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value]));
    const full = set.method === "full";
    controls.rank.disabled = controls.layers.disabled = full;
    const gpu = gpus[set.gpu];
    const adapter = full ? ["-", "-"] : [set.rank, set.layers];
    const numbers = runs[[set.model, set.method, ...adapter, set.batch, set.length, gpu[2]].join("/")];
    const line = document.getElementById("verdict");
    if (numbers.length === 1) {
      line.className = "verdict no";
      line.textContent = `Does not fit: its tensors take at least ${gb(numbers[0])} GB, and the GPU has ${gb(gpu[0])}.`;
      draw([["tensors, at least", LEAST, numbers[0]]], gpu[0]);
    } else {
      const [peak, reserved, ...sizes] = numbers;
      const [kind, words] = verdict(peak, reserved, gpu);
      line.className = `verdict ${kind}`;
      line.textContent = words;
      const held = groups.map(([name, colour], i) => [name, name === BESIDES ? STRIPES : colour, sizes[i]]);
      for (const part of held) if (part[0] === BESIDES) part[2] = reserved + gpu[1] - peak;
      draw(held.filter((part) => part[2] > 0), gpu[0]);
    }
    const address = `#${new URLSearchParams(set)}`;
    const link = document.createElement("a");
    link.href = address;
    link.textContent = "A link to these settings";
    document.getElementById("link-to-this").replaceChildren(link);
  }

  // The settings of the address, behind # or behind ?; what the controls do not have is told.
  function read() {
    const unknown = [];
    for (const [name, value] of [...new URLSearchParams(location.search), ...new URLSearchParams(location.hash.slice(1))]) {
      const known = controls[name] && [...controls[name].options].some((option) => option.value === value);
      if (known) controls[name].value = value;
      else unknown.push(`${name}=${value}`);
    }
    const line = document.getElementById("unknown");
    line.hidden = !unknown.length;
    line.textContent = unknown.length ? `The address asks for ${unknown.join(", ").slice(0, 200)}, which the calculator does not have. It shows the settings below instead.` : "";
  }

  form.hidden = document.getElementById("prediction").hidden = document.getElementById("verdict").hidden = false;
  document.getElementById("without-script").hidden = true;
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { read(); show(); });
  read();
  show();
})();
