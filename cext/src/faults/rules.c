/* The table of rules, and its judgement of one operation. */
#define _GNU_SOURCE
#include "faults/rules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "faults/rules_internal.h"

enum { ANY_OP = SR_OP_READ | SR_OP_WRITE | SR_OP_FLUSH | SR_OP_DISCARD | SR_OP_ZERO };

/* The operations on which an effect acts. */
static const int acts_on[] = {
	[SR_FAIL] = ANY_OP,
	[SR_DELAY] = ANY_OP,
	[SR_LIMIT] = ANY_OP,
	[SR_SHORTEN] = SR_OP_READ | SR_OP_WRITE,
	[SR_TEAR] = SR_OP_WRITE,
	[SR_MISDIRECT] = SR_OP_READ | SR_OP_WRITE,
	[SR_STALE] = SR_OP_READ,
	[SR_FLIP] = SR_OP_READ | SR_OP_WRITE,
	[SR_BAD_SECTORS] = SR_OP_READ,
	[SR_LIE] = SR_OP_FLUSH,
	[SR_FULL] = SR_OP_WRITE | SR_OP_ZERO,
	[SR_FREEZE] = ANY_OP,
};

/* --- tables ---------------------------------------------------------------------------------------------------- */

static void free_state(struct rule_state *state)
{
	if (state)
		free(state->bad);
	free(state);
}

static struct rule_state *new_state(const struct sr_fault_rule *rule, uint64_t disk_bytes)
{
	struct rule_state *state = calloc(1, sizeof(*state));
	uint64_t bytes = rule->length;

	if (!state || rule->effect != SR_BAD_SECTORS)
		return state;
	if (bytes == 0)
		bytes = disk_bytes > rule->start ? disk_bytes - rule->start : 0;
	if (bytes > SR_BAD_BYTES_MAX)
		bytes = SR_BAD_BYTES_MAX;
	state->bad_sectors = bytes / SR_FAULT_SECTOR_BYTES;
	state->bad = malloc(state->bad_sectors / 8 + 1);
	if (state->bad) {
		memset(state->bad, 0xff, state->bad_sectors / 8 + 1);
		return state;
	}
	free(state);
	return NULL;
}

struct sr_fault_table *sr_fault_table_new(const struct sr_fault_rule *rules, size_t count, uint64_t disk_bytes)
{
	struct sr_fault_table *table = calloc(1, sizeof(*table) + count * sizeof(table->rules[0]));

	if (!table)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		struct armed_rule *armed = &table->rules[table->count++];

