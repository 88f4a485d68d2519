// @ts-check
"use strict";

// Sets the theme before the first paint. Without a choice of the person's own, the system's applies
// and style.css needs no attribute at all.
(() => {
  const choice = (() => {
    try {
      return localStorage.getItem("hearth-theme");
    } catch {
      return null; // storage can be switched off; the page works without
    }
  })();
  if (choice === "light" || choice === "dark") document.documentElement.dataset["theme"] = choice;
})();

// app.js takes the words away as soon as it runs. It does not when one of its files got lost on a bad connection, or is beyond an
// old browser; then the page would look well and do nothing.
addEventListener("load", () => {
  const stuck = document.getElementById("stuck");
  if (stuck) stuck.hidden = false;
});
