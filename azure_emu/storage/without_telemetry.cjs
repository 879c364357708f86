// Node loads this file before Azurite.  Azurite loads the client of its telemetry even with --disableTelemetry, and that client
// with its 600 modules takes 60 percent of the processor time of a start.  Here Azurite gets an empty object in its place.
"use strict";

const Module = require("node:module");

const load = Module._load;
Module._load = function (request, ...rest) {
    return request === "applicationinsights" ? {} : load.call(this, request, ...rest);
};
