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
