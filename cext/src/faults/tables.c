/* Tables of rules, the counters and ranges of each rule, and its bad sectors. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "faults/rules_internal.h"

/* --- tables ---------------------------------------------------------------------------------------------------- */

struct sr_fault_counter *sr_fault_counter_new(uint64_t matched, uint64_t fired)
{
	struct sr_fault_counter *counter = calloc(1, sizeof(*counter));

	if (counter) {
		counter->matched = matched;
		counter->fired = counter->released = fired;
		counter->uses = 1;
	}
	return counter;
}

void sr_fault_counter_free(struct sr_fault_counter *counter)
{
	if (counter && __atomic_sub_fetch(&counter->uses, 1, __ATOMIC_ACQ_REL) == 0)
		free(counter);
}

static struct sr_fault_counter *use(struct sr_fault_counter *counter)
{
	if (!counter)
		return sr_fault_counter_new(0, 0);
	__atomic_add_fetch(&counter->uses, 1, __ATOMIC_ACQ_REL);
	return counter;
}

static void free_state(struct rule_state *state)
{
	if (state) {
		sr_fault_counter_free(state->counter);
		free(state->ranges);
		free(state->bad);
	}
	free(state);
}

/* Let the ranges begin and end with sectors of the disk; those that touch become one. */
static void widen_to_sectors(struct rule_state *state)
{
	size_t kept = 0;

	for (size_t i = 0; i < state->range_count; i++) {
		struct rule_range range = state->ranges[i];
		uint64_t rest = range.end % SR_FAULT_SECTOR_BYTES;

		range.start -= range.start % SR_FAULT_SECTOR_BYTES;
		if (rest && range.end < UINT64_MAX)
			range.end += SR_FAULT_SECTOR_BYTES - rest;
		if (kept && range.start <= state->ranges[kept - 1].end)
			state->ranges[kept - 1].end = sr_larger(state->ranges[kept - 1].end, range.end);
		else
			state->ranges[kept++] = range;
	}
	state->range_count = kept;
}

/* All sectors of the ranges are bad. */
static int make_bad(struct rule_state *state, uint64_t disk_bytes)
{
	widen_to_sectors(state);
	for (size_t i = 0; i < state->range_count; i++) {
		struct rule_range *range = &state->ranges[i];
		uint64_t end = range->end < disk_bytes ? range->end : disk_bytes;
		uint64_t bytes = end > range->start ? end - range->start : 0;
		uint64_t sectors = (bytes + SR_FAULT_SECTOR_BYTES - 1) / SR_FAULT_SECTOR_BYTES;

		range->first_sector = state->bad_sectors;
		state->bad_sectors += sectors;
		if (state->bad_sectors > SR_BAD_BYTES_MAX / SR_FAULT_SECTOR_BYTES)
			state->bad_sectors = SR_BAD_BYTES_MAX / SR_FAULT_SECTOR_BYTES;
	}
	state->bad = malloc(state->bad_sectors / 8 + 1);
	if (state->bad)
		memset(state->bad, 0xff, state->bad_sectors / 8 + 1);
	return state->bad ? 0 : -ENOMEM;
}

static struct rule_state *new_state(const struct sr_fault_rule *rule, uint64_t disk_bytes)
{
	struct rule_state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	state->range_count = rule->ranges ? rule->range_count : 1;
	state->ranges = calloc(state->range_count ? state->range_count : 1, sizeof(*state->ranges));
	state->counter = use(rule->counter);
	if (!state->ranges || !state->counter) {
		free_state(state);
		return NULL;
	}
	for (size_t i = 0; i < state->range_count; i++) {
		uint64_t start = rule->ranges ? rule->ranges[i].start : rule->start;
		uint64_t bytes = rule->ranges ? rule->ranges[i].length : rule->length;

		state->ranges[i].start = start;
		state->ranges[i].end = bytes && start + bytes > start ? start + bytes : UINT64_MAX;
	}
	if (rule->effect != SR_BAD_SECTORS || make_bad(state, disk_bytes) == 0)
		return state;
	free_state(state);
	return NULL;
}

struct sr_fault_table *sr_fault_table_new(const struct sr_fault_rule *rules, size_t count, uint64_t disk_bytes)
{
	struct sr_fault_table *table = NULL;

	if (count <= SR_FAULT_RULES_MAX)
		table = calloc(1, sizeof(*table) + count * sizeof(table->rules[0]));
	if (!table)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		struct armed_rule *armed = &table->rules[table->count++];

		armed->rule = rules[i];
		armed->rule.ranges = NULL; /* the state has them */
		armed->state = new_state(&rules[i], disk_bytes);
		if (!armed->state) {
			sr_fault_table_free(table);
			return NULL;
		}
	}
	return table;
}

void sr_fault_table_free(struct sr_fault_table *table)
{
	for (size_t i = 0; table && i < table->count; i++)
		free_state(table->rules[i].state);
	free(table);
}

