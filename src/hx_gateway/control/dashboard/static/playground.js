// One prompt to one or two models at once; each side streams by itself, and keeps its own conversation.
import { post } from "./hx.js";

const form = document.getElementById("ask");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const two = document.getElementById("two");
const sides = [...document.querySelectorAll(".side")].map((box) => ({ box, talk: [], going: null }));

function add(parent, tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}

function figures(list, facts) {
  list.replaceChildren();
  for (const [name, value] of facts) {
    const pair = list.classList.contains("figures") ? add(list, "div") : list;
    add(pair, "dt", name);
    if (value instanceof Node) add(pair, "dd").append(value);
    else add(pair, "dd", value);
  }
  list.hidden = false;
}

const ms = (value) => (value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);

/** The data of server-sent events, one by one as they come. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function body(side, prompt) {
  const given = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
  const system = given.system ? [{ role: "system", content: given.system }] : [];
  const asked = { model: side.box.querySelector("select").value, messages: [...system, ...side.talk, { role: "user", content: prompt }], stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (!given[name]) continue;
    const value = Number(given[name].replace(",", "."));
    if (!Number.isFinite(value)) throw new Error(`${name}: should be a number.`);
    asked[name] = value;
  }
  return [asked, given.priority];
}

/** What a client would have been told, by headers. */
function told(side, headers) {
  const facts = [...headers].filter(([name]) => /^x-hx-(?!decision-id|gateway)/.test(name)).map(([name, value]) => [name.slice(5), value]);
  const id = headers.get("x-hx-decision-id") ?? headers.get("x-request-id");
  if (id) {
    const link = document.createElement("a");
    link.href = `/ui/requests/${encodeURIComponent(id)}`;
    link.textContent = "the whole story, in a second or two";
    facts.unshift(["request", link]);
  }
  figures(side.box.querySelector(".why dl"), facts);
  side.box.querySelector(".why").hidden = !facts.length;
}

/** Text that grows in an element, at most once a frame: a fast model writes more often than a screen is painted. */
function growing(element, log) {
  const node = element.appendChild(document.createTextNode(""));
  let waiting = "";
  const paint = () => {
    node.appendData(waiting);
    waiting = "";
    element.hidden = false;
    log.scrollTop = log.scrollHeight;
  };
  return (text) => {
    if (!waiting) requestAnimationFrame(paint);
    waiting += text;
  };
}

async function ask(side, prompt) {
  const { box } = side;
  const problem = box.querySelector("[role=alert]");
  const log = box.querySelector(".talk");
  const started = performance.now();
  let first = 0;
  let usage = null;
  let text = "";
  let ended = "";
  problem.hidden = true;
  const fail = (error) => {
    problem.textContent = error.message;
    problem.hidden = false;
  };
  let asked, priority;
  try {
    [asked, priority] = body(side, prompt);
  } catch (error) {
    return fail(error);
  }
  add(log, "p", prompt, "mine");
  const thought = add(log, "p", "", "thought");
  thought.hidden = true;
  const answer = add(log, "p", "", "theirs");
  answer.setAttribute("aria-busy", "true");
  const think = growing(thought, log);
  const write = growing(answer, log);
  side.going = new AbortController();
  try {
    const headers = { "content-type": "application/json", ...(priority && { "x-hx-priority": priority }) };
    const response = await post("/ui/playground/chat", JSON.stringify(asked), { signal: side.going.signal, headers });
    told(side, response.headers);
    if (!response.ok) throw new Error((await response.json().catch(() => null))?.error?.message ?? `The answer is ${response.status}.`);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      usage = part.usage ?? usage;
      const delta = part.choices?.[0]?.delta ?? {};
      ended = part.choices?.[0]?.finish_reason ?? ended;
      const thinking = delta.reasoning_content ?? delta.reasoning ?? "";
      if (!first && (delta.content || thinking)) first = performance.now();
      if (thinking) think(thinking);
      if (delta.content) {
        text += delta.content;
        write(delta.content);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") ended = "stopped";
    else {
      fail(error);
      ended = "failed";
    }
  }
  if (text && ended !== "failed") side.talk.push({ role: "user", content: prompt }, { role: "assistant", content: text });
  side.going = null;
  answer.removeAttribute("aria-busy");
  const whole = performance.now() - started;
  const facts = [["First token", first ? ms(first - started) : "–"], ["Whole", ms(whole)]];
  if (usage) {
    const writing = (performance.now() - first) / 1000;
    facts.push(["Tokens", `${usage.prompt_tokens} → ${usage.completion_tokens}`]);
    // What comes in one piece says nothing of a rate.
    if (first && writing > 0.05 && usage.completion_tokens > 1) facts.push(["Tokens/s", ((usage.completion_tokens - 1) / writing).toFixed(1)]);
  }
  facts.push(["Ended by", { stop: "the model", length: "the limit", stopped: "you", failed: "an error" }[ended] ?? (ended || "–")]);
  figures(box.querySelector(".figures"), facts);
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const prompt = document.getElementById("p-prompt").value.trim();
  if (!prompt || send.disabled) return;
  send.disabled = true;
  stop.disabled = false;
  await Promise.all(sides.filter(({ box }) => !box.hidden).map((side) => ask(side, prompt)));
  send.disabled = false;
  stop.disabled = true;
});

stop?.addEventListener("click", () => sides.forEach((side) => side.going?.abort()));

document.getElementById("clear")?.addEventListener("click", () => {
  for (const side of sides) {
    side.going?.abort();
    side.talk = [];
    side.box.querySelector(".talk").replaceChildren();
    for (const part of side.box.querySelectorAll(".figures, .why, [role=alert]")) part.hidden = true;
  }
});

two?.addEventListener("change", () => {
  sides[1].box.hidden = !two.checked;
  if (!two.checked) sides[1].going?.abort();
});

document.getElementById("p-prompt")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

const second = document.getElementById("m-1");
if (second && second.options.length > 1) second.selectedIndex = 1;
