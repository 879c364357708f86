"""The errors that a user or a peer sees: one enumeration of all codes, and the exception that carries them.

``docs/reference/errors.md`` and the table of exit statuses are generated from this module.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class ExitStatus(IntEnum):
    """The exit statuses of the command line."""

    meaning: str

    def __new__(cls, status: int, meaning: str) -> Self:
        """Create a member from its number and one line of text."""
        member = int.__new__(cls, status)
        member._value_ = status
        member.meaning = meaning
        return member

    OK = 0, "The command worked. For an operation: its job has the state `Succeeded`."
    FAILED = 1, "An operation or a check failed. For `status`: a role is not ready or does not answer."
    BAD_INPUT = 2, "The command line or an input is wrong."
    NOT_UP = 3, "The rig is not up, or a role of it does not answer; also if a job failed for that reason."
    ENVIRONMENT = 4, "The machine lacks something: `siterig doctor` names it."
    WARNING = 5, "For `status`: every role is ready; the worst health of the VMs is Warning."
    CRITICAL = 6, "For `status`: every role is ready; the health of a VM is Critical."
    INTERRUPTED = 130, "Ctrl-C, SIGTERM, or the terminal was closed. `mount` ends with 0 once the disk is mounted."


_FAILED, _BAD_INPUT, _NOT_UP, _ENVIRONMENT = (
    ExitStatus.FAILED,
    ExitStatus.BAD_INPUT,
    ExitStatus.NOT_UP,
    ExitStatus.ENVIRONMENT,
)


class Code(StrEnum):
    """All error codes.  A code is stable: it crosses process boundaries, stands in JSON, and programs compare it.

    Each member has the exit status of a command that fails with it, one line of text (``text``), and what a user does
    about it (``remedy``).  The name of a member is its value, so that a search for a code finds all places that use it.
    """

    exit_status: ExitStatus
    text: str
    remedy: str

    def __new__(cls, value: str, exit_status: ExitStatus, text: str, remedy: str) -> Self:
        """Create a member from its value, exit status, text and remedy."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.exit_status, member.text, member.remedy = exit_status, text, remedy
        return member

    @classmethod
    def of(cls, value: str) -> Code:
        """Return the member for a code that was received or stored.

        A code that this version does not know, from a role or a file of another version, keeps its value; a command
        that fails with it exits with ``ExitStatus.FAILED``.
        """
        known = cls._value2member_map_.get(value)
        if isinstance(known, Code):
            return known
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        unknown.exit_status, unknown.text, unknown.remedy = ExitStatus.FAILED, "A code of another version of siterig.", ""
        return unknown

    # fmt: off
    AckFileCorrupt = ("AckFileCorrupt", _FAILED, "The file of acknowledged transactions of the ledger is damaged.",
        "Start the drill again: the file cannot be repaired.")
    AccountFixed = ("AccountFixed", _BAD_INPUT, "A rig keeps the storage account that it began with.",
        "Give a secret for that account with siterig account set, or start a new rig.")
    AccountKeysBusy = ("AccountKeysBusy", _FAILED, "The keys of the storage account are being rotated.",
        "Wait for the end of the other rotation.")
    AccountKeysOfUser = ("AccountKeysOfUser", _FAILED,
        "The storage account is not Azurite's: siterig cannot rotate its keys.",
        "Replace the key in Azure, then give the new secret with siterig account set.")
    AccountPermissionMissing = ("AccountPermissionMissing", _FAILED,
        "The secret of the storage account does not permit an operation that replication needs.",
        "Create a SAS with read, write, delete and list, or assign the role Storage Blob Data Contributor.")
    AgentNotRunning = ("AgentNotRunning", _FAILED, "The replication agent of the site is still starting.",
        "Wait a moment; siterig status shows when the role is ready.")
    AgentStateUnreadable = ("AgentStateUnreadable", _FAILED,
        "The state file of the replication agent is damaged, or of an unknown format.",
        "Restore the file that the message names, or start from a new state folder.")
    AlreadyServed = ("AlreadyServed", _FAILED, "Another process serves the disks of this folder.",
        "End the other process, or use another folder.")
    AlreadyUp = "AlreadyUp", _FAILED, "The rig is up already.", "Use the rig as it is, or end it first with siterig down."
    AmbiguousId = ("AmbiguousId", _BAD_INPUT, "Several ids begin with the characters that were given.",
        "Give more characters of the id.")
    AppScriptFailed = ("AppScriptFailed", _FAILED,
        "The script of the VM, called with --pre or --post for an application-consistent point, failed.",
        "Read its output in log/agent.log. A crash-consistent point is taken, or no point if you asked for one.")
    AppScriptTimedOut = ("AppScriptTimedOut", _FAILED,
        "The script of the VM for application-consistent points did not end in time, and was ended.",
        "Read its output in log/agent.log, or set another limit with siterig app-script set --time-limit.")
    AppScriptUnusable = ("AppScriptUnusable", _BAD_INPUT,
        "A script for application-consistent points is missing, not executable, or can be changed by other users.",
        "Give an executable file to which only its owner may write.")
    AttachFailed = ("AttachFailed", _FAILED, "A disk could not be attached to a loop device.",
        "Read the reason in the message; siterig doctor checks loop devices.")
    AuthorityUnusable = ("AuthorityUnusable", _FAILED,
        "The authority of the vault, or its register of certificates, is damaged.",
        "Restore the folder authority of the rig, or start from a new state folder.")
    AutomaticResyncFailed = ("AutomaticResyncFailed", _FAILED, "A resync that began by itself failed; no other begins.",
        "Remove the cause, then run siterig resync VM.")
    AzuriteDied = ("AzuriteDied", _FAILED, "The process of the Azurite storage emulator ended unexpectedly.",
        "Read its last output in the message; siterig role restart azurite starts it again.")
    AzuriteMissing = ("AzuriteMissing", _ENVIRONMENT, "The Azurite storage emulator is not installed, or cannot be started.",
        "Run siterig setup azurite, or ./rig in a checkout.")
    AzuriteNotStarted = ("AzuriteNotStarted", _FAILED, "Azurite was never started in this state folder.",
        "Start the rig with siterig up.")
    AzuriteSetupFailed = ("AzuriteSetupFailed", _ENVIRONMENT, "npm could not install the Azurite storage emulator.",
        "Read the message of npm in the error, then run siterig setup azurite again.")
    AzuriteSilent = ("AzuriteSilent", _FAILED, "The Azurite storage emulator does not answer.",
        "Read the reason in the message; siterig role restart azurite starts it again.")
    AzureIdentityMissing = ("AzureIdentityMissing", _ENVIRONMENT,
        "The package azure-identity is missing; a URL of a storage account without a SAS needs it.",
        "Install siterig[azure], or give a SAS URL or a connection string.")
    BadAccountKey = ("BadAccountKey", _FAILED, "The file with the key of the storage account is damaged.",
        "Restore the file, or start from a new state folder.")
    BadAccountSecret = ("BadAccountSecret", _BAD_INPUT,
        "The text that names a storage account with its secret is not usable.",
        "Correct the part that the message names.")
    BadAnswer = "BadAnswer", _FAILED, "A role answered with more bytes than are accepted.", "Report it: this is a bug."
    BadCertificate = ("BadCertificate", _FAILED, "A file with a certificate and its key is damaged, or cannot be read.",
        "Remove the file that the message names, and start the rig again: it gets a new one.")
    BadChecksums = ("BadChecksums", _FAILED, "The recovery side returned checksums that were not requested.",
        "Report it: this is a bug.")
    BadConnectionString = ("BadConnectionString", _FAILED,
        "The connection string of the cache storage account is malformed.",
        "Give AccountName, AccountKey and BlobEndpoint or EndpointSuffix.")
    BadCredentialsFile = ("BadCredentialsFile", _BAD_INPUT, "A file is no vault credentials file.",
        "Write a new one with siterig vault credentials.")
    BadPartName = ("BadPartName", _FAILED, "A blob in the cache storage account is not named like a replication part.",
        "Remove blobs that siterig did not write from the account.")
    BadPort = ("BadPort", _FAILED, "The file with the port of Azurite does not hold a port number.",
        "Remove the file that the message names.")
    BadRequest = ("BadRequest", _BAD_INPUT, "The arguments do not fit together, or a value is not allowed.",
        "Correct the argument that the message names.")
    BundleCorrupt = ("BundleCorrupt", _FAILED, "A blob with the tags of several disks is damaged.",
        "None: the site is asked to send the parts in it again.")
    BrokenVhdChain = ("BrokenVhdChain", _FAILED, "The parent image of a differencing disk was changed or replaced.",
        "Restore the parent image as it was, then start the rig again; or delete the disk.")
    CacheAuthentication = ("CacheAuthentication", _FAILED, "The cache storage account does not accept the account key.",
        "Restore the key file of the account in the state folder.")
    CacheError = ("CacheError", _FAILED, "The cache storage account refused a request.",
        "Read the answer of the account in the message.")
    CacheForbidden = ("CacheForbidden", _FAILED, "The cache storage account forbids the request.",
        "Check the firewall and the rights of the account.")
    CacheUnreachable = ("CacheUnreachable", _FAILED, "The cache storage account does not answer, or is busy.",
        "Wait: the request is repeated. siterig status shows the role azurite.")
    Cancelled = ("Cancelled", _FAILED, "A user or another operation on the VM cancelled the job.",
        "Start the operation again if it is still needed.")
    CheckFails = ("CheckFails", _FAILED, "The command of bisect does not pass at the good point.",
        "Choose an older good point, or correct the check.")
    CheckPasses = ("CheckPasses", _FAILED, "The command of bisect does not fail at the bad point.",
        "Choose a newer bad point, or correct the check.")
    ClockDamaged = ("ClockDamaged", _FAILED, "The page of the rig's clock is damaged.",
        "End the rig and remove the file that the message names: the clock is then the system's.")
    ClockNotFollowed = ("ClockNotFollowed", _FAILED,
        "The clock was changed, and a role does not follow the change.",
        "Look at the role with siterig role list; it follows when it runs again.")
    CommandDied = ("CommandDied", _FAILED, "The command of bisect ended in a way that is neither pass, fail nor skip.",
        "Read its last output in the message and correct the check.")
    CommandUnusable = ("CommandUnusable", _BAD_INPUT, "The command of bisect cannot be run.",
        "Correct the command line after --.")
    ConvertFailed = "ConvertFailed", _FAILED, "qemu-img could not convert an image.", "Read the reason in the message."
    ContainerMissing = ("ContainerMissing", _FAILED,
        "The container is not in the storage account, and the secret does not permit to create it.",
        "Create the container, or give a secret that permits it.")
    CorpusTooSmall = ("CorpusTooSmall", _FAILED, "The folders for the files of the drill hold too few readable bytes.",
        "Name other folders, or use smaller disks.")
    DeadMount = ("DeadMount", _FAILED, "The process of a mount was killed; nothing answers there.",
        "Unmount it: fusermount3 -u DIR.")
    DirtyCorrupt = "DirtyCorrupt", _FAILED, "The dirty bitmap of a disk is damaged.", "Run siterig resync VM."
    DirtyVersion = ("DirtyVersion", _FAILED, "The dirty bitmap of a disk has a format that this siterig does not read.",
        "Use the siterig that wrote it.")
    DiskCorrupt = ("DiskCorrupt", _FAILED, "The metadata of a disk is damaged or missing.",
        "Restore all files of the disk that the message names from one backup.")
    DiskExists = "DiskExists", _BAD_INPUT, "A disk of this name exists already.", "Give another name."
    DiskFull = ("DiskFull", _FAILED, "The file system of the host has no free space.",
        "Free some space; most operations then continue by themselves.")
    DiskHostUnreachable = ("DiskHostUnreachable", _FAILED, "The process that serves the disks does not answer.",
        "Wait: it is restarted. siterig status shows its role.")
    DiskInUse = "DiskInUse", _FAILED, "The disk is open or mounted.", "Unmount it and end the processes that use it."
    DiskNotFound = "DiskNotFound", _BAD_INPUT, "No such disk exists.", "Choose one of the disks that the message lists."
    DiskNotEncrypted = ("DiskNotEncrypted", _FAILED, "A managed disk of an older siterig is being encrypted.",
        "Wait: replication of its VM continues then, and all recovery points stay.")
    DiskPinned = ("DiskPinned", _FAILED, "A damaged managed disk cannot be replaced while a state of it is in use.",
        "Unmount or remove the holder that the message names.")
    DiskReplaced = ("DiskReplaced", _FAILED, "A failback replaced the contents of the disk.",
        "None: the reverse replication sends the differences.")
    DiskReplicatedBefore = ("DiskReplicatedBefore", _FAILED,
        "The disk was replicated before, so the initial replication compares it.",
        "None: the initial replication continues as a resynchronization.")
    DiskSizeUnsupported = ("DiskSizeUnsupported", _BAD_INPUT, "The disk is larger than the service supports.",
        "Give the disk a size that the message allows.")
    DiskStateCorrupt = ("DiskStateCorrupt", _FAILED, "The state file of a disk is damaged.",
        "Restore the file that the message names.")
    DiskTooSmall = ("DiskTooSmall", _BAD_INPUT, "The disk is smaller than its image or file system needs.",
        "Give a larger size.")
    DiskUnhealthy = ("DiskUnhealthy", _FAILED, "A file of a disk was changed or damaged while the disk was in use.",
        "Follow the remedy in the message: it names the file.")
    DiskUnreadable = "DiskUnreadable", _FAILED, "Two disks could not be compared.", "Read the reason in the message."
    DmLogCorrupt = "DmLogCorrupt", _FAILED, "The dm-log-writes log is damaged.", "Write the log again."
    DrillTimedOut = ("DrillTimedOut", _FAILED, "A step of the drill did not complete in time.",
        "Read the logs of the rig, or run the drill on a faster machine.")
    ExtentsCorrupt = ("ExtentsCorrupt", _FAILED, "The index of a disk's extents is damaged.",
        "Report it: the data comes from siterig itself.")
    FaultNotImported = ("FaultNotImported", _BAD_INPUT, "A fault of another tool's file cannot be expressed as a rule.",
        "Remove the fault that the message names from the file, or write it as a rule by hand.")
    FaultNotFired = ("FaultNotFired", _FAILED, "A fault rule has not fired as often as was waited for.",
        "Read the counts with siterig fault list: no operation matched the rule, or its window is not open.")
    FaultNotFound = ("FaultNotFound", _BAD_INPUT, "The disk has no such fault rule, or the rule was removed meanwhile.",
        "List the rules of the disk.")
    FaultNotPossible = ("FaultNotPossible", _BAD_INPUT, "A fault cannot be armed on this disk.",
        "Change the rule as the message says.")
    FileExists = "FileExists", _BAD_INPUT, "The file exists already.", "Name another file, or replace it with --force."
    FolderUnusable = "FolderUnusable", _BAD_INPUT, "The folder cannot be used for this.", "Follow the remedy in the message."
    ForeignFile = ("ForeignFile", _BAD_INPUT, "The file belongs to another user, or another user can change it.",
        "Follow the remedy in the message.")
    FreezeFailed = ("FreezeFailed", _FAILED, "A file system of the guest could not be frozen.",
        "None: a crash-consistent point is taken, or no point if you asked for one.")
    FreezeTimedOut = ("FreezeTimedOut", _FAILED,
        "The file systems of the guest were not frozen in time, or not for long enough.",
        "None: a crash-consistent point is taken, or no point if you asked for one.")
    FuseMissing = ("FuseMissing", _ENVIRONMENT, "FUSE cannot be used on this machine.",
        "Install fuse3 and load the kernel module fuse; siterig doctor checks it.")
    GenerationBehind = ("GenerationBehind", _FAILED, "The recovery side has a newer generation of the disk than the site.",
        "Remove the replication of the VM and protect it again.")
    GenerationChanged = ("GenerationChanged", _FAILED,
        "A new change log was begun by something else than the replication agent.",
        "Run siterig resync VM, unless the initial replication continues as a resynchronization.")
    HealthErrorNotFound = ("HealthErrorNotFound", _BAD_INPUT, "The VM has no such health error.",
        "Choose one of the codes that the message lists.")
    HostIoError = ("HostIoError", _FAILED, "The host could not read or write a file.",
        "Read the reason in the message; check the host's disk.")
    HttpsRequired = ("HttpsRequired", _BAD_INPUT, "A storage account is used by HTTPS only, unless it is on loopback.",
        "Name an address that begins with https://.")
    HostNotRegistered = ("HostNotRegistered", _FAILED, "The host is not registered with the vault.",
        "Write a file with siterig vault credentials, and give it to siterig site register.")
    ImageBusy = "ImageBusy", _FAILED, "The image is in use by another program.", "End the program that the message names."
    ImageChanged = ("ImageChanged", _FAILED, "The image was changed outside siterig, so its log no longer describes it.",
        "For a VM, run siterig resync VM. For a mounted image, give --discard-log.")
    ImageUnusable = ("ImageUnusable", _BAD_INPUT,
        "The image cannot be used: it is missing, of another format, or cannot be opened.",
        "Follow the remedy in the message.")
    InternalError = ("InternalError", _FAILED, "An unexpected exception occurred: a bug in siterig.",
        "Report it with the traceback in the role's log.")
    Interrupted = "Interrupted", _FAILED, "The command or the replication cycle was interrupted.", "Run the command again."
    InvalidChecksumRequest = ("InvalidChecksumRequest", _FAILED, "The request for checksums is malformed.",
        "Report it: this is a bug.")
    InvalidClock = ("InvalidClock", _BAD_INPUT, "A change of the rig's clock is not allowed.",
        "Give a value in the range that the message names.")
    InvalidDisk = ("InvalidDisk", _BAD_INPUT, "The description of a disk cannot be parsed.",
        "Write it in the form that the message shows.")
    InvalidDiskId = ("InvalidDiskId", _FAILED, "The id of a managed disk is not a lower-case UUID.",
        "Report it: the id comes from siterig itself.")
    InvalidDiskSize = ("InvalidDiskSize", _BAD_INPUT, "The size of the disk is not allowed.",
        "Give a size that the message allows.")
    InvalidFault = ("InvalidFault", _BAD_INPUT, "A fault rule, or a file of fault rules, is not allowed.",
        "Correct the key that the message names; docs/reference/fault-rules.md lists all keys.")
    InvalidAlertSettings = ("InvalidAlertSettings", _BAD_INPUT, "A value of the alert settings is not allowed.",
        "Give a value that the message allows.")
    InvalidLimit = ("InvalidLimit", _BAD_INPUT, "The value of a limit is not allowed.",
        "Give a value that the message allows.")
    InvalidName = "InvalidName", _BAD_INPUT, "The name is not allowed.", "Give a name that the message allows."
    InvalidPolicy = ("InvalidPolicy", _BAD_INPUT, "The value of the replication policy is not allowed.",
        "Give a value that the message allows.")
    InvalidPosition = ("InvalidPosition", _BAD_INPUT, "No state of the disk can be read at this position.",
        "Choose a position that the message allows.")
    InvalidRetryTable = ("InvalidRetryTable", _FAILED,
        "The table of retry delays is empty or has a delay that is not positive.",
        "Give at least one positive delay.")
    InvalidScenario = ("InvalidScenario", _BAD_INPUT, "A scenario file is not allowed.",
        "Correct the key that the message names; docs/reference/scenario-files.md lists all keys.")
    InvalidState = ("InvalidState", _FAILED, "The operation is not possible in the current state of the VM.",
        "Run one of the operations that the message allows first.")
    InvalidTime = ("InvalidTime", _BAD_INPUT, "The time cannot be parsed, or no state of that time can be read.",
        "Give a time in RFC 3339 within the limits of the message.")
    IoFailed = "IoFailed", _FAILED, "The file could not be written.", "Read the reason in the message."
    JobFailed = ("JobFailed", _FAILED, "A job that the drill started did not do its work.",
        "Read the errors of the job: siterig jobs.")
    JobInProgress = ("JobInProgress", _FAILED, "Another job of the VM is in progress.",
        "Wait for its end: siterig jobs shows it.")
    JobNotFound = "JobNotFound", _BAD_INPUT, "No such job exists.", "Choose a job that siterig jobs prints."
    KeptImageNotFound = ("KeptImageNotFound", _BAD_INPUT, "The VM has no such kept image.",
        "Choose one of the images that the message lists.")
    KeyDropped = ("KeyDropped", _FAILED, "A data key was dropped while it was in use, because one was revoked.",
        "None: the key is asked for again.")
    KeyMissing = ("KeyMissing", _FAILED, "The vault lacks the key that encrypts a data key.",
        "Restore the file of the vault's keys and the vault's database from the same time.")
    KeyNotFound = ("KeyNotFound", _BAD_INPUT, "The vault's key has no such version.",
        "Choose a version that siterig key list prints.")
    KeyRevoked = ("KeyRevoked", _FAILED, "The version of the vault's key that encrypts the data keys was revoked.",
        "siterig key restore VERSION enables it again; then siterig take-point VM makes the agent try again.")
    KeyVersionsFull = ("KeyVersionsFull", _FAILED, "The vault's key was rotated as often as its file can hold versions.",
                       "Start a new rig: no version is ever removed.")  # fmt: skip
    KeysUnreadable = ("KeysUnreadable", _FAILED, "The file of the vault's keys is missing or damaged.",
        "Restore the file that the message names.")
    LatestIncomplete = ("LatestIncomplete", _FAILED,
        "The state that was used is not the newest: a part of the changes cannot be applied.",
        "None: this is a warning. The message names the part.")
    LedgerFailed = ("LedgerFailed", _FAILED, "The ledger of the drill did not start, or ended early.",
        "Read the reason in the message.")
    LeftBehind = ("LeftBehind", _FAILED, "The command of bisect left loop devices, mounts or processes that use a disk.",
        "Let the check remove everything that it creates.")
    LogCorrupt = ("LogCorrupt", _FAILED, "A change log is damaged, or segments of it are missing.",
        "For a VM, run siterig resync VM. For a mounted image, move its log away.")
    LogExists = ("LogExists", _BAD_INPUT, "A change log of this name exists already.",
        "Give the disk another name, or move the log away.")
    LogFull = ("LogFull", _FAILED, "The host's disk had no space for a change log, and the log was abandoned.",
        "Run siterig resync VM. siterig up --when-log-full refuse keeps the log instead.")
    LogGap = ("LogGap", _FAILED, "The change log does not continue where the previous part of it ends.",
        "For a VM, run siterig resync VM. For siterig log, name all segments.")
    LogAbandoned = ("LogAbandoned", _FAILED, "The change log was abandoned while the image was mounted.",
        "Read the reason in the message: the last writes are not in the log.")
    LogMismatch = ("LogMismatch", _FAILED, "The segments are of different disks or generations.",
        "Name the segments of one log only.")
    LogOverflow = ("LogOverflow", _FAILED, "The unsent change log would have exceeded its limit and was abandoned.",
        "Run siterig resync VM. siterig up --log-share-max raises the limit.")
    LogUnaligned = ("LogUnaligned", _BAD_INPUT, "The log has records that do not fill whole sectors.",
        "Name the state before the log with --base.")
    LogUnreadable = ("LogUnreadable", _BAD_INPUT, "The file of a change log cannot be read.",
        "Read the reason in the message.")
    LogUnwritable = "LogUnwritable", _FAILED, "The log file cannot be created.", "Read the reason in the message."
    LogVersion = ("LogVersion", _FAILED, "The log has a format that this siterig does not read.",
        "Use the siterig that wrote it.")
    LowMemory = "LowMemory", _FAILED, "The host has too little free memory.", "Free some memory; the operation is repeated."
    MachineUnfit = ("MachineUnfit", _ENVIRONMENT, "This machine lacks something that a rig needs.",
        "Run siterig doctor and follow its remedies.")
    MailUnsent = ("MailUnsent", _FAILED, "Mail about alerts cannot be delivered; it waits.",
        "Read the reason in the message; siterig alert set changes the way of the mail.")
    ManagedDiskOlder = ("ManagedDiskOlder", _FAILED,
        "The managed disk is older than the last state that was reported of it.",
        "Run siterig resync VM.")
    ManagedDiskReplaced = ("ManagedDiskReplaced", _FAILED,
        "The managed disk is at another generation than the resync: another copy of it was put in its place.",
        "None: the resync begins again.")
    MarkInvalid = ("MarkInvalid", _FAILED,
        "The name of a tag is too long for a mark of a dm-log-writes log, or holds a zero byte.",
        "Name tags with fewer bytes.")
    MkfsFailed = "MkfsFailed", _FAILED, "A file system could not be created.", "Read the reason in the message."
    MountBusy = ("MountBusy", _FAILED, "The image was unmounted while programs still used it.",
        "None: the image and its log are closed. End programs first the next time.")
    MountFailed = ("MountFailed", _FAILED, "The mount could not be created, or was removed while it was being created.",
        "Read the reason in the message; siterig doctor checks FUSE.")
    MountLost = ("MountLost", _FAILED, "Requests could no longer be read from the kernel.",
        "Mount again; report it if it happens twice.")
    NoSuchPoint = ("NoSuchPoint", _BAD_INPUT, "The VM has no such recovery point.",
        "Choose a point that siterig point list prints.")
    NoSuchRole = "NoSuchRole", _BAD_INPUT, "No such role exists.", "Choose one of the roles that the message lists."
    NoSuchScenario = ("NoSuchScenario", _BAD_INPUT, "The library has no scenario of this name.",
        "Choose one that siterig scenario list shows, or give the path of a file.")
    NoSuchSite = "NoSuchSite", _BAD_INPUT, "No such site exists.", "Choose one of the sites that the message lists."
    NodeMissing = ("NodeMissing", _ENVIRONMENT, "Node.js is missing or too old for Azurite.",
        "Install Node.js, or the extra siterig[azurite]; in a checkout, run ./rig.")
    NotAMount = ("NotAMount", _BAD_INPUT, "The folder is no mount of siterig mount.",
        "Choose one of the mounts that the message lists.")
    NotARecoveryHost = ("NotARecoveryHost", _FAILED, "Only the recovery side can open states of managed disks.",
        "Report it: this is a bug.")
    NotARig = ("NotARig", _BAD_INPUT, "The folder is not empty and is not the state folder of a rig.",
        "Name another folder with --dir.")
    NotEnoughSpace = ("NotEnoughSpace", _FAILED, "The host has less free space than the operation needs.",
        "Free the space that the message names.")
    NotMounted = ("NotMounted", _BAD_INPUT, "No such mounted point exists.",
        "Choose one of the mounted points that the message lists.")
    NotPermitted = ("NotPermitted", _ENVIRONMENT, "The user may not use a device that a rig needs.",
        "Get access to the device that the message names; siterig doctor checks it.")
    NotSynchronized = ("NotSynchronized", _FAILED, "The recovery side has not applied all changes before the shutdown.",
        "Wait, then start the planned failover again.")
    NotTracked = ("NotTracked", _FAILED, "The changes of the disk are not tracked, so it is unknown what changed.",
        "Run siterig resync VM.")
    NotUp = "NotUp", _NOT_UP, "The rig is not up.", "Start it with siterig up."
    NothingChanged = ("NothingChanged", _FAILED, "No disk changed between the good and the bad point.",
        "Choose points that lie further apart.")
    PartCorrupt = ("PartCorrupt", _FAILED, "A replication part in the cache is damaged.",
        "None: the site is asked to send it again.")
    PartGap = ("PartGap", _FAILED, "A replication part is not the next one in the order of application.",
        "None: parts are applied in their order.")
    PartMissing = ("PartMissing", _FAILED, "A replication part is missing in the cache although later ones are there.",
        "None: the site is asked to send it again.")
    PartNotFound = ("PartNotFound", _FAILED, "A replication part is not in the cache.",
        "None: the site is asked to send it again.")
    PartRefused = ("PartRefused", _FAILED, "A replication part does not fit the managed disk.",
        "Read the reason in the message. If it stays, run siterig resync VM.")
    PartUnreadable = ("PartUnreadable", _FAILED, "A replication part cannot be read although the cache answers otherwise.",
        "None: it is read again, and then the site is asked to send it again.")
    PathTooLong = "PathTooLong", _BAD_INPUT, "The path of a socket is longer than the kernel allows.", "Use a shorter --dir."
    PeerRefused = ("PeerRefused", _FAILED, "One side of a link does not accept the certificate of the other side.",
        "Read the reason in the message; siterig certificate list shows all certificates.")
    PortTaken = ("PortTaken", _FAILED, "The port of Azurite is taken by another program.",
        "Stop the other program; ss -ltnp shows it.")
    PositionRegressed = ("PositionRegressed", _FAILED, "A replication part has a lower position than the part before it.",
        "Run siterig resync VM.")
    PowerLoss = ("PowerLoss", _FAILED, "The machine stopped while the disk was in use, so unflushed writes may be lost.",
        "Run siterig resync VM.")
    ReadFailed = ("ReadFailed", _FAILED, "A disk could not be read.",
        "Read the reason in the message; siterig disk scrub finds damage.")
    RecoveredVmReplaced = ("RecoveredVmReplaced", _FAILED,
        "A recovered VM was created again from another point; its changes are lost.",
        "None: this is a warning.")
    RecoveryExists = ("RecoveryExists", _FAILED, "Another point is mounted under this name.",
        "Unmount it first, or give another name.")
    RecoveryInUse = "RecoveryInUse", _FAILED, "A mounted point is in use.", "End the programs that use it, then unmount it."
    RecoveryNoteCorrupt = ("RecoveryNoteCorrupt", _FAILED, "The record of a mounted point is damaged.",
        "Unmount the point, and mount it again.")
    RecoveryPointDamaged = ("RecoveryPointDamaged", _FAILED, "The state of a recovery point is known to be damaged.",
        "Choose another point. siterig disk scrub lists the damage.")
    RegisterFull = ("RegisterFull", _FAILED, "The register of certificates has as many entries as it can have.",
                    "Wait until certificates expire; a vault credentials file lasts five days.")  # fmt: skip
    ReportUnwritable = ("ReportUnwritable", _FAILED, "The report of the drill cannot be written.",
        "Name another folder with --report.")
    ResyncRequired = ("ResyncRequired", _FAILED, "The VM must be resynchronized before its changes can be replicated.",
        "Run siterig resync VM.")
    ResynchronizationRequired = ("ResynchronizationRequired", _FAILED,
        "The VM must be resynchronized before a planned failover.",
        "Run siterig resync VM.")
    RigBusy = "RigBusy", _FAILED, "Another siterig down did not end within its limit.", "Wait, or end the other command."
    RoleFailed = ("RoleFailed", _NOT_UP, "A role failed and is not restarted automatically.",
        "Read its log, then run siterig role restart.")
    RoleHeld = "RoleHeld", _NOT_UP, "A role is down on purpose.", "Run siterig role restart, or siterig site restore."
    RoleHung = ("RoleHung", _NOT_UP, "A role does not answer its health checks.",
        "Wait for the restart, or run siterig role restart.")
    RoleUnavailable = "RoleUnavailable", _NOT_UP, "A role does not answer.", "Wait: siterig status shows its state."
    SasExpired = ("SasExpired", _FAILED, "The shared access signature (SAS) of the storage account has expired.",
        "Create another SAS, and give it with siterig account set.")
    ScenarioFailed = ("ScenarioFailed", _FAILED, "An operation of a scenario did not end as the file demands.",
        "Read the job, the event or the output that the message quotes.")
    ScenarioTimedOut = ("ScenarioTimedOut", _FAILED, "A moment or an operation of a scenario did not come in time.",
        "Read the last observation in the message, and the logs of the rig.")
    SiteTimeout = ("SiteTimeout", _FAILED, "The site did not complete a step of the failover in time.",
        "Start the operation again; siterig status shows the roles.")
    SnapshotExists = "SnapshotExists", _FAILED, "The disk has a snapshot already.", "Report it: this is a bug."
    SnapshotFailed = ("SnapshotFailed", _FAILED,
        "The old data of a snapshot could not be kept, so the snapshot cannot be read.",
        "None: the copy is tried again. siterig up --snapshot-share-max raises the limit.")
    SourceChanged = ("SourceChanged", _FAILED,
        "Disks of the site were written to after the failover; the failback replaces them.",
        "None: this is a warning. The old disks are kept.")
    SourceKept = ("SourceKept", _FAILED, "Old disks of the site were kept as files by a failback.",
        "None: this is a warning. siterig disk kept delete removes the old disks.")
    SourceTooSmall = ("SourceTooSmall", _FAILED, "The source has fewer bytes than the disk.",
        "Check the file that the message names.")
    SourceUnreadable = ("SourceUnreadable", _FAILED, "The source of an export cannot be read.",
        "Read the reason in the message.")
    StaleMount = "StaleMount", _FAILED, "A dead mount is in the way and cannot be removed.", "Unmount it with umount -l."
    StateUnreadable = ("StateUnreadable", _FAILED, "The database of the vault is damaged or cannot be opened.",
        "Read the reason in the message; restore the database.")
    StateVersion = ("StateVersion", _BAD_INPUT, "The state has a format that this siterig does not read.",
        "Use the siterig that wrote it.")
    StoreCorrupt = ("StoreCorrupt", _FAILED, "A managed disk is damaged.",
        "Run siterig disk scrub --repair; if damage stays, run siterig resync VM.")
    StoreIo = ("StoreIo", _FAILED, "The files of a managed disk cannot be read or written.",
        "Read the reason in the message; check the host's disk.")
    StoreVersion = ("StoreVersion", _FAILED, "A managed disk has a format that this siterig does not read.",
        "Use the siterig that wrote it.")
    SupervisorFailed = ("SupervisorFailed", _FAILED, "The supervisor of the rig ended while the rig started.",
        "Read the log that the message quotes.")
    SyncFailed = ("SyncFailed", _FAILED, "The host could not flush the change log or the disk, so some bytes may be lost.",
        "Check the host's disk, then run siterig resync VM.")
    SyncPartLost = ("SyncPartLost", _FAILED, "A part of a full copy is neither at the site nor in the cache.",
        "Run siterig resync VM.")
    TemplateFailed = ("TemplateFailed", _FAILED, "The disk from which tests get their copies could not be prepared.",
        "Read the output of the setup in the message; run it by hand on a mounted file system.")
    TestServerFailed = ("TestServerFailed", _FAILED, "A server of the pytest plugin ended, or did not answer in time.",
        "Read the end of its log in the message; on a slow machine raise the setting timeout.")
    TooFewFiles = "TooFewFiles", _ENVIRONMENT, "The process may open too few files.", "Raise the hard limit: ulimit -Hn."
    ToolMissing = ("ToolMissing", _ENVIRONMENT, "A program that is needed is not installed.",
        "Install the package that the message names.")
    UnknownFilesystem = "UnknownFilesystem", _BAD_INPUT, "The file system is not supported.", "Use ext4, xfs or btrfs."
    UnmountFailed = ("UnmountFailed", _FAILED, "A mount could not be removed.",
        "End the programs that use it, then unmount again.")
    Usage = "Usage", _BAD_INPUT, "The command line cannot be parsed.", "Read the usage above the message, or --help."
    VaultStopped = "VaultStopped", _FAILED, "The vault stopped during the job.", "Start the operation again."
    VerificationDiffers = ("VerificationDiffers", _FAILED, "A verification found that both sides of a VM differ.",
        "Run siterig resync VM.")
    VhdCorrupt = ("VhdCorrupt", _BAD_INPUT, "The structures of a VHD are damaged.",
        "Restore the image, or give --format raw if it is a raw image.")
    VhdUnsupported = ("VhdUnsupported", _BAD_INPUT, "The type or version of the VHD is not supported.",
        "Convert it with qemu-img as the message shows.")
    VmBusy = "VmBusy", _FAILED, "The VM or a disk of it is in use.", "End the programs that the message names, or wait."
    VmChanged = "VmChanged", _FAILED, "The Azure VM was written to after its disks were downloaded.", "Fail back again."
    VmExists = "VmExists", _BAD_INPUT, "A VM of this name exists already.", "Give another name, or delete the other VM."
    VmIncomplete = "VmIncomplete", _FAILED, "The VM on the recovery side lacks disks.", "Fail over again."
    VmNameModified = ("VmNameModified", _FAILED, "A failover named its VM otherwise, because another VM has the name.",
        "None; siterig vm update chooses another name for the next failover.")
    VmNameUnavailable = ("VmNameUnavailable", _FAILED, "Another VM of the recovery side has the name.",
        "Choose another name with siterig vm update, or delete the other VM.")
    VmNotFound = "VmNotFound", _BAD_INPUT, "No such VM exists.", "Choose one of the VMs that the message lists."
    VmNotProtected = ("VmNotProtected", _FAILED, "The VM is not replicated from this host.",
        "Protect it with siterig protect.")
    WorkloadFailed = ("WorkloadFailed", _FAILED, "A workload of a scenario did not start, or cannot be used now.",
        "Read the output that the message quotes.")
    WriteFailed = ("WriteFailed", _FAILED, "The host could not write the disk, so log and disk may differ.",
        "Check the host's disk, then run siterig resync VM.")
    # fmt: on


class RigError(Exception):
    """An expected failure; the message has the form ``key: what is wrong, value, allowed``.

    An exception that is not a ``RigError`` is a bug and shows a traceback.

    Args:
        code: what programs compare; it crosses process boundaries unchanged.
        message: one line that names the thing, its value and what is allowed.
        recoverable: True if the replication engine may try again by itself (network, low space, low memory); False if an
            administrator must act (broken log chain, authentication, VM not found).
        role: the role of the rig that did not answer, if that was the reason.
        uncertain: True if a call was sent to that role and not answered, so that it may have been executed; the call must
            not be repeated unless a second execution does no harm.
        retry_after_s: the time for which the peer asks to wait before the next attempt; it stays in this process.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        recoverable: bool = False,
        role: str | None = None,
        uncertain: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.recoverable = recoverable
        self.role = role
        self.uncertain = uncertain
        self.retry_after_s = retry_after_s
