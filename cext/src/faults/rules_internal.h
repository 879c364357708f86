/* Shared parts of the fault rules of one disk. */
#ifndef SITERIG_RULES_INTERNAL_H
#define SITERIG_RULES_INTERNAL_H

#include <pthread.h>

#include "faults/rules.h"

struct sr_fault_counter {
	uint64_t matched, fired, last_ns; /* atomic, as all fields */
	uint64_t released;                /* holds end for faults up to this number */
	int uses;
};

/* A range of a rule, and the number of its first sector among the sectors of all ranges. */
struct rule_range {
	uint64_t start, end, first_sector;
};

/* Counters and state of a rule on one disk; they move from table to table with it. */
struct rule_state {
	struct sr_fault_counter *counter;
	struct rule_range *ranges; /* ascending */
	size_t range_count;
	uint64_t bytes_next_ns, ops_next_ns; /* SR_LIMIT, under the lock: when the next byte or operation may begin */
	uint64_t filled_bytes;               /* SR_FULL, atomic */
	uint8_t *bad;                        /* SR_BAD_SECTORS, atomic: one bit for each sector of the ranges */
	uint64_t bad_sectors;
	int began; /* the rule was enabled once */
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
	int ended; /* no operation continues, not even one that a rule holds */
	struct sr_verdict *waiting;
	uint64_t sequence;
	struct sr_injection *ring; /* entry (sequence - 1) % SR_INJECTIONS_KEPT */
	struct tell *tells;
};

static inline uint64_t sr_larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t sr_smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The first range that ends behind an offset; `range_count` if there is none. */
size_t sr_range_behind(const struct rule_state *state, uint64_t offset);
int sr_has_bad_sector(const struct rule_state *state, uint64_t offset, uint64_t end);

/* The functions below need the lock. */

static inline struct armed_rule *sr_find_rule(const struct sr_fault_set *faults, uint64_t id)
{
	struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++)
		if (table->rules[i].rule.id == id)
			return &table->rules[i];
	return NULL;
}

/* Forget what an operation was to wait for after it is done, as far as that is over. */
void sr_prune_late_waits(struct sr_fault_set *faults, struct sr_verdict *verdict);

void sr_record_injection(struct sr_fault_set *faults, struct sr_injection *injection, const struct rule_state *state);
/* Raise the events of callers that wait for rules that are gone; those of all callers. */
void sr_tell_gone(struct sr_fault_set *faults);
void sr_tell_all(struct sr_fault_set *faults);

#endif
