// @ts-check
// The chat page. Everything that was said lives in `messages` below and nowhere else.

import { onNews, signInAddress, signInBeside, signOut, tellTabs } from "./account.js";
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

const account = element("account", HTMLDialogElement);
const accountOpen = element("account-open", HTMLButtonElement);
const announcer = element("announcer", HTMLDivElement);
const demoBanner = element("demo-banner", HTMLParagraphElement);
const draft = element("draft", HTMLTextAreaElement);
const ended = element("ended", HTMLDivElement);
const follow = element("follow", HTMLButtonElement);
const form = element("form", HTMLFormElement);
const gone = element("gone", HTMLElement);
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
/** On a phone the keyboard would open over the text when the field to write in gets the focus. */
const withKeyboard = matchMedia("(hover: hover)").matches;
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
  // They are for the newest answer (see `retry`), and would do nothing now.
  for (const button of log.querySelectorAll(".from-model .problem button, .again")) button.remove();
  const { body } = addMessage("person", "You");
  body.dir = "auto";
  body.textContent = text;
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

/**
 * The same for an answer, without the signs of Markdown. Once it is on its way to the voice it goes: it would be found a second
 * time, and copied when all is copied.
 *
 * @param {HTMLElement} body
 * @param {string} note
 */
function announceAnswer(body, note) {
  const blocks = [...body.children].map((it) => it.querySelector("pre") ?? it);
  const text = [...blocks.map((it) => (it instanceof HTMLElement ? it.innerText : "")), note].join("\n");
  announce(text);
  setTimeout(() => {
    if (announcer.textContent === text) announce("");
  }, 5000);
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
  let end = "";
  const growing = new GrowingText(body);
  const painter = new Painter(() => {
    growing.show(text);
    stickToEnd();
  });
  /** @type {unknown} */
  let failure = null;
  try {
    for await (const piece of ask(currentToken(), model, conversation, controller.signal)) {
      end = piece.end;
      if (!piece.text) continue;
      if (!text) waiting.remove();
      text += piece.text;
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
  finish(article, body, text, end, failure, controller.signal.aborted);
}

/** Ends that leave an answer incomplete. @type {Record<string, string | undefined>} */
const UNFINISHED = {
  length: "The answer is longer than the model may write at a time. Ask it to go on.",
  content_filter: "The model broke off here by its own rules.",
};

/**
 * @param {HTMLElement} article
 * @param {HTMLElement} body the part of it with the answer
 * @param {string} text
 * @param {string} end why the model ended it
 * @param {unknown} failure
 * @param {boolean} stopped
 */
function finish(article, body, text, end, failure, stopped) {
  if (failure && !stopped) {
    const error = failure instanceof ApiError ? failure : new ApiError("Something went wrong on this page.", "retry");
    if (error.kind === "sign-in") {
      // Nobody has read the question: it is a draft still.
      takeBack(article);
      askToSignIn();
      return;
    }
    /** @type {[string, () => void][]} */
    const offers = [["Try again", () => retry(article)]];
    if (!text) offers.push(["Edit the question", () => takeBack(article)]);
    addProblem(article, error.kind === "token" && person ? NOBODY_IN : error.message, offers);
    if (error.kind === "token" && !person) askForToken(error.message, () => retry(article));
    return;
  }
  ended.hidden = true; // signed in again somewhere else, or never out
  if (!text && !stopped) {
    addProblem(article, end === "content_filter" ? "The model declined to answer this." : "The model’s answer is empty.", [
      ["Try again", () => retry(article)],
      ["Edit the question", () => takeBack(article)],
    ]);
    return;
  }
  if (text) messages.push({ role: "assistant", content: text });
  const actions = make("div", "actions");
  if (text) actions.append(copyButton(() => text));
  const words = stopped ? (text ? "You stopped this answer." : "You stopped before the answer began.") : UNFINISHED[end];
  if (words) {
    const note = make("p", "note");
    note.textContent = words;
    article.append(note);
  }
  if (stopped) {
    const again = actionButton("Try again", () => {
      if (article !== log.lastElementChild) return; // as in `retry`: its text is not the last that was said
      if (text) messages.pop();
      retry(article);
    });
    again.classList.add("again");
    actions.append(again);
  }
  article.append(actions);
  if (stopped) announce("Stopped.");
  else announceAnswer(body, words ?? "");
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
  void answer();
  (withKeyboard ? draft : send).focus();
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
  log.replaceChildren(...(obstacle ? [obstacle] : []));
  welcome.hidden = obstacle !== null;
  following = true;
  announce("New chat.");
  updateControls();
  draft.focus();
}

// --- signing in and out ------------------------------------------------------------------------

/** For whom the sign-in proxy vouches; "" for nobody: then there is a token. */
let person = "";
const NOBODY_IN = "The server lets nobody in just now. What you wrote is still here.";

function askToSignIn() {
  ended.hidden = false;
  announce("Your sign-in has ended; what you wrote is still here.");
}

/**
 * Look whether the person is signed in again, here or in another tab.
 *
 * @param {boolean} [told] by another tab that somebody is signed in: it can be somebody else
 */
async function lookAgain(told) {
  if (!gone.hidden || (ended.hidden && !told)) return;
  try {
    const { email } = await whoAmI(currentToken());
    if (ended.hidden && email === person) return;
  } catch {
    return; // not yet
  }
  void loadModels();
}

/** @param {string} email for whom the proxy vouches now */
function greet(email) {
  const before = person;
  person = email;
  if (!before) tellTabs("signed in");
  accountOpen.hidden = !email;
  element("who", HTMLParagraphElement).textContent = `You are signed in as ${email}.`;
  const another = before !== "" && before !== email;
  if (ended.hidden && !another) return;
  ended.hidden = true;
  announce("You are signed in again.");
  draft.focus();
  if (another && (messages.length || draft.value)) askWhoseChat(before);
}

/** @param {string} before whose chat this is, while somebody else is signed in now */
function askWhoseChat(before) {
  const article = make("div", "message");
  log.append(article);
  addProblem(article, `You are signed in as ${person} now. This chat was begun as ${before}.`, [
    ["Go on with it", () => { article.remove(); draft.focus(); }],
    ["New chat", () => { draft.value = ""; growDraft(); newChat(); }],
  ]);
}

/** @param {() => void} then what to do once nobody is signed in */
async function leave(then) {
  const problem = element("account-problem", HTMLParagraphElement);
  try {
    await signOut();
    await whoAmI(currentToken());
    problem.textContent = "The server did not sign you out. Try again.";
  } catch (error) {
    if (error instanceof ApiError && error.kind === "sign-in") {
      tellTabs("signed out");
      forgetAll();
      then();
      return;
    }
    problem.textContent = error instanceof ApiError ? error.message : "The server cannot be reached. Are you connected?";
  }
  problem.hidden = false;
}

/** Nothing that was said stays on the screen of somebody who has left. */
function forgetAll() {
  removeObstacle();
  newChat();
  draft.value = "";
  growDraft();
  account.close();
  for (const part of document.querySelectorAll(".composer, .notices, .tools, .picker, #welcome")) {
    if (part instanceof HTMLElement) part.hidden = true;
  }
  gone.hidden = false;
  gone.querySelector("h2")?.focus();
}

// --- models and token --------------------------------------------------------------------------

/** What keeps the page from being ready, as it stands in the conversation. @type {HTMLElement | null} */
let obstacle = null;

/**
 * @param {string} text
 * @param {string} label
 * @param {() => void} deed
 */
function addObstacle(text, label, deed) {
  removeObstacle();
  obstacle = make("div", "message");
  log.append(obstacle);
  welcome.hidden = true; // it fills the view: the problem would be below it
  addProblem(obstacle, text, [[label, () => { removeObstacle(); deed(); }]]);
}

function removeObstacle() {
  if (!obstacle) return;
  obstacle.remove();
  obstacle = null;
  welcome.hidden = log.childElementCount > 0;
}

async function loadModels() {
  const chosen = modelPicker.value;
  try {
    const me = await whoAmI(currentToken());
    if (me.signedIn) greet(me.email);
    models = await listModels(currentToken());
  } catch (error) {
    if (error instanceof ApiError && error.kind === "sign-in") {
      askToSignIn();
      return;
    }
    if (error instanceof ApiError && error.kind === "token" && !person) {
      askForToken(currentToken() ? error.message : "", () => void loadModels());
      return;
    }
    addObstacle(error instanceof ApiError ? error.message : "The page could not be set up.", "Try again", () => void loadModels());
    return;
  }
  removeObstacle();
  if (!models.length) {
    addObstacle("There is no model to chat with. The person who runs this server can add one.", "Try again", () => void loadModels());
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
  // `isComposing`: Enter also accepts a word in Japanese, Chinese or Korean input. Safari says it with 229 alone.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    submitDraft();
  }
});
send.addEventListener("click", (event) => {
  if (event.detail > 1) event.preventDefault(); // the second half of a double click would stop what the first has begun
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
// A phone's keyboard, or a draft that grows, takes room from below: the newest text must not be what goes.
new ResizeObserver(stickToEnd).observe(scroller);
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
accountOpen.addEventListener("click", () => account.showModal());
document.getElementById("sign-out")?.addEventListener("click", () => void leave(() => {}));
document.getElementById("other-account")?.addEventListener("click", () => {
  void leave(() => location.assign(signInAddress("", true)));
});
signInBeside(element("sign-in-again", HTMLAnchorElement));
element("gone-again", HTMLAnchorElement).href = signInAddress("");
element("gone-other", HTMLAnchorElement).href = signInAddress("", true);
onNews((news) => {
  if (news === "signed out") forgetAll();
  else void lookAgain(true);
});
for (const moment of ["focus", "visibilitychange"]) addEventListener(moment, () => void lookAgain());
modelPicker.addEventListener("change", showModelNotices);
tokenDialog.addEventListener("close", () => {
  if (tokenInput.value.trim()) {
    keepToken(tokenInput.value);
    afterToken();
  } else if (modelPicker.disabled) {
    // Left with Escape, or a phone's own way back.
    addObstacle("This server needs an access token.", "Enter it", () => askForToken("", () => void loadModels()));
  }
});
// Another link with a token, opened in this tab.
addEventListener("hashchange", () => {
  takeToken();
  void loadModels();
});

document.getElementById("stuck")?.remove(); // see theme.js
takeToken();
void loadModels();
if (withKeyboard) draft.focus();