		armed->rule = rules[i];
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

/* --- the place of a rule --------------------------------------------------------------------------------------- */

static uint64_t end_of(const struct sr_fault_rule *rule)
{
	return rule->length && rule->start + rule->length > rule->start ? rule->start + rule->length : UINT64_MAX;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int has_bad_sector(const struct armed_rule *armed, uint64_t from, uint64_t to)
{
	const struct rule_state *state = armed->state;
	uint64_t first = (from - armed->rule.start) / SR_FAULT_SECTOR_BYTES;
	uint64_t last = (to - 1 - armed->rule.start) / SR_FAULT_SECTOR_BYTES;

	for (uint64_t s = first; s <= last && s < state->bad_sectors; s++)
		if (__atomic_load_n(&state->bad[s / 8], __ATOMIC_RELAXED) >> s % 8 & 1)
			return 1;
	return 0;
}

/* Take the space for a write; 0 if the disk is too full. */
static int takes_space(const struct armed_rule *armed, uint64_t bytes)
{
	uint64_t *filled = &armed->state->filled_bytes, before = __atomic_load_n(filled, __ATOMIC_RELAXED);

	do
		if (before + bytes > armed->rule.bytes)
			return 0;
	while (!__atomic_compare_exchange_n(filled, &before, before + bytes, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 1;
}

static int is_in_range(const struct sr_fault_rule *rule, const struct sr_verdict *verdict)
{
	return verdict->op == SR_OP_FLUSH ||
	       (verdict->offset < end_of(rule) && verdict->offset + verdict->bytes > rule->start);
}

static int is_in_place(const struct armed_rule *armed, const struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &armed->rule;

	if (!rule->enabled || !(rule->ops & acts_on[rule->effect] & verdict->op) || !is_in_range(rule, verdict))
		return 0;
	switch (rule->effect) {
	case SR_SHORTEN:
		return verdict->bytes > rule->bytes;
	case SR_BAD_SECTORS:
		return has_bad_sector(armed, larger(verdict->offset, rule->start),
				      smaller(verdict->offset + verdict->bytes, end_of(rule)));
	case SR_FULL:
		return verdict->hole_bytes > 0 && !takes_space(armed, verdict->hole_bytes);
	default:
		return 1;
	}
}

static int is_wait(int effect)
{
	return effect == SR_FREEZE || effect == SR_DELAY || effect == SR_LIMIT;
}

int sr_fault_set_may_wait(const struct sr_fault_set *faults, const struct sr_verdict *verdict)
{
	const struct sr_fault_table *table = faults->table;

	if (!table || __atomic_load_n(&faults->waits_over, __ATOMIC_ACQUIRE))
		return 0;
	for (size_t i = 0; i < table->count; i++)
		if (is_wait(table->rules[i].rule.effect) && is_in_place(&table->rules[i], verdict))
			return 1;
	return 0;
}

void sr_fault_set_heal(struct sr_fault_set *faults, uint64_t offset, uint64_t bytes)
{
	struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++) {
		const struct armed_rule *armed = &table->rules[i];
		uint64_t start = armed->rule.start, end = offset + bytes;

		if (armed->rule.effect != SR_BAD_SECTORS || end <= start)
			continue;
		uint64_t from = offset > start ? offset - start : 0;
		uint64_t first = (from + SR_FAULT_SECTOR_BYTES - 1) / SR_FAULT_SECTOR_BYTES;
		uint64_t upto = (end - start) / SR_FAULT_SECTOR_BYTES; /* whole sectors only */

		for (uint64_t s = first; s < upto && s < armed->state->bad_sectors; s++)
			__atomic_fetch_and(&armed->state->bad[s / 8], (uint8_t)~(1u << s % 8), __ATOMIC_RELAXED);
	}
}

/* --- effects ---------------------------------------------------------------------------------------------------- */

static struct sr_fault_wait wait_for(const struct armed_rule *armed, uint64_t until_ns)
{
	return (struct sr_fault_wait){.rule = armed->rule.id, .serial = armed->serial, .until_ns = until_ns};
}

static void wait_until(struct sr_verdict *verdict, const struct armed_rule *armed, uint64_t until_ns)
{
	verdict->waits[verdict->wait_count++] = wait_for(armed, until_ns);
}

/* Take the next place in a row in which each takes so many ns; a burst may be taken at once. Returns its time. */
static uint64_t take_place(uint64_t *next_ns, uint64_t now_ns, uint64_t burst_ns, uint64_t units, uint64_t units_per_s)
{
	if (units_per_s == 0)
		return 0;
	uint64_t place = larger(*next_ns, now_ns - burst_ns);

	*next_ns = place + (uint64_t)((unsigned __int128)units * 1000000000u / units_per_s);
	return place;
}

/* Returns the ns that the operation has to wait. The lock is held. */
static uint64_t limit(const struct armed_rule *armed, struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &armed->rule;
	uint64_t now = verdict->ready_ns;
	uint64_t bytes = verdict->op & (SR_OP_READ | SR_OP_WRITE) ? verdict->bytes : 0;
	uint64_t by_bytes = take_place(&armed->state->bytes_next_ns, now, rule->burst_ns, bytes, rule->bytes_per_s);
	uint64_t by_ops = take_place(&armed->state->ops_next_ns, now, rule->burst_ns, 1, rule->ops_per_s);
	uint64_t until = larger(by_bytes, by_ops);

	if (until <= now)
		return 0;
	verdict->ready_ns = until;
	wait_until(verdict, armed, until);
	return until - now;
}

static void delay(const struct armed_rule *armed, uint64_t n, struct sr_verdict *verdict, uint64_t *detail)
{
	const struct sr_fault_rule *rule = &armed->rule;

	*detail = sr_fault_delay_ns(rule->turns.stream, n, rule->delay_ns, rule->jitter_ns, rule->distribution);
	verdict->ready_ns += *detail;
	wait_until(verdict, armed, verdict->ready_ns);
}

uint64_t sr_flipped_bit(const struct sr_flip *flip, uint64_t i)
{
	uint64_t from = (uint64_t)((unsigned __int128)i * flip->range_bits / flip->bits);
	uint64_t upto = (uint64_t)((unsigned __int128)(i + 1) * flip->range_bits / flip->bits);

	return flip->first_bit + from + sr_fault_below(flip->stream, flip->n, SR_FIRST_CHOICE + i, upto - from);
}

static int flip(const struct sr_fault_rule *rule, uint64_t n, struct sr_verdict *verdict, uint64_t *detail)
{
	uint64_t from = larger(verdict->offset, rule->start);
	uint64_t bits = (smaller(verdict->offset + verdict->bytes, end_of(rule)) - from) * 8;

	if (verdict->flip_count == SR_FLIPS_MAX)
		return 1;
	struct sr_flip *added = &verdict->flips[verdict->flip_count++];
	*added = (struct sr_flip){.first_bit = from * 8,
				  .range_bits = bits,
				  .bits = smaller(rule->bits, bits),
				  .stream = rule->turns.stream,
				  .n = n};
	for (uint64_t i = 0; i < added->bits && i < 4; i++)
		detail[i] = sr_flipped_bit(added, i);
	return 0;
}

static uint64_t units_of(const struct sr_verdict *verdict)
{
	return (verdict->bytes + verdict->tear.unit - 1) / verdict->tear.unit;
}

static uint64_t parts_of(const struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &verdict->tear;

	if (rule->parts == 0)
		return units_of(verdict);
	return rule->sizes[0] ? rule->parts : smaller(rule->parts, units_of(verdict));
}

int sr_tear_keeps(const struct sr_verdict *verdict, uint64_t part)
{
	const struct sr_fault_rule *rule = &verdict->tear;

	if (!rule->keeps_random)
		return part < 64 && rule->keep >> part & 1;
	/* One part at least is lost. */
	uint64_t lost = sr_fault_below(rule->turns.stream, verdict->tear_n, SR_FIRST_CHOICE, parts_of(verdict));
	return part != lost && sr_fault_draw(rule->turns.stream, verdict->tear_n, SR_FIRST_CHOICE + 1 + part) & 1;
}

uint64_t sr_tear_end(const struct sr_verdict *verdict, uint64_t part)
{
	const struct sr_fault_rule *rule = &verdict->tear;
	uint64_t parts = parts_of(verdict), end = 0;

	if (part + 1 >= parts)
		return verdict->bytes;
	if (rule->sizes[0] == 0)
		return (part + 1) * units_of(verdict) / parts * rule->unit;
	for (uint64_t i = 0; i <= part; i++)
		end += rule->sizes[i];
	return smaller(end, verdict->bytes);
}

static int tear(const struct sr_fault_rule *rule, uint64_t n, struct sr_verdict *verdict, uint64_t *detail)
{
	if (verdict->is_torn)
		return 1;
	verdict->is_torn = 1;
	verdict->tear = *rule;
	verdict->tear_n = n;
	detail[0] = parts_of(verdict);
	detail[1] = 0;
	for (uint64_t part = 0; part < detail[0] && part < 64; part++)
		detail[1] |= (uint64_t)sr_tear_keeps(verdict, part) << part;
	return 0;
}

static int fail(struct sr_verdict *verdict, int error)
{
	if (verdict->error)
		return 1;
	verdict->error = error;
	return 0;
}

static int misdirect(struct sr_verdict *verdict, int64_t shift, uint64_t *detail)
{
	detail[0] = (uint64_t)shift;
	if (verdict->shift)
		return 1;
	verdict->shift = shift;
	return 0;
}

/* Add the effect of a rule that fired to the verdict. The lock is held. Returns 0 if it is not worth recording. */
static int apply(const struct armed_rule *armed, uint64_t n, struct sr_verdict *verdict, struct sr_injection *injection)
{
	const struct sr_fault_rule *rule = &armed->rule;
	switch (rule->effect) {
	case SR_FAIL:
		if (rule->late) {
			injection->hidden = verdict->late_error != 0;
			verdict->late_error = verdict->late_error ? verdict->late_error : rule->error;
			break;
		}
		injection->hidden = fail(verdict, rule->error);
		break;
	case SR_BAD_SECTORS:
		injection->hidden = fail(verdict, rule->error);
		break;
	case SR_FULL:
		injection->hidden = fail(verdict, ENOSPC);
		break;
	case SR_DELAY:
		delay(armed, n, verdict, injection->detail);
		break;
	case SR_LIMIT:
		injection->detail[0] = limit(armed, verdict);
		return injection->detail[0] > 0;
	case SR_FREEZE:
		if (rule->late)
			verdict->late_wait = wait_for(armed, UINT64_MAX);
		else
			wait_until(verdict, armed, UINT64_MAX);
		break;
	case SR_SHORTEN:
		verdict->short_bytes = verdict->is_short ? smaller(verdict->short_bytes, rule->bytes) : rule->bytes;
		verdict->is_short = 1;
		injection->detail[0] = rule->bytes;
		break;
	case SR_TEAR:
		injection->hidden = tear(rule, n, verdict, injection->detail);
		break;
	case SR_MISDIRECT:
		injection->hidden = misdirect(verdict, rule->shift, injection->detail);
		break;
	case SR_STALE:
		verdict->stale = 1;
		break;
	case SR_FLIP:
		memset(injection->detail, 0xff, sizeof(injection->detail));
		injection->hidden = flip(rule, n, verdict, injection->detail);
		break;
	case SR_LIE:
		verdict->lies = 1;
		break;
	default:
		break;
	}
	return 1;
}

void sr_verdict_begin(struct sr_verdict *verdict, int op, uint64_t offset, uint64_t bytes)
{
	memset(verdict, 0, offsetof(struct sr_verdict, tear));
	verdict->op = op;
	verdict->offset = offset;
	verdict->bytes = bytes;
}

/* --- judging ---------------------------------------------------------------------------------------------------- */

/* Take one of the `times`; 0 if none is left. */
static int take_time(struct rule_state *state, uint64_t times)
{
	uint64_t fired = __atomic_load_n(&state->fired, __ATOMIC_RELAXED);

	do
		if (fired >= times)
			return 0;
	while (!__atomic_compare_exchange_n(&state->fired, &fired, fired + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 1;
}

static void fire(struct sr_fault_set *faults, const struct armed_rule *armed, uint64_t n, struct sr_verdict *verdict)
{
	struct sr_injection injection = {
		.rule = armed->rule.id,
		.time_ns = sr_time_of_day_ns(),
		.offset = verdict->offset,
		.bytes = verdict->bytes,
		.op = verdict->op,
		.effect = armed->rule.effect,
	};

	pthread_mutex_lock(&faults->lock);
	if (is_wait(armed->rule.effect) && faults->waits_over) {
		pthread_mutex_unlock(&faults->lock);
		return;
	}
	if (is_wait(armed->rule.effect) && verdict->ready_ns == 0)
		verdict->ready_ns = sr_now_ns();
	int had_error = verdict->error;
	int recorded = apply(armed, n, verdict, &injection);
	injection.hidden |= had_error && !is_wait(armed->rule.effect);
	injection.error = armed->rule.effect == SR_FULL ? ENOSPC : armed->rule.error;
	__atomic_store_n(&armed->state->last_ns, injection.time_ns, __ATOMIC_RELAXED);
	if (recorded)
		sr_record_injection(faults, &injection, armed->state);
	pthread_mutex_unlock(&faults->lock);
}

int sr_fault_set_judge(struct sr_fault_set *faults, struct sr_verdict *verdict)
{
	const struct sr_fault_table *table = faults->table;

	if (!table)
		return 0;
	if (verdict->seen_serial == 0)
		verdict->failed_waits = __atomic_load_n(&faults->failed_waits, __ATOMIC_ACQUIRE);
	verdict->ready_ns = 0;
	for (size_t i = 0; i < table->count; i++) {
		const struct armed_rule *armed = &table->rules[i];

		if (armed->serial <= verdict->seen_serial || !is_in_place(armed, verdict))
			continue;
		uint64_t n = __atomic_add_fetch(&armed->state->matched, 1, __ATOMIC_RELAXED);
		if (sr_fault_fires(&armed->rule.turns, n) && take_time(armed->state, armed->rule.turns.times))
			fire(faults, armed, n, verdict);
	}
	verdict->seen_serial = table->newest_serial;
	return verdict->wait_count > 0;
}
