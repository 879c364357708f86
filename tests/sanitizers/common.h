/* Functions of all stress programs: a check that ends the program, and random numbers for each thread. */
#ifndef STRESS_COMMON_H
#define STRESS_COMMON_H

#include <stdint.h>

/* Arguments: the condition `what`, then optionally a format with its values, as of printf. */
#define CHECK(what, ...)                                                          \
	do {                                                                      \
		if (!(what))                                                      \
			stress_failed(__FILE__, __LINE__, #what, " " __VA_ARGS__); \
	} while (0)
_Noreturn void stress_failed(const char *file, int line, const char *what, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

extern uint64_t seed_given, round_number;

/* Seeds the thread's dice from the seed, the round, and the thread's number in the round. */
void seed_thread(uint64_t number);
int is_seeded(void);
uint64_t dice(uint64_t sides);
uint64_t now_ms(void);

/* Runs rounds until SECONDS of the command line (FOLDER SECONDS SEED) are over.  A round that takes minutes is stuck. */
int run_rounds(int argc, char **argv, void (*run_round)(const char *folder));

#endif
