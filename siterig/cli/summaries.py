"""The first paragraph of every command's help, which ``siterig --help`` shows without loading the commands.

tests/unit/siterig/cli/test_startup.py compares the table with the commands.
"""

from __future__ import annotations

SUMMARIES = {
    "doctor": "Check this machine: what the rig needs, whether it is there, and what to do if not.",
    "up": "Start the rig, and return when every role is ready.",
    "down": "End the rig and give back its mounts and loop devices, also those left behind by a kill.",
    "status": "Show the rig's roles, VMs and protected items; exit status 1 if a role is not ready or does not answer.",
    "protect": "Enable replication of a VM, and wait until it is protected: initial replication, then the first "
    "recovery point.",
    "unprotect": "Disable replication of a VM: its recovery points and managed disks go, its own disks stay.",
    "points": "List a VM's recovery points, newest first.",
    "take-point": "Take a recovery point now, out of turn; crash-consistent unless said otherwise.",
    "bisect": "Find the write that broke something: CMD is run at positions between two points until the first bad "
    "one is known.",
    "cleanup": "Remove the VM of a test failover.",
    "commit": "Keep the result of a failover or failback; the recovery points it could have been changed to go.",
    "failback": "Bring a committed VM back to the site: its disks are downloaded there.",
    "reprotect": "Reverse replication: protect a VM again that came back to the site.",
    "resync": "Compare both sides and send the chunks that differ.",
    "jobs": "List the vault's jobs, or show one with its tasks and errors.",
    "events": "List the vault's events.",
    "mount": "Expose an image as a disk, DIR/NAME.img, until it is unmounted.",
    "drill": "Run the whole way once: protect a VM under load, lose the site, recover, fail back; exit 0 only if all held.",
    "completion": "Print what a shell has to evaluate to complete siterig and ./rig; its first lines say how.",
    "man": "Show the manual page of a command, or write all pages.",
    "vm": "Create, list, rename and delete VMs.",
    "point": "Look at a VM's disks as they were.",
    "disk": "Look at virtual disks, check and grow them.",
    "failover": "Make a VM from a recovery point.",
    "role": "The processes of the rig.",
    "site": "Lose a site, and get it back.",
    "log": "Read change logs.",
}
