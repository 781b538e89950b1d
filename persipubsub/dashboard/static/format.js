// Numbers as people read them.

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const NONE = "–";

/** Return a whole number. */
export function count(value) {
  return value === null || value === undefined ? NONE : WHOLE.format(value);
}

/** Return a rate per second. */
export function rate(value) {
  if (value === null || value === undefined) {
    return NONE;
  }
  return value === 0 || value >= 10 ? WHOLE.format(value) : value < 0.1 ? "<0.1" : value.toFixed(1);
}

/** Return an age in seconds with a unit. */
export function age(seconds) {
  if (seconds === null || seconds === undefined) {
    return NONE;
  }
  if (seconds < 1) {
    return "<1 s";
  }
  for (const [unit_s, unit, most_s] of [[1, "s", 120], [60, "min", 7200], [3600, "h", 172800]]) {
    if (seconds < most_s) {
      return `${WHOLE.format(seconds / unit_s)} ${unit}`;
    }
  }
  return `${WHOLE.format(seconds / 86400)} days`;
}

/** Return a number of bytes with a unit. */
export function bytes(value) {
  if (value === null || value === undefined) {
    return NONE;
  }
  let unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? WHOLE.format(value) : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** Return the local time of an ISO time. */
export function time(iso) {
  const at = new Date(iso);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("en-CA")} `;
  return `${day}${at.toLocaleTimeString("en-GB")}`;
}

/** Return a number with its noun. */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
