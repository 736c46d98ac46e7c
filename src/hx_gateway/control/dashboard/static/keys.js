// The key that is shown once: selected by a click, copied by a button, and where one may not copy, selected for the hand to do it.
addEventListener("click", async ({ target }) => {
  if (target.id === "the-key") target.select();
  const field = document.getElementById(target.dataset?.copy);
  if (!field) return;
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    target.textContent = "Copied";
  } catch {
    target.textContent = "Press Ctrl+C";
  }
});

// What was made is under the hands of whoever made it, and the form is ready for the next.
document.addEventListener("htmx:after:swap", () => {
  const made = document.getElementById("the-key");
  const form = document.querySelector("#new form");
  if (!made || made.dataset.seen) return;
  made.dataset.seen = "yes";
  form?.reset();
  document.getElementById("new")?.removeAttribute("open");
  made.focus();
  made.select();
});
