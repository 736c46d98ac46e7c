// Lines of time: the last hour as the gateway has it, then what comes. Of servers a point a second, one colour each; of all requests a point a step.
import { lines } from "./plot.js";

const tokens = lines("plot-tokens", "tokens/s");
const requests = lines("plot-requests", "requests/s");
const waits = lines("plot-waits", "s", 3, true);
const load = lines("plot-load", "");

addEventListener("hx:data", ({ detail }) => {
  if (!detail.series) return; // the first look has nothing to compare with
  tokens.add(detail.at, detail.series);
  requests.add(detail.at, detail.requests);
  if (!detail.step) return;
  waits.add(detail.step.at, detail.step.waits);
  load.add(detail.step.at, detail.step.load);
});
