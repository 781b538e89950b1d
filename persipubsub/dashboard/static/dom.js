// Makes elements. Text is only ever set as text, so nothing that others wrote becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element with properties, attributes and children; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set the text of an element if it has changed, so that a selection stays. */
export function setText(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** Replace the children of an element. */
export function replace(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

// Control characters, and those that change the direction or the look of what follows; and halves of characters.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Return foreign text with hidden characters escaped; line breaks and tabs stay. */
export function visible(text) {
  return text.replace(HIDDEN, (one) => "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** Return foreign text as one line. */
export function oneLine(text) {
  return visible(text).replace(/\n/g, "\\n").replace(/\t/g, "\\t");
}

/** Show a dialog with a form, and return what was entered, or null if it was cancelled. */
export function ask(title, text, confirm, input = null) {
  const dialog = document.getElementById("dialog");
  const field = input === null ? null : h("input", { type: "password", id: "dialog-input", autocomplete: "off", required: true });
  return new Promise((resolve) => {
    const done = (value) => {
      dialog.close();
      resolve(value);
    };
    const form = h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        done(field === null ? true : field.value.trim());
      },
    },
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, text),
    field && h("label", { for: "dialog-input" }, input, field),
    h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => done(null) }, "Cancel"),
      h("button", { type: "submit", class: "primary" }, confirm)));
    replace(dialog, form);
    dialog.oncancel = (event) => {
      event.preventDefault();
      done(null);
    };
    dialog.showModal();
  });
}
