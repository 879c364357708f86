// Node loads this file before Azurite, which loads modules that it does not use: the client of its telemetry even with
// --disableTelemetry, and sequelize even if its metadata are in files.  They take 70 percent of the processor time of a start,
// and package.json does not install them.  Azurite gets objects in their place that have just enough for its classes to be
// defined.
"use strict";

const Module = require("node:module");

const UNUSED = { applicationinsights: {}, sequelize: { Model: class {} } };

const load = Module._load;
Module._load = function (request, ...rest) {
    if (Object.hasOwn(UNUSED, request)) {
        return UNUSED[request];
    }
    const found = load.call(this, request, ...rest);
    if (request.endsWith("common/AccountDataStore")) {
        followKeys(found.default);
    }
    return found;
};

// With HTTPS the certificate is in the file that --cert names.  It is replaced when the certificate is rotated: later
// connections use the new one, and open ones stay.
const fs = require("node:fs");
const https = require("node:https");
const path = require("node:path");

const createServer = https.createServer;
https.createServer = function (...options) {
    const server = createServer.apply(this, options);
    const file = process.argv[process.argv.indexOf("--cert") + 1];
    const follow = fs.watch(path.dirname(file), (_, name) => {
        if (name === path.basename(file)) {
            try {
                const both = fs.readFileSync(file);
                server.setSecureContext({ cert: both, key: both });
            } catch (error) {
                console.error(`the certificate in ${file} is not used: ${error.message}`);
            }
        }
    });
    follow.unref();
    return server;
};

// Azurite reads the keys of its accounts from its environment once a minute.  The file that SITERIG_ACCOUNT_KEYS names is
// replaced when the keys are rotated: requests from then on need one of its keys.
function followKeys(accounts) {
    const file = process.env.SITERIG_ACCOUNT_KEYS;
    if (file === undefined || accounts.prototype.followsKeys) {
        return;
    }
    accounts.prototype.followsKeys = true;
    const init = accounts.prototype.init;
    accounts.prototype.init = function () {
        const follow = fs.watch(path.dirname(file), (_, name) => {
            if (name === path.basename(file)) {
                try {
                    process.env.AZURITE_ACCOUNTS = fs.readFileSync(file, "utf8").trim();
                    this.refresh();
                } catch (error) {
                    console.error(`the keys in ${file} are not used: ${error.code}`);
                }
            }
        });
        follow.unref();
        return init.call(this);
    };
}
