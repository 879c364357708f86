/* The page of a rig's controlled clock: a mapped file of 4096 bytes with the terms by which this process reads time.
 * Format: docs/reference/formats/clock-page.md. Any thread.
 *
 * Fault contract: the terms are in two halves, and the sequence number names the valid one, so a writer that is killed
 * changes nothing. Terms are used only if their checksum, generation and ranges are right; otherwise, and if the file is
 * truncated, the terms before stay in use.
 */
#ifndef SITERIG_CLOCK_PAGE_H
#define SITERIG_CLOCK_PAGE_H

#include <stdint.h>

enum {
	SR_CLOCK_BYTES = 4096,
	SR_CLOCK_ROLES = 32,
	SR_CLOCK_SEQUENCE_AT = 16,
	SR_CLOCK_TERMS_AT = 64,
	SR_CLOCK_TERMS_STEP = 896,
	SR_CLOCK_SLOTS_AT = 2048,
	SR_CLOCK_SLOT_BYTES = 64,
	SR_CLOCK_MILLION = 1000000,
	SR_CLOCK_RATE_MAX = 1000, /* times as fast as real time */
};

/* The difference of one role's wall time from that of the others. */
struct sr_clock_role {
	int64_t skew_ns;
	int64_t drift_ppm;
	uint64_t drift_from_ns; /* the skew is exact at this monotonic time of the controlled clock */
};

/* Controlled time follows from the times of the kernel: they are shifted, and since `rate_from_ns` they run
 * `rate_ppm` / 1000000 times as fast; before it, `rate_before_ppm`. */
struct sr_clock_terms {
	uint32_t crc; /* CRC32C of the bytes after it */
	uint32_t reserved;
	uint64_t generation;      /* the sequence number under which they are valid */
	int64_t wall_ns;          /* added to CLOCK_REALTIME */
	int64_t monotonic_ns;     /* added to CLOCK_MONOTONIC and CLOCK_BOOTTIME */
	uint64_t rate_ppm;
	uint64_t rate_before_ppm;
	uint64_t rate_from_ns;    /* CLOCK_MONOTONIC */
	int64_t written_ns;       /* CLOCK_REALTIME when they were written */
	uint8_t boot_id[16];      /* the kernel's boot in which they were written */
	struct sr_clock_role roles[32];
};

struct sr_clock;

/* Map the page in file `fd`, which stays the caller's; `role` is the number of this process's role, -1: none. NULL:
 * errno is the reason, EBADMSG for a page without valid terms. */
struct sr_clock *sr_clock_open(int fd, int role);
void sr_clock_free(struct sr_clock *clock);

/* The generation of the terms in use, after a look at the page. */
uint64_t sr_clock_generation(struct sr_clock *clock);

/* 1: the page has no valid terms now, and former ones are in use. */
int sr_clock_is_damaged(struct sr_clock *clock);

uint64_t sr_clock_wall_ns(struct sr_clock *clock);
uint64_t sr_clock_monotonic_ns(struct sr_clock *clock);
uint64_t sr_clock_boottime_ns(struct sr_clock *clock);

/* The factor now, in millionths, by which controlled time is faster than real time. */
uint64_t sr_clock_rate_ppm(struct sr_clock *clock);

/* From now on change logs and injections of this process have the wall time of this clock; NULL: the kernel's. */
void sr_clock_attach(struct sr_clock *clock);

/* The wall time of change logs and injections. */
uint64_t sr_time_of_day_ns(void);

#endif
