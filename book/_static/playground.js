// The playground page: gradient descent and its flows on a landscape, redrawn as the start moves.
//
// First the numbers, the same as those of pfcore (`window.pfcorePlayground`, usable on any page),
// then the page itself, which is set up only where there is a <div id="playground">.
// No library, no request: it works from a file as from a server.

(() => {
  "use strict";

  // ---- landscapes, as in pfcore.objectives
  //
  // `derivatives(xr, xi, yr, yi, out)` writes gradient and Hessian at complex parameters:
  // out = [g_x, g_y, H_xx, H_xy, H_yy], real and imaginary parts in turn.
  // `h`: lowest, highest and first learning rate.

  const LANDSCAPES = {
    quadratic: {
      label: "Quadratic",
      formula: "E = 0.1 x² + y²",
      window: [[-1.2, 1.2], [-1, 1]],
      minima: [[0, 0]],
      h: [0.05, 1.3, 0.9],
      log: false,
      start: [-1, 0.6],
      steps: 10,
      value: (x, y) => 0.1 * x * x + y * y,
      derivatives(xr, xi, yr, yi, out) {
        out.fill(0);
        out[0] = 0.2 * xr;
        out[1] = 0.2 * xi;
        out[2] = 2 * yr;
        out[3] = 2 * yi;
        out[4] = 0.2;
        out[8] = 2;
      },
    },
    banana: {
      label: "Banana",
      formula: "E = (1 − x)² + 100 (y − x²)²",
      window: [[-1.5, 1.5], [-0.5, 2]],
      minima: [[1, 1]],
      h: [0.0002, 0.005, 0.0015],
      log: true,
      start: [-0.5, 0.5],
      steps: 20,
      value: (x, y) => (1 - x) ** 2 + 100 * (y - x * x) ** 2,
      derivatives(xr, xi, yr, yi, out) {
        const sr = xr * xr - xi * xi;
        const si = 2 * xr * xi;
        const vr = yr - sr;
        const vi = yi - si;
        out[0] = -2 * (1 - xr) - 400 * (xr * vr - xi * vi);
        out[1] = 2 * xi - 400 * (xr * vi + xi * vr);
        out[2] = 200 * vr;
        out[3] = 200 * vi;
        out[4] = 2 - 400 * yr + 1200 * sr;
        out[5] = -400 * yi + 1200 * si;
        out[6] = -400 * xr;
        out[7] = -400 * xi;
        out[8] = 200;
        out[9] = 0;
      },
    },
    himmelblau: {
      label: "Himmelblau / 100",
      formula: "E = [(x² + y − 11)² + (x + y² − 7)²] / 100",
      window: [[-5.4, 5.4], [-5, 5]],
      minima: [
        [3, 2],
        [-2.805118086952745, 3.131312518250573],
        [-3.779310253377747, -3.28318599128617],
        [3.584428340330492, -1.848126526964404],
      ],
      h: [0.1, 3, 0.5],
      log: true,
      start: [1, 1],
      steps: 5,
      value: (x, y) => 0.01 * ((x * x + y - 11) ** 2 + (x + y * y - 7) ** 2),
      derivatives(xr, xi, yr, yi, out) {
        const xxr = xr * xr - xi * xi;
        const xxi = 2 * xr * xi;
        const yyr = yr * yr - yi * yi;
        const yyi = 2 * yr * yi;
        const ar = xxr + yr - 11;
        const ai = xxi + yi;
        const br = xr + yyr - 7;
        const bi = xi + yyi;
        out[0] = 0.01 * (4 * (xr * ar - xi * ai) + 2 * br);
        out[1] = 0.01 * (4 * (xr * ai + xi * ar) + 2 * bi);
        out[2] = 0.01 * (2 * ar + 4 * (yr * br - yi * bi));
        out[3] = 0.01 * (2 * ai + 4 * (yr * bi + yi * br));
        out[4] = 0.01 * (12 * xxr + 4 * yr - 42);
        out[5] = 0.01 * (12 * xxi + 4 * yi);
        out[6] = 0.04 * (xr + yr);
        out[7] = 0.04 * (xi + yi);
        out[8] = 0.01 * (4 * xr + 12 * yyr - 26);
        out[9] = 0.01 * (4 * xi + 12 * yyi);
      },
    },
    double_well: {
      label: "Double well",
      formula: "E = ¼ (x² − 1)² + ½ y²",
      window: [[-1.8, 1.8], [-1.4, 1.4]],
      minima: [[-1, 0], [1, 0]],
      h: [0.05, 1.6, 0.3],
      log: false,
      start: [0.2, 1],
      steps: 10,
      value: (x, y) => 0.25 * (x * x - 1) ** 2 + 0.5 * y * y,
      derivatives(xr, xi, yr, yi, out) {
        const sr = xr * xr - xi * xi;
        const si = 2 * xr * xi;
        out[0] = xr * (sr - 1) - xi * si;
        out[1] = xr * si + xi * (sr - 1);
        out[2] = yr;
        out[3] = yi;
        out[4] = 3 * sr - 1;
        out[5] = 3 * si;
        out[6] = 0;
        out[7] = 0;
        out[8] = 1;
        out[9] = 0;
      },
    },
    saddle: {
      label: "Saddle",
      formula: "E = ½ (x² − y²)",
      window: [[-1.2, 1.2], [-1, 1]],
      minima: [],
      h: [0.05, 2.6, 0.5],
      log: false,
      start: [1, 0.02],
      steps: 10,
      value: (x, y) => 0.5 * (x * x - y * y),
      derivatives(xr, xi, yr, yi, out) {
        out.fill(0);
        out[0] = xr;
        out[1] = xi;
        out[2] = -yr;
        out[3] = -yi;
        out[4] = 1;
        out[8] = -1;
      },
    },
  };

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

  // ---- the integrator: Dormand and Prince's method of order 8 with Hairer's error estimate and
  // interpolation of order 7 (DOP853; Hairer, Nørsett, Wanner, Solving Ordinary Differential
  // Equations I). The flows do not depend on time, so that the nodes are not needed.

  const A = [
    [],
    [0.05260015195876773],
    [0.0197250569845379, 0.0591751709536137],
    [0.02958758547680685, 0, 0.08876275643042054],
    [0.2413651341592667, 0, -0.8845494793282861, 0.924834003261792],
    [0.037037037037037035, 0, 0, 0.17082860872947386, 0.12546768756682242],
    [0.037109375, 0, 0, 0.17025221101954405, 0.06021653898045596, -0.017578125],
    [0.03709200011850479, 0, 0, 0.17038392571223998, 0.10726203044637328, -0.015319437748624402,
     0.008273789163814023],
    [0.6241109587160757, 0, 0, -3.3608926294469414, -0.868219346841726, 27.59209969944671,
     20.154067550477894, -43.48988418106996],
    [0.47766253643826434, 0, 0, -2.4881146199716677, -0.590290826836843, 21.230051448181193,
     15.279233632882423, -33.28821096898486, -0.020331201708508627],
    [-0.9371424300859873, 0, 0, 5.186372428844064, 1.0914373489967295, -8.149787010746927,
     -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196],
    [2.273310147516538, 0, 0, -10.53449546673725, -2.0008720582248625, -17.9589318631188,
     27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303,
     0.6433927460157636],
    [0.054293734116568765, 0, 0, 0, 0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
     0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259],
    [0.056167502283047954, 0, 0, 0, 0, 0, 0.25350021021662483, -0.2462390374708025,
     -0.12419142326381637, 0.15329179827876568, 0.00820105229563469, 0.007567897660545699,
     -0.008298],
    [0.03183464816350214, 0, 0, 0, 0, 0.028300909672366776, 0.053541988307438566,
     -0.05492374857139099, 0, 0, -0.00010834732869724932, 0.0003825710908356584,
     -0.00034046500868740456, 0.1413124436746325],
    [-0.42889630158379194, 0, 0, 0, 0, -4.697621415361164, 7.683421196062599, 4.06898981839711,
     0.3567271874552811, 0, 0, 0, -0.0013990241651590145, 2.9475147891527724, -9.15095847217987],
  ];
  const B = [0.054293734116568765, 0, 0, 0, 0, 4.450312892752409, 1.8915178993145003,
    -5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034,
    0.04471061572777259];
  const E3 = [-0.18980075407240762, 0, 0, 0, 0, 4.450312892752409, 1.8915178993145003,
    -5.801203960010585, -0.4226823213237919, -0.1521609496625161, 0.20136540080403034,
    0.02265179219836082];
  const E5 = [0.01312004499419488, 0, 0, 0, 0, -1.2251564463762044, -0.4957589496572502,
    1.6643771824549864, -0.35032884874997366, 0.3341791187130175, 0.08192320648511571,
    -0.022355307863886294];
  const DENSE = [
    [-8.428938276109013, 0, 0, 0, 0, 0.5667149535193777, -3.0689499459498917, 2.38466765651207,
     2.117034582445028, -0.871391583777973, 2.2404374302607883, 0.6315787787694688,
     -0.08899033645133331, 18.148505520854727, -9.194632392478356, -4.436036387594894],
    [10.427508642579134, 0, 0, 0, 0, 242.28349177525817, 165.20045171727028, -374.5467547226902,
     -22.113666853125306, 7.733432668472264, -30.674084731089398, -9.332130526430229,
     15.697238121770845, -31.139403219565178, -9.35292435884448, 35.81684148639408],
    [19.985053242002433, 0, 0, 0, 0, -387.0373087493518, -189.17813819516758, 527.8081592054236,
     -11.57390253995963, 6.8812326946963, -1.0006050966910838, 0.7777137798053443,
     -2.778205752353508, -60.19669523126412, 84.32040550667716, 11.99229113618279],
    [-25.69393346270375, 0, 0, 0, 0, -154.18974869023643, -231.5293791760455, 357.6391179106141,
     93.40532418362432, -37.45832313645163, 104.0996495089623, 29.8402934266605, -43.53345659001114,
     96.32455395918828, -39.17726167561544, -149.72683625798564],
  ];

  const sparse = (row) => {
    const entries = [];
    row.forEach((value, index) => {
      if (value !== 0) entries.push([index, value]);
    });
    return {
      index: Int32Array.from(entries, (e) => e[0]),
      value: Float64Array.from(entries, (e) => e[1]),
    };
  };
  const STAGES = A.map(sparse);
  const ERROR_3 = sparse(E3);
  const ERROR_5 = sparse(E5);
  const INTERPOLANT = DENSE.map(sparse);

  const RTOL = 1e-9;
  const ATOL = 1e-12;
  // As in pfcore.integrate: give up where, at the pace of the last WINDOW steps, the rest would
  // take more than PATIENCE. A path that is caught on a cut moves by roundings; one that starts
  // beside the branch point needs many small steps at first, and then moves on.
  const PATIENCE = 1e6;
  const WINDOW = 128;
  // What a frame can bear.
  const MAX_STEPS = 2048;

  const K = new Float64Array(16 * 4);
  const F = new Float64Array(7 * 4);
  const trial = new Float64Array(4);

  function combine(row, c) {
    let sum = 0;
    for (let j = 0; j < row.index.length; j++) sum += row.value[j] * K[4 * row.index[j] + c];
    return sum;
  }

  // Follow `field` from `state` to times h, 2h, …, numSteps·h.
  // Returns positions there (NaN where not reached), a finer real path if `perStep` > 0, and
  // whether the end was reached.
  function follow(field, state, h, numSteps, perStep) {
    const size = state.length;
    const stride = size / 2; // 1: real, 2: complex
    const at = [[state[0], state[stride]]];
    const path = [state[0], state[stride]];
    const end = numSteps * h;
    let t = 0;
    let step = h / 10;
    let taken = 0;
    let windowStart = 0;
    let next = 1; // index of the next output time
    let sample = 1; // index of the next point of the path
    let completed = true;
    const y = Float64Array.from(state);
    field(y, 0, K, 0);

    while (next <= numSteps) {
      const rest = next * h - t;
      // Land on kh, and do not leave a sliver before it.
      let landing = false;
      let dt = step;
      if (dt >= rest * 0.999) {
        dt = rest;
        landing = true;
      } else if (dt > rest / 2) {
        dt = rest / 2;
      }

      for (let s = 1; s <= 12; s++) {
        for (let c = 0; c < size; c++) trial[c] = y[c] + dt * combine(STAGES[s], c);
        field(trial, 0, K, 4 * s);
      }
      // `trial` is now the new state, and the last stage its slope.
      let error3 = 0;
      let error5 = 0;
      for (let i = 0; i < size; i += stride) {
        let before = 0;
        let after = 0;
        for (let c = i; c < i + stride; c++) {
          before += y[c] * y[c];
          after += trial[c] * trial[c];
        }
        const scale = ATOL + RTOL * Math.sqrt(Math.max(before, after));
        for (let c = i; c < i + stride; c++) {
          const e3 = combine(ERROR_3, c) / scale;
          const e5 = combine(ERROR_5, c) / scale;
          error3 += e3 * e3;
          error5 += e5 * e5;
        }
      }
      const bottom = error5 + 0.01 * error3;
      const error = bottom === 0 ? 0 : (dt * error5) / Math.sqrt(bottom * 2);
      taken += 1;

      if (error <= 1) {
        if (perStep > 0) {
          const last = landing ? next * h : t + dt;
          let prepared = false;
          for (; (sample * h) / perStep < last - 1e-9 * h; sample++) {
            if (!prepared) {
              prepareInterpolation(field, y, dt, size);
              prepared = true;
            }
            const x = ((sample * h) / perStep - t) / dt;
            path.push(interpolate(y, x, 0), interpolate(y, x, stride));
          }
          if (landing) {
            path.push(trial[0], trial[stride]);
            sample = next * perStep + 1;
          }
        }
        t = landing ? next * h : t + dt;
        for (let c = 0; c < size; c++) {
          y[c] = trial[c];
          K[c] = K[48 + c];
        }
        if (landing) {
          at.push([y[0], y[stride]]);
          next += 1;
        }
        // A step that was cut short to land says little about the next one's length.
        const grown = dt * (error === 0 ? 6 : Math.min(6, 0.9 * error ** -0.125));
        step = dt < step ? Math.max(grown, step) : grown;
      } else {
        // Not a number where a stage left the finite world: shorten, like any other failure.
        step = dt * (error > 1 ? Math.max(0.2, 0.9 * error ** -0.125) : 0.2);
      }

      if (next > numSteps) break;
      let hopeless = step < 1e-15 * end || taken >= MAX_STEPS;
      if (taken % WINDOW === 0) {
        hopeless ||= ((t - windowStart) / WINDOW) * PATIENCE < end - t;
        windowStart = t;
      }
      if (hopeless) {
        completed = false;
        path.push(y[0], y[stride]);
        break;
      }
    }
    while (at.length <= numSteps) at.push([NaN, NaN]);
    return { at, path, completed, taken };
  }

  // The three further stages and the polynomial's coefficients, for the step from y to `trial`.
  function prepareInterpolation(field, y, dt, size) {
    const end = Float64Array.from(trial);
    for (let s = 13; s < 16; s++) {
      for (let c = 0; c < size; c++) trial[c] = y[c] + dt * combine(STAGES[s], c);
      field(trial, 0, K, 4 * s);
    }
    trial.set(end);
    for (let c = 0; c < size; c++) {
      const delta = trial[c] - y[c];
      F[c] = delta;
      F[4 + c] = dt * K[c] - delta;
      F[8 + c] = 2 * delta - dt * (K[48 + c] + K[c]);
      for (let i = 0; i < 4; i++) F[4 * (3 + i) + c] = dt * combine(INTERPOLANT[i], c);
    }
  }

  function interpolate(y, x, c) {
    let sum = 0;
    for (let i = 6; i >= 0; i--) sum = (sum + F[4 * i + c]) * (i % 2 === 0 ? x : 1 - x);
    return y[c] + sum;
  }

  // ---- everything about one setting

  function eigenvaluesAt(landscape, x, y) {
    landscape.derivatives(x, 0, y, 0, D);
    const middle = (D[4] + D[8]) / 2;
    const spread = Math.hypot((D[4] - D[8]) / 2, D[6]);
    return [middle - spread, middle + spread];
  }

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

  // Positions at t = kh, k = 0 … numSteps, of gradient descent and the three flows; whether each
  // flow could be followed to the end; eigenvalues of the Hessian at the start, ascending, and
  // their regimes. `options.branch`: "continued" (default) or "principal";
  // `options.perStep`: points per step of the finer paths, 0 (default) for none.
  function compute(name, start, learningRate, numSteps, options = {}) {
    const landscape = LANDSCAPES[name];
    if (!landscape) throw new Error(`unknown landscape ${name}`);
    const h = learningRate;
    if (!(h > 0 && Number.isFinite(h))) throw new Error(`learning rate must be positive, got ${h}`);
    const perStep = options.perStep || 0;
    const [x, y] = start;

    const gd = [[x, y]];
    for (let k = 0; k < numSteps; k++) {
      const [px, py] = gd[k];
      landscape.derivatives(px, 0, py, 0, D);
      gd.push([px - h * D[0], py - h * D[2]]);
    }
    const eigenvalues = eigenvaluesAt(landscape, x, y);
    const found = {
      gd,
      completed: {},
      paths: {},
      numSteps: {},
      eigenvalues,
      regimes: eigenvalues.map((value) => regime(h, value)),
    };
    const flows = {
      ngf: [ngfField(landscape), [x, y]],
      igr: [igrField(landscape, h), [x, y]],
      principal: [
        principalField(landscape, h, options.branch !== "principal"),
        [x, 0, y, 0],
      ],
    };
    for (const [flow, [field, state]] of Object.entries(flows)) {
      const followed = follow(field, state, h, numSteps, perStep);
      found[flow] = followed.at;
      found.completed[flow] = followed.completed;
      found.paths[flow] = followed.path;
      found.numSteps[flow] = followed.taken;
    }
    return found;
  }

  const api = { LANDSCAPES, compute, coefficient, regime };
  window.pfcorePlayground = api;

  // ---- the page

  const FLOWS = [
    { key: "gd", name: "gradient descent", color: "--pg-gd" },
    { key: "ngf", name: "NGF", color: "--pg-ngf", dash: [] },
    { key: "igr", name: "IGR flow", color: "--pg-igr", dash: [7, 4] },
    { key: "principal", name: "PF", color: "--pg-pf", dash: [] },
  ];
  const MODELS = FLOWS.slice(1);

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
  ];
  api.PRESETS = PRESETS;
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
        <input id="pg-steps" type="range" min="1" max="40" step="1"></div>
      <label class="pg-field" for="pg-branch"><span>Branch of PF</span>
        <select id="pg-branch"><option value="continued">continued</option>
        <option value="principal">principal</option></select></label>
      <label class="pg-field" for="pg-x"><span>Start <i>x</i></span>
        <input id="pg-x" type="number" step="any" inputmode="decimal"></label>
      <label class="pg-field" for="pg-y"><span>Start <i>y</i></span>
        <input id="pg-y" type="number" step="any" inputmode="decimal"></label>
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

  // Level lines of a landscape in a window as polylines [x0, y0, x1, y1, …] in its coordinates,
  // evenly spaced in the cube root of the loss: marching squares, the pieces joined end to end.
  function levelLines(landscape, [[x0, x1], [y0, y1]], columns, rows, count) {
    const across = columns + 1;
    const values = new Float64Array(across * (rows + 1));
    let low = Infinity;
    let high = -Infinity;
    for (let j = 0; j <= rows; j++) {
      for (let i = 0; i <= columns; i++) {
        const root = Math.cbrt(
          landscape.value(x0 + ((x1 - x0) * i) / columns, y0 + ((y1 - y0) * j) / rows),
        );
        values[j * across + i] = root;
        low = Math.min(low, root);
        high = Math.max(high, root);
      }
    }
    const spacing = (high - low) / (count + 1);
    const lines = [];
    for (let k = 1; k <= count; k++) {
      const level = low + k * spacing;
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
    let colors = {};
    let backgroundKey = "";

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
        steps: number("steps", 1, 40),
        zoom: number("zoom", 1, 32),
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

    // -- drawing

    function readColors() {
      const style = getComputedStyle(root);
      colors = {};
      for (const name of [
        "gd", "ngf", "igr", "pf", "text", "muted", "line", "level", "paper", "warm", "cool", "star",
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

    function drawBackgrounds(mapSize, alphaSize) {
      const range = visible();
      mapFrame = frameOf(mapSize.width, mapSize.height, range, 38);
      let context;
      [mapLayer, context] = newLayer(map, mapSize.ratio);
      context.save();
      context.beginPath();
      context.rect(
        mapFrame.left, mapFrame.top, mapFrame.right - mapFrame.left, mapFrame.bottom - mapFrame.top,
      );
      context.clip();
      context.fillStyle = colors["--pg-paper"];
      context.fill();
      context.strokeStyle = colors["--pg-level"];
      context.lineWidth = 1;
      context.lineJoin = "round";
      for (const line of levelLines(landscape(), range, 198, 165, 14)) {
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
      context.beginPath();
      context.rect(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top);
      context.clip();
      context.lineWidth = 2.2;
      context.lineJoin = "round";
      for (const { key, color, dash } of MODELS) {
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

    function drawMap(size) {
      const context = map.getContext("2d");
      const frame = mapFrame;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, map.width, map.height);
      context.drawImage(mapLayer, 0, 0);
      context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
      context.save();
      context.beginPath();
      context.rect(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top);
      context.clip();
      context.lineJoin = "round";
      context.lineCap = "butt";
      for (const { key, color, dash } of MODELS) {
        if (state.hidden.has(key)) continue;
        const path = result.paths[key];
        context.strokeStyle = colors[color];
        context.fillStyle = colors[color];
        context.lineWidth = 2.4;
        context.setLineDash(dash);
        trace(context, (i, axis) => path[2 * i + axis], path.length / 2, frame);
        context.setLineDash([]);
        dots(context, frame, result[key], 3);
      }
      if (!state.hidden.has("gd")) {
        context.strokeStyle = colors["--pg-gd"];
        context.fillStyle = colors["--pg-gd"];
        context.lineWidth = 0.9;
        trace(context, (i, axis) => result.gd[i][axis], result.gd.length, frame);
        dots(context, frame, result.gd, 4);
      }
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

    function drawAlpha(size) {
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
          for (const { key, color } of MODELS) {
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
      for (const { key, name, color } of MODELS) {
        if (state.hidden.has(key)) continue;
        const [z, value] = LABELS_AT[key];
        write(context, name, frame.x(z), frame.y(value) + 4, color);
      }
    }

    // -- text

    const curves = root.querySelector(".pg-curves tbody");
    const distanceCells = {};
    for (const { key, name, color, dash } of FLOWS) {
      const row = curves.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      const line = key === "gd" ? "stroke-width='1'" : `stroke-width='3' stroke-dasharray='${dash}'`;
      const dot = key === "gd" ? "<circle cx='14' cy='6' r='4.5' stroke='none'/>" : "";
      head.innerHTML = `<label><input type="checkbox" data-curve="${key}" checked>
        <svg width="28" height="12" aria-hidden="true" style="color: var(${color})"
          fill="currentColor" stroke="currentColor"><path d="M0 6H28" ${line}/>${dot}</svg>
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

    // What became of a flow: its distance to gradient descent, or where it was lost.
    function outcome(key) {
      const n = state.steps;
      if (!result.completed[key]) {
        const reached = result[key].filter((p, k) => k > 0 && finite(p)).length;
        return { lost: reached };
      }
      const [x, y] = result[key][n];
      const [gx, gy] = result.gd[n];
      if (!finite(result.gd[n])) return { distance: Infinity, scale: 1 };
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
        [inputs.rate, String(positionOf(state.h))],
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
            ? formatDistance(distance, scale)
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
      $("pg-out").disabled = state.zoom <= 1;
      $("pg-in").disabled = state.zoom >= 32;
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
        if (lost === undefined) told.push(`${flow} ${formatDistance(distance, scale)}`);
        else lostFlows.push([flow, lost]);
      }
      parts.push(`Distance to gradient descent after the last step: ${told.join(", ")}.`);
      for (const [flow, lost] of lostFlows) {
        parts.push(
          `${flow} could not be followed to the end: it was lost ` +
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
      const mapSize = prepare(map);
      const alphaSize = prepare(alpha);
      if (mapSize.width < 60 || alphaSize.width < 60) return;
      const key = JSON.stringify([
        mapSize, alphaSize, state.landscape, state.zoom, state.cx, state.cy, colors, [...state.hidden],
      ]);
      if (key !== backgroundKey) {
        backgroundKey = key;
        drawBackgrounds(mapSize, alphaSize);
      }
      drawMap(mapSize);
      drawAlpha(alphaSize);
      writeNumbers();
      const done = performance.now();
      // What is on show, and what it took in milliseconds.
      api.state = { ...state, hidden: [...state.hidden] };
      api.result = result;
      api.frame = { compute: computed - started, draw: done - computed, total: done - started };
      api.frames = (api.frames || 0) + 1;
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
      const [[x0, x1], [y0, y1]] = visible();
      const seen = result.gd.filter(([x, y]) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
      const middle = (axis) => {
        const values = [...seen, [state.x, state.y]].map((p) => p[axis]);
        return (Math.min(...values) + Math.max(...values)) / 2;
      };
      Object.assign(state, { zoom: 2 * state.zoom, cx: middle(0), cy: middle(1) });
      changed({ keepPreset: true });
    });
    $("pg-out").addEventListener("click", () => {
      const { cx, cy } = state;
      const zoom = Math.max(1, state.zoom / 2);
      show({ branch: state.branch, zoom, ...(zoom > 1 && { cx, cy }) });
      changed({ keepPreset: true });
    });

    let held = null; // the pointer that drags, and where it took hold beside the start
    function dragTo(event) {
      const box = map.getBoundingClientRect();
      moveStart(
        mapFrame.toX(event.clientX - box.left - held.dx),
        mapFrame.toY(event.clientY - box.top - held.dy),
      );
      changed();
    }
    map.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || held) return;
      const box = map.getBoundingClientRect();
      const dx = event.clientX - box.left - mapFrame.x(state.x);
      const dy = event.clientY - box.top - mapFrame.y(state.y);
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
      readColors();
      redraw();
    }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

    if (!readAddress()) {
      preset = PRESETS[0];
      show(preset.view);
    }
    readColors();
    render();
    describe();
  }

  // The page loads this script just below the element; elsewhere in a page it may come before it.
  function begin() {
    const root = document.querySelector("div#playground");
    if (root) setUp(root);
    return Boolean(root);
  }
  if (!begin() && document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", begin, { once: true });
  }
})();
