/* The judgement of one operation by the table of rules. */
#define _GNU_SOURCE
#include "faults/rules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/clock_page.h"
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
	[SR_NOTE] = ANY_OP,
};

/* --- the place of a rule --------------------------------------------------------------------------------------- */

/* Take the space for a write; 0 if the disk is too full. */
static int takes_space(const struct armed_rule *armed, uint64_t bytes)
{
	uint64_t *filled = &armed->state->filled_bytes, before = __atomic_load_n(filled, __ATOMIC_RELAXED);

	do
		if (before > armed->rule.bytes || bytes > armed->rule.bytes - before)
			return 0;
	while (!__atomic_compare_exchange_n(filled, &before, before + bytes, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 1;
}

/* The operation fails: give back the space that it has taken by these rules, one bit for each of the table. */
static void give_back(const struct sr_fault_table *table, uint64_t taken, uint64_t bytes)
{
	for (size_t i = 0; i < table->count; i++)
		if (taken >> i & 1)
			__atomic_fetch_sub(&table->rules[i].state->filled_bytes, bytes, __ATOMIC_RELAXED);
}

static int is_in_range(const struct rule_state *state, int op, uint64_t offset, uint64_t bytes)
{
	if (op == SR_OP_FLUSH)
		return 1;
	size_t range = sr_range_behind(state, offset);
	return range < state->range_count && state->ranges[range].start < offset + bytes;
}

int sr_fault_set_concerns(const struct sr_fault_set *faults, int op, uint64_t offset, uint64_t bytes)
{
	const struct sr_fault_table *table = faults->table;

	for (size_t i = 0; table && i < table->count; i++) {
		const struct armed_rule *armed = &table->rules[i];
		int is_healed = armed->rule.effect == SR_BAD_SECTORS && !(op & (SR_OP_READ | SR_OP_FLUSH));

		if ((is_healed || armed->rule.ops & op) && is_in_range(armed->state, op, offset, bytes))
			return 1;
	}
	return 0;
}

static int is_in_place(const struct armed_rule *armed, const struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &armed->rule;

	if (!rule->enabled || !(rule->ops & acts_on[rule->effect] & verdict->op)
	    || !is_in_range(armed->state, verdict->op, verdict->offset, verdict->bytes))
		return 0;
	switch (rule->effect) {
	case SR_SHORTEN:
		return verdict->bytes > rule->bytes;
	case SR_BAD_SECTORS:
		return sr_has_bad_sector(armed->state, verdict->offset, verdict->offset + verdict->bytes);
	case SR_FULL:
		return verdict->hole_bytes > 0; /* if the disk is too full is decided when the operation is judged */
	default:
		return 1;
	}
}

/* The effect decides the error of the operation before it is done. */
static int is_failure(const struct sr_fault_rule *rule)
{
	return (rule->effect == SR_FAIL && !rule->late) || rule->effect == SR_BAD_SECTORS || rule->effect == SR_FULL;
}

static int is_wait(int effect)
{
	return effect == SR_FREEZE || effect == SR_DELAY || effect == SR_LIMIT;
}

/* The rule makes operations wait, with its effect or besides it. */
static int waits(const struct sr_fault_rule *rule)
{
	return is_wait(rule->effect) || rule->delay_ns || rule->jitter_ns || rule->holds;
}

int sr_fault_set_may_wait(const struct sr_fault_set *faults, const struct sr_verdict *verdict)
{
	const struct sr_fault_table *table = faults->table;

	if (!table || __atomic_load_n(&faults->waits_over, __ATOMIC_ACQUIRE))
		return 0;
	for (size_t i = 0; i < table->count; i++)
		if (waits(&table->rules[i].rule) && is_in_place(&table->rules[i], verdict))
			return 1;
	return 0;
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

/* Let the operation wait until the fault with this number is released. */
static void hold(struct sr_verdict *verdict, const struct armed_rule *armed, uint64_t fired)
{
	struct sr_fault_wait held = wait_for(armed, UINT64_MAX);

	held.held = fired;
	verdict->is_held = 1;
	if (armed->rule.holds == SR_HOLD_BEFORE)
		verdict->waits[verdict->wait_count++] = held;
	else
		verdict->late_waits[verdict->late_wait_count++] = held;
}

/* Take the next place in a row in which each takes so many ns; a burst may be taken at once. Returns its time. */
static uint64_t take_place(uint64_t *next_ns, uint64_t now_ns, uint64_t burst_ns, uint64_t units, uint64_t units_per_s)
{
	if (units_per_s == 0)
		return 0;
	uint64_t place = sr_larger(*next_ns, now_ns > burst_ns ? now_ns - burst_ns : 0);

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
	uint64_t until = sr_larger(by_bytes, by_ops);

	if (until <= now)
		return 0;
	verdict->ready_ns = until;
	wait_until(verdict, armed, until);
	return until - now;
}

static uint64_t delay(const struct armed_rule *armed, uint64_t n, struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &armed->rule;
	uint64_t ns = sr_fault_delay_ns(rule->turns.stream, n, rule->delay_ns, rule->jitter_ns, rule->distribution);

	verdict->ready_ns += ns;
	wait_until(verdict, armed, verdict->ready_ns);
	return ns;
}

uint64_t sr_flipped_bit(const struct sr_flip *flip, uint64_t i)
{
	uint64_t from = (uint64_t)((unsigned __int128)i * flip->range_bits / flip->bits);
	uint64_t upto = (uint64_t)((unsigned __int128)(i + 1) * flip->range_bits / flip->bits);

	return flip->first_bit + from + sr_fault_below(flip->stream, flip->n, SR_FIRST_CHOICE + i, upto - from);
}

static int flip(const struct armed_rule *armed, uint64_t n, struct sr_verdict *verdict, uint64_t *detail)
{
	const struct sr_fault_rule *rule = &armed->rule;
	const struct rule_range *range = &armed->state->ranges[sr_range_behind(armed->state, verdict->offset)];
	uint64_t from = sr_larger(verdict->offset, range->start);
	uint64_t bits = (sr_smaller(verdict->offset + verdict->bytes, range->end) - from) * 8;

	if (verdict->flip_count == SR_FLIPS_MAX)
		return 1;
	struct sr_flip *added = &verdict->flips[verdict->flip_count++];
	*added = (struct sr_flip){.first_bit = from * 8,
				  .range_bits = bits,
				  .bits = sr_smaller(rule->bits, bits),
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
	return rule->sizes[0] ? rule->parts : sr_smaller(rule->parts, units_of(verdict));
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
	return sr_smaller(end, verdict->bytes);
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

/* Add the effect of a rule that fired to the verdict. The lock is held. Returns 0 if nothing happens. */
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
		injection->detail[0] = delay(armed, n, verdict);
		break;
	case SR_LIMIT:
		injection->detail[0] = limit(armed, verdict);
		return injection->detail[0] > 0;
	case SR_FREEZE:
		if (rule->late)
			verdict->late_waits[verdict->late_wait_count++] = wait_for(armed, UINT64_MAX);
		else
			wait_until(verdict, armed, UINT64_MAX);
		break;
	case SR_SHORTEN:
		verdict->short_bytes = verdict->is_short ? sr_smaller(verdict->short_bytes, rule->bytes) : rule->bytes;
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
		injection->hidden = flip(armed, n, verdict, injection->detail);
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

/* Take one of the `times`, and return its number; 0 if none is left. */
static uint64_t take_time(struct sr_fault_counter *counter, uint64_t times)
{
	uint64_t fired = __atomic_load_n(&counter->fired, __ATOMIC_RELAXED);

	do
		if (fired >= times)
			return 0;
	while (!__atomic_compare_exchange_n(&counter->fired, &fired, fired + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return fired + 1;
}

static void fire(struct sr_fault_set *faults, const struct armed_rule *armed, uint64_t n, uint64_t fired,
		 struct sr_verdict *verdict)
{
	const struct sr_fault_rule *rule = &armed->rule;
	struct sr_injection injection = {
		.rule = rule->id,
		.n = n,
		.fired = fired,
		.time_ns = sr_time_of_day_ns(),
		.offset = verdict->offset,
		.bytes = verdict->bytes,
		.op = verdict->op,
		.effect = rule->effect,
	};

	int is_delayed = rule->effect != SR_DELAY && (rule->delay_ns || rule->jitter_ns), happens = 0;
	pthread_mutex_lock(&faults->lock);
	if (!is_wait(rule->effect) || !faults->waits_over) {
		if (waits(rule) && verdict->ready_ns == 0)
			verdict->ready_ns = sr_now_ns();
		int had_error = verdict->error;
		if (is_delayed)
			delay(armed, n, verdict);
		happens = apply(armed, n, verdict, &injection) || is_delayed;
		injection.hidden |= had_error && !is_wait(rule->effect) && rule->effect != SR_NOTE;
		injection.error = rule->effect == SR_FULL ? ENOSPC : rule->error;
	}
	if (happens) {
		if (rule->holds && !faults->waits_over)
			hold(verdict, armed, fired);
		__atomic_store_n(&armed->state->counter->last_ns, injection.time_ns, __ATOMIC_RELAXED);
		sr_record_injection(faults, &injection, armed->state);
	} else {
		__atomic_fetch_sub(&armed->state->counter->fired, 1, __ATOMIC_RELAXED); /* each fault has its record */
	}
	pthread_mutex_unlock(&faults->lock);
}

/* Let a rule judge an operation that is in its place. Returns 1 if the operation takes space that the rule has. */
static int judge_by(struct sr_fault_set *faults, const struct armed_rule *armed, struct sr_verdict *verdict)
{
	struct sr_fault_counter *counter = armed->state->counter;

	if (armed->rule.effect == SR_FULL && takes_space(armed, verdict->hole_bytes))
		return 1;
	uint64_t n = __atomic_add_fetch(&counter->matched, 1, __ATOMIC_RELAXED);
	uint64_t fired = sr_fault_fires(&armed->rule.turns, n) ? take_time(counter, armed->rule.turns.times) : 0;
	if (fired)
		fire(faults, armed, n, fired, verdict);
	return 0;
}

int sr_fault_set_judge(struct sr_fault_set *faults, struct sr_verdict *verdict)
{
	const struct sr_fault_table *table = faults->table;
	uint64_t taken = 0;

	if (!table || (verdict->is_held && verdict->seen_serial))
		return 0;
	if (verdict->seen_serial == 0)
		verdict->failed_waits = __atomic_load_n(&faults->failed_waits, __ATOMIC_ACQUIRE);
	if (verdict->late_wait_count)
		sr_prune_late_waits(faults, verdict); /* rules may come and go for ever while the operation waits */
	verdict->ready_ns = 0;
	/* Rules that fail it come first: if one does, the changes of bytes by the others do not happen. */
	for (int failures = 1; failures >= 0; failures--)
		for (size_t i = 0; i < table->count; i++) {
			const struct armed_rule *armed = &table->rules[i];

			if (is_failure(&armed->rule) == failures && armed->serial > verdict->seen_serial && is_in_place(armed, verdict))
				taken |= (uint64_t)judge_by(faults, armed, verdict) << i;
		}
	if (verdict->error && taken)
		give_back(table, taken, verdict->hole_bytes);
	verdict->seen_serial = table->newest_serial;
	return verdict->wait_count > 0;
}
