// What every page does: show that a change needs the session's token, follow the live stream, switch the theme.
const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

/** Send a change; the answer as `fetch` has it. */
export function post(url, body, options = {}) {
  return fetch(url, { method: "POST", body, ...options, headers: { "x-csrf": csrf, ...options.headers } });
}

document.addEventListener("htmx:config:request", (event) => {
  const request = event.detail.ctx.request;
  request.headers["x-csrf"] = csrf;
});

// A change that cannot be taken back asks first: <button data-confirm="Revoke ci-runner?">.
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

document.querySelector("[data-theme-switch]")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("hx-theme", root.dataset.theme);
  } catch {} // storage is switched off: it holds for this page
  dispatchEvent(new Event("hx:theme"));
});

// On a phone the navigation is wider than the screen.
document.querySelector(".rail [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });

// What is under the reader's hands stays under them when it is replaced.
function put(element, html) {
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  const open = [...element.querySelectorAll("details[open][id]")].map((one) => one.id);
  element.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  window.htmx?.process(element);
}

function follow(url) {
  const lost = document.getElementById("lost");
  let source;
  const say = (text) => {
    lost.textContent = text;
    lost.hidden = !text;
  };
  const start = () => {
    source = new EventSource(url);
    source.onopen = () => say("");
    source.onerror = () => say("Connection lost. What is shown is old; trying again.");
    source.onmessage = (event) => {
      const { data, ...parts } = JSON.parse(event.data);
      for (const [id, html] of Object.entries(parts)) {
        const element = document.getElementById(id);
        if (element) put(element, html);
      }
      if (data) dispatchEvent(new CustomEvent("hx:data", { detail: data }));
    };
    source.addEventListener("signed-out", () => {
      source.close();
      location.assign(`/ui/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    });
    source.addEventListener("draining", () => say("The gateway is being stopped."));
  };
  // A page that nobody looks at holds no stream.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else if (!source || source.readyState === EventSource.CLOSED) start();
  });
  addEventListener("pagehide", () => source?.close());
  if (!document.hidden) start();
}

const live = document.querySelector("[data-live]")?.dataset.live;
if (live) follow(live);
