/* Counters of rules, the ring of injections, and callers that wait for either. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faults/rules_internal.h"

static void raise_event(int fd)
{
	const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0) {
		/* EAGAIN: the event is raised already, to its limit */
	}
}

static int is_due(const struct sr_fault_set *faults, const struct tell *tell)
{
	if (tell->rule == 0)
		return faults->sequence >= tell->count;
	const struct armed_rule *armed = sr_find_rule(faults, tell->rule);
	return !armed || __atomic_load_n(&armed->state->counter->fired, __ATOMIC_RELAXED) >= tell->count;
}

void sr_record_injection(struct sr_fault_set *faults, struct sr_injection *injection, const struct rule_state *state)
{
	injection->sequence = ++faults->sequence;
	injection->position = sr_position_value(faults->positions);
	faults->ring[(injection->sequence - 1) % SR_INJECTIONS_KEPT] = *injection;
	uint64_t fired = __atomic_load_n(&state->counter->fired, __ATOMIC_RELAXED);
	for (const struct tell *tell = faults->tells; tell; tell = tell->next)
		if (tell->rule ? tell->rule == injection->rule && fired >= tell->count : faults->sequence >= tell->count)
			raise_event(tell->fd);
}

void sr_tell_gone(struct sr_fault_set *faults)
{
	for (const struct tell *tell = faults->tells; tell; tell = tell->next)
		if (tell->rule && !sr_find_rule(faults, tell->rule))
			raise_event(tell->fd);
}

void sr_tell_all(struct sr_fault_set *faults)
{
	for (const struct tell *tell = faults->tells; tell; tell = tell->next)
		raise_event(tell->fd);
}

int sr_fault_set_tell(struct sr_fault_set *faults, uint64_t rule, uint64_t count, int fd)
{
	struct tell *tell = calloc(1, sizeof(*tell));

	if (!tell)
		return -ENOMEM;
	*tell = (struct tell){.rule = rule, .count = count, .fd = fd};
	pthread_mutex_lock(&faults->lock);
	tell->next = faults->tells;
	faults->tells = tell;
	if (is_due(faults, tell))
		raise_event(fd);
	pthread_mutex_unlock(&faults->lock);
	return 0;
}

void sr_fault_set_tell_no_more(struct sr_fault_set *faults, int fd)
{
	pthread_mutex_lock(&faults->lock);
	for (struct tell **at = &faults->tells; *at;) {
		struct tell *tell = *at;

		if (tell->fd == fd) {
			*at = tell->next;
			free(tell);
		} else {
			at = &tell->next;
		}
	}
	pthread_mutex_unlock(&faults->lock);
}

void sr_fault_counter_read(const struct sr_fault_counter *counter, struct sr_fault_counts *out)
{
	out->matched = __atomic_load_n(&counter->matched, __ATOMIC_RELAXED);
	out->fired = __atomic_load_n(&counter->fired, __ATOMIC_RELAXED);
	out->last_ns = __atomic_load_n(&counter->last_ns, __ATOMIC_RELAXED);
	out->waiting = 0;
}

int sr_fault_set_counts(struct sr_fault_set *faults, uint64_t rule, struct sr_fault_counts *out)
{
	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(&faults->lock);
	const struct armed_rule *armed = sr_find_rule(faults, rule);
	if (armed)
		sr_fault_counter_read(armed->state->counter, out);
	for (const struct sr_verdict *waiting = faults->waiting; waiting; waiting = waiting->next)
		for (int i = 0; i < waiting->wait_count; i++)
			out->waiting += waiting->waits[i].rule == rule;
	pthread_mutex_unlock(&faults->lock);
	return armed ? 0 : -ENOENT;
}

size_t sr_fault_set_injections(struct sr_fault_set *faults, uint64_t after, struct sr_injection *out, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&faults->lock);
	if (faults->sequence > SR_INJECTIONS_KEPT && after < faults->sequence - SR_INJECTIONS_KEPT)
		after = faults->sequence - SR_INJECTIONS_KEPT;
	while (count < max && after < faults->sequence)
		out[count++] = faults->ring[after++ % SR_INJECTIONS_KEPT];
	pthread_mutex_unlock(&faults->lock);
	return count;
}
