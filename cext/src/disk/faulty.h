/* The faults that a guest meets: fault rules (faults/rules.h) between the guest's requests and the disk.
 *
 * Fault contract: a fault acts before the change log, so the log always has the bytes that the disk really holds. An
 * injected error is neither written nor logged. A torn or misdirected write, or one with a flipped bit, writes and logs
 * what really happened. A flip on read, a stale or misdirected read changes only what the guest sees. A flush that lies
 * writes no FLUSH record. Requests of the program itself (replication, snapshots, hydration) meet no fault.
 *
 * Threads: any. A change of rules, a freeze or a power loss returns when it is in force: no request is running that was
 * judged by the rules before, except requests that waited for a rule; the end of their rule wakes those.
 */
#ifndef SITERIG_FAULTY_H
#define SITERIG_FAULTY_H

#include "disk/disk.h"
#include "faults/rules.h"

/* Replace the rules of `count` different disks, at one `position`: all that the guests' requests changed under the rules
 * before is at or below it, all under the new rules is above. -ENOMEM: nothing was changed. */
int sr_disks_set_faults(struct sr_disk **disks, const struct sr_fault_rule *const *rules, const size_t *rule_counts,
			size_t count, uint64_t *position);

/* Let no request of the disk wait for a rule, now and later: the mount is ending. */
void sr_disk_end_waits(struct sr_disk *disk);
/* Let the requests continue that the rule holds, up to its fault with this number. */
void sr_disk_release(struct sr_disk *disk, uint64_t rule, uint64_t fired);

/* The reports of rules.h. -ENOENT: no such rule; without any rule since the disk was opened, there are no injections. */
int sr_disk_fault_counts(struct sr_disk *disk, uint64_t rule, struct sr_fault_counts *out);
size_t sr_disk_injections(struct sr_disk *disk, uint64_t after, struct sr_injection *out, size_t max);
int sr_disk_tell_fired(struct sr_disk *disk, uint64_t rule, uint64_t times, int fd);
void sr_disk_tell_no_more(struct sr_disk *disk, int fd);

/* Requests of a guest on a disk with rules, with `inflight_lock` read-locked. They release it while they wait; without
 * `may_wait` they return SR_WOULD_WAIT instead. */
int64_t sr_faulty_read(struct sr_disk *disk, int may_wait, void *buf, uint64_t bytes, uint64_t offset);
int64_t sr_faulty_write(struct sr_disk *disk, int may_wait, const void *buf, uint64_t bytes, uint64_t offset);
int sr_faulty_flush(struct sr_disk *disk, int may_wait);
int sr_faulty_zero(struct sr_disk *disk, int may_wait, int type, uint64_t offset, uint64_t bytes);

/* --- power loss ------------------------------------------------------------------------------------------------ */

/* Keep the old bytes of all writes that no flush has made durable, in up to `bytes_max` bytes of memory (0: stop, and
 * forget them). Writes before the call count as durable. When the memory is full, the writes so far count as durable, too:
 * a drive's cache reaches the medium when it is full. -ENOMEM. */
int sr_disk_keep_unsynced(struct sr_disk *disk, uint64_t bytes_max);

struct sr_unsynced_info {
	int kept;
	uint64_t writes, bytes;      /* unsynced writes; bytes of memory for them */
	uint64_t written_back;       /* number of writes that count as durable because the memory was full */
};
void sr_disk_unsynced_info(struct sr_disk *disk, struct sr_unsynced_info *out);

struct sr_power_loss {
	uint64_t stream; /* of the random choices (decisions.h) */
	int keeps;       /* 0: all unsynced writes are lost; 1: a random part of them. Writes that overlap are lost together */
	uint32_t tear;   /* 0, or with `keeps`: some writes are torn in sectors of so many bytes: 512 or 4096 */
	int keeps_waits; /* 1: requests that wait for a rule do not fail */
	/* Without `keeps`: numbers of the unsynced writes of each disk that survive (1 is the oldest one), among those that
	 * touch one of the ranges; no ranges: among all. Where a lost write came later, nothing of them is left. */
	const uint64_t *survivors;
	size_t survivor_count;
	const struct sr_fault_range *ranges;
	size_t range_count;
};

enum { SR_LOST_RANGES_KEPT = 16 };

struct sr_lost_writes {
	uint64_t writes, lost, torn; /* unsynced writes (overlapping ones count as one), those that were lost, or torn */
	uint64_t bytes;              /* bytes that were put back */
	uint64_t range_count;        /* ranges that were put back, ascending; only the first ones are kept */
	struct sr_fault_range ranges[SR_LOST_RANGES_KEPT];
	int error;                   /* -errno if the old bytes could not all be written */
};

/* Put the disks into a state that a loss of power may leave, at one `position`; each has its entry in `how` and in
 * `out`, and its choices depend on its stream alone. The old bytes are written and logged.
 * Requests that wait for a rule fail with -EIO. -ENODATA: the old bytes of a disk are not kept; nothing was changed. */
int sr_disks_lose_power(struct sr_disk **disks, size_t count, const struct sr_power_loss *how, struct sr_lost_writes *out,
			uint64_t *position);

#endif
