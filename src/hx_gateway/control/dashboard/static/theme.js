// Runs before the page is painted: the theme that was chosen last, or that of the system.
try {
  const theme = localStorage.getItem("hx-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {} // storage is switched off: the system's theme stays
