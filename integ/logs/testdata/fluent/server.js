// Takes events by the forward protocol and prints each as one line of JSON. The first line
// is the port; with an argument it listens on the unix socket of that name instead.
"use strict";
const { FluentServer } = require("@fluent-org/logger");

const path = process.argv[2];
const server = new FluentServer({ listenOptions: path ? { path } : { host: "127.0.0.1", port: 0 } });
server.on("entry", (tag, time, record) => {
  const exact = typeof time === "object" && "nano" in time;
  process.stdout.write(JSON.stringify({ tag, seconds: exact ? time.epoch : Number(time), nanos: exact ? time.nano : -1, record }) + "\n");
});
server.listen().then(
  () => process.stdout.write(JSON.stringify({ port: path ? 0 : server.port }) + "\n"),
  (err) => { process.stderr.write(String(err) + "\n"); process.exit(1); },
);
