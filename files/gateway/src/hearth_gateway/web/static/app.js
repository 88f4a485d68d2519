// @ts-check
// The chat page. Everything that was said lives in `messages` below and nowhere else.

import { ApiError, ask, listModels, whoAmI } from "./api.js";
import { GrowingText, copyButton, make } from "./markdown.js";
import { Painter } from "./paint.js";
import { currentToken, keepToken, takeToken } from "./token.js";

/** @typedef {import("./api.js").Message} Message */
/** @typedef {import("./api.js").Model} Model */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html has no ${kind.name} #${id}`);
  return found;
}

const announcer = element("announcer", HTMLDivElement);
const demoBanner = element("demo-banner", HTMLParagraphElement);
const draft = element("draft", HTMLTextAreaElement);
const follow = element("follow", HTMLButtonElement);
const form = element("form", HTMLFormElement);
const instructions = element("instructions", HTMLDetailsElement);
const log = element("log", HTMLDivElement);
const modelPicker = element("model", HTMLSelectElement);
const privacy = element("privacy", HTMLDialogElement);
const scroller = element("scroller", HTMLElement);
const send = element("send", HTMLButtonElement);
const tokenDialog = element("ask-token", HTMLDialogElement);
const tokenInput = element("token", HTMLInputElement);
const welcome = element("welcome", HTMLElement);

/** @type {Message[]} */
let messages = [];
/** @type {Model[]} */
let models = [];
/** @type {AbortController | null} */
let answering = null;
/** True while the view sticks to the newest text. Ends when the person scrolls up. */
let following = true;

// --- showing -----------------------------------------------------------------------------------

/**
 * @param {"person" | "model"} from
 * @param {string} who
 */
function addMessage(from, who) {
  const article = make("article", `message from-${from}`);
  const name = make("h3", "who");
  name.textContent = who;
  const body = make("div", "body");
  article.append(name, body);
  log.append(article);
  return { article, body };
}

/** @param {string} text */
function addQuestion(text) {
  welcome.hidden = true;
  addMessage("person", "You").body.textContent = text;
  following = true;
  stickToEnd();
}

/**
 * @param {HTMLElement} article
 * @param {string} text
 * @param {[string, () => void][]} offers label and deed of each button
 */
function addProblem(article, text, offers) {
  const box = make("div", "problem");
  const words = make("p");
  words.textContent = text;
  box.append(words);
  for (const [label, deed] of offers) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", deed);
    box.append(button);
  }
  article.append(box);
  announce(text);
  stickToEnd();
}

/** @param {string} text read out once by screen readers */
function announce(text) {
  announcer.textContent = text;
}

function stickToEnd() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
  follow.hidden = following || !answering;
}

function updateControls() {
  const busy = answering !== null;
  form.classList.toggle("stopping", busy);
  send.disabled = !busy && (!draft.value.trim() || modelPicker.disabled);
  send.setAttribute("aria-label", busy ? "Stop" : "Send");
  send.title = busy ? "Stop (Esc)" : "Send (Enter)";
  follow.hidden = following || !busy;
}

