/* The fault rules of one disk: which operations of the guest meet a fault, and which one. cext/src/disk/faulty.h applies
 * the verdict to the disk.
 *
 * Fault contract: rules hold no data of a disk and are not durable; they end with the process. Each rule counts and
 * decides by itself (decisions.h), also if another rule fails the same operation. A wait ends when its rule is removed
 * or disabled, when waits are ended for the mount's end, and at the end of the disk; nothing else keeps an operation.
 *
 * Threads: the table of rules is replaced only while no operation is being judged (the caller sees to it), except for
 * operations that wait: those look at the table under the lock of this file. Everything else: any thread.
 */
#ifndef SITERIG_RULES_H
#define SITERIG_RULES_H

#include <stddef.h>
#include <stdint.h>

#include "base/positions.h"
#include "faults/decisions.h"

enum sr_fault_op { SR_OP_READ = 1, SR_OP_WRITE = 2, SR_OP_FLUSH = 4, SR_OP_DISCARD = 8, SR_OP_ZERO = 16 };

enum sr_fault_effect {
	SR_FAIL = 1,     /* `error`, and nothing is done; with `late` after the operation was done */
	SR_DELAY,        /* `delay_ns`, `jitter_ns`, `distribution` */
	SR_LIMIT,        /* `bytes_per_s`, `ops_per_s` (0: no limit of that kind), after a burst of `burst_ns` */
	SR_SHORTEN,      /* a read or write does only the first `bytes`; shorter operations do not match */
	SR_TEAR,         /* a write in parts, of which the disk gets some: `parts` equal ones of whole `unit`s, or `parts` of
			  * these `sizes`, or one for each unit (0 parts). The mask `keep` has those that the disk gets; with
			  * `keeps_random` they are chosen, and one at least is lost. Then `error`, or success if that is 0 */
	SR_MISDIRECT,    /* a read or write at `shift` bytes from its place; the part outside the disk is lost, or zeros */
	SR_STALE,        /* a read returns the bytes that the disk had when the rule came into force */
	SR_FLIP,         /* `bits` bits of the operation's part of the range: on the disk (write), or for the guest (read) */
	SR_BAD_SECTORS,  /* reads of the sectors that the range touches fail with `error`, from the moment at which the rule is
			  * enabled first, until a write or discard covers the sector */
	SR_LIE,          /* a flush succeeds, and nothing is made durable */
	SR_FULL,         /* -ENOSPC for writes and zeroes to holes, after `bytes` of them were filled. A hole is filled in whole
			  * blocks, and only by operations that no rule fails */
	SR_FREEZE,       /* the operation waits until the rule is gone; with `late` it is done first */
	SR_NOTE,         /* nothing but the record of the injection */
};

/* A rule makes an operation wait up to three times: its delay, its effect, and its hold. */
enum { SR_FAULT_RULES_MAX = 64, SR_FAULT_WAITS_MAX = 3 * SR_FAULT_RULES_MAX, SR_FAULT_RANGES_MAX = 65536, SR_TEAR_PARTS_MAX = 64, SR_INJECTIONS_KEPT = 4096, SR_FAULT_SECTOR_BYTES = 512 };
#define SR_BAD_BYTES_MAX (16ull << 30) /* longest range of SR_BAD_SECTORS: one bit for each sector */

/* A range of bytes of a disk. */
struct sr_fault_range {
	uint64_t start, length;
};

/* The counters of one rule, which may be in force on several disks. Atomic. */
struct sr_fault_counter;
/* Counting continues from these numbers, which are those of a process that has ended. NULL: no memory. */
struct sr_fault_counter *sr_fault_counter_new(uint64_t matched, uint64_t fired);
void sr_fault_counter_free(struct sr_fault_counter *counter); /* the tables that use it keep it */

/* When an operation that meets the fault waits for sr_fault_set_release, besides the waits of the effect. */
enum sr_fault_hold { SR_HOLD_NEVER, SR_HOLD_BEFORE, SR_HOLD_AFTER };

