// Plots: uPlot with the page's own colours, which follow the theme.
const LONGEST_S = 3600;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Options that every plot shares; `names` are the series, `unit` what they count, to so many digits. */
export function options(names, unit, width, height = 190, digits = 1) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui", gap: 4 };
  return {
    width,
    height,
    legend: { live: true },
    cursor: { y: false, points: { size: 6 } },
    axes: [{ ...axis, space: 70, size: 28, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB")) }, { ...axis, size: 48, values: (_, ticks) => ticks.map((value) => value.toLocaleString("en", { maximumFractionDigits: 2 })) }],
    scales: { x: { range: (_, from, to) => [Math.min(from, to - 60), to] }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
    series: [
      { value: (_, at) => (at == null ? "–" : new Date(at * 1000).toLocaleTimeString("en-GB")) },
      ...names.map((label, index) => ({
        label,
        stroke: colour(`--plot-${(index % 6) + 1}`),
        width: 1.6,
        dash: index >= 6 ? [6, 4] : undefined,
        points: { show: false },
        value: (_, value) => (value == null ? "–" : `${value.toLocaleString("en", { maximumFractionDigits: digits })} ${unit}`),
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

/** Lines that grow: `add(time, {name: value})`; they begin with what the element has as `data-past`, and end an hour back. */
export function lines(id, unit, digits = 1, dots = false) {
  const place = document.getElementById(id);
  const past = JSON.parse(place?.dataset.past ?? '{"times": [], "series": {}}');
  const names = Object.keys(past.series);
  const data = [past.times, ...Object.values(past.series)];
  let plot;
  const draw = () => {
    plot?.destroy();
    const chosen = options(names, unit, place.clientWidth, 190, digits);
    for (const one of chosen.series.slice(1)) one.spanGaps = true;
    if (dots) for (const one of chosen.series.slice(1)) one.points = { show: true, size: 4 };
    plot = new uPlot(chosen, data, place);
  };
  if (place) new ResizeObserver(() => plot?.setSize({ width: place.clientWidth, height: 190 })).observe(place);
  addEventListener("hx:theme", () => plot && draw());
  if (place && data[0].length) draw();
  return {
    add(at, values) {
      if (!place || at <= data[0].at(-1)) return;
      const added = Object.keys(values).filter((name) => !names.includes(name));
      for (const name of added) {
        names.push(name);
        data.push(data[0].map(() => null));
      }
      data[0].push(at);
      names.forEach((name, index) => data[index + 1].push(values[name] ?? null));
      while (data[0][0] < at - LONGEST_S) for (const column of data) column.shift();
      if (plot && !added.length) plot.setData(data);
      else draw();
    },
  };
}
