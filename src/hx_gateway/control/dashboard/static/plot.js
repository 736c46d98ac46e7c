// Plots: uPlot with the page's own colours, which follow the theme.
const LENGTH = 300;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Options that every plot shares; `names` are the series, `unit` what they count. */
export function options(names, unit, width, height = 190) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui", gap: 4 };
  return {
    width,
    height,
    legend: { live: true },
    cursor: { y: false, points: { size: 6 } },
    axes: [{ ...axis, space: 70, size: 28, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB")) }, { ...axis, size: 48, values: (_, ticks) => ticks.map((value) => value.toLocaleString("en", { maximumFractionDigits: 2 })) }],
    scales: { x: { range: (_, from, to) => [Math.min(from, to - 60), to] }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
    series: [
      { value: (_, at) => (at == null ? "–" : new Date(at * 1000).toLocaleTimeString()) },
      ...names.map((label, index) => ({
        label,
        stroke: colour(`--plot-${(index % 6) + 1}`),
        width: 1.6,
        dash: index >= 6 ? [6, 4] : undefined,
        points: { show: false },
        value: (_, value) => (value == null ? "–" : `${value.toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`),
      })),
    ],
  };
}

/** A plot of fixed data: `columns` are times in Unix seconds, then one list a name; `alter` changes the options of the page's own plot. */
export function chart(id, names, columns, unit, alter = () => {}) {
  const place = document.getElementById(id);
  let plot;
  const draw = () => {
    plot?.destroy();
    const chosen = options(names, unit, place.clientWidth);
    alter(chosen);
    plot = new uPlot(chosen, columns, place);
  };
  draw();
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 190 })).observe(place);
  addEventListener("hx:theme", draw);
}

/** Lines that grow: `add(time, {name: value})`. */
export function lines(id, unit) {
  const place = document.getElementById(id);
  let names = [];
  let data = [[]];
  let plot;
  const draw = () => {
    plot?.destroy();
    plot = place && new uPlot(options(names, unit, place.clientWidth), data, place);
  };
  if (place) new ResizeObserver(() => plot?.setSize({ width: place.clientWidth, height: 190 })).observe(place);
  addEventListener("hx:theme", () => plot && draw());
  return {
    add(at, values) {
      if (!place) return;
      const same = Object.keys(values).join("\n") === names.join("\n");
      if (!same) {
        names = Object.keys(values);
        data = [[], ...names.map(() => [])];
      }
      data[0].push(at);
      names.forEach((name, index) => data[index + 1].push(values[name]));
      if (data[0].length > LENGTH) for (const column of data) column.shift();
      if (same && plot) plot.setData(data);
      else draw();
    },
  };
}
