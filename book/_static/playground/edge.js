// The playground's flows of gradient descent at the edge of stability, as in pfcore.flows: the
// two-frame flow of order 2 and central flow.

(() => {
  "use strict";

  const playground = window.pfcorePlayground;
  const { together } = playground;

  // ---- the two-frame flow: steps are C + (−1)ᵏ A, and the state is [C_x, C_y, A_x, A_y]

  // Of 6 successive steps: the oscillation at the first of them, as pfcore.flows.two_frame_flow with
  // its 5 steps of burn-in takes it. The sum is 1 on (−1)ᵏ and 0 on constants, flat about both.
  const START = [16, -30, 0, 20, 0, -6].map((weight) => weight / 32);
  // Below this part of C an oscillation moves by the linear part of the map alone: differences of
  // gradients would be rounding, and what is left out is this squared.
  const LINEAR = 1e-6;
  // An oscillation that has all but died away can grow again: it has no smallest size.
  const ATOL = 1e-300;

  const P = new Float64Array(10);
  const M = new Float64Array(10);

  // `step` takes gradient descent one step on.
  function twoFrameFlow(landscape, h, start, step) {
    const steps = [start];
    while (steps.length < START.length) steps.push(step(steps.at(-1)));
    const swing = [0, 1].map((axis) =>
      START.reduce((sum, weight, k) => sum + weight * (steps[k][axis] - start[axis]), 0),
    );
    return {
      field: twoFrameField(landscape, h),
      state: [start[0] - swing[0], start[1] - swing[1], ...swing],
      groups: [together(0, 1), together(1, 2), together(2, 4, ATOL)],
      kept: [0, 1, 2, 3],
    };
  }

  // (V − ½ V′V)/h with V the change of [C, A] in one step.
  function twoFrameField(landscape, h) {
    return (state, from, out, at) => {
      const cx = state[from];
      const cy = state[from + 1];
      const ax = state[from + 2];
      const ay = state[from + 3];
      if (ax * ax + ay * ay < LINEAR * LINEAR * (cx * cx + cy * cy)) {
        // V = (−hg, hHA − 2A); its derivative has third derivatives in it.
        landscape.derivatives(cx, 0, cy, 0, P);
        const vx = -h * P[0];
        const vy = -h * P[2];
        const ux = h * (P[4] * ax + P[6] * ay) - 2 * ax;
        const uy = h * (P[6] * ax + P[8] * ay) - 2 * ay;
        const [xxx, xxy, xyy, yyy] = landscape.third(cx, cy);
        const txx = xxx * vx + xxy * vy;
        const txy = xxy * vx + xyy * vy;
        const tyy = xyy * vx + yyy * vy;
        out[at] = (vx + (h / 2) * (P[4] * vx + P[6] * vy)) / h;
        out[at + 1] = (vy + (h / 2) * (P[6] * vx + P[8] * vy)) / h;
        out[at + 2] =
          (2 * ux - (h / 2) * (P[4] * ux + P[6] * uy + txx * ax + txy * ay)) / h;
        out[at + 3] =
          (2 * uy - (h / 2) * (P[6] * ux + P[8] * uy + txy * ax + tyy * ay)) / h;
        return;
      }
      // V = (−(h/2)(g₊ + g₋), (h/2)(g₊ − g₋) − 2A), with the gradients at C ± A
      landscape.derivatives(cx + ax, 0, cy + ay, 0, P);
      landscape.derivatives(cx - ax, 0, cy - ay, 0, M);
      const vx = (-h / 2) * (P[0] + M[0]);
      const vy = (-h / 2) * (P[2] + M[2]);
      const ux = (h / 2) * (P[0] - M[0]) - 2 * ax;
      const uy = (h / 2) * (P[2] - M[2]) - 2 * ay;
      // Changes of both gradients along V
      const px = P[4] * (vx + ux) + P[6] * (vy + uy);
      const py = P[6] * (vx + ux) + P[8] * (vy + uy);
      const mx = M[4] * (vx - ux) + M[6] * (vy - uy);
      const my = M[6] * (vx - ux) + M[8] * (vy - uy);
      out[at] = (vx + (h / 4) * (px + mx)) / h;
      out[at + 1] = (vy + (h / 4) * (py + my)) / h;
      out[at + 2] = (2 * ux - (h / 4) * (px - mx)) / h;
      out[at + 3] = (2 * uy - (h / 4) * (py - my)) / h;
    };
  }

  // ---- central flow, with pfcore's substeps, thresholds and tolerances

  const SUBSTEPS = 4;
  const CRITICAL = 1.95; // of hλ
  const TRACKED = 1.5;
  const UNSOLVED = 1e-3;
  const ASTRAY = 0.5;

  // Eigenvalues, the larger first, and eigenvectors of [[a, b], [b, c]].
  function eigenpairs(a, b, c) {
    const middle = (a + c) / 2;
    const spread = Math.hypot((a - c) / 2, b);
    const angle = Math.atan2(2 * b, a - c) / 2;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return { values: [middle + spread, middle - spread], vectors: [[cos, sin], [-sin, cos]] };
  }

  // Symmetric 2 × 2 matrices are [a_11, a_12, a_22]; ⟨A, B⟩ counts the entry beside the diagonal twice.
  const inner = (a, b) => a[0] * b[0] + 2 * a[1] * b[1] + a[2] * b[2];
  const norm = (a) => Math.sqrt(inner(a, a));

  function projected([a, b, c]) {
    const { values, vectors } = eigenpairs(a, b, c);
    const sum = [0, 0, 0];
    values.forEach((value, i) => {
      if (!(value > 0)) return;
      const [u, v] = vectors[i];
      sum[0] += value * u * u;
      sum[1] += value * u * v;
      sum[2] += value * v * v;
    });
    return sum;
  }

  // X ⪰ 0 with S = A + (m/2) Σ ⟨G, G⟩ X ⪰ 0 and ⟨X, S⟩ = 0, as pfcore.flows.complementarity: by
  // accelerated projected gradient, on problems whose directions were scaled alike. `slopes` are the
  // gradients G_11, G_12, G_22.
  function solve(A, slopes, m) {
    const reaction = (X, G) => {
      const push = [0, 1].map((axis) => inner(X, G.map((g) => g[axis])));
      return G.map((g) => (m / 2) * (g[0] * push[0] + g[1] * push[1]));
    };
    const square = (g) => g[0] * g[0] + g[1] * g[1];
    const sizes = slopes.map((g) => (m / 2) * square(g));
    let largest = [Math.max(sizes[0], sizes[1]), Math.max(sizes[1], sizes[2])];
    largest = largest.map((size) => size || Math.max(...largest) || 1);
    const unit = [
      largest[0] ** -0.5,
      largest[0] ** -0.25 * largest[1] ** -0.25,
      largest[1] ** -0.5,
    ];
    const scaled = slopes.map((g, i) => g.map((value) => value * unit[i]));
    const given = A.map((value, i) => value * unit[i]);
    // No less than the largest eigenvalue of the reaction.
    const stiffest = (m / 2) * (square(scaled[0]) + 2 * square(scaled[1]) + square(scaled[2])) || 1;
    const size = norm(given) || 1;
    let X = [0, 0, 0];
    let ahead = X;
    let momentum = 1;
    for (let k = 0; k < 4000; k++) {
      const back = reaction(ahead, scaled);
      const next = projected(ahead.map((value, i) => value - (given[i] + back[i]) / stiffest));
      const change = next.map((value, i) => value - ahead[i]);
      const moved = next.map((value, i) => value - X[i]);
      const inertia = momentum - 1;
      momentum = (1 + Math.sqrt(1 + 4 * momentum * momentum)) / 2;
      // Momentum that points uphill is given up.
      if (inner(change, moved) < 0) momentum = 1;
      X = next;
      ahead = momentum === 1 ? X : X.map((value, i) => value + (inertia / momentum) * moved[i]);
      if (!(norm(change) * stiffest > 2e-12 * size)) break;
    }
    X = X.map((value, i) => value * unit[i]);
    const back = reaction(X, slopes);
    const slack = A.map((value, i) => value + back[i]);
    const scale = norm(A) || 1;
    const stiffness = (m / 2) * (square(slopes[0]) + 2 * square(slopes[1]) + square(slopes[2]));
    const mass = stiffness > 0 ? Math.max(X[0] + X[2], scale / stiffness) : X[0] + X[2] || 1;
    const negative = Math.max(0, -eigenpairs(...slack).values[1]) / scale;
    return { X, slack, residual: Math.max(negative, Math.abs(inner(X, slack)) / (scale * mass)) };
  }

  // The same for one direction.
  function solveSingle(A, slope, m) {
    const stiffness = (m / 2) * (slope[0] * slope[0] + slope[1] * slope[1]);
    const X = stiffness > 0 ? Math.max(0, -A / stiffness) : 0;
    const slack = A + stiffness * X;
    const size = Math.abs(A) || 1;
    return { X: [X, 0, 0], slack: [slack, 0, 0], residual: Math.max(0, -slack) / size };
  }

  function centralFlow(landscape, h, start, numSteps) {
    const edge = 2 / h;
    const length = h / SUBSTEPS;
    let [x, y] = start;
    const at = [[x, y]];
    const path = [x, y];
    const curvature = ([u, v]) => P[4] * u * u + 2 * P[6] * u * v + P[8] * v * v;
    landscape.derivatives(x, 0, y, 0, P);
    const beyond = (values, most) => values.slice(0, most).filter((v) => h * v > TRACKED).length;
    // The second direction takes part from the step after the one in which the first nears the edge.
    let tracked = Math.min(1 + beyond(eigenpairs(P[4], P[6], P[8]).values, 2), 2);
    let completed = true;

    while (at.length <= numSteps && completed) {
      landscape.derivatives(x, 0, y, 0, P);
      const { values, vectors } = eigenpairs(P[4], P[6], P[8]);
      const critical = values.slice(0, tracked).filter((value) => h * value > CRITICAL).length;
      tracked = Math.min(1 + beyond(values, tracked), 2);
      // Third derivatives once a step, as the eigenvectors; the curvature follows the substeps.
      const [[u, v], [r, s]] = vectors;
      const [xxx, xxy, xyy, yyy] = landscape.third(x, y);
      // Gradients of uᵀHu, uᵀHw and wᵀHw, of which one direction needs the first.
      const slopes = [[u, v, u, v], [u, v, r, s], [r, s, r, s]].map(([a, b, c, d]) => [
        xxx * a * c + xxy * (a * d + b * c) + xyy * b * d,
        xxy * a * c + xyy * (a * d + b * c) + yyy * b * d,
      ]);
      for (let i = 0; i < SUBSTEPS && completed; i++) {
        landscape.derivatives(x, 0, y, 0, P);
        let pushX = P[0];
        let pushY = P[2];
        let foreseen = [];
        if (critical > 0) {
          // The slack 2/h − H at the end of this substep, but for the oscillation's push.
          const drift = slopes.map((g) => length * (g[0] * P[0] + g[1] * P[2]));
          const A = [
            edge - curvature(vectors[0]) + drift[0],
            drift[1] - (P[4] * u * r + P[6] * (u * s + v * r) + P[8] * v * s),
            edge - curvature(vectors[1]) + drift[2],
          ];
          const found =
            critical === 1 ? solveSingle(A[0], slopes[0], length) : solve(A, slopes, length);
          foreseen = [edge - found.slack[0], edge - found.slack[2]];
          completed = found.residual <= UNSOLVED;
          pushX += (found.X[0] * slopes[0][0] + 2 * found.X[1] * slopes[1][0] + found.X[2] * slopes[2][0]) / 2;
          pushY += (found.X[0] * slopes[0][1] + 2 * found.X[1] * slopes[1][1] + found.X[2] * slopes[2][1]) / 2;
        }
        x -= length * pushX;
        y -= length * pushY;
        landscape.derivatives(x, 0, y, 0, P);
        for (let j = 0; j < critical; j++) {
          completed &&= Math.abs(curvature(vectors[j]) - foreseen[j]) * (h / 2) <= ASTRAY;
        }
        completed &&= Number.isFinite(x) && Number.isFinite(y);
        if (completed) path.push(x, y);
      }
      if (completed) at.push([x, y]);
    }
    while (at.length <= numSteps) at.push([NaN, NaN]);
    return { at, path, completed };
  }

  Object.assign(playground, { centralFlow, twoFrameFlow });
})();
