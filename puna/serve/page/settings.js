// The settings panel, the list of models and the theme: controls that keep `preferences`.

import { el } from "./dom.js";
import { DEFAULTS } from "./store.js";

const $ = (id) => document.getElementById(id);
const THEMES = ["", "light", "dark"]; // "": the system's

// onchange(name) after a preference has changed. Returns { offer(config, models) }, which fills in what there is.
export function installSettings(preferences, onchange) {
  const controls = Object.keys(DEFAULTS).filter((name) => name !== "models").map($);

  function fill() {
    for (const control of controls) {
      if (control.type === "checkbox") control.checked = preferences[control.id];
      else control.value = preferences[control.id];
      showValue(control);
    }
  }

  for (const control of controls) {
    control.addEventListener("input", () => {
      showValue(control);
      if (!control.validity.valid) return;
      const { type, value } = control;
      preferences[control.id] = type === "checkbox" ? control.checked : type === "range" || (type === "number" && value) ? Number(value) : value;
      onchange(control.id);
    });
  }
  $("reset").addEventListener("click", () => {
    Object.assign(preferences, DEFAULTS, { models: preferences.models });
    fill();
    onchange("odds");
  });
  fill();
  installTheme();

  function choose(name, chosen, models) {
    const wanted = chosen ? [...models, name] : models.filter((other) => other !== name);
    preferences.models = wanted.length ? wanted : models;
    onchange("models");
  }

  return {
    offer(config, models) {
      $("model-names").textContent = models.join(" · ") || "no model";
      $("model-list").replaceChildren(
        ...config.models.map((name) => {
          const box = el("input", { type: "checkbox", checked: models.includes(name), onchange: () => choose(name, box.checked, models) });
          return el("label.choice", {}, box, name);
        }),
      );
      const names = config.tools.map((tool) => tool.function?.name ?? tool.type);
      $("tools").disabled = !names.length;
      $("tool-names").textContent = names.length ? names.join(", ") : "None here: puna serve --tools offers some.";
      $("max_tokens").max = config.max_len;
      $("notice").textContent = config.notice; // what the models' licence wants shown
      $("notice").hidden = !config.notice;
    },
  };
}

function showValue(control) {
  const output = control.parentElement.querySelector("output");
  if (output) output.textContent = Number(control.value).toFixed(2);
}

function installTheme() {
  const button = $("theme");
  const show = (theme) => {
    button.title = `Theme: ${theme || "as the system"}`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "";
    const theme = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (theme) {
      document.documentElement.dataset.theme = theme;
      localStorage.setItem("puna.theme", theme);
    } else {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("puna.theme");
    }
    show(theme);
  });
  show(document.documentElement.dataset.theme ?? "");
}