function growDraft() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight}px`;
  updateControls();
}

// --- asking ------------------------------------------------------------------------------------

function submitDraft() {
  const text = draft.value.trim();
  if (answering || !text || modelPicker.disabled) return;
  draft.value = "";
  growDraft();
  addQuestion(text);
  messages.push({ role: "user", content: text });
  void answer();
}

/** Ask for the answer to the last message and show it as it comes. */
async function answer() {
  const conversation = messages;
  const model = modelPicker.value;
  const { article, body } = addMessage("model", model);
  const waiting = make("div", "waiting");
  waiting.append(make("i"), make("i"), make("i"));
  body.append(waiting);
  const controller = new AbortController();
  answering = controller;
  updateControls();
  announce("Answering.");
  stickToEnd();

  let text = "";
  const growing = new GrowingText(body);
  const painter = new Painter(() => {
    growing.show(text);
    stickToEnd();
  });
  /** @type {unknown} */
  let failure = null;
  try {
    for await (const piece of ask(currentToken(), model, conversation, controller.signal)) {
      if (!text) waiting.remove();
      text += piece;
      painter.touch();
    }
  } catch (error) {
    failure = error;
  }
  waiting.remove();
  painter.flush();
  if (answering === controller) answering = null;
  updateControls();
  if (conversation !== messages) return; // a new chat was begun meanwhile
  finish(article, text, failure, controller.signal.aborted);
}

/**
 * @param {HTMLElement} article
 * @param {string} text
 * @param {unknown} failure
 * @param {boolean} stopped
 */
function finish(article, text, failure, stopped) {
  if (failure && !stopped) {
    const error = failure instanceof ApiError ? failure : new ApiError("Something went wrong on this page.", "retry");
    /** @type {[string, () => void][]} */
    const offers = [["Try again", () => retry(article)]];
    if (!text) offers.push(["Edit the question", () => takeBack(article)]);
    if (error.kind === "token" && signedIn) offers.push(signInAgain());
    addProblem(article, error.kind === "token" && signedIn ? SIGNED_OUT : error.message, offers);
    if (error.kind === "token" && !signedIn) askForToken(error.message, () => retry(article));
    return;
  }
  if (text) messages.push({ role: "assistant", content: text });
  const actions = make("div", "actions");
  if (text) actions.append(copyButton(() => text));
  if (stopped) {
    const note = make("p", "note");
    note.textContent = text ? "You stopped this answer." : "You stopped before the answer began.";
    article.append(note);
    actions.append(actionButton("Try again", () => { if (text) messages.pop(); retry(article); }));
  }
  article.append(actions);
  announce(stopped ? "Stopped." : text);
  stickToEnd();
}

/**
 * @param {string} label
 * @param {() => void} deed
 */
function actionButton(label, deed) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "action";
  button.textContent = label;
  button.addEventListener("click", deed);
  return button;
}

/** @param {HTMLElement} article the failed answer */
function retry(article) {
  // Only the newest answer can be tried again: an older one has a conversation after it.
  if (answering || article !== log.lastElementChild) return;
  article.remove();
  draft.focus();
  void answer();
}

/** @param {HTMLElement} article the failed answer; its question goes back into the field */
function takeBack(article) {
  if (answering || article !== log.lastElementChild) return;
  const question = messages.pop();
  article.remove();
  log.lastElementChild?.remove();
  // What was written meanwhile is not lost either.
  draft.value = [question?.content, draft.value].filter(Boolean).join("\n");
  welcome.hidden = log.childElementCount > 0;
  draft.focus();
  growDraft();
}

function stop() {
  answering?.abort();
}

function newChat() {
  stop();
  answering = null;
  messages = [];
  log.replaceChildren();
  welcome.hidden = false;
  following = true;
  announce("New chat.");
  updateControls();
  draft.focus();
}

// --- models and token --------------------------------------------------------------------------

/** Whether the sign-in proxy vouches for the person. Then there is no token to ask for. */
let signedIn = false;
const SIGNED_OUT = "You are not signed in any more.";

/** @returns {[string, () => void]} */
function signInAgain() {
  // The proxy answers the page itself with its sign-in.
  return ["Sign in again", () => location.reload()];
}

async function loadModels() {
  const chosen = modelPicker.value;
  try {
    const me = await whoAmI(currentToken());
    signedIn = me.signedIn;
    if (me.email) element("who", HTMLParagraphElement).textContent = `You are signed in as ${me.email}.`;
    models = await listModels(currentToken());
  } catch (error) {
    if (error instanceof ApiError && error.kind === "token" && !signedIn) {
      askForToken(currentToken() ? error.message : "", () => void loadModels());
      return;
    }
    const article = make("div", "message");
    log.append(article);
    welcome.hidden = true; // it fills the view: the problem would be below it
    addProblem(article, error instanceof ApiError ? error.message : "The page could not be set up.", [
      ["Try again", () => {
        article.remove();
        welcome.hidden = log.childElementCount > 0;
        void loadModels();
      }],
    ]);
    return;
  }
  modelPicker.replaceChildren(...models.map((model) => new Option(model.id, model.id, false, model.id === chosen)));
  modelPicker.disabled = models.length === 0;
  showModelNotices();
  updateControls();
}

function showModelNotices() {
  const picked = models.find((model) => model.id === modelPicker.value);
  demoBanner.hidden = !picked?.demo;
  instructions.hidden = !picked?.instructions;
  instructions.open = false;
  element("instructions-text", HTMLQuoteElement).textContent = picked?.instructions ?? "";
}

/** @type {() => void} */
let afterToken = () => {};

/**
 * @param {string} reason "" when none was given yet
 * @param {() => void} then what to do once there is one
 */
function askForToken(reason, then) {
  afterToken = then;
  const words = element("token-reason", HTMLParagraphElement);
  if (reason) words.textContent = `${reason} The person who runs this server can give you a new one.`;
  tokenInput.value = "";
  if (!tokenDialog.open) tokenDialog.showModal();
}

// --- wiring ------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) stop();
  else submitDraft();
});
draft.addEventListener("input", growDraft);
draft.addEventListener("keydown", (event) => {
  // `isComposing`: Enter also accepts a word in Japanese, Chinese or Korean input.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submitDraft();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && answering && !document.querySelector("dialog[open]")) stop();
  const typing = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    draft.focus();
  }
});
scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  follow.hidden = following || !answering;
}, { passive: true });
follow.addEventListener("click", () => {
  following = true;
  stickToEnd();
});
document.getElementById("new-chat")?.addEventListener("click", newChat);
document.getElementById("starters")?.addEventListener("click", (event) => {
  if (!(event.target instanceof HTMLButtonElement)) return;
  draft.value = event.target.textContent ?? "";
  draft.focus();
  growDraft();
});
document.getElementById("theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset["theme"] ? root.dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset["theme"] = dark ? "light" : "dark";
  try {
    localStorage.setItem("hearth-theme", root.dataset["theme"]);
  } catch {
    // storage is switched off: the choice lasts until the reload
  }
});
document.getElementById("privacy-open")?.addEventListener("click", () => privacy.showModal());
modelPicker.addEventListener("change", showModelNotices);
tokenDialog.addEventListener("close", () => {
  if (tokenInput.value.trim()) {
    keepToken(tokenInput.value);
    afterToken();
    if (modelPicker.disabled) void loadModels();
  }
});
// Another link with a token, opened in this tab.
addEventListener("hashchange", () => {
  takeToken();
  void loadModels();
});

takeToken();
void loadModels();
if (matchMedia("(hover: hover)").matches) draft.focus(); // on a phone this would open the keyboard
