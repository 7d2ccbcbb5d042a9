// Numbers, durations and moments as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const absolute = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const second = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en", { month: "short", day: "numeric" });
const dayOfYear = new Intl.DateTimeFormat("en", { year: "numeric", month: "short", day: "numeric" });

export const count = (value) => (Math.abs(value) < 100000 ? whole.format(value) : short.format(value));

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function rate(perS) {
  if (!perS) return "0/s";
  if (perS >= 100) return `${count(Math.round(perS))}/s`;
  if (perS >= 0.1) return `${perS.toFixed(1)}/s`;
  return `${(perS * 60).toFixed(1)}/min`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0005) return "0 ms";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const total = Math.round(seconds);
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60 ? `${total % 60} s` : ""}`.trim();
  if (total < 86400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

export function bytes(size) {
  if (size < 1000) return `${size} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = size, unit = -1;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Say when it was or will be. */
export function ago(moment, now = Date.now()) {
  const at = new Date(moment);
  const seconds = (now - at.getTime()) / 1000;
  const size = Math.abs(seconds);
  let text;
  if (size < 1) return "now";
  if (size < 60) text = `${Math.floor(size)} s`;
  else if (size < 3600) text = `${Math.floor(size / 60)} min`;
  else if (size < 86400) text = `${Math.floor(size / 3600)} h`;
  else if (size < 7 * 86400) text = `${Math.floor(size / 86400)} d`;
  else return (at.getFullYear() === new Date(now).getFullYear() ? day : dayOfYear).format(at);
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

export const exact = (moment) => absolute.format(new Date(moment));
export const moment = (date) => second.format(date);
export const hour = (moment) => clock.format(new Date(moment));

/** The end of an id: its beginning is a moment, and the same for many. */
export const shortId = (id) => id.slice(-8);

/** Say when it is where `zone` is; one that the browser has no clock for is told as UTC. */
export function exactIn(moment, zone) {
  const how = { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" };
  try {
    return new Intl.DateTimeFormat("en", { ...how, timeZone: zone }).format(new Date(moment));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return new Intl.DateTimeFormat("en", { ...how, timeZone: "UTC" }).format(new Date(moment));
  }
}

export const seconds = (from, to) => (new Date(to) - new Date(from)) / 1000;
