// Node loads this file before Azurite, which loads modules that it does not use: the client of its telemetry even with
// --disableTelemetry, and sequelize even if its metadata are in files.  They take 70 percent of the processor time of a start,
// and package.json does not install them.  Azurite gets objects in their place that have just enough for its classes to be
// defined.
"use strict";

const Module = require("node:module");

const UNUSED = { applicationinsights: {}, sequelize: { Model: class {} } };

const load = Module._load;
Module._load = function (request, ...rest) {
    return Object.hasOwn(UNUSED, request) ? UNUSED[request] : load.call(this, request, ...rest);
};
