// @ts-check
// The sign-in proxy in front of this server: its addresses, and what the tabs of one browser tell each other.

// These two are the proxy's own, at the root of the host wherever the page is.
const START = "/oauth2/start";
const SIGN_OUT = "/oauth2/sign_out";

/** @typedef {"signed in" | "signed out"} News */

const tabs = new BroadcastChannel("hearth-account");

/** @param {News} news */
export function tellTabs(news) {
  tabs.postMessage(news);
}

/** @param {(news: News) => void} listener for what other tabs tell; never for what this one does */
export function onNews(listener) {
  tabs.addEventListener("message", (event) => listener(event.data));
}

/**
 * Where a sign-in begins.
 *
 * @param {string} back where it ends, relative to this page
 * @param {boolean} choose whether the person picks the account, also when the provider knows one already
 */
export function signInAddress(back, choose = false) {
  const end = new URL(back, location.href);
  const query = new URLSearchParams({ rd: end.pathname + end.search });
  if (choose) query.set("prompt", "select_account");
  return `${START}?${query}`;
}

/**
 * Sign in beside this page, which keeps all that was said in it. A link, because browsers block no click on one;
 * the small window is for where there are windows.
 *
 * @param {HTMLAnchorElement} link
 */
export function signInBeside(link) {
  link.href = signInAddress("static/back.html");
  link.target = "_blank";
  link.addEventListener("click", (event) => {
    if (open(link.href, "hearth-sign-in", "popup,width=480,height=680")) event.preventDefault();
  });
}

/** End the session in this browser. Whether it worked is for the caller to find out: the proxy answers the same either way. */
export async function signOut() {
  await fetch(SIGN_OUT, { redirect: "manual", cache: "no-store", credentials: "same-origin" });
}
