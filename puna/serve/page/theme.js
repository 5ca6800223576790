// Runs before the page is drawn, so that a chosen theme never flashes; without a choice the system's holds.
const chosenTheme = localStorage.getItem("puna.theme");
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;
