#define _GNU_SOURCE
#include "common.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { STUCK_S = 300 };

uint64_t seed_given, round_number;
static _Thread_local uint64_t rng;

_Noreturn void stress_failed(const char *file, int line, const char *what, const char *format, ...)
{
	va_list args;
	fprintf(stderr, "%s:%d: not so: %s:", file, line, what);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nround %" PRIu64 " of seed %" PRIu64 "\n", round_number, seed_given);
	_exit(1);
}

uint64_t dice(uint64_t sides)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (rng * 0x2545F4914F6CDD1Du >> 33) % sides;
}

void seed_thread(uint64_t number)
{
	rng = (seed_given + 1) * 0x9E3779B97F4A7C15u + round_number * 0xD1B54A32D192ED03u + number * 0x8CB92BA72F3D8DD7u;
	rng |= 1;
	for (int i = 0; i < 8; i++)
		dice(2);
}

int is_seeded(void)
{
	return rng != 0;
}

uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int run_rounds(int argc, char **argv, void (*run_round)(const char *folder))
{
	if (argc != 4) {
		fprintf(stderr, "usage: %s FOLDER SECONDS SEED\n", argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	seed_given = strtoull(argv[3], NULL, 10);
	uint64_t end_ms = now_ms() + strtoull(argv[2], NULL, 10) * 1000;
	do {
		alarm(STUCK_S);
		run_round(argv[1]);
		round_number++;
	} while (now_ms() < end_ms);
	return 0;
}
