// The playground page: gradient descent and its flows on a landscape, redrawn as the start moves.
//
// It is set up where there is a <div id="playground">. landscapes.js, dop853.js, flows.js and plot.js
// come before it, each of which adds to `window.pfcorePlayground`: plain scripts in this order, since
// browsers load no modules from a file. No library, no request.

(() => {
  "use strict";

  const playground = window.pfcorePlayground;
  const { FLOWS, LANDSCAPES, MODELS, clamp, compute, createPlots } = playground;

  const PRESETS = [
    {
      name: "Oscillating",
      note:
        "Across the valley hλ₀ = 1.8. NGF and IGR flow slide down to the floor; gradient descent " +
        "jumps from side to side, and PF passes through every step.",
      view: { landscape: "quadratic", x: -1, y: 0.6, h: 0.9, steps: 10 },
    },
    {
      name: "Diverging",
      note:
        "Now hλ₀ = 2.14: each step overshoots by more than the last. PF swings out with gradient " +
        "descent. NGF and IGR flow see no instability and settle on the valley floor.",
      view: { landscape: "quadratic", x: -1, y: 0.25, h: 1.07, steps: 10 },
    },
    {
      name: "PF leaves a minimum",
      note:
        "A close-up of the minimum (1, 0), where hλ₀ = 2.2. NGF and IGR flow go in. Gradient " +
        "descent and PF swing ever farther out along x, by more than a tenth after ten steps.",
      view: {
        landscape: "double_well", x: 0.98, y: 0.1, h: 1.1, steps: 10, zoom: 8, cx: 1, cy: 0,
      },
    },
    {
      name: "Saddle",
      note:
        "With hλ = ±2.2 gradient descent flees the saddle in both directions, and PF with it. " +
        "IGR flow’s α has changed sign below z = −2, so that it is drawn into the saddle.",
      view: { landscape: "saddle", x: 0.5, y: 0.01, h: 2.2, steps: 4 },
    },
    {
      name: "PF wins: banana",
      note:
        "After 20 steps PF is less than half as far from gradient descent as IGR flow, and a fifth " +
        "as far as NGF. Look at the distances: the curves themselves nearly coincide.",
      view: {
        landscape: "banana", x: -0.5, y: 0.5, h: 0.0015, steps: 20, zoom: 8, cx: -0.56, cy: 0.42,
      },
    },
    {
      name: "PF loses: Himmelblau",
      note:
        "Both hλ are below 1, yet here third derivatives count for more than curvature. PF ends " +
        "over four times as far from gradient descent as NGF, and seven times as far as IGR flow.",
      view: {
        landscape: "himmelblau", x: 0.75, y: -1.75, h: 1.3, steps: 3, zoom: 2, cx: 2.2, cy: -1.75,
      },
    },
    {
      name: "Caught on the cut",
      note:
        "On the principal branch PF is caught on the logarithm’s cut and ends at the cross. Set " +
        "the branch to “continued”, and it reaches the tenth step.",
      view: {
        landscape: "himmelblau", x: 1, y: 1, h: 1.5, steps: 10, branch: "principal",
        zoom: 3, cx: 2.1, cy: 1.6,
      },
    },
    {
      name: "At the edge",
      note:
        "The valley steepens to the right. Past hλ₀ = 2 gradient descent swings ever wider, until " +
        "the swing drives it back. The two-frame flow does the same, one line for even steps and " +
        "one for odd ones; central flow stops at the edge; NGF and IGR flow see none.",
      view: {
        landscape: "valley", x: 1.8, y: 0.3, h: 1, steps: 21, zoom: 1.6, cx: 2.15, cy: -0.05,
      },
      hidden: ["principal"],
    },
  ];
  playground.PRESETS = PRESETS;
  // Not drawn in an example unless it says otherwise: most are about the flows with one frame.
  const HIDDEN = ["central", "two_frame"];
  const MOST_ZOOM = 32;
  const HINT =
    "Move the start or the learning rate. The page’s address holds the view, so that it can be " +
    "shared.";

  const TEMPLATE = `
    <div class="pg-presets" role="group" aria-label="Examples"></div>
    <p class="pg-note"></p>
    <div class="pg-controls">
      <label class="pg-field" for="pg-select"><span>Landscape</span>
        <select id="pg-select"></select></label>
      <div class="pg-field pg-slider"><span><label for="pg-rate">Learning rate <i>h</i></label>
        <output for="pg-rate" id="pg-rate-value"></output></span>
        <input id="pg-rate" type="range" min="0" max="1000" step="1"></div>
      <div class="pg-field pg-slider"><span><label for="pg-steps">Steps</label>
        <output for="pg-steps" id="pg-steps-value"></output></span>
        <input id="pg-steps" type="range" min="1" max="60" step="1"></div>
      <label class="pg-field" for="pg-branch"><span>Branch of PF</span>
        <select id="pg-branch"><option value="continued">continued</option>
        <option value="principal">principal</option></select></label>
      <label class="pg-field" for="pg-x"><span>Start <i>x</i></span>
        <input id="pg-x" type="number" step="any"></label>
      <label class="pg-field" for="pg-y"><span>Start <i>y</i></span>
        <input id="pg-y" type="number" step="any"></label>
      <button type="button" class="pg-button" id="pg-reset">Reset</button>
    </div>
    <div class="pg-plots">
      <section class="pg-landscape" aria-label="Landscape">
        <p class="pg-title"><span id="pg-formula"></span>
          <span class="pg-zoom" role="group" aria-label="Zoom">
            <button type="button" class="pg-button" id="pg-out" aria-label="Zoom out">−</button>
            <button type="button" class="pg-button" id="pg-in" aria-label="Zoom in">+</button>
          </span></p>
        <canvas id="pg-map" tabindex="0" role="application" aria-describedby="pg-words"
          aria-label="Landscape with the start point. Arrow keys move the start, with Shift in larger steps."></canvas>
      </section>
      <section class="pg-distances" aria-label="Curves">
        <table class="pg-table pg-curves">
          <thead><tr><th scope="col">Curve</th>
            <th scope="col">Distance to step <span id="pg-last"></span></th></tr></thead><tbody></tbody></table>
        <p class="pg-footnote">* to the mean over the swing, (<i>w</i>₋ + 2<i>w</i> + <i>w</i>₊)/4, which
          is what central flow models. Of the two-frame flow the step it predicts counts.</p>
      </section>
      <section class="pg-coefficients" aria-label="Coefficients">
        <p class="pg-title"><span>Re <i>α</i>(<i>z</i>): speed along an eigenvector</span></p>
        <canvas id="pg-alpha" role="img" aria-describedby="pg-words"
          aria-label="Real part of alpha against z = h times lambda for NGF, IGR flow and PF, with both eigenvalues at the start marked."></canvas>
        <table class="pg-table pg-eigen">
          <thead><tr><th scope="col" colspan="2">At the start</th><th scope="col"><i>hλ</i></th>
            <th scope="col">regime</th></tr></thead><tbody></tbody></table>
      </section>
      <p class="pg-words" id="pg-words" aria-live="polite"></p>
    </div>`;

  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

  // Three significant digits, with a power of ten where it is shorter.
  function format(value, digits = 3) {
    if (Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (value === 0) return "0";
    const size = Math.abs(value);
    let text;
    if (size >= 1e5 || size < 1e-3) {
      const [mantissa, power] = value.toExponential(digits - 1).split("e");
      const exponent = [...String(Math.abs(Number(power)))].map((d) => SUPERSCRIPTS[d]).join("");
      const power10 = `10${Number(power) < 0 ? "⁻" : ""}${exponent}`;
      text = mantissa === "1" ? power10 : `${Number(mantissa)} × ${power10}`;
    } else {
      text = String(Number(value.toPrecision(digits)));
    }
    return text.replace(/^-/, "−");
  }

  // Below what the integration resolves, a distance is not told from none.
  const formatDistance = (value, scale) =>
    value < 1e-7 * Math.max(1, scale) ? `below ${format(1e-7 * Math.max(1, scale), 1)}` : format(value);

  function setUp(root) {
    root.innerHTML = TEMPLATE;
    const $ = (id) => root.querySelector(`#${id}`);
    const map = $("pg-map");
    const alpha = $("pg-alpha");
    const words = $("pg-words");
    const note = root.querySelector(".pg-note");
    const inputs = {
      landscape: $("pg-select"),
      rate: $("pg-rate"),
      steps: $("pg-steps"),
      x: $("pg-x"),
      y: $("pg-y"),
      branch: $("pg-branch"),
    };

    // -- state

    const viewOf = (name) => {
      const { start, h, steps } = LANDSCAPES[name];
      return { landscape: name, x: start[0], y: start[1], h: h[2], steps };
    };
    const state = { hidden: new Set() };
    let result = null;
    let preset = null;

    const landscape = () => LANDSCAPES[state.landscape];

    function show(view) {
      Object.assign(state, { branch: "continued", zoom: 1, cx: NaN, cy: NaN }, view);
      const range = landscape().window;
      if (!Number.isFinite(state.cx)) state.cx = (range[0][0] + range[0][1]) / 2;
      if (!Number.isFinite(state.cy)) state.cy = (range[1][0] + range[1][1]) / 2;
    }

    // The window that is drawn.
    function visible() {
      return landscape().window.map(([low, high], axis) => {
        const centre = axis === 0 ? state.cx : state.cy;
        const half = (high - low) / (2 * state.zoom);
        return [centre - half, centre + half];
      });
    }

    function moveStart(x, y) {
      const [[x0, x1], [y0, y1]] = landscape().window;
      const decimals = clamp(Math.ceil(3 - Math.log10((x1 - x0) / state.zoom)), 2, 6);
      state.x = Number(clamp(x, x0, x1).toFixed(decimals));
      state.y = Number(clamp(y, y0, y1).toFixed(decimals));
    }

    // The slider's 0 … 1000 and the learning rate, to three digits.
    function rateAt(position) {
      const [low, high] = landscape().h;
      const u = position / 1000;
      const h = landscape().log ? low * (high / low) ** u : low + (high - low) * u;
      return Number(h.toPrecision(3));
    }

    function positionOf(h) {
      const [low, high] = landscape().h;
      const u = landscape().log ? Math.log(h / low) / Math.log(high / low) : (h - low) / (high - low);
      return Math.round(1000 * clamp(u, 0, 1));
    }

    // Where the slider stands, if that still means the present rate: three digits can be coarser
    // than its steps, and an arrow key must not be undone.
    function sliderPosition() {
      const { value } = inputs.rate;
      return rateAt(Number(value)) === state.h ? value : String(positionOf(state.h));
    }

    // -- the address

    function readAddress() {
      const given = new URLSearchParams(window.location.hash.slice(1));
      const name = given.get("landscape");
      if (!Object.hasOwn(LANDSCAPES, name)) return false;
      const view = viewOf(name);
      const number = (key, low, high) => {
        const value = Number.parseFloat(given.get(key));
        return Number.isFinite(value) ? clamp(value, low, high) : undefined;
      };
      const range = LANDSCAPES[name].window;
      const read = {
        x: number("x", ...range[0]),
        y: number("y", ...range[1]),
        h: number("h", ...LANDSCAPES[name].h.slice(0, 2)),
        steps: number("steps", 1, 60),
        zoom: number("zoom", 1, MOST_ZOOM),
        cx: number("cx", ...range[0]),
        cy: number("cy", ...range[1]),
      };
      for (const [key, value] of Object.entries(read)) if (value !== undefined) view[key] = value;
      view.steps = Math.round(view.steps);
      if (given.get("branch") === "principal") view.branch = "principal";
      show(view);
      state.hidden = new Set(
        (given.get("hide") || "").split(".").filter((key) => FLOWS.some((f) => f.key === key)),
      );
      return true;
    }

    function writeAddress() {
      const given = new URLSearchParams({
        landscape: state.landscape,
        h: state.h,
        x: state.x,
        y: state.y,
        steps: state.steps,
      });
      if (state.branch !== "continued") given.set("branch", state.branch);
      if (state.zoom !== 1) {
        given.set("zoom", state.zoom);
        given.set("cx", Number(state.cx.toPrecision(4)));
        given.set("cy", Number(state.cy.toPrecision(4)));
      }
      if (state.hidden.size) given.set("hide", [...state.hidden].join("."));
      try {
        window.history.replaceState(window.history.state, "", `#${given}`);
      } catch {
        // Some browsers ration this, and some forbid it on file: pages; the view is as good without.
      }
    }

    const plots = createPlots({ root, map, alpha, state, landscape, visible });

    // -- text

    const curves = root.querySelector(".pg-curves tbody");
    const distanceCells = {};
    for (const { key, name, color, dash } of FLOWS) {
      const row = curves.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      const line = key === "gd" ? "stroke-width='1'" : `stroke-width='3' stroke-dasharray='${dash}'`;
      const more = {
        gd: "<circle cx='14' cy='6' r='4.5' stroke='none'/>",
        two_frame:
          "<path d='M0 1V11H28V1Z' stroke='none' style='fill: var(--pg-band)'/>" +
          "<path d='M0 1H28M0 11H28' stroke-width='1.4'/>",
      };
      head.innerHTML = `<label><input type="checkbox" data-curve="${key}" checked>
        <svg width="28" height="12" aria-hidden="true" style="color: var(${color})"
          fill="currentColor" stroke="currentColor"><path d="M0 6H28" ${line}/>${more[key] ?? ""}</svg>
        <span>${name}</span></label>`;
      row.append(head);
      distanceCells[key] = row.insertCell();
    }
    const eigen = root.querySelector(".pg-eigen tbody");
    const eigenCells = ["λ₀", "λ₁"].map((name) => {
      const row = eigen.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.innerHTML = `<i>${name}</i>`;
      row.append(head);
      return [row.insertCell(), row.insertCell(), row.insertCell()];
    });

    const put = (element, text) => {
      if (element.textContent !== text) element.textContent = text;
    };
    const countSteps = (n) => `${n} ${n === 1 ? "step" : "steps"}`;
    const finite = (position) => position.every(Number.isFinite);

    // What became of a flow: its distance to gradient descent, or where it was lost. Of the two-frame
    // flow the step that it predicts counts, and of central flow the distance to the steps' mean.
    function outcome(key) {
      if (!result.completed[key]) return { lost: result[key].slice(1).filter(finite).length };
      const [x, y] = (key === "two_frame" ? result.predicted : result[key])[state.steps];
      const [gx, gy] = result.targets[key];
      if (!finite(result.targets[key])) return { distance: Infinity, scale: 1 };
      return { distance: Math.hypot(x - gx, y - gy), scale: Math.hypot(gx, gy) };
    }

    function writeNumbers() {
      put($("pg-rate-value"), format(state.h));
      put($("pg-steps-value"), String(state.steps));
      put($("pg-last"), String(state.steps));
      put($("pg-formula"), landscape().formula);
      for (const [input, value] of [
        [inputs.landscape, state.landscape],
        [inputs.branch, state.branch],
        [inputs.rate, sliderPosition()],
        [inputs.steps, String(state.steps)],
        [inputs.x, String(state.x)],
        [inputs.y, String(state.y)],
      ]) {
        const typing = input.type === "number" && input === document.activeElement && input.dataset.typing;
        if (input.value !== value && !typing) input.value = value;
      }
      inputs.rate.setAttribute("aria-valuetext", format(state.h));
      put(distanceCells.gd, finite(result.gd[state.steps]) ? "–" : "diverged");
      for (const { key } of MODELS) {
        const { lost, distance, scale } = outcome(key);
        put(
          distanceCells[key],
          lost === undefined
            ? formatDistance(distance, scale) + (key === "central" ? " *" : "")
            : lost === 0 ? "lost in the first step ×" : `lost after ${countSteps(lost)} ×`,
        );
      }
      [...result.eigenvalues].reverse().forEach((value, i) => {
        put(eigenCells[i][0], format(value));
        put(eigenCells[i][1], format(state.h * value));
        put(eigenCells[i][2], [...result.regimes].reverse()[i]);
      });
      root.querySelectorAll("[data-curve]").forEach((box) => {
        box.checked = !state.hidden.has(box.dataset.curve);
      });
      root.querySelectorAll(".pg-presets button").forEach((button, i) => {
        button.setAttribute("aria-pressed", String(PRESETS[i] === preset));
      });
      put(note, preset ? preset.note : HINT);
      // Not `disabled`, which would take the focus from a button that was just pressed.
      $("pg-out").setAttribute("aria-disabled", String(state.zoom <= 1));
      $("pg-in").setAttribute("aria-disabled", String(state.zoom >= MOST_ZOOM));
    }

    // The picture in words.
    function describe() {
      const n = state.steps;
      const name = landscape().label.replace(" / 100", ", divided by 100");
      const end = result.gd[n];
      const before = landscape().value(state.x, state.y);
      const after = landscape().value(...end);
      const [[x0, x1], [y0, y1]] = visible();
      const inside = ([x, y]) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
      const parts = [
        `${name}, ${countSteps(n)} of gradient descent with h = ${format(state.h)} from ` +
          `(${format(state.x, 4)}, ${format(state.y, 4)}).`,
      ];
      if (!finite(end)) {
        parts.push("Gradient descent diverges beyond all numbers.");
      } else {
        parts.push(
          `It ends at (${format(end[0])}, ${format(end[1])})` +
            `${inside(end) ? "" : ", outside the picture"}; the loss goes from ${format(before)} ` +
            `to ${format(after)}.`,
        );
      }
      const [low, high] = result.eigenvalues;
      parts.push(
        `At the start λ₀ = ${format(high)}, hλ₀ = ${format(state.h * high)} ` +
          `(${result.regimes[1]}), and λ₁ = ${format(low)}, hλ₁ = ${format(state.h * low)} ` +
          `(${result.regimes[0]}).`,
      );
      const told = [];
      const lostFlows = [];
      for (const { key, name: flow } of MODELS) {
        const { lost, distance, scale } = outcome(key);
        const from = key === "central" ? " (from the mean over the swing)" : "";
        if (lost === undefined) told.push(`${flow} ${formatDistance(distance, scale)}${from}`);
        else lostFlows.push([flow, lost]);
      }
      parts.push(`Distance to gradient descent after the last step: ${told.join(", ")}.`);
      for (const [flow, lost] of lostFlows) {
        parts.push(
          `${flow[0].toUpperCase()}${flow.slice(1)} could not be followed to the end: it was lost ` +
            `${lost === 0 ? "in the first step" : `after ${countSteps(lost)}`}.`,
        );
      }
      if (result.eigenvalues.some((value) => state.h * value === 1)) {
        parts.push("Where hλ = 1 exactly, log(1 − hλ) is infinite, and PF has no velocity.");
      } else if (result.completed.principal) {
        parts.push("PF was followed to the end.");
      }
      const hidden = FLOWS.filter(({ key }) => state.hidden.has(key)).map((flow) => flow.name);
      if (hidden.length) parts.push(`Not drawn: ${hidden.join(", ")}.`);
      put(words, parts.join(" "));
    }

    // -- one frame

    let requested = false;
    let settling = 0;

    function render() {
      requested = false;
      const started = performance.now();
      result = compute(state.landscape, [state.x, state.y], state.h, state.steps, {
        branch: state.branch,
        perStep: 24,
      });
      const computed = performance.now();
      if (!plots.draw(result)) return;
      writeNumbers();
      const done = performance.now();
      // What is on show, and what it took in milliseconds.
      playground.state = { ...state, hidden: [...state.hidden] };
      playground.result = result;
      playground.frame = { compute: computed - started, draw: done - computed, total: done - started };
      playground.frames = (playground.frames || 0) + 1;
    }

    function redraw() {
      if (requested) return;
      requested = true;
      window.requestAnimationFrame(render);
    }

    // After a change by the reader; words and address follow when the hand rests.
    function changed({ keepPreset = false } = {}) {
      if (!keepPreset) preset = null;
      redraw();
      window.clearTimeout(settling);
      settling = window.setTimeout(() => {
        if (requested) render();
        describe();
        writeAddress();
      }, 350);
    }

    // -- input

    for (const [key, { label }] of Object.entries(LANDSCAPES)) {
      inputs.landscape.add(new Option(label, key));
    }
    inputs.landscape.addEventListener("change", () => {
      show({ ...viewOf(inputs.landscape.value), branch: state.branch });
      if (landscape().edge) for (const key of HIDDEN) state.hidden.delete(key);
      changed();
    });
    inputs.branch.addEventListener("change", () => {
      state.branch = inputs.branch.value;
      changed();
    });
    inputs.rate.addEventListener("input", () => {
      state.h = rateAt(Number(inputs.rate.value));
      changed();
    });
    inputs.steps.addEventListener("input", () => {
      state.steps = Number(inputs.steps.value);
      changed();
    });
    for (const axis of ["x", "y"]) {
      const input = inputs[axis];
      input.addEventListener("input", () => {
        input.dataset.typing = "yes";
        const value = input.valueAsNumber;
        if (!Number.isFinite(value)) return;
        const [low, high] = landscape().window[axis === "x" ? 0 : 1];
        state[axis] = clamp(value, low, high);
        changed();
      });
      input.addEventListener("change", () => {
        delete input.dataset.typing;
        redraw();
      });
    }
    root.querySelectorAll("[data-curve]").forEach((box) => {
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(box.dataset.curve);
        else state.hidden.add(box.dataset.curve);
        changed({ keepPreset: true });
      });
    });
    for (const item of PRESETS) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "pg-button";
      button.textContent = item.name;
      button.addEventListener("click", () => {
        preset = item;
        show(item.view);
        state.hidden = new Set(item.hidden ?? HIDDEN);
        changed({ keepPreset: true });
      });
      root.querySelector(".pg-presets").append(button);
    }
    $("pg-reset").addEventListener("click", () => {
      show(viewOf(state.landscape));
      state.hidden.clear();
      changed();
    });
    // In: towards the middle of what gradient descent does within the window.
    $("pg-in").addEventListener("click", () => {
      if (state.zoom >= MOST_ZOOM) return;
      const [[x0, x1], [y0, y1]] = visible();
      const seen = result.gd.filter(([x, y]) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
      const middle = (axis) => {
        const values = [...seen, [state.x, state.y]].map((p) => p[axis]);
        const centre = (Math.min(...values) + Math.max(...values)) / 2;
        return clamp(centre, ...landscape().window[axis]);
      };
      const zoom = Math.min(MOST_ZOOM, 2 * state.zoom);
      Object.assign(state, { zoom, cx: middle(0), cy: middle(1) });
      changed({ keepPreset: true });
    });
    $("pg-out").addEventListener("click", () => {
      if (state.zoom <= 1) return;
      const { cx, cy } = state;
      const zoom = Math.max(1, state.zoom / 2);
      show({ branch: state.branch, zoom, ...(zoom > 1 && { cx, cy }) });
      changed({ keepPreset: true });
    });

    let held = null; // the pointer that drags, and where it took hold beside the start
    function dragTo(event) {
      const box = map.getBoundingClientRect();
      moveStart(
        plots.frame().toX(event.clientX - box.left - held.dx),
        plots.frame().toY(event.clientY - box.top - held.dy),
      );
      changed();
    }
    map.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || held) return;
      const box = map.getBoundingClientRect();
      const dx = event.clientX - box.left - plots.frame().x(state.x);
      const dy = event.clientY - box.top - plots.frame().y(state.y);
      // Taken at the ring it stays where the finger took it; elsewhere the start comes to the finger.
      const caught = Math.hypot(dx, dy) <= 22;
      held = { id: event.pointerId, dx: caught ? dx : 0, dy: caught ? dy : 0 };
      try {
        map.setPointerCapture(event.pointerId);
      } catch {
        // The pointer is gone already.
      }
      map.focus({ preventScroll: true });
      event.preventDefault();
      if (!caught) dragTo(event);
    });
    map.addEventListener("pointermove", (event) => {
      if (held && event.pointerId === held.id) dragTo(event);
    });
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      map.addEventListener(type, (event) => {
        if (held && event.pointerId === held.id) held = null;
      });
    }
    map.addEventListener("keydown", (event) => {
      const directions = {
        ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1],
      };
      const direction = directions[event.key];
      if (!direction || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const [[x0, x1]] = visible();
      // A round number near a two-hundredth of the window.
      const step = 10 ** Math.round(Math.log10((x1 - x0) / 200)) * (event.shiftKey ? 10 : 1);
      moveStart(state.x + step * direction[0], state.y + step * direction[1]);
      changed();
    });

    window.addEventListener("hashchange", () => {
      if (readAddress()) {
        preset = null;
        redraw();
        settling = window.setTimeout(describe, 350);
      }
    });
    new ResizeObserver(redraw).observe(map);
    new ResizeObserver(redraw).observe(alpha);
    window.addEventListener("resize", redraw);
    // The theme is set on <html>; its colours are read once it has been applied.
    new MutationObserver(() => {
      plots.readColors();
      render(); // before the page is laid out for printing, which makes it light
    }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

    if (!readAddress()) {
      preset = PRESETS[0];
      show(preset.view);
      state.hidden = new Set(HIDDEN);
    }
    render();
    describe();
  }

  // The page loads this script just below the element.
  const root = document.querySelector("div#playground");
  if (root) setUp(root);
})();
