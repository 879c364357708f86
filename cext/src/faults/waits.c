/* Operations that wait for a rule. */
#define _GNU_SOURCE
#include <errno.h>

#include "base/clock.h"
#include "faults/rules_internal.h"

static int is_over(const struct sr_fault_set *faults, const struct sr_fault_wait *wait, uint64_t now_ns)
{
	const struct armed_rule *armed = sr_find_rule(faults, wait->rule);

	if (now_ns >= wait->until_ns || !armed || !armed->rule.enabled || armed->serial != wait->serial)
		return 1;
	return wait->held && __atomic_load_n(&armed->state->counter->released, __ATOMIC_ACQUIRE) >= wait->held;
}

/* Forget the waits that are over, and return when the last one of the others ends; 0: none is left. */
static uint64_t prune(const struct sr_fault_set *faults, struct sr_fault_wait *waits, int *count)
{
	uint64_t now = sr_now_ns(), last = 0;
	int kept = 0;

	for (int i = 0; i < *count; i++) {
		if (is_over(faults, &waits[i], now))
			continue;
		if (waits[i].until_ns > last)
			last = waits[i].until_ns;
		waits[kept++] = waits[i];
	}
	*count = kept;
	return last;
}

void sr_prune_late_waits(struct sr_fault_set *faults, struct sr_verdict *verdict)
{
	pthread_mutex_lock(&faults->lock);
	(void)prune(faults, verdict->late_waits, &verdict->late_wait_count);
	pthread_mutex_unlock(&faults->lock);
}

/* An operation that a rule holds fails with the disk only, also if it does not wait yet: the holder decides on it. */
static int has_failed(const struct sr_fault_set *faults, const struct sr_verdict *verdict)
{
	return verdict->is_held ? faults->ended : verdict->failed_waits != faults->failed_waits;
}

static void sleep_until(struct sr_fault_set *faults, uint64_t until_ns)
{
	struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};

	if (until_ns == UINT64_MAX)
		pthread_cond_wait(&faults->changed, &faults->lock);
	else
		pthread_cond_timedwait(&faults->changed, &faults->lock, &until);
}

int sr_fault_set_wait(struct sr_fault_set *faults, struct sr_verdict *verdict)
{
	uint64_t until;

	pthread_mutex_lock(&faults->lock);
	verdict->next = faults->waiting;
	faults->waiting = verdict;
	while (!has_failed(faults, verdict) && !faults->waits_over &&
	       (until = prune(faults, verdict->waits, &verdict->wait_count)))
		sleep_until(faults, until);
	for (struct sr_verdict **at = &faults->waiting; *at; at = &(*at)->next)
		if (*at == verdict) {
			*at = verdict->next;
			break;
		}
	verdict->wait_count = 0;
	int rc = has_failed(faults, verdict) ? -EIO : 0;
	pthread_mutex_unlock(&faults->lock);
	return rc;
}

void sr_fault_set_release(struct sr_fault_set *faults, uint64_t rule, uint64_t fired)
{
	pthread_mutex_lock(&faults->lock);
	const struct armed_rule *armed = sr_find_rule(faults, rule);
	if (armed && __atomic_load_n(&armed->state->counter->released, __ATOMIC_RELAXED) < fired)
		__atomic_store_n(&armed->state->counter->released, fired, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&faults->changed);
	pthread_mutex_unlock(&faults->lock);
}

void sr_fault_set_end_waits(struct sr_fault_set *faults)
{
	pthread_mutex_lock(&faults->lock);
	__atomic_store_n(&faults->waits_over, 1, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&faults->changed);
	pthread_mutex_unlock(&faults->lock);
}

static void fail_waits(struct sr_fault_set *faults)
{
	__atomic_add_fetch(&faults->failed_waits, 1, __ATOMIC_ACQ_REL);
	pthread_cond_broadcast(&faults->changed);
}

void sr_fault_set_end(struct sr_fault_set *faults)
{
	pthread_mutex_lock(&faults->lock);
	faults->ended = 1;
	fail_waits(faults);
	sr_tell_all(faults);
	pthread_mutex_unlock(&faults->lock);
}

void sr_fault_set_fail_waits(struct sr_fault_set *faults)
{
	pthread_mutex_lock(&faults->lock);
	fail_waits(faults);
	pthread_mutex_unlock(&faults->lock);
}
