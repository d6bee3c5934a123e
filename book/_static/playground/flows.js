// The playground's numbers, the same as those of pfcore: gradient descent, and five flows followed to
// the times of its steps. `compute` and `coefficient` can be used on any page.

(() => {
  "use strict";

  const playground = window.pfcorePlayground;
  const { LANDSCAPES, centralFlow, follow, together, twoFrameFlow } = playground;

  // ---- φ(z) = log(1 − z)/z, as pfcore.stability.principal_coefficient
  //
  // Results in module variables: no allocation in what runs thousands of times a frame.

  let phiR = 0; // φ
  let phiI = 0;
  let argument = 0; // Im log(1 − z)

  function phi(x, y, continued) {
    if (x === 0 && y === 0) {
      phiR = -1;
      phiI = 0;
      argument = 0;
      return;
    }
    const modulus = x * x + y * y;
    const logModulus =
      modulus < 0.25
        ? 0.5 * Math.log1p(x * (x - 2) + y * y)
        : 0.5 * Math.log((1 - x) * (1 - x) + y * y);
    // 0 − y has no negative zero: on the cut itself the argument is +π.
    argument = Math.atan2(0 - y, 1 - x);
    if (continued && argument < -Math.PI / 2) argument += 2 * Math.PI;
    phiR = (logModulus * x + argument * y) / modulus;
    phiI = (argument * x - logModulus * y) / modulus;
  }

  // ---- vector fields. Real states are [x, y], complex ones [Re x, Im x, Re y, Im y].

  const D = new Float64Array(10);

  function ngfField(landscape) {
    return (state, from, out, at) => {
      landscape.derivatives(state[from], 0, state[from + 1], 0, D);
      out[at] = -D[0];
      out[at + 1] = -D[2];
    };
  }

  function igrField(landscape, h) {
    return (state, from, out, at) => {
      landscape.derivatives(state[from], 0, state[from + 1], 0, D);
      out[at] = -D[0] - (h / 2) * (D[4] * D[0] + D[6] * D[2]);
      out[at + 1] = -D[2] - (h / 2) * (D[6] * D[0] + D[8] * D[2]);
    };
  }

  // φ(A) g with A = hH, a complex symmetric 2 × 2 matrix with eigenvalues z and w:
  // φ(z) g + φ[z, w] (A − z) g, where φ[z, w] is the divided difference. It needs no eigenvectors,
  // which near a double eigenvalue are ill-conditioned or missing.
  function principalField(landscape, h, continued) {
    return (state, from, out, at) => {
      landscape.derivatives(state[from], state[from + 1], state[from + 2], state[from + 3], D);
      const aR = h * D[4];
      const aI = h * D[5];
      const bR = h * D[6];
      const bI = h * D[7];
      const cR = h * D[8];
      const cI = h * D[9];
      // z, w = m ± s, with s² = ((a − c)/2)² + b²
      const mR = (aR + cR) / 2;
      const mI = (aI + cI) / 2;
      const dR = (aR - cR) / 2;
      const dI = (aI - cI) / 2;
      const qR = dR * dR - dI * dI + bR * bR - bI * bI;
      const qI = 2 * (dR * dI + bR * bI);
      let sR = 0;
      let sI = 0;
      if (qI === 0) {
        // Exactly real where the state is: the side of the cut must not hang on rounding.
        if (qR >= 0) sR = Math.sqrt(qR);
        else sI = Math.sqrt(-qR);
      } else {
        const size = Math.sqrt(qR * qR + qI * qI);
        if (qR >= 0) {
          sR = Math.sqrt((size + qR) / 2);
          sI = qI / (2 * sR);
        } else {
          sI = Math.sqrt((size - qR) / 2);
          sR = qI / (2 * sI);
        }
      }
      // z the larger
      if (mR * sR + mI * sI < 0) {
        sR = -sR;
        sI = -sI;
      }
      const zR = mR + sR;
      const zI = mI + sI;
      const wR = mR - sR;
      const wI = mI - sI;
      phi(wR, wI, continued);
      const pR = phiR; // φ(w)
      const pI = phiI;
      const argumentW = argument;
      phi(zR, zI, continued);
      const fR = phiR; // φ(z)
      const fI = phiI;
      const argumentZ = argument;
      const differenceR = 2 * sR;
      const differenceI = 2 * sI;

      let kR = 0; // φ[z, w]
      let kI = 0;
      const zz = zR * zR + zI * zI;
      if (zz < 0.01) {
        // −Σ_k h_{k−1}(z, w)/(k + 1), with complete homogeneous polynomials
        let hR = 1;
        let hI = 0;
        let powerR = 1;
        let powerI = 0;
        for (let k = 1; k < 18; k++) {
          kR -= hR / (k + 1);
          kI -= hI / (k + 1);
          const nextPowerR = powerR * wR - powerI * wI;
          powerI = powerR * wI + powerI * wR;
          powerR = nextPowerR;
          const nextR = hR * zR - hI * zI + powerR;
          hI = hR * zI + hI * zR + powerI;
          hR = nextR;
        }
      } else {
        // u = (z − w)/(1 − w): log(1 − z) − log(1 − w) = log(1 − u) on one side of the cut
        const oneR = 1 - wR;
        const oneI = -wI;
        const one = oneR * oneR + oneI * oneI;
        const uR = (differenceR * oneR + differenceI * oneI) / one;
        const uI = (differenceI * oneR - differenceR * oneI) / one;
        if (uR * uR + uI * uI < 0.25) {
          phi(uR, uI, false);
          let lR = (phiR * oneR + phiI * oneI) / one;
          let lI = (phiI * oneR - phiR * oneI) / one;
          const turns = Math.round((argumentZ - argumentW - argument) / (2 * Math.PI));
          if (turns !== 0) {
            // 2πi·turns/(z − w)
            const dd = differenceR * differenceR + differenceI * differenceI;
            lR += (2 * Math.PI * turns * differenceI) / dd;
            lI += (2 * Math.PI * turns * differenceR) / dd;
          }
          lR -= pR;
          lI -= pI;
          kR = (lR * zR + lI * zI) / zz;
          kI = (lI * zR - lR * zI) / zz;
        } else {
          const dd = differenceR * differenceR + differenceI * differenceI;
          const nR = fR - pR;
          const nI = fI - pI;
          kR = (nR * differenceR + nI * differenceI) / dd;
          kI = (nI * differenceR - nR * differenceI) / dd;
        }
      }

      // r = (A − z) g
      const gxR = D[0];
      const gxI = D[1];
      const gyR = D[2];
      const gyI = D[3];
      const eR = aR - zR;
      const eI = aI - zI;
      const tR = cR - zR;
      const tI = cI - zI;
      const rxR = eR * gxR - eI * gxI + bR * gyR - bI * gyI;
      const rxI = eR * gxI + eI * gxR + bR * gyI + bI * gyR;
      const ryR = bR * gxR - bI * gxI + tR * gyR - tI * gyI;
      const ryI = bR * gxI + bI * gxR + tR * gyI + tI * gyR;
      out[at] = fR * gxR - fI * gxI + kR * rxR - kI * rxI;
      out[at + 1] = fR * gxI + fI * gxR + kR * rxI + kI * rxR;
      out[at + 2] = fR * gyR - fI * gyI + kR * ryR - kI * ryI;
      out[at + 3] = fR * gyI + fI * gyR + kR * ryI + kI * ryR;
    };
  }

  // ---- everything about one setting

  function eigenvaluesAt(landscape, x, y) {
    landscape.derivatives(x, 0, y, 0, D);
    const middle = (D[4] + D[8]) / 2;
    const spread = Math.hypot((D[4] - D[8]) / 2, D[6]);
    return [middle - spread, middle + spread];
  }

  const sharpness = (landscape, x, y) => eigenvaluesAt(landscape, x, y)[1];

  // As pfcore.stability.regime.
  function regime(h, eigenvalue) {
    const z = h * eigenvalue;
    if (z < 0) return "repelling";
    if (z <= 1) return "attracting";
    if (z < 2) return "attracting, oscillating";
    return "repelling, oscillating";
  }

  // Re α(z) of a flow, as pfcore.stability.coefficient.
  function coefficient(flow, z) {
    if (flow === "ngf") return -1;
    if (flow === "igr") return -(1 + z / 2);
    phi(z, 0, false);
    return phiR;
  }

  // Positions at t = kh, k = 0 … numSteps, of gradient descent and the flows; whether each flow
  // could be followed to the end; eigenvalues of the Hessian at the start, ascending, and their
  // regimes. `options.branch`: "continued" (default) or "principal"; `options.perStep`: points per
  // step of the finer paths, 0 (default) for none.
  // `oscillation` is what the two-frame flow carries beside its position, the centre of two frames,
  // `predicted` the steps that both make, and `frames` both of them as finer paths. `targets` are what a flow's last position is to be
  // compared with: gradient descent's last step, and for central flow, which models the mean of its
  // oscillation, (w₋ + 2w + w₊)/4 with the step before and the step after.
  function compute(name, start, learningRate, numSteps, options = {}) {
    const landscape = LANDSCAPES[name];
    if (!landscape) throw new Error(`unknown landscape ${name}`);
    const h = learningRate;
    if (!(h > 0 && Number.isFinite(h))) throw new Error(`learning rate must be positive, got ${h}`);
    const perStep = options.perStep || 0;
    const [x, y] = start;

    const stepFrom = ([px, py]) => {
      landscape.derivatives(px, 0, py, 0, D);
      return [px - h * D[0], py - h * D[2]];
    };
    const gd = [[x, y]];
    for (let k = 0; k < numSteps; k++) gd.push(stepFrom(gd[k]));
    const eigenvalues = eigenvaluesAt(landscape, x, y);
    const found = {
      gd,
      completed: {},
      paths: {},
        eigenvalues,
      regimes: eigenvalues.map((value) => regime(h, value)),
    };
    const real = { state: [x, y], groups: [together(0, 1), together(1, 2)], kept: [0, 1] };
    const flows = {
      ngf: { field: ngfField(landscape), ...real },
      igr: { field: igrField(landscape, h), ...real },
      principal: {
        field: principalField(landscape, h, options.branch !== "principal"),
        state: [x, 0, y, 0],
        groups: [together(0, 2), together(2, 4)],
        kept: [0, 2],
      },
      two_frame: twoFrameFlow(landscape, h, [x, y], stepFrom),
    };
    for (const [flow, model] of Object.entries(flows)) {
      const followed = follow(model, h, numSteps, perStep);
      found[flow] = followed.at;
      found.completed[flow] = followed.completed;
      found.paths[flow] = followed.path;
    }
    const central = centralFlow(landscape, h, [x, y], numSteps);
    found.central = central.at;
    found.completed.central = central.completed;
    found.paths.central = central.path;

    // Of the two-frame flow's states [C_x, C_y, A_x, A_y]
    found.oscillation = found.two_frame.map((state) => state.slice(2));
    found.two_frame = found.two_frame.map((state) => state.slice(0, 2));
    found.predicted = found.two_frame.map((centre, k) =>
      centre.map((value, axis) => value + (-1) ** k * found.oscillation[k][axis]),
    );
    const both = found.paths.two_frame;
    found.paths.two_frame = [];
    found.frames = { even: [], odd: [] };
    for (let i = 0; i < both.length; i += 4) {
      found.paths.two_frame.push(both[i], both[i + 1]);
      found.frames.even.push(both[i] + both[i + 2], both[i + 1] + both[i + 3]);
      found.frames.odd.push(both[i] - both[i + 2], both[i + 1] - both[i + 3]);
    }
    const last = gd[numSteps];
    const [before, after] = [gd[numSteps - 1], stepFrom(last)];
    const midpoint = last.map((value, axis) => (before[axis] + 2 * value + after[axis]) / 4);
    found.targets = { central: midpoint };
    for (const flow of Object.keys(flows)) found.targets[flow] = last;
    return found;
  }

  Object.assign(playground, { coefficient, compute, regime, sharpness });
})();
