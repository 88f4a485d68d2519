// @ts-check
// The access token. It arrives in the address's fragment, which browsers never send to a server, and
// stays in this tab.

const KEY = "hearth-token";
let token = "";

/** Take the token from `#token=…` and wipe it from the address bar, where it would be shared or seen. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname + location.search);
    keepToken(given);
    return;
  }
  try {
    token = sessionStorage.getItem(KEY) ?? "";
  } catch {
    token = ""; // storage is switched off: the person is asked again after a reload
  }
}

/** @returns {string} */
export function currentToken() {
  return token;
}

/** @param {string} value */
export function keepToken(value) {
  token = value.trim();
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // kept in memory only
  }
}
