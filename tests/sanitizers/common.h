/* What the stress programs share: a check that ends the program, and dice that each thread throws for itself. */
#ifndef STRESS_COMMON_H
#define STRESS_COMMON_H

#include <stdint.h>

/* `what`, then perhaps a text with what printf needs for it. */
#define CHECK(what, ...)                                                          \
	do {                                                                      \
		if (!(what))                                                      \
			stress_failed(__FILE__, __LINE__, #what, " " __VA_ARGS__); \
	} while (0)
_Noreturn void stress_failed(const char *file, int line, const char *what, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

extern uint64_t seed_given, round_number;

/* From the seed, the round, and a number that the thread has in it. */
void seed_thread(uint64_t number);
int is_seeded(void);
uint64_t dice(uint64_t sides);
uint64_t now_ms(void);

/* The command line's FOLDER, SECONDS and SEED: runs rounds until the time is over.  One that takes minutes is stuck. */
int run_rounds(int argc, char **argv, void (*run_round)(const char *folder));

#endif
