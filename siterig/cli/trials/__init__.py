"""Commands that try software under faults: drill, bisect, fault, clock.

Imports azure_emu.vault.model, blockfs.clocks, blockfs.core, scenarios.contracts, scenarios.drill, scenarios.faults,
scenarios.faults.importers, scenarios.files, scenarios.report, siterig.bisect, siterig.cli, siterig.cli.commands,
siterig.core, siterig.images, siterig.rpc, siterig.scenario_runs, siterig.supervisor, siterig.testing.
"""