int sr_fault_table_is_empty(const struct sr_fault_table *table)
{
	return !table || table->count == 0;
}

struct sr_fault_set *sr_fault_set_new(const struct sr_positions *positions)
{
	struct sr_fault_set *faults = calloc(1, sizeof(*faults));
	pthread_condattr_t monotonic;

	if (!faults)
		return NULL;
	faults->ring = calloc(SR_INJECTIONS_KEPT, sizeof(*faults->ring)); /* untouched pages take no memory */
	if (!faults->ring) {
		free(faults);
		return NULL;
	}
	faults->positions = positions;
	pthread_mutex_init(&faults->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&faults->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return faults;
}

void sr_fault_set_free(struct sr_fault_set *faults)
{
	struct tell *tell;

	if (!faults)
		return;
	while ((tell = faults->tells)) {
		faults->tells = tell->next;
		free(tell);
	}
	sr_fault_table_free(faults->table);
	pthread_cond_destroy(&faults->changed);
	pthread_mutex_destroy(&faults->lock);
	free(faults->ring);
	free(faults);
}

struct sr_fault_table *sr_fault_set_replace(struct sr_fault_set *faults, struct sr_fault_table *table)
{
	pthread_mutex_lock(&faults->lock);
	struct sr_fault_table *before = faults->table;

	for (size_t i = 0; i < table->count; i++) {
		struct armed_rule *armed = &table->rules[i], *old = sr_find_rule(faults, armed->rule.id);

		if (old) {
			struct rule_state *fresh = armed->state;

			armed->state = old->state;
			old->state = fresh; /* freed with the table before */
		}
		armed->state->began |= armed->rule.enabled;
		/* A rule that is enabled again is a new one for operations that waited meanwhile. */
		armed->serial = old && old->rule.enabled && armed->rule.enabled ? old->serial : ++faults->serial;
	}
	table->newest_serial = faults->serial;
	faults->table = table;
	sr_tell_gone(faults);
	pthread_cond_broadcast(&faults->changed);
	pthread_mutex_unlock(&faults->lock);
	return before;
}

int sr_fault_set_have(const struct sr_fault_set *faults, int effect)
{
	const struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++)
		if (table->rules[i].rule.enabled && table->rules[i].rule.effect == effect)
			return 1;
	return 0;
}

/* --- ranges ----------------------------------------------------------------------------------------------------- */

/* The first range that ends behind an offset; `range_count` if there is none. */
size_t sr_range_behind(const struct rule_state *state, uint64_t offset)
{
	size_t low = 0, high = state->range_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (state->ranges[middle].end > offset)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* The sectors of a range end where those of the next one begin. */
static uint64_t sectors_upto(const struct rule_state *state, size_t range)
{
	return range + 1 < state->range_count ? sr_smaller(state->ranges[range + 1].first_sector, state->bad_sectors)
					      : state->bad_sectors;
}

int sr_has_bad_sector(const struct rule_state *state, uint64_t offset, uint64_t end)
{
	for (size_t i = sr_range_behind(state, offset); i < state->range_count && state->ranges[i].start < end; i++) {
		const struct rule_range *range = &state->ranges[i];
		uint64_t from = sr_larger(offset, range->start) - range->start, to = sr_smaller(end, range->end) - range->start;
		uint64_t first = range->first_sector + from / SR_FAULT_SECTOR_BYTES;
		uint64_t last = range->first_sector + (to - 1) / SR_FAULT_SECTOR_BYTES;

		for (uint64_t s = first; s <= last && s < sectors_upto(state, i); s++)
			if (__atomic_load_n(&state->bad[s / 8], __ATOMIC_RELAXED) >> s % 8 & 1)
				return 1;
	}
	return 0;
}

/* Whole sectors only. */
static void heal(struct rule_state *state, uint64_t offset, uint64_t end)
{
	for (size_t i = sr_range_behind(state, offset); i < state->range_count && state->ranges[i].start < end; i++) {
		const struct rule_range *range = &state->ranges[i];
		uint64_t from = sr_larger(offset, range->start) - range->start, to = sr_smaller(end, range->end) - range->start;
		uint64_t first = range->first_sector + (from + SR_FAULT_SECTOR_BYTES - 1) / SR_FAULT_SECTOR_BYTES;
		uint64_t upto = range->first_sector + to / SR_FAULT_SECTOR_BYTES;

		for (uint64_t s = first; s < upto && s < sectors_upto(state, i); s++)
			__atomic_fetch_and(&state->bad[s / 8], (uint8_t)~(1u << s % 8), __ATOMIC_RELAXED);
	}
}

void sr_fault_set_heal(struct sr_fault_set *faults, uint64_t offset, uint64_t bytes)
{
	struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++)
		if (table->rules[i].rule.effect == SR_BAD_SECTORS && table->rules[i].state->began)
			heal(table->rules[i].state, offset, offset + bytes);
}

