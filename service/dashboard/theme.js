// Runs before anything is drawn, so that a page in the dark never flashes white.
{
  const theme = localStorage.getItem("drayman-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
