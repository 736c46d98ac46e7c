// Two lines of time, one colour a server; the last five minutes that this page was open.
import { lines } from "./plot.js";

const tokens = lines("plot-tokens", "tokens/s");
const requests = lines("plot-requests", "requests/s");

addEventListener("hx:data", ({ detail }) => {
  if (!detail.series) return; // the first look has nothing to compare with
  tokens.add(detail.at, detail.series);
  requests.add(detail.at, detail.requests);
});
