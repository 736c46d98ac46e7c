// The course of what was used: the lines are in the page, as data of the plot's own element.
import { chart } from "./plot.js";

const { times, names, columns, unit, days } = JSON.parse(document.getElementById("plot").dataset.plot);
const day = (at) => new Date(at * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const hour = (at) => `${day(at)} ${new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" })}`;
const title = days ? day : hour;

chart("plot", names, [times, ...columns], unit, (options) => {
  options.axes[0].values = (_, ticks) => ticks.map(title);
  options.axes[0].space = days ? 60 : 100;
  options.axes[1].size = 60;
  options.series[0].label = "UTC";
  options.series[0].value = (_, at) => (at == null ? "–" : title(at));
  if (times.length < 3) for (const one of options.series.slice(1)) one.points = { show: true, size: 6 };
  options.tzDate = (at) => uPlot.tzDate(new Date(at * 1000), "UTC");
});
