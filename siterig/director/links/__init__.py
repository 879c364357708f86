"""Links and blob service of a rig under fault rules: the injectors of both layers, and the proxies in their paths.

Imports azure_emu.storage, azure_emu.user_account, blockfs.core, blockfs.documents, scenarios.faults, siterig.accounts,
siterig.core, siterig.director, siterig.net, siterig.rpc.
"""
