// BullMQ: `node use_bullmq.mjs produce` is produce.py and `... work` a worker with body.py's job.
import { openSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// BullMQ is installed in a folder that is no parent of this one.
const { Queue, Worker } = createRequire(`${process.env.PEER_MODULES}/`)("bullmq");

const PAYLOAD = "x".repeat(80);
const JOBS = 2 ** 25, TIMED = 2 ** 14, A_CALL = 1000;
const { hostname: host, port } = new URL(process.env.PEER_BROKER);
const connection = { host, port: Number(port), maxRetriesPerRequest: null };
const options = { removeOnComplete: true, removeOnFail: true };

const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const now = () => (performance.timeOrigin + performance.now()) / 1000;

function work() {
  const counts = openSync(process.env.PEER_COUNTS, "r+");
  const byte = Buffer.alloc(1), slot = Buffer.alloc(16);
  slot.writeDoubleLE(process.pid, 8);
  const run = async ({ data: { n, napS } }) => {
    if (n < TIMED) {
      slot.writeDoubleLE(now(), 0);
      writeSync(counts, slot, 0, 16, JOBS + n * 16);
    }
    readSync(counts, byte, 0, 1, n);
    byte[0] += 1;
    writeSync(counts, byte, 0, 1, n);
    if (napS) await sleep(napS);
  };
  new Worker("jobs", run, { connection, concurrency: 50 });
}

async function produce() {
  const queue = new Queue("jobs", { connection });
  await queue.waitUntilReady();
  const add = (n, napS = 0) => queue.add("job", { n, payload: PAYLOAD, napS }, options);
  const say = (answer) => writeSync(1, JSON.stringify(answer) + "\n");
  const clock = () => Number(process.hrtime.bigint()) / 1e9; // CLOCK_MONOTONIC, as in Python
  say({ bulk: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    const napS = order.with?.nap_s ?? 0, last = order.first + order.count;
    const sentAt = [], began = clock();
    if (order.do === "bulk") {
      for (let at = order.first; at < last; at += A_CALL) {
        const some = Array.from({ length: Math.min(A_CALL, last - at) }, (_, i) => at + i);
        await queue.addBulk(
          some.map((n) => ({ name: "job", data: { n, payload: PAYLOAD, napS: 0 }, opts: options })),
        );
      }
    } else {
      for (let n = order.first; n < last; n++) {
        if (order.do === "idle") {
          await sleep(0.005 + 0.025 * Math.random());
          sentAt.push(now());
        }
        await add(n, napS);
      }
    }
    say({ began, ended: clock(), sent_at: sentAt });
  }
  process.exit(0);
}

process.argv[2] === "work" ? work() : await produce();