struct sr_fault_rule {
	uint64_t id; /* not 0; a rule of the table before with this id keeps its counters and its state */
	int enabled;
	int ops;              /* enum sr_fault_op, or'ed */
	uint64_t start, length; /* of the range, in bytes; length 0: to the end of the disk. A flush has no range */
	const struct sr_fault_range *ranges; /* in place of `start` and `length`: ascending, none touches another, none is
					      * empty. The table has a copy */
	size_t range_count;
	struct sr_fault_counter *counter; /* NULL: counters of its own */
	int holds;                        /* enum sr_fault_hold */
	struct sr_fault_turns turns;
	int effect;
	int error; /* a positive errno, or 0 */
	uint64_t delay_ns, jitter_ns; /* also of a rule with another effect, which happens after the delay */
	int distribution;
	uint64_t bytes_per_s, ops_per_s, burst_ns;
	uint64_t bytes;
	uint64_t keep; /* of the first 64 parts; later ones are lost */
	int keeps_random, late;
	uint32_t parts, unit, bits;
	uint32_t sizes[SR_TEAR_PARTS_MAX]; /* sizes[0] 0: the parts are equal. The last part has the rest */
	int64_t shift;
};

/* One fault that was injected. */
struct sr_injection {
	uint64_t rule, sequence; /* sequence: 1, 2, ... of this disk */
	uint64_t n, fired;       /* number of the operation among those that match the rule, and of this fault: 1, 2, ... */
	uint64_t position;       /* the newest one of the host at that time */
	uint64_t time_ns;        /* since 1970 */
	uint64_t offset, bytes;  /* of the operation */
	int op, effect;
	int hidden; /* 1: another rule decided the result, and this one had no effect */
	int error;
	uint64_t detail[4]; /* SR_FLIP: offsets on the disk, in bits, of the first flipped bits (UINT64_MAX: no more).
			     * SR_TEAR: parts, mask of the first 64 kept ones. SR_MISDIRECT: the shift. SR_SHORTEN: bytes
			     * done. SR_DELAY, SR_LIMIT: ns */
};

struct sr_fault_counts {
	uint64_t matched, fired, last_ns; /* last_ns: when it fired last, since 1970; 0: never */
	uint64_t waiting;                 /* operations that it keeps waiting now */
};

struct sr_fault_set;
struct sr_fault_table;

/* `positions` must outlive the faults. */
struct sr_fault_set *sr_fault_set_new(const struct sr_positions *positions);
void sr_fault_set_free(struct sr_fault_set *faults); /* no operation waits */

/* Make a table; NULL: no memory, or more than SR_FAULT_RULES_MAX rules. */
struct sr_fault_table *sr_fault_table_new(const struct sr_fault_rule *rules, size_t count, uint64_t disk_bytes);
void sr_fault_table_free(struct sr_fault_table *table);

/* Put the table in force, and return the one before, which the caller frees. No operation is being judged. Operations
 * that wait for a rule that is not in force any more continue. */
struct sr_fault_table *sr_fault_set_replace(struct sr_fault_set *faults, struct sr_fault_table *table);

/* 1: an enabled rule of the table has this effect. */
int sr_fault_set_have(const struct sr_fault_set *faults, int effect);
int sr_fault_table_is_empty(const struct sr_fault_table *table);

/* Let the operations continue that the rule holds, up to its fault with this number. */
void sr_fault_set_release(struct sr_fault_set *faults, uint64_t rule, uint64_t fired);

/* End all waits, and let no operation wait any more. */
void sr_fault_set_end_waits(struct sr_fault_set *faults);
/* The operations that wait now fail with -EIO, except those that a rule holds. */
void sr_fault_set_fail_waits(struct sr_fault_set *faults);
/* The same at the end of the disk; the eventfds of sr_fault_set_tell are raised. */
void sr_fault_set_end(struct sr_fault_set *faults);

/* --- judging an operation ------------------------------------------------------------------------------------- */

struct sr_fault_wait {
	uint64_t rule, serial, until_ns; /* UINT64_MAX: until the rule is gone */
	uint64_t held;                   /* number of the fault for which a rule holds the operation; 0: it does not */
};

