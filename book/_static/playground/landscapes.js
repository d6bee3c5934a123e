// The playground's landscapes, as in pfcore.objectives where that has them.

(() => {
  "use strict";

  window.pfcorePlayground ??= {};
  const playground = window.pfcorePlayground;

  // `derivatives(xr, xi, yr, yi, out)` writes gradient and Hessian at complex parameters:
  // out = [g_x, g_y, H_xx, H_xy, H_yy], real and imaginary parts in turn. `third(x, y)` returns
  // the third derivatives [E_xxx, E_xxy, E_xyy, E_yyy] at real ones.
  // `h`: lowest, highest and first learning rate. `edge`: made to show the edge of stability.

  const LANDSCAPES = {
    quadratic: {
      label: "Quadratic",
      formula: "E = 0.1 x² + y²",
      window: [[-1.2, 1.2], [-1, 1]],
      minima: [[0, 0]],
      h: [0.05, 1.3, 0.9],
      start: [-1, 0.6],
      steps: 10,
      value: (x, y) => 0.1 * x * x + y * y,
      third: () => [0, 0, 0, 0],
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
      third: (x) => [2400 * x, -400, 0, 0],
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
      third: (x, y) => [0.24 * x, 0.04, 0.04, 0.24 * y],
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
      start: [0.2, 1],
      steps: 10,
      value: (x, y) => 0.25 * (x * x - 1) ** 2 + 0.5 * y * y,
      third: (x) => [6 * x, 0, 0, 0],
      derivatives(xr, xi, yr, yi, out) {
        const sr = xr * xr - xi * xi;
        const si = 2 * xr * xi;
        out.fill(0);
        out[0] = xr * (sr - 1) - xi * si;
        out[1] = xr * si + xi * (sr - 1);
        out[2] = yr;
        out[3] = yi;
        out[4] = 3 * sr - 1;
        out[5] = 3 * si;
        out[8] = 1;
      },
    },
    saddle: {
      label: "Saddle",
      formula: "E = ½ (x² − y²)",
      window: [[-1.2, 1.2], [-1, 1]],
      minima: [],
      h: [0.05, 2.6, 0.5],
      start: [1, 0.02],
      steps: 10,
      value: (x, y) => 0.5 * (x * x - y * y),
      third: () => [0, 0, 0, 0],
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
    valley: {
      label: "Valley",
      formula: "E = ½ (x + ½ y) y² + 0.025 (x − 3)²",
      window: [[1, 3.4], [-1, 1]],
      minima: [[3, 0]],
      h: [0.2, 1.4, 1],
      start: [1.8, 0.3],
      steps: 21,
      edge: true,
      value: (x, y) => 0.5 * (x + 0.5 * y) * y * y + 0.025 * (x - 3) ** 2,
      third: () => [0, 0, 1, 1.5],
      derivatives(xr, xi, yr, yi, out) {
        const yyr = yr * yr - yi * yi;
        const yyi = 2 * yr * yi;
        out[0] = 0.5 * yyr + 0.05 * (xr - 3);
        out[1] = 0.5 * yyi + 0.05 * xi;
        out[2] = xr * yr - xi * yi + 0.75 * yyr;
        out[3] = xr * yi + xi * yr + 0.75 * yyi;
        out[4] = 0.05;
        out[5] = 0;
        out[6] = yr;
        out[7] = yi;
        out[8] = xr + 1.5 * yr;
        out[9] = xi + 1.5 * yi;
      },
    },
  };

  Object.assign(playground, { LANDSCAPES });
})();
