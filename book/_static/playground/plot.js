// The playground's plots: the landscape with its paths, and the flows' coefficients.

(() => {
  "use strict";

  const playground = window.pfcorePlayground;
  const { coefficient, sharpness } = playground;

  const FLOWS = [
    { key: "gd", name: "gradient descent", color: "--pg-gd" },
    { key: "ngf", name: "NGF", color: "--pg-ngf", dash: [] },
    { key: "igr", name: "IGR flow", color: "--pg-igr", dash: [7, 4] },
    { key: "principal", name: "PF", color: "--pg-pf", dash: [] },
    { key: "central", name: "central flow", color: "--pg-central", dash: [2, 2] },
    { key: "two_frame", name: "two-frame flow", color: "--pg-two-frame", dash: [] },
  ];
  const MODELS = FLOWS.slice(1);
  // Those that move along an eigenvector at a multiple of the gradient.
  const ONE_FRAME = MODELS.filter(({ key }) => key !== "central" && key !== "two_frame");

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function ticksIn(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
      found.push([i * step, (i * step).toFixed(decimals).replace(/^-0(\.0*)?$/, "0").replace("-", "−")]);
    }
    return found;
  }

  // Lines on which a function has one of the values that `levels(lowest, highest)` lists, in a window,
  // as polylines [x0, y0, x1, y1, …]: marching squares, the pieces joined end to end.
  function levelLines(value, [[x0, x1], [y0, y1]], columns, rows, levels) {
    const across = columns + 1;
    const values = new Float64Array(across * (rows + 1));
    let low = Infinity;
    let high = -Infinity;
    for (let j = 0; j <= rows; j++) {
      for (let i = 0; i <= columns; i++) {
        const here = value(x0 + ((x1 - x0) * i) / columns, y0 + ((y1 - y0) * j) / rows);
        values[j * across + i] = here;
        low = Math.min(low, here);
        high = Math.max(high, here);
      }
    }
    const lines = [];
    for (const level of levels(low, high)) {
      // An edge of the grid has an even number if it is horizontal, an odd one if vertical; each is
      // crossed at most once, and joined to at most two others.
      const joined = new Map();
      const join = (a, b) => {
        for (const [from, to] of [[a, b], [b, a]]) {
          const others = joined.get(from);
          if (others) others.push(to);
          else joined.set(from, [to]);
        }
      };
      for (let j = 0; j < rows; j++) {
        for (let i = 0; i < columns; i++) {
          const at = j * across + i;
          const a = values[at] < level;
          const b = values[at + 1] < level;
          const c = values[at + across + 1] < level;
          const d = values[at + across] < level;
          if (a === b && b === c && c === d) continue;
          const edges = [];
          if (a !== b) edges.push(2 * at);
          if (b !== c) edges.push(2 * (at + 1) + 1);
          if (c !== d) edges.push(2 * (at + across));
          if (d !== a) edges.push(2 * at + 1);
          join(edges[0], edges[1]);
          if (edges.length === 4) join(edges[2], edges[3]);
        }
      }
      const point = (edge) => {
        const at = edge >> 1;
        const end = at + (edge & 1 ? across : 1);
        const part = (level - values[at]) / (values[end] - values[at]);
        const i = (at % across) + (edge & 1 ? 0 : part);
        const j = Math.floor(at / across) + (edge & 1 ? part : 0);
        return [x0 + ((x1 - x0) * i) / columns, y0 + ((y1 - y0) * j) / rows];
      };
      const seen = new Set();
      const walk = (first) => {
        const line = [];
        let edge = first;
        while (edge !== undefined && !seen.has(edge)) {
          seen.add(edge);
          line.push(...point(edge));
          edge = joined.get(edge).find((other) => !seen.has(other));
        }
        // Closed, if the last is joined to the first.
        if (line.length > 4 && joined.get(first).length === 2) line.push(line[0], line[1]);
        lines.push(line);
      };
      // From the rim first: what is left are closed lines.
      for (const [edge, others] of joined) if (others.length === 1 && !seen.has(edge)) walk(edge);
      for (const edge of joined.keys()) if (!seen.has(edge)) walk(edge);
    }
    return lines;
  }

  // Both plots of a panel.
  //
  // `root`: what the colours are set on. `map`, `alpha`: the canvases. `state`: what is on show.
  // `landscape()`, `visible()`: the present landscape, and the window of it that is drawn.
  function createPlots({ root, map, alpha, state, landscape, visible }) {
    let colors = {};

    function readColors() {
      const style = getComputedStyle(root);
      colors = {};
      for (const name of [
        "gd", "ngf", "igr", "pf", "central", "two-frame", "band", "text", "muted", "line", "level", "paper", "warm", "cool", "star",
      ]) {
        colors[`--pg-${name}`] = style.getPropertyValue(`--pg-${name}`).trim();
      }
      colors.font = style.fontFamily;
    }

    function prepare(canvas) {
      const ratio = window.devicePixelRatio || 1;
      const width = canvas.clientWidth;
      const height = canvas.clientHeight;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      return { ratio, width, height };
    }

    function newLayer(canvas, ratio) {
      const layer = document.createElement("canvas");
      layer.width = canvas.width;
      layer.height = canvas.height;
      const context = layer.getContext("2d");
      context.scale(ratio, ratio);
      return [layer, context];
    }

    function clipTo(context, { left, top, right, bottom }) {
      context.beginPath();
      context.rect(left, top, right - left, bottom - top);
      context.clip();
    }

    // Where a plot's data lies in its canvas, and the way there.
    function frameOf(width, height, [[x0, x1], [y0, y1]], left) {
      const box = { left, top: 6, right: width - 8, bottom: height - 26 };
      return {
        ...box,
        x: (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left),
        y: (y) => box.bottom - ((y - y0) / (y1 - y0)) * (box.bottom - box.top),
        toX: (px) => x0 + ((px - box.left) / (box.right - box.left)) * (x1 - x0),
        toY: (py) => y0 + ((box.bottom - py) / (box.bottom - box.top)) * (y1 - y0),
      };
    }

    function drawAxes(context, frame, range, xName, yName) {
      context.font = `12px ${colors.font}`;
      context.fillStyle = colors["--pg-muted"];
      context.strokeStyle = colors["--pg-line"];
      context.lineWidth = 1;
      context.strokeRect(
        Math.round(frame.left) + 0.5,
        Math.round(frame.top) + 0.5,
        Math.round(frame.right - frame.left) - 1,
        Math.round(frame.bottom - frame.top) - 1,
      );
      context.textAlign = "center";
      context.textBaseline = "top";
      const width = frame.right - frame.left;
      const nameWidth = context.measureText(xName).width;
      for (const [value, text] of ticksIn(...range[0], width < 330 ? 5 : 7)) {
        const x = frame.x(value);
        if (x > frame.right - nameWidth - 16 || x < frame.left + 2) continue;
        context.fillText(text, x, frame.bottom + 7);
      }
      context.textAlign = "right";
      context.textBaseline = "middle";
      for (const [value, text] of ticksIn(...range[1], 6)) {
        const y = frame.y(value);
        if (y < frame.top + 20 || y > frame.bottom - 4) continue;
        context.fillText(text, frame.left - 7, y);
      }
      context.fillStyle = colors["--pg-text"];
      context.font = `italic 13px ${colors.font}`;
      context.fillText(yName, frame.left - 8, frame.top + 7);
      context.textBaseline = "top";
      context.fillText(xName, frame.right, frame.bottom + 6);
    }

    function star(context, x, y, radius) {
      context.beginPath();
      for (let i = 0; i < 10; i++) {
        const r = i % 2 === 0 ? radius : 0.42 * radius;
        const angle = (Math.PI * i) / 5;
        context.lineTo(x + r * Math.sin(angle), y - r * Math.cos(angle));
      }
      context.closePath();
      context.fill();
    }

    let mapLayer = null;
    let mapFrame = null;
    let alphaLayer = null;
    let alphaFrame = null;
    const ALPHA_RANGE = [[-2.5, 3.5], [-4.2, 1.6]];
    const REGIONS = [
      [-Infinity, 0, "--pg-warm", ["repelling"], ["repelling"]],
      [0, 1, null, ["attracting"], ["attr."]],
      [1, 2, "--pg-cool", ["attracting,", "oscillating"], ["attr.,", "oscill."]],
      [2, Infinity, "--pg-warm", ["repelling,", "oscillating"], ["repelling,", "oscillating"]],
    ];

    let backgroundKey = "";

    function drawBackgrounds(mapSize, alphaSize) {
      const range = visible();
      mapFrame = frameOf(mapSize.width, mapSize.height, range, 38);
      let context;
      [mapLayer, context] = newLayer(map, mapSize.ratio);
      context.save();
      clipTo(context, mapFrame);
      context.fillStyle = colors["--pg-paper"];
      context.fill();
      context.strokeStyle = colors["--pg-level"];
      context.lineWidth = 1;
      context.lineJoin = "round";
      // Evenly spaced in the cube root of the loss.
      const spaced = (low, high) =>
        Array.from({ length: 14 }, (_, k) => low + ((k + 1) * (high - low)) / 15);
      const root = (x, y) => Math.cbrt(landscape().value(x, y));
      for (const line of levelLines(root, range, 198, 165, spaced)) {
        context.beginPath();
        for (let i = 0; i < line.length; i += 2) {
          context.lineTo(mapFrame.x(line[i]), mapFrame.y(line[i + 1]));
        }
        context.stroke();
      }
      context.fillStyle = colors["--pg-star"];
      for (const [x, y] of landscape().minima) star(context, mapFrame.x(x), mapFrame.y(y), 9);
      context.restore();
      drawAxes(context, mapFrame, range, "x", "y");

      alphaFrame = frameOf(alphaSize.width, alphaSize.height, ALPHA_RANGE, 30);
      const frame = alphaFrame;
      [alphaLayer, context] = newLayer(alpha, alphaSize.ratio);
      context.fillStyle = colors["--pg-paper"];
      context.fillRect(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top);
      context.font = `12px ${colors.font}`;
      context.textAlign = "center";
      context.textBaseline = "top";
      for (const [from, to, color, wide, narrow] of REGIONS) {
        const left = Math.max(frame.left, frame.x(from));
        const right = Math.min(frame.right, frame.x(to));
        if (color) {
          context.fillStyle = colors[color];
          context.fillRect(left, frame.top, right - left, frame.bottom - frame.top);
        }
        context.fillStyle = colors["--pg-muted"];
        const fits = wide.every((text) => context.measureText(text).width <= right - left - 4);
        (fits ? wide : narrow).forEach((text, i) => {
          context.fillText(text, (left + right) / 2, frame.top + 6 + 15 * i);
        });
      }
      context.strokeStyle = colors["--pg-level"];
      context.beginPath();
      context.moveTo(frame.left, frame.y(0));
      context.lineTo(frame.right, frame.y(0));
      context.stroke();
      drawAxes(context, frame, ALPHA_RANGE, "z = hλ", "");
      context.save();
      clipTo(context, frame);
      context.lineWidth = 2.2;
      context.lineJoin = "round";
      for (const { key, color, dash } of ONE_FRAME) {
        if (state.hidden.has(key)) continue;
        context.strokeStyle = colors[color];
        context.setLineDash(dash);
        context.beginPath();
        for (let px = frame.left; px <= frame.right; px += 0.5) {
          const value = coefficient(key, frame.toX(px));
          context.lineTo(px, clamp(frame.y(value), -50, frame.bottom + 50));
        }
        context.stroke();
        context.setLineDash([]);
      }
      context.restore();
    }

    // A polyline that may leave the canvas by far, and pieces of it that cannot be seen left out.
    function trace(context, points, count, frame) {
      const reach = 3000;
      let pen = false;
      let px = 0;
      let py = 0;
      context.beginPath();
      for (let i = 0; i < count; i++) {
        const x = frame.x(points(i, 0));
        const y = frame.y(points(i, 1));
        if (!Number.isFinite(x) || !Number.isFinite(y)) break;
        if (i > 0) {
          // Liang and Barsky's clipping of the piece from (px, py) to (x, y)
          let from = 0;
          let to = 1;
          const dx = x - px;
          const dy = y - py;
          for (const [p, q] of [
            [-dx, px + reach], [dx, reach - px], [-dy, py + reach], [dy, reach - py],
          ]) {
            if (p === 0) {
              if (q < 0) to = -1;
            } else if (p < 0) from = Math.max(from, q / p);
            else to = Math.min(to, q / p);
          }
          if (from <= to) {
            if (!pen || from > 0) context.moveTo(px + from * dx, py + from * dy);
            context.lineTo(px + to * dx, py + to * dy);
            pen = to === 1;
          } else {
            pen = false;
          }
        }
        px = x;
        py = y;
      }
      context.stroke();
    }

    const near = (frame, x, y) =>
      x > frame.left - 20 && x < frame.right + 20 && y > frame.top - 20 && y < frame.bottom + 20;

    function dots(context, frame, positions, radius) {
      context.beginPath();
      for (const [px, py] of positions) {
        const x = frame.x(px);
        const y = frame.y(py);
        if (!near(frame, x, y)) continue;
        context.moveTo(x + radius, y);
        context.arc(x, y, radius, 0, 2 * Math.PI);
      }
      context.fill();
    }

    // Where the sharpness is 2/h.
    function drawEdge(context, frame) {
      const value = (x, y) => state.h * sharpness(landscape(), x, y);
      const lines = levelLines(value, visible(), 66, 55, () => [2]);
      context.strokeStyle = colors["--pg-muted"];
      context.lineWidth = 1.4;
      context.setLineDash([2, 4]);
      for (const line of lines) {
        trace(context, (i, axis) => line[2 * i + axis], line.length / 2, frame);
      }
      context.setLineDash([]);
      if (!lines.length) return;
      // Beside the end of the longest that is farthest up.
      const line = lines.reduce((a, b) => (b.length > a.length ? b : a));
      const ends = [0, line.length - 2];
      const top = ends.reduce((a, b) => (line[b + 1] > line[a + 1] ? b : a));
      context.font = `italic 13px ${colors.font}`;
      context.textBaseline = "alphabetic";
      const width = context.measureText("hλ₀ = 2").width;
      const x = clamp(frame.x(line[top]) + 6, frame.left + 4, frame.right - width - 4);
      const y = clamp(frame.y(line[top + 1]) - 8, frame.top + 16, frame.bottom - 6);
      context.textAlign = "left";
      write(context, "hλ₀ = 2", x, y, "--pg-muted");
    }

    // Steps are to lie on one frame and on the other in turn, the centre plus and minus A; the band
    // between them is where gradient descent goes to and fro.
    function drawFrames(context, frame, { even, odd }, color) {
      const count = even.length / 2;
      const point = (path, i) =>
        [frame.x(path[2 * i]), frame.y(path[2 * i + 1])].map((value) => clamp(value, -3000, 3000));
      context.fillStyle = colors["--pg-band"];
      context.beginPath();
      for (let i = 0; i + 1 < count; i += 4) {
        const j = Math.min(i + 4, count - 1);
        const corners = [point(even, i), point(even, j), point(odd, j), point(odd, i)];
        // All turn the same way: where the band goes back over itself it stays filled.
        const [[ax, ay], [bx, by], [cx, cy], [dx, dy]] = corners;
        if ((cx - ax) * (dy - by) < (cy - ay) * (dx - bx)) corners.reverse();
        context.moveTo(...corners[0]);
        for (const corner of corners.slice(1)) context.lineTo(...corner);
        context.closePath();
      }
      context.fill();
      context.strokeStyle = colors[color];
      context.lineWidth = 1.4;
      for (const path of [even, odd]) {
        trace(context, (i, axis) => path[2 * i + axis], count, frame);
      }
    }

    // Where the frames are farthest apart in the picture, which is which.
    function nameFrames(context, frame, { even, odd }, color) {
      let farthest = 40; // pixels: nearer, there is no room
      let at = -1;
      for (let i = 0; i < even.length; i += 2) {
        const xs = [frame.x(even[i]), frame.x(odd[i])];
        const ys = [frame.y(even[i + 1]), frame.y(odd[i + 1])];
        const apart = Math.abs(ys[0] - ys[1]);
        const seen =
          Math.min(...xs) > frame.left && Math.max(...xs) < frame.right &&
          Math.min(...ys) > frame.top + 22 && Math.max(...ys) < frame.bottom - 22;
        if (seen && apart > farthest) [farthest, at] = [apart, i];
      }
      if (at < 0) return;
      context.font = `600 13px ${colors.font}`;
      context.textBaseline = "middle";
      context.textAlign = "center";
      const above = even[at + 1] > odd[at + 1] ? 1 : -1;
      for (const [path, name, side] of [[even, "even steps", above], [odd, "odd steps", -above]]) {
        const half = context.measureText(name).width / 2;
        const x = clamp(frame.x(path[at]), frame.left + half + 4, frame.right - half - 4);
        write(context, name, x, frame.y(path[at + 1]) - 15 * side, color);
      }
    }

    function drawMap(size, result) {
      const context = map.getContext("2d");
      const frame = mapFrame;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, map.width, map.height);
      context.drawImage(mapLayer, 0, 0);
      context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
      context.save();
      clipTo(context, frame);
      context.lineJoin = "round";
      context.lineCap = "butt";
      drawEdge(context, frame);
      for (const { key, color, dash } of MODELS) {
        if (state.hidden.has(key)) continue;
        if (key === "two_frame") drawFrames(context, frame, result.frames, color);
        const path = result.paths[key];
        context.strokeStyle = colors[color];
        context.fillStyle = colors[color];
        context.lineWidth = 2.4;
        context.setLineDash(dash);
        trace(context, (i, axis) => path[2 * i + axis], path.length / 2, frame);
        context.setLineDash([]);
        dots(context, frame, key === "two_frame" ? result.predicted : result[key], 3);
      }
      if (!state.hidden.has("gd")) {
        context.strokeStyle = colors["--pg-gd"];
        context.fillStyle = colors["--pg-gd"];
        context.lineWidth = 0.9;
        trace(context, (i, axis) => result.gd[i][axis], result.gd.length, frame);
        dots(context, frame, result.gd, 4);
      }
      const { color: ofFrames } = FLOWS.find(({ key }) => key === "two_frame");
      if (!state.hidden.has("two_frame")) nameFrames(context, frame, result.frames, ofFrames);
      // A cross where a flow was lost.
      context.lineWidth = 2.6;
      for (const { key, color } of MODELS) {
        if (state.hidden.has(key) || result.completed[key]) continue;
        const path = result.paths[key];
        const x = frame.x(path[path.length - 2]);
        const y = frame.y(path[path.length - 1]);
        context.strokeStyle = colors[color];
        context.beginPath();
        for (const sign of [-1, 1]) {
          context.moveTo(x - 7, y - 7 * sign);
          context.lineTo(x + 7, y + 7 * sign);
        }
        context.stroke();
      }
      // The start: a ring to take hold of.
      const x = frame.x(state.x);
      const y = frame.y(state.y);
      context.fillStyle = colors["--pg-gd"];
      context.strokeStyle = colors["--pg-gd"];
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, 5, 0, 2 * Math.PI);
      context.fill();
      context.beginPath();
      context.arc(x, y, 10, 0, 2 * Math.PI);
      context.stroke();
      context.restore();
    }

    // Text with an outline, over whatever is there.
    function write(context, text, x, y, color) {
      context.strokeStyle = colors["--pg-paper"];
      context.lineWidth = 4;
      context.strokeText(text, x, y);
      context.fillStyle = colors[color];
      context.fillText(text, x, y);
    }

    const LABELS_AT = { ngf: [-2.4, -1.33], igr: [2.2, -2.85], principal: [2.75, -0.3] };

    function drawAlpha(size, result) {
      const context = alpha.getContext("2d");
      const frame = alphaFrame;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, alpha.width, alpha.height);
      context.drawImage(alphaLayer, 0, 0);
      context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
      // λ₁, then λ₀, which is the larger
      const marks = result.eigenvalues.map((value) => {
        const z = state.h * value;
        return { z, x: clamp(frame.x(z), frame.left + 1, frame.right - 1) };
      });
      context.font = `italic 600 13px ${colors.font}`;
      context.textAlign = "left";
      context.textBaseline = "alphabetic";
      context.lineJoin = "round";
      marks.forEach(({ z, x }, i) => {
        context.strokeStyle = colors["--pg-gd"];
        context.lineWidth = 1;
        context.setLineDash([2, 3]);
        context.beginPath();
        context.moveTo(x, frame.top + 40);
        context.lineTo(x, frame.bottom - 1);
        context.stroke();
        context.setLineDash([]);
        const outside = z < ALPHA_RANGE[0][0] ? -1 : z > ALPHA_RANGE[0][1] ? 1 : 0;
        if (!outside) {
          for (const { key, color } of ONE_FRAME) {
            const y = frame.y(coefficient(key, z));
            if (state.hidden.has(key) || !(y > frame.top && y < frame.bottom)) continue;
            context.fillStyle = colors[color];
            context.strokeStyle = colors["--pg-paper"];
            context.lineWidth = 1.5;
            context.beginPath();
            context.arc(x, y, 5, 0, 2 * Math.PI);
            context.fill();
            context.stroke();
          }
        }
        // Beside its line: on the outer side where the two are close.
        const name = i === 0 ? "hλ₁" : "hλ₀";
        const text = outside < 0 ? `← ${name}` : outside > 0 ? `${name} →` : name;
        const width = context.measureText(text).width;
        let left = i === 0 ? x - width - 5 : x + 5;
        if (left < frame.left + 3) left = x + 5;
        if (left + width > frame.right - 3) left = x - width - 5;
        const both = marks[0].x < frame.left + width + 8 && marks[1].x < frame.left + width + 8;
        const high = marks[0].x > frame.right - width - 8 && marks[1].x > frame.right - width - 8;
        const bottom = frame.bottom - 7 - ((both && i === 0) || (high && i === 1) ? 17 : 0);
        write(context, text, left, bottom, "--pg-text");
      });
      context.font = `600 13px ${colors.font}`;
      for (const { key, name, color } of ONE_FRAME) {
        if (state.hidden.has(key)) continue;
        const [z, value] = LABELS_AT[key];
        write(context, name, frame.x(z), frame.y(value) + 4, color);
      }
    }

    // Draws everything; false where there is no room.
    function draw(result) {
      const mapSize = prepare(map);
      const alphaSize = prepare(alpha);
      if (mapSize.width < 60 || alphaSize.width < 60) return false;
      const key = JSON.stringify([
        mapSize, alphaSize, state.landscape, state.zoom, state.cx, state.cy, colors, [...state.hidden],
      ]);
      if (key !== backgroundKey) {
        backgroundKey = key;
        drawBackgrounds(mapSize, alphaSize);
      }
      drawMap(mapSize, result);
      drawAlpha(alphaSize, result);
      return true;
    }

    readColors();
    return { draw, readColors, frame: () => mapFrame };
  }

  Object.assign(playground, { FLOWS, MODELS, clamp, createPlots });
})();
