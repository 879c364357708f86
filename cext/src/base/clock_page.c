#define _GNU_SOURCE
#include "base/clock_page.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mapped.h"
#include "base/siterig.h"

_Static_assert(sizeof(struct sr_clock_terms) == 848, "the format of the page");
_Static_assert(SR_CLOCK_TERMS_AT + 2 * SR_CLOCK_TERMS_STEP <= SR_CLOCK_SLOTS_AT, "the halves are before the slots");

/* The terms of this process's role. Threads read one of two copies while the other one is replaced. */
enum { WORDS = 9 };
struct view {
	int64_t wall_ns, monotonic_ns, rate_ppm, rate_before_ppm, rate_from_ns, skew_ns, drift_ppm, drift_from_ns, generation;
};
_Static_assert(sizeof(struct view) == WORDS * 8, "copied word by word");

struct sr_clock {
	struct sr_map map;
	int role;
	int damaged;              /* atomic */
	uint64_t looked;          /* atomic: the sequence number of the page at the last look */
	uint64_t count;           /* atomic: views[count & 1] is valid */
	int64_t views[2][WORDS];  /* atomic words */
	pthread_mutex_t replacing;
};

static struct sr_clock *attached; /* atomic */

static uint64_t sequence_of(const struct sr_clock *clock)
{
	return __atomic_load_n((const uint64_t *)(const void *)(clock->map.at + SR_CLOCK_SEQUENCE_AT), __ATOMIC_ACQUIRE);
}

static int is_valid(const struct sr_clock_terms *terms, uint64_t sequence)
{
	const uint64_t rate_max = (uint64_t)SR_CLOCK_RATE_MAX * SR_CLOCK_MILLION;
	uint32_t crc = sr_crc32c(0, (const uint8_t *)terms + sizeof(terms->crc), sizeof(*terms) - sizeof(terms->crc));

	return terms->crc == crc && terms->generation == sequence && terms->rate_ppm <= rate_max &&
	       terms->rate_before_ppm <= rate_max;
}

/* 1 with the valid terms of the page and their sequence number, or 0. */
static int read_terms(const struct sr_clock *clock, struct sr_clock_terms *terms)
{
	for (int attempt = 0; attempt < 8; attempt++) { /* a writer changes the page while it is copied */
		uint64_t sequence = sequence_of(clock);
		size_t at = SR_CLOCK_TERMS_AT + (sequence & 1) * SR_CLOCK_TERMS_STEP;

		for (size_t word = 0; word < sizeof(*terms) / 8; word++)
			((uint64_t *)(void *)terms)[word] =
				__atomic_load_n((const uint64_t *)(const void *)(clock->map.at + at) + word, __ATOMIC_RELAXED);
		if (is_valid(terms, sequence))
			return 1;
	}
	return 0;
}

static void publish(struct sr_clock *clock, const struct sr_clock_terms *terms)
{
	struct view view = {
		.wall_ns = terms->wall_ns,
		.monotonic_ns = terms->monotonic_ns,
		.rate_ppm = (int64_t)terms->rate_ppm,
		.rate_before_ppm = (int64_t)terms->rate_before_ppm,
		.rate_from_ns = (int64_t)terms->rate_from_ns,
		.generation = (int64_t)terms->generation,
	};
	uint64_t next = clock->count + 1;

	if (clock->role >= 0) {
		view.skew_ns = terms->roles[clock->role].skew_ns;
		view.drift_ppm = terms->roles[clock->role].drift_ppm;
		view.drift_from_ns = (int64_t)terms->roles[clock->role].drift_from_ns;
	}
	/* Released one by one: who reads a word of this copy also sees the count that ended its former use. */
	for (int word = 0; word < WORDS; word++)
		__atomic_store_n(&clock->views[next & 1][word], ((int64_t *)(void *)&view)[word], __ATOMIC_RELEASE);
	__atomic_store_n(&clock->count, next, __ATOMIC_RELEASE);
}

/* Take over the terms of a page that was changed since the last look. */
static void look(struct sr_clock *clock)
{
	struct sr_clock_terms terms;

	pthread_mutex_lock(&clock->replacing);
	int valid = read_terms(clock, &terms);
	if (valid)
		publish(clock, &terms);
	__atomic_store_n(&clock->damaged, !valid, __ATOMIC_RELAXED);
	__atomic_store_n(&clock->looked, valid ? terms.generation : sequence_of(clock), __ATOMIC_RELEASE);
	pthread_mutex_unlock(&clock->replacing);
}

static struct view view_of(struct sr_clock *clock)
{
	struct view view;
	uint64_t count;

