/* The clocks of this host, in nanoseconds. The time for people is in clock_page.h: a rig can control it. */
#ifndef SITERIG_CLOCK_H
#define SITERIG_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t sr_clock_ns(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* CLOCK_MONOTONIC, for durations. */
static inline uint64_t sr_now_ns(void)
{
	return sr_clock_ns(CLOCK_MONOTONIC);
}

#endif
