// A stand-in for mongosh: evaluates a script from standard input, and prints the commands that it would send.
// What a command answers is not known here, so cursors are empty and other answers are `{ok: 1}`.
"use strict";
const vm = require("vm");

const commands = [];
const [databaseName = "test"] = process.argv.slice(2);

function record(database, command) {
  commands.push({ database, command });
  return { ok: 1 };
}

// One command of a cursor, which is recorded when it is made and completed by what follows.
function cursor(database, command) {
  record(database, command);
  const part = (name) => (value) => ((command[name] = value), self);
  const self = {
    sort: part("sort"), limit: part("limit"), skip: part("skip"), hint: part("hint"),
    toArray: () => [], forEach: () => undefined, next: () => null,
  };
  return self;
}

function collection(database, name) {
  const send = (command) => record(database, command);
  return {
    aggregate: (pipeline) => cursor(database, { aggregate: name, pipeline, cursor: {} }),
    find: (filter = {}, projection = {}) => cursor(database, { find: name, filter, projection }),
    countDocuments: (query = {}) => send({ count: name, query }),
    createIndex: (key, options = {}) =>
      send({ createIndexes: name, indexes: [{ key, name: Object.keys(key).join("_"), ...options }] }),
    dropIndex: (index) => send({ dropIndexes: name, index }),
    stats: () => send({ collStats: name }),
    getIndexes: () => send({ listIndexes: name }),
  };
}

function database(name) {
  const send = (command) => record(name, command);
  const methods = {
    getSiblingDB: database,
    getCollection: (of) => collection(name, of),
    runCommand: send,
    adminCommand: (command) => record("admin", command),
    createUser: ({ user, ...rest }) => send({ createUser: user, ...rest }),
    createRole: ({ role, ...rest }) => send({ createRole: role, ...rest }),
    updateUser: (updateUser, rest) => send({ updateUser, ...rest }),
    dropUser: (dropUser) => send({ dropUser }),
    createView: (create, viewOn, pipeline) => send({ create, viewOn, pipeline }),
    stats: () => send({ dbStats: 1 }),
    hello: () => send({ hello: 1 }),
    serverStatus: () => send({ serverStatus: 1 }),
    fsyncLock: () => record("admin", { fsync: 1, lock: true }),
    fsyncUnlock: () => record("admin", { fsyncUnlock: 1 }),
  };
  return new Proxy(methods, { get: (own, key) => (key in own ? own[key] : collection(name, key)) });
}

const context = {
  db: database(databaseName),
  rs: {
    initiate: (replSetInitiate = {}) => record("admin", { replSetInitiate }),
    status: () => record("admin", { replSetGetStatus: 1 }),
    conf: () => record("admin", { replSetGetConfig: 1 }),
    stepDown: (replSetStepDown = 60) => record("admin", { replSetStepDown }),
  },
  passwordPrompt: () => "p@ss/word:%",
  print: () => undefined,
  printjson: () => undefined,
  quit: () => undefined,
  ISODate: (text) => ({ $date: text ?? new Date().toISOString() }),
  ObjectId: (text) => ({ $oid: text }),
  Long: (text) => ({ $numberLong: String(text) }),
};

let script = require("fs").readFileSync(0, "utf8");
if (process.argv[3] === "--documents") {
  // Each paragraph is a value instead of a statement.
  const values = script.split(/\n\n/).map((text) => text.replace(/^\/\/.*$/gm, "").trim()).filter(Boolean);
  script = values.map((text) => `(${text});`).join("\n");
}
vm.runInNewContext(script, context, { filename: "block" });
process.stdout.write(JSON.stringify(commands));