	if (sequence_of(clock) != __atomic_load_n(&clock->looked, __ATOMIC_ACQUIRE))
		look(clock);
	do {
		count = __atomic_load_n(&clock->count, __ATOMIC_ACQUIRE);
		for (int word = 0; word < WORDS; word++)
			((int64_t *)(void *)&view)[word] = __atomic_load_n(&clock->views[count & 1][word], __ATOMIC_ACQUIRE);
	} while (__atomic_load_n(&clock->count, __ATOMIC_RELAXED) != count);
	return view;
}

/* `ns` times a number of millionths, towards zero, within the range of the result. */
static int64_t millionths(int64_t ns, int64_t ppm)
{
	__int128 exact = (__int128)ns * ppm / SR_CLOCK_MILLION;
	const __int128 most = INT64_MAX / 4; /* sums of some of them do not overflow */
	return (int64_t)(exact > most ? most : exact < -most ? -most : exact);
}

static int64_t rate_at(const struct view *view, int64_t now)
{
	return now >= view->rate_from_ns ? view->rate_ppm : view->rate_before_ppm;
}

/* Time that passed, or did not pass, because the clock is faster or slower than real time. */
static int64_t gained(const struct view *view, int64_t now)
{
	return millionths((int64_t)((uint64_t)now - (uint64_t)view->rate_from_ns), rate_at(view, now) - SR_CLOCK_MILLION);
}

static uint64_t sum(uint64_t kernel, int64_t shift)
{
	int64_t time;
	if (__builtin_add_overflow((int64_t)kernel, shift, &time))
		return INT64_MAX;
	return time > 0 ? (uint64_t)time : 0;
}

static int64_t elapsed_shift(const struct view *view, int64_t now)
{
	int64_t shift;
	return __builtin_add_overflow(view->monotonic_ns, gained(view, now), &shift) ? INT64_MAX / 4 : shift;
}

uint64_t sr_clock_monotonic_ns(struct sr_clock *clock)
{
	struct view view = view_of(clock);
	uint64_t now = sr_now_ns();
	return sum(now, elapsed_shift(&view, (int64_t)now));
}

uint64_t sr_clock_boottime_ns(struct sr_clock *clock)
{
	struct view view = view_of(clock);
	return sum(sr_clock_ns(CLOCK_BOOTTIME), elapsed_shift(&view, (int64_t)sr_now_ns()));
}

uint64_t sr_clock_wall_ns(struct sr_clock *clock)
{
	struct view view = view_of(clock);
	int64_t now = (int64_t)sr_now_ns();
	int64_t wall = (int64_t)sum(sr_clock_ns(CLOCK_REALTIME), gained(&view, now));

	if (view.drift_ppm) {
		uint64_t since = sum((uint64_t)now, elapsed_shift(&view, now)) - (uint64_t)view.drift_from_ns;
		wall = (int64_t)sum((uint64_t)wall, millionths((int64_t)since, view.drift_ppm));
	}
	return sum(sum((uint64_t)wall, view.wall_ns), view.skew_ns);
}

uint64_t sr_clock_rate_ppm(struct sr_clock *clock)
{
	struct view view = view_of(clock);
	return (uint64_t)rate_at(&view, (int64_t)sr_now_ns());
}

uint64_t sr_clock_generation(struct sr_clock *clock)
{
	return (uint64_t)view_of(clock).generation;
}

int sr_clock_is_damaged(struct sr_clock *clock)
{
	view_of(clock);
	return __atomic_load_n(&clock->damaged, __ATOMIC_RELAXED);
}

struct sr_clock *sr_clock_open(int fd, int role)
{
	struct sr_clock *clock;
	int rc = role >= SR_CLOCK_ROLES ? -EINVAL : 0;

	clock = calloc(1, sizeof(*clock));
	if (!clock)
		return NULL;
	pthread_mutex_init(&clock->replacing, NULL);
	clock->role = role;
	if (rc == 0)
		rc = sr_map_open(&clock->map, fd, SR_CLOCK_BYTES);
	if (rc == 0) {
		look(clock);
		if (clock->damaged)
			rc = -EBADMSG;
	}
	if (rc) {
		sr_clock_free(clock);
		errno = -rc;
		return NULL;
	}
	return clock;
}

void sr_clock_free(struct sr_clock *clock)
{
	if (!clock)
		return;
	sr_map_close(&clock->map);
	pthread_mutex_destroy(&clock->replacing);
	free(clock);
}

void sr_clock_attach(struct sr_clock *clock)
{
	__atomic_store_n(&attached, clock, __ATOMIC_RELEASE);
}

uint64_t sr_time_of_day_ns(void)
{
	struct sr_clock *clock = __atomic_load_n(&attached, __ATOMIC_ACQUIRE);
	return clock ? sr_clock_wall_ns(clock) : sr_clock_ns(CLOCK_REALTIME);
}
