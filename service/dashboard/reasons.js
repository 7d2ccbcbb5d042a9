// Why dead letters of one kind are dead: what one of them says.

import { get, query } from "./api.js";

/** More kinds than these are not asked for. */
const KINDS = 20;

const keyOf = ({ queue, type, cause }) => JSON.stringify([queue, type, cause]);

/** `read(counts)` asks for what is not known yet; `of(one)` is the error of the longest dead. */
export function reasons() {
  const known = new Map();

  async function ask(one) {
    const { jobs } = await get(query("/v1/dead-letters", { queue: one.queue, type: one.type, cause: one.cause, limit: 1 }));
    known.set(keyOf(one), { count: one.count, text: jobs[0]?.error?.message ?? "" });
  }

  return {
    read: (counts) => Promise.all(counts.slice(0, KINDS).filter((one) => known.get(keyOf(one))?.count !== one.count).map(ask)),
    of: (one) => known.get(keyOf(one))?.text ?? "",
  };
}
