// What axe finds in the theme: a dialog without a name, and tables that scroll but cannot be reached by the keyboard.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
    for (const area of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) area.tabIndex = 0;
  })
);
