/* Shared parts of the fault rules of one disk. */
#ifndef SITERIG_RULES_INTERNAL_H
#define SITERIG_RULES_INTERNAL_H

#include <pthread.h>

#include "faults/rules.h"

/* Counters and state of a rule; they move from table to table with it. */
struct rule_state {
	uint64_t matched, fired, last_ns; /* atomic */
	uint64_t bytes_next_ns, ops_next_ns; /* SR_LIMIT, under the lock: when the next byte or operation may begin */
	uint64_t filled_bytes;               /* SR_FULL, atomic */
	uint8_t *bad;                        /* SR_BAD_SECTORS, atomic: one bit for each sector from `start` */
	uint64_t bad_sectors;
};

struct armed_rule {
	struct sr_fault_rule rule;
	uint64_t serial; /* when it came into force: a higher number is later */
	struct rule_state *state;
};

struct sr_fault_table {
	size_t count;
	uint64_t newest_serial;
	struct armed_rule rules[];
};

struct tell {
	struct tell *next;
	uint64_t rule, count;
	int fd;
};

struct sr_fault_set {
	struct sr_fault_table *table; /* written under the lock, while no operation is being judged */
	const struct sr_positions *positions;
	pthread_mutex_t lock; /* protects the following fields */
	pthread_cond_t changed;
	uint64_t serial;
	int waits_over; /* atomic */
	uint64_t failed_waits;
	struct sr_verdict *waiting;
	uint64_t sequence;
	struct sr_injection *ring; /* entry (sequence - 1) % SR_INJECTIONS_KEPT */
	struct tell *tells;
};

/* The functions below need the lock. */

static inline struct armed_rule *sr_find_rule(const struct sr_fault_set *faults, uint64_t id)
{
	struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++)
		if (table->rules[i].rule.id == id)
			return &table->rules[i];
	return NULL;
}

void sr_record_injection(struct sr_fault_set *faults, struct sr_injection *injection, const struct rule_state *state);
/* Raise the events of callers that wait for rules that are gone; those of all callers. */
void sr_tell_gone(struct sr_fault_set *faults);
void sr_tell_all(struct sr_fault_set *faults);

#endif
