// Runs before the page is drawn, so that it never flashes in the other theme. Without a choice, the system's theme holds.
(() => {
  try {
    const theme = localStorage.getItem('shimmy.theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch {
    // No storage, no choice.
  }
})();
