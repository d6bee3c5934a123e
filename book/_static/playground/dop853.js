// The playground's integrator: Dormand and Prince's method of order 8 with Hairer's error estimate and
// interpolation of order 7 (DOP853; Hairer, Nørsett, Wanner, Solving Ordinary Differential
// Equations I). The flows do not depend on time, so that the nodes are not needed.

(() => {
  "use strict";

  const playground = window.pfcorePlayground;

  const sparse = (row) => {
    const index = Int32Array.from(row.keys()).filter((i) => row[i] !== 0);
    return { index, value: Float64Array.from(index, (i) => row[i]) };
  };
  const STAGES = [
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
  ].map(sparse);
  const ERROR_3 = sparse([-0.18980075407240762, 0, 0, 0, 0, 4.450312892752409, 1.8915178993145003,
    -5.801203960010585, -0.4226823213237919, -0.1521609496625161, 0.20136540080403034,
    0.02265179219836082]);
  const ERROR_5 = sparse([0.01312004499419488, 0, 0, 0, 0, -1.2251564463762044, -0.4957589496572502,
    1.6643771824549864, -0.35032884874997366, 0.3341791187130175, 0.08192320648511571,
    -0.022355307863886294]);
  const INTERPOLANT = [
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
  ].map(sparse);

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
  // `groups`: which entries of the state have one error between them, and how small it need not be.
  // `kept`: the entries that are returned.
  // Returns these there (NaN where not reached), on a finer path if `perStep` > 0, and whether the
  // end was reached.
  function follow({ field, state, groups, kept }, h, numSteps, perStep) {
    const size = state.length;
    const at = [kept.map((c) => state[c])];
    const path = [...at[0]];
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
      for (let i = 0; i < groups.length; i++) {
        const { first, end, atol } = groups[i];
        let before = 0;
        let after = 0;
        for (let c = first; c < end; c++) {
          before += y[c] * y[c];
          after += trial[c] * trial[c];
        }
        const scale = atol + RTOL * Math.sqrt(Math.max(before, after));
        for (let c = first; c < end; c++) {
          const e3 = combine(ERROR_3, c) / scale;
          const e5 = combine(ERROR_5, c) / scale;
          error3 += e3 * e3;
          error5 += e5 * e5;
        }
      }
      const bottom = error5 + 0.01 * error3;
      const error = bottom === 0 ? 0 : (dt * error5) / Math.sqrt(bottom * groups.length);
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
            for (let i = 0; i < kept.length; i++) path.push(interpolate(y, x, kept[i]));
          }
          if (landing) {
            for (let i = 0; i < kept.length; i++) path.push(trial[kept[i]]);
            sample = next * perStep + 1;
          }
        }
        t = landing ? next * h : t + dt;
        for (let c = 0; c < size; c++) {
          y[c] = trial[c];
          K[c] = K[48 + c];
        }
        if (landing) {
          at.push(kept.map((c) => y[c]));
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
        for (let i = 0; i < kept.length; i++) path.push(y[kept[i]]);
        break;
      }
    }
    while (at.length <= numSteps) at.push(kept.map(() => NaN));
    return { at, path, completed };
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

  // Entries from `first` to before `end`, with one error.
  const together = (first, end, atol = ATOL) => ({ first, end, atol });

  Object.assign(playground, { follow, together });
})();
