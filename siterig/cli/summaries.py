"""The first paragraph of every command's help, which ``siterig --help`` shows without loading the commands.

tests/unit/siterig/cli/test_startup.py compares the table with the commands.
"""

from __future__ import annotations

SUMMARIES = {
    "doctor": "Check that this machine has everything that a rig needs, and print remedies.",
    "up": "Start the rig, and return when every role is ready.",
    "down": "End the rig and release its mounts and loop devices, also those that remain after a kill.",
    "status": "Show roles, VMs and protected items of the rig, or everything about one VM; the exit status is the health.",
    "protect": "Enable replication of a VM, and wait until it is protected: initial replication, then the first "
    "recovery point.",
    "unprotect": "Disable replication of a VM: its recovery points and managed disks are deleted, its own disks stay.",
    "points": "List the recovery points of a VM, newest first.",
    "take-point": "Take a recovery point now, outside the schedule; crash-consistent by default.",
    "bisect": "Find the write that broke something: run CMD on states between two points until the first bad state is "
    "known.",
    "cleanup": "Remove the VM of a test failover.",
    "commit": "Keep the result of a failover or failback; all recovery points of the VM are deleted.",
    "failback": "Bring a committed VM back to the site: download its disks there.",
    "reprotect": "Reverse the replication: protect a VM again after its failback.",
    "resync": "Compare both sides and send the chunks that differ.",
    "pause": "Pause replication of a VM, for maintenance: no cycle runs, and none is missed, until siterig resume.",
    "resume": "Resume replication of a paused VM, with a cycle at once.",
    "verify": "Compare both sides of a VM by checksums, at one position, while replication runs; no data is sent.",
    "metrics": "Print the metrics of the vault in the text format of Prometheus.",
    "jobs": "List the jobs of the vault, or show one job with its tasks and errors.",
    "events": "List the events of the vault.",
    "mount": "Expose an image as a disk, DIR/NAME.img, until it is unmounted.",
    "drill": "Run everything once: protect a VM under load, lose the site, recover, fail back; exit 0 if all checks passed.",
    "power-loss": "Lose the power of the disks of a mount or VM at one position: unsynced writes are lost, all or some.",
    "completion": "Print a script that completes siterig and ./rig in a shell; its first lines explain how to use it.",
    "man": "Show the manual page of a command, or write all pages.",
    "setup": "Install Azurite for this user.",
    "vm": "Create, list, rename, update and delete VMs.",
    "point": "Mount and export earlier states of the disks of a VM; pin and delete recovery points.",
    "disk": "List, check, grow and attach virtual disks; begin and end their replication.",
    "failover": "Create a VM from a recovery point.",
    "error": "List and acknowledge the reasons for which VMs are not healthy.",
    "bandwidth": "Show and limit the rate of the site's uploads.",
    "policy": "Show and change the replication policy of a VM.",
    "app-script": "Script of a VM for application-consistent points.",
    "alert": "Mail about alerts, and the RPO threshold.",
    "job": "List and cancel jobs.",
    "key": "The vault's key, which encrypts the keys of all data: list, rotate, revoke, restore.",
    "account": "Show the storage account of the rig, and replace its secret or its keys.",
    "role": "List, kill and restart the processes of the rig.",
    "site": "Lose a site, and restore it; fence a VM of it; register its host with the vault.",
    "certificate": "List, rotate and revoke the certificates of the links between the sides.",
    "vault": "Write a vault credentials file, which registers hosts.",
    "log": "Read change logs.",
    "fault": "Arm faults, see what they did, and check files of fault rules.",
    "clock": "Show, move and bend the time of the rig.",
    "scenario": "Run scenario files: a rig, workloads, faults and operations over time, and what must hold.",
}
