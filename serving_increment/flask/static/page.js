"use strict";

const TEXTS = {
  zh: {
    tagline: "中文自回归语言模型：给它开头，它往下写", prompt: "开头", settings: "设置", length: "最多词元数",
    temperature: "温度（0：总取最可能的词）", top_p: "top_p", top_k: "top_k（0：不限）", repetition: "重复惩罚",
    seed: "随机种子（空：随机）", key: "API 密钥", send: "生成", stop: "停止", copy: "复制", copied: "已复制",
    history: "历史（只存在本浏览器）", clear: "清空历史", warning: "由模型生成，可能有误。", api: "接口说明", language: "English",
    waiting: "等待模型…", whole: "MindSpore Serving 一次返回全文，请稍候…", stopped: "已停止", placeholder: "在此输入，Ctrl+Enter 生成",
    unreachable: "连不上服务器，请稍后再试", broken: "回答中断了，请再试一次", busy: "服务器正忙，请过一会儿再试",
    wantKey: "需要 API 密钥：请在“设置”里填写", tooLong: "文本太长，请缩短后再试", down: "模型暂时不可用，可能正在重启，请几秒后再试",
    slow: "模型回答超时，请减少词元数后再试", internal: "服务器内部出错，请看它的日志", invalid: "请求有误：",
    done: (tokens, seconds) => `${tokens} 个词元，${seconds} 秒`,
  },
  en: {
    tagline: "A Chinese language model: give it a beginning, and it continues", prompt: "Beginning", settings: "Settings",
    length: "Most tokens", temperature: "Temperature (0: always the likeliest token)", top_p: "top_p", top_k: "top_k (0: all)",
    repetition: "Repetition penalty", seed: "Seed (empty: random)", key: "API key", send: "Write", stop: "Stop", copy: "Copy",
    copied: "Copied", history: "History (kept in this browser only)", clear: "Clear the history",
    warning: "Written by a model; it may be wrong.", api: "The API", language: "中文", waiting: "Waiting for the model…",
    whole: "MindSpore Serving sends the text when it is complete; please wait…", stopped: "Stopped",
    placeholder: "Type here; Ctrl+Enter writes", unreachable: "The server can't be reached; try again in a moment",
    broken: "The answer broke off; try again", busy: "The server is busy; try again in a moment",
    wantKey: "An API key is needed: enter it in the settings", tooLong: "The text is too long; shorten it",
    down: "The model is not available now, it may be restarting; try again in some seconds",
    slow: "The model took too long; ask for fewer tokens", internal: "An internal error of the server; see its log",
    invalid: "The request is not possible: ", done: (tokens, seconds) => `${tokens} tokens, ${seconds} s`,
  },
};
const EXAMPLES = ["四川的省会是哪里?", "法国的首都是哪座城市?", "上联:欢天喜地度佳节 下联:", "问:中国的首都是哪里?\n答:"];
const FIELDS = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"];
const MOST_HISTORY = 50;
const by = (id) => document.getElementById(id);
const stored = (name, otherwise) => {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
};
const store = (name, value) => {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* the browser stores nothing */ }
};
const streams = document.body.dataset.streams === "true";
let language = stored("language", navigator.language.startsWith("zh") ? "zh" : "en");
let running = null;  // AbortController of the running request

const say = (name, ...values) => typeof TEXTS[language][name] === "function" ? TEXTS[language][name](...values) : TEXTS[language][name];

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  by("language").textContent = say("language");
  by("prompt").placeholder = say("placeholder");
}

function showError(text) {
  by("error").textContent = text;
  by("error").hidden = !text;
}

function showAnswer(prompt, text, growing) {
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  by("text").replaceChildren(given, text);
  by("text").classList.toggle("growing", growing);
  by("answer").hidden = false;
}

function showHistory() {
  const history = stored("history", []);
  by("past").hidden = !history.length;
  by("history").replaceChildren(...history.map(({ prompt, text }) => {
    const button = document.createElement("button");
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = prompt;
    button.type = "button";
    button.append(given, text);
    button.onclick = () => {
      by("prompt").value = prompt;
      showError("");
      showAnswer(prompt, text, false);
      scrollTo({ top: 0, behavior: "smooth" });
    };
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function explain(status, message) {
  const words = { 401: "wantKey", 413: "tooLong", 429: "busy", 500: "internal", 503: "down", 504: "slow" };
  if (status === 401) {
    by("key_field").hidden = false;
    by("settings").open = true;
  }
  return words[status] ? say(words[status]) : say("invalid") + message;
}

function requestBody(prompt) {
  const body = { model: document.body.dataset.model, prompt, stream: true, stream_options: { include_usage: true } };
  for (const name of FIELDS) {
    const value = by(name).value;
    if (value !== "") body[name] = Number(value);
  }
  return body;
}

// Yield the events of a stream, each one JSON text. An incomplete event waits for the next piece.
async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function answer(prompt, signal) {
  const headers = { "Content-Type": "application/json" };
  if (by("key").value) headers.Authorization = `Bearer ${by("key").value}`;
  const response = await fetch("v1/completions", { method: "POST", headers, signal, body: JSON.stringify(requestBody(prompt)) });
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Error(explain(response.status, told.error?.message ?? response.statusText));
  }
  let text = "", tokens = 0, complete = false;
  for await (const event of events(response)) {
    if (event === "[DONE]") { complete = true; break; }
    const chunk = JSON.parse(event);
    if (chunk.error) throw new Error(explain(chunk.error.code, chunk.error.message));
    if (chunk.usage) tokens = chunk.usage.completion_tokens;
    if (chunk.choices.length) {
      text += chunk.choices[0].text;
      showAnswer(prompt, text, true);
    }
  }
  if (!complete) throw new Error(say("broken"));
  return { text, tokens };
}

async function send() {
  const prompt = by("prompt").value;
  if (!prompt || running) return;
  running = new AbortController();
  const begin = performance.now();
  showError("");
  showAnswer(prompt, "", true);
  by("send").disabled = true;
  by("stop").hidden = false;
  by("status").textContent = say(streams ? "waiting" : "whole");
  try {
    const { text, tokens } = await answer(prompt, running.signal);
    by("status").textContent = say("done", tokens, ((performance.now() - begin) / 1000).toFixed(1));
    store("history", [{ prompt, text }, ...stored("history", [])].slice(0, MOST_HISTORY));
    showHistory();
  } catch (error) {
    by("status").textContent = error.name === "AbortError" ? say("stopped") : "";
    if (error.name !== "AbortError") showError(error instanceof TypeError ? say("unreachable") : error.message);
  }
  by("text").classList.remove("growing");
  by("send").disabled = false;
  by("stop").hidden = true;
  running = null;
}

by("form").onsubmit = (event) => { event.preventDefault(); send(); };
by("prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(); };
by("stop").onclick = () => running?.abort();
by("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  store("language", language);
  translate();
};
by("copy").onclick = async () => {
  const text = by("text").textContent;
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {  // the page was not loaded by https
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  by("copy").textContent = say("copied");
  setTimeout(translate, 1500);
};
by("clear").onclick = () => { store("history", []); showHistory(); };
by("examples").append(...EXAMPLES.map((text) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.onclick = () => { by("prompt").value = text; by("prompt").focus(); };
  return button;
}));
for (const name of FIELDS) {
  by(name).value = stored(`setting_${name}`, by(name).value);
  by(name).onchange = () => store(`setting_${name}`, by(name).value);
}
by("key").value = stored("key", "");
by("key").onchange = () => store("key", by("key").value);
translate();
showHistory();