/* One rule that flips `bits` bits: one in each of as many equal parts of a range of the disk, which is given in bits. */
enum { SR_FLIPS_MAX = 4 };
struct sr_flip {
	uint64_t first_bit, range_bits, bits, stream, n;
};

struct sr_verdict {
	int op;
	uint64_t offset, bytes; /* within the disk */
	uint64_t hole_bytes;    /* of a write or zeroes, if there is a rule SR_FULL: bytes of the blocks in it that are holes */
	/* Filled in by sr_fault_set_judge: */
	uint64_t seen_serial; /* the newest rule that has judged it */
	uint64_t failed_waits, ready_ns;
	int wait_count, late_wait_count, flip_count;
	int is_held; /* a rule holds it, or held it: rules that come into force later do not judge it */
	int error, late_error;
	int lies, stale, is_short, is_torn;
	uint64_t short_bytes;
	int64_t shift;
	struct sr_verdict *next;        /* of the operations that wait */
	uint64_t tear_n;                /* the number of the operation among those that match `tear` */
	/* Not initialized: most operations need none of it. */
	struct sr_fault_rule tear;
	struct sr_flip flips[SR_FLIPS_MAX];
	struct sr_fault_wait waits[SR_FAULT_WAITS_MAX], late_waits[SR_FAULT_WAITS_MAX];
};

/* 1 if a rule may do something to this operation, or is changed by it. Nothing is counted. */
int sr_fault_set_concerns(const struct sr_fault_set *faults, int op, uint64_t offset, uint64_t bytes);

/* Begin the verdict on an operation. */
void sr_verdict_begin(struct sr_verdict *verdict, int op, uint64_t offset, uint64_t bytes);

/* 1 if a rule may make this operation wait. Nothing is counted. */
int sr_fault_set_may_wait(const struct sr_fault_set *faults, const struct sr_verdict *verdict);

/* Judge an operation by all rules that have come into force since it was judged last. Returns 1 if it must wait: call sr_fault_set_wait, without a lock,
 * and then judge again. */
int sr_fault_set_judge(struct sr_fault_set *faults, struct sr_verdict *verdict);

/* Wait. 0, or -EIO: the operation must not be done. */
int sr_fault_set_wait(struct sr_fault_set *faults, struct sr_verdict *verdict);

/* The offset on the disk, in bits, of the i-th flipped bit. */
uint64_t sr_flipped_bit(const struct sr_flip *flip, uint64_t i);

/* 1 if the disk gets this part of a torn write; parts are counted from 0. The second one returns the end of a part. */
int sr_tear_keeps(const struct sr_verdict *verdict, uint64_t part);
uint64_t sr_tear_end(const struct sr_verdict *verdict, uint64_t part);

/* A write or discard of the range was done: bad sectors that it covers are healed. */
void sr_fault_set_heal(struct sr_fault_set *faults, uint64_t offset, uint64_t bytes);

/* --- reports -------------------------------------------------------------------------------------------------- */

void sr_fault_counter_read(const struct sr_fault_counter *counter, struct sr_fault_counts *out); /* `waiting` is 0 */
/* -ENOENT: there is no such rule. */
int sr_fault_set_counts(struct sr_fault_set *faults, uint64_t rule, struct sr_fault_counts *out);

/* Copy up to `max` injections with a sequence number above `after`, oldest first; only SR_INJECTIONS_KEPT are kept.
 * Returns their number. */
size_t sr_fault_set_injections(struct sr_fault_set *faults, uint64_t after, struct sr_injection *out, size_t max);

/* Raise `fd`, an eventfd of the caller, as soon as the rule has fired `count` times, or is gone; with rule 0 as soon as
 * the sequence number of the injections is `count`. -ENOMEM. */
int sr_fault_set_tell(struct sr_fault_set *faults, uint64_t rule, uint64_t count, int fd);
void sr_fault_set_tell_no_more(struct sr_fault_set *faults, int fd);

#endif
